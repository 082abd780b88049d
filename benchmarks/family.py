"""Measure the papers' tables with the embedded models: prune, retrain and evaluate, run by run.

A run is a name and a few calls of minitron. Its result is a file in benchmarks/results/family;
runs with a result file are not repeated, so an interrupted measurement continues. --work holds the
models. `benchmarks/family_page.py` writes docs/family.md from the results.

    python benchmarks/family.py --corpus train.jsonl.gz --held-out valid.jsonl.gz --work runs
    python benchmarks/family.py ... --only t14 t15 --threads 1
    python benchmarks/family.py ... --only correction --other plays.txt

Runs that are compared use the same tokens: TOKENS or SHORT of the corpus, the same rows for all
runs of a seed, and the first HELD_OUT_TOKENS of the held-out text. The tables are of arXiv
2407.14679.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minitron
from minitron.candidates.texts import first_tokens
from minitron.evaluation.loss import evaluate_text
from minitron.records.folder_writer import write_json
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from minitron.text.corpus import HeldOut, held_out_ids, held_out_text
from minitron.text.encoding import tokenize
from minitron.text.texts import read_texts

RESULTS = Path(__file__).parent / "results" / "family"
SEEDS = (0, 1, 2)
SEQ_LEN, BATCH = 512, 4
CALIBRATION = 65_536  # tokens to reconstruct on
TOKENS = 262_144  # training tokens of a run of table 14
SHORT = 131_072  # training tokens of a run of another table
HELD_OUT_TOKENS = 73_728
SAMPLES = 256  # sequences to measure importance on
# Peaks of the cosine schedules. At 102,000 tokens 2e-3 was no better for cross-entropy (LOG.md).
RATES = {"distill": 2e-3, "train": 1e-3, "scratch": 2e-3}

# Peaks for a half as cut and reconstructed, by training tokens: the best of 65,536, and near ones.
BEST_RATES: dict[int, dict[str, tuple[float, ...]]] = {
    16_384: {"cut": (1e-3,), "select": (2e-4,), "rotate": (2e-4,)},
    65_536: {"cut": (1e-3,), "select": (5e-4,), "rotate": (2e-4,)},
    262_144: {"rotate": (2e-4, 5e-4), "select": (5e-4,), "cut": (2e-3,)},
    524_288: {"rotate": (2e-4, 5e-4), "select": (5e-4,)},
}

HALF = {"hidden_size": 192, "intermediate_size": 592, "num_attention_heads": 6}
HALF_LAYERS = 5
QUARTER = {"hidden_size": 128, "intermediate_size": 592, "num_attention_heads": 4}
QUARTER_LAYERS = 3
# Six of the search's 37 candidates for the half, from its first to a late one.
CANDIDATES = {
    "5x192-ffn592-heads6": (5, 192, 592, 6),
    "5x176-ffn768-heads6": (5, 176, 768, 6),
    "5x208-ffn432-heads6": (5, 208, 432, 6),
    "5x192-ffn512-heads8": (5, 192, 512, 8),
    "6x192-ffn432-heads6": (6, 192, 432, 6),
    "6x144-ffn944-heads6": (6, 144, 944, 6),
}
EVERY = 8  # steps between two evaluations of a candidate
# About the same number of parameters by width only and by depth only.
NARROW = {"hidden_size": 176, "intermediate_size": 640, "num_attention_heads": 6}
SHALLOW_LAYERS = 2
INNER = {"intermediate_size": 160, "num_attention_heads": 4}  # MLP and attention only


@dataclass(frozen=True)
class Work:
    """The folder of the models, and the texts of all runs."""

    folder: Path
    corpus: str
    held_out: HeldOut
    other: str | None = None  # a text of another kind than the corpus

    @classmethod
    def open(cls, folder: Path, corpus: str, held_out: str, other: str | None) -> "Work":
        """Make the folder and read the texts."""
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = load_tokenizer(open_source("tiny"))
        whole = held_out_text(held_out, tokenizer, SEQ_LEN)
        text = first_tokens(whole, HELD_OUT_TOKENS)
        return cls(folder, corpus, text, other)

    def path(self, name: str) -> str:
        """The path of a model."""
        return str(self.folder / name)

    def rows(self, tokens: int, seed: int) -> str:
        """The first rows of the corpus in the order of a seed, as a file of token ids."""
        path = self.folder / f"rows-{tokens}-{seed}.npy"
        if not path.exists():
            order = np.random.default_rng(seed).permutation(len(self.all_rows()))
            np.save(path, self.all_rows()[order[: tokens // SEQ_LEN]])
        return str(path)

    def all_rows(self) -> Any:
        """The whole corpus as token ids (rows, SEQ_LEN)."""
        path = self.folder / "rows.npy"
        if not path.exists():
            tokenizer = load_tokenizer(open_source("tiny"))
            documents = tokenize(read_texts(self.corpus, tokenizer), tokenizer)
            stream = np.concatenate([document.ids for document in documents]).astype(np.int32)
            np.save(path, stream[: len(stream) // SEQ_LEN * SEQ_LEN].reshape(-1, SEQ_LEN))
        return np.load(path, mmap_mode="r")

    def held_out_rows(self) -> str:
        """A part of the held-out text as a file of token ids, for frequent evaluations."""
        path = self.folder / "held-out-rows.npy"
        if not path.exists():
            np.save(path, self.held_out.inputs[0][:32])
        return str(path)

    def other_rows(self, held_out: bool) -> str:
        """The other text as a file of token ids: its first nine tenths, or the last tenth."""
        path = self.folder / f"other-{'held-out' if held_out else 'train'}.npy"
        if not path.exists():
            assert self.other, "the teacher's correction needs --other, a text unlike the corpus"
            tokenizer = load_tokenizer(open_source("tiny"))
            documents = tokenize(read_texts(self.other, tokenizer), tokenizer)
            stream = np.concatenate([document.ids for document in documents]).astype(np.int32)
            rows = stream[: len(stream) // SEQ_LEN * SEQ_LEN].reshape(-1, SEQ_LEN)
            cut = len(rows) * 9 // 10
            np.save(path, rows[cut:] if held_out else rows[:cut])
        return str(path)

    def loss(self, name: str) -> float:
        """The loss of a model on the held-out text, in nats per token."""
        return evaluate_text(load_model(open_source(name)), self.held_out).loss

    def pruned(self, name: str, source: str = "tiny", **sizes: Any) -> str:
        """The path of a pruned model, which is made if it does not exist."""
        path = Path(self.path(name))
        if not path.exists():
            importance = {"importance": self.importance(source)}
            if sizes.get("scores") == "random":
                importance = {}
            minitron.prune(source, str(path), **{**importance, **sizes})
        return str(path)

    def importance(self, source: str) -> str:
        """The path of the importance of a model, which is measured if it does not exist."""
        path = self.folder / f"{Path(source).name}.safetensors"
        if not path.exists():
            rows = self.rows(SAMPLES * SEQ_LEN, 1000)
            minitron.measure_importance(source, str(path), corpus=rows)
        return str(path)


@dataclass(frozen=True)
class Run:
    """A run: one seed of a row of a table, or a point of a curve."""

    table: str
    name: str
    make: Callable[[Work], dict[str, Any]]

    @property
    def result(self) -> Path:
        """The path of its result."""
        return RESULTS / self.table / f"{self.name}.json"


def half(work: Work) -> str:
    """The teacher pruned to half by importance."""
    return work.pruned("half", **HALF, num_hidden_layers=HALF_LAYERS)


def quarter(work: Work) -> str:
    """The teacher pruned to a quarter in one step."""
    return work.pruned("quarter", **QUARTER, num_hidden_layers=QUARTER_LAYERS)


def retrained(
    work: Work,
    name: str,
    start: str,
    *,
    how: str,
    seed: int,
    tokens: int = TOKENS,
    teacher: str = "tiny",
    rows: str | None = None,
    keep: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Retrain a model by `distill` or `train`, from its weights or random ones; return losses."""
    out = work.path(name)
    scratch = options.get("scratch", False)
    shared = {
        "corpus": rows or work.rows(tokens, seed),
        "seq_len": SEQ_LEN,
        "batch_size": BATCH,
        "warmup_steps": 20,
        "save_steps": 1_000_000,  # never, unless the caller evaluates checkpoints
        "seed": seed,
        "dtype": "float32",
        "learning_rate": RATES["scratch" if scratch else how],
    }
    before = None if scratch else work.loss(start)
    begun = time.monotonic()
    if not Path(out).exists():
        if how == "distill":
            minitron.distill(start, out, teacher=teacher, **{**shared, **options})
        else:
            minitron.train(out, init=start, **{**shared, **options})
    seconds = time.monotonic() - begun
    found = {
        "before": before,
        "loss": work.loss(out),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "parameters": minitron.inspect(out).parameters,
        "options": {key: value for key, value in options.items() if key != "eval_corpus"},
    }
    if not keep:
        shutil.rmtree(out)
    return found


def embedded(work: Work, name: str) -> dict[str, Any]:
    """The embedded models, evaluated."""
    held_out_tokens = sum(int((targets >= 0).sum()) for targets in work.held_out.targets)
    return {
        "loss": work.loss(name),
        "held_out_tokens": held_out_tokens,
        "parameters": minitron.inspect(name).parameters,
    }


def t14(work: Work, start: str, how: str, seed: int) -> dict[str, Any]:
    """Table 14: random or pruned weights, trained by cross-entropy or distilled."""
    return retrained(
        work, f"t14-{start}-{how}-{seed}", half(work), how=how, seed=seed, scratch=start == "random"
    )


def t14_random_pruning(work: Work, seed: int) -> dict[str, Any]:
    """The teacher pruned to half at random, distilled."""
    cut = work.pruned(
        f"half-random-{seed}",
        **HALF,
        num_hidden_layers=HALF_LAYERS,
        scores="random",
        seed=seed,
    )
    return retrained(work, f"t14-random-pruned-{seed}", cut, how="distill", seed=seed)


def t14_quarter(work: Work, steps: int, seed: int) -> dict[str, Any]:
    """The teacher pruned to a quarter, in one step or from a distilled half."""
    if steps == 1:
        return retrained(work, f"quarter-1-{seed}", quarter(work), how="distill", seed=seed)
    middle = f"middle-{seed}"
    retrained(work, middle, half(work), how="distill", seed=seed + 10, keep=True)
    cut = work.pruned(
        f"quarter-2-{seed}",
        work.path(middle),
        **QUARTER,
        num_hidden_layers=QUARTER_LAYERS,
    )
    return retrained(work, f"quarter-2-{seed}-out", cut, how="distill", seed=seed)


def t15(work: Work, kind: str, seed: int) -> dict[str, Any]:
    """Table 15: the distance between predictions."""
    options: dict[str, Any] = {"kind": kind}
    if kind == "forward_kl + cross-entropy":
        options = {"kind": "forward_kl", "ce_weight": 1.0}
    name = f"t15-{kind}-{seed}"
    return retrained(
        work, name, half(work), how="distill", seed=seed, tokens=SHORT, alpha=0.0, **options
    )


def t1(work: Work, start: str, seed: int) -> dict[str, Any]:
    """Table 1: the rows that no other table has, MLP and attention, and random weights."""
    is_random = start == "random"
    cut = half(work) if is_random else work.pruned("t1-inner", **INNER)
    name = f"t1-{start}-{seed}"
    return retrained(
        work, name, cut, how="distill", seed=seed, tokens=SHORT, alpha=0.0, scratch=is_random
    )


def t13(work: Work, axis: str, seed: int) -> dict[str, Any]:
    """Table 13: about the same number of parameters by width and by depth."""
    sizes: dict[str, Any] = NARROW if axis == "width" else {"num_hidden_layers": SHALLOW_LAYERS}
    cut = work.pruned(f"t13-{axis}", **sizes)
    name = f"t13-{axis}-{seed}"
    return retrained(work, name, cut, how="distill", seed=seed, tokens=SHORT, alpha=0.0)


def t17(work: Work, student: str, alpha: Any, seed: int) -> dict[str, Any]:
    """Table 17: the distance between intermediate states in addition to that of predictions.

    By depth, half of the layers are kept, as in the paper. The row without intermediate states, of
    the half by all axes, is forward KL of table 15.
    """
    cut = work.pruned("t17-depth", num_hidden_layers=3) if student == "depth" else half(work)
    name = f"t17-{student}-{alpha}-{seed}"
    return retrained(work, name, cut, how="distill", seed=seed, tokens=SHORT, alpha=alpha)


def residual(work: Work, is_on: bool, seed: int) -> dict[str, Any]:
    """Section 2.3: pruned heads added to kept heads, after retraining."""
    cut = work.pruned(f"residual-{is_on}", num_attention_heads=4, head_residual=is_on)
    name = f"residual-{is_on}-{seed}"
    return retrained(work, name, cut, how="distill", seed=seed, tokens=SHORT)


def ranking(work: Work, candidate: str) -> dict[str, Any]:
    """Section 2.3: the loss of a candidate, and so its rank, during a brief retraining."""
    layers, hidden, ffn, heads = CANDIDATES[candidate]
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads}
    cut = work.pruned(candidate, **sizes, num_hidden_layers=layers)
    out = f"ranking-{candidate}"
    looks = {"eval_corpus": work.held_out_rows(), "save_steps": EVERY}
    found = retrained(
        work, out, cut, how="distill", seed=0, tokens=SHORT, alpha=0.0, keep=True, **looks
    )
    lines = (Path(work.path(out)) / "training.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    found["looks"] = [
        {"step": record["step"], "loss": record["eval_loss"]}
        for record in logged
        if "eval_loss" in record
    ]
    shutil.rmtree(work.path(out))
    return found


def corrected_teacher(work: Work) -> str:
    """The teacher trained on the other text for an epoch, at 1/5 of its peak rate (2408.11796)."""
    path = Path(work.path("corrected"))
    if not path.exists():
        minitron.train(
            str(path),
            init="tiny",
            corpus=work.other_rows(held_out=False),
            seq_len=SEQ_LEN,
            batch_size=BATCH,
            learning_rate=4e-4,
            warmup_steps=20,
            dtype="float32",
        )
    return str(path)


def correction(work: Work, is_corrected: bool, seed: int) -> dict[str, Any]:
    """2408.11796: the teacher unchanged, or first trained on the text of the student."""
    held_out = held_out_ids(work.other_rows(held_out=True), SEQ_LEN - 1)
    beside = Work(work.folder, work.corpus, held_out, work.other)
    teacher = corrected_teacher(work) if is_corrected else "tiny"
    name = f"correction-{is_corrected}-{seed}"
    rows = work.other_rows(held_out=False)
    found = retrained(
        beside,
        name,
        half(work),
        how="distill",
        seed=seed,
        teacher=teacher,
        rows=rows,
        tokens=np.load(rows).size,
    )
    return {**found, "teacher": beside.loss(teacher)}


def half_by(work: Work, way: str, seed: int) -> str:
    """The teacher pruned to half with the importance and the calibration text of a seed.

    `way` is cut, as pruning alone leaves it, or reconstructed by channels (select) or directions
    (rotate) on the same text.
    """
    text = {"corpus": work.rows(CALIBRATION, 1000 + seed), "samples": CALIBRATION // SEQ_LEN}
    scores = work.path(f"scores-{seed}.safetensors")
    if not Path(scores).exists():
        minitron.importance("tiny", scores, seq_len=SEQ_LEN, **text)
    chosen: dict[str, Any] = {"reconstruct": "none"}
    if way != "cut":
        chosen = {"reconstruct": "auto", "hidden": way, "seq_len": SEQ_LEN, **text}
    sizes = {**HALF, "num_hidden_layers": HALF_LAYERS, "importance": scores}
    return work.pruned(f"half-{way}-{seed}", **sizes, **chosen)


def start(work: Work, way: str, tokens: int, rate: float, seed: int) -> dict[str, Any]:
    """A half as cut or reconstructed, distilled on some tokens at a peak rate."""
    cut = half_by(work, way, seed)
    if not tokens:
        return {"loss": work.loss(cut), "tokens": 0}
    name = f"start-{way}-{tokens}-{rate}-{seed}"
    options: dict[str, Any] = {"tokens": tokens, "learning_rate": rate, "warmup_steps": 10}
    return retrained(work, name, cut, how="distill", seed=seed, **options)


def scratch_curve(work: Work, tokens: int) -> dict[str, Any]:
    """The sizes of the half from random weights, trained on increasing numbers of tokens."""
    return retrained(
        work,
        f"scratch-{tokens}",
        half(work),
        how="train",
        seed=0,
        tokens=tokens,
        scratch=True,
    )


def distill_curve(work: Work, tokens: int) -> dict[str, Any]:
    """The pruned half, distilled on increasing numbers of tokens."""
    return retrained(work, f"distill-{tokens}", half(work), how="distill", seed=0, tokens=tokens)


def start_run(way: str, tokens: int, rate: float, seed: int) -> Run:
    """A run of `start`."""
    make = partial(start, way=way, tokens=tokens, rate=rate, seed=seed)
    name = f"{way}-{tokens}-{rate}-{seed}" if tokens else f"{way}-0-{seed}"
    return Run("start", name, make)


KINDS = ("forward_kl", "reverse_kl", "jsd", "mse", "cosine", "forward_kl + cross-entropy")


def runs() -> list[Run]:
    """All runs, the cheapest first."""
    names = ("tiny", "tiny-half", "tiny-quarter")
    found = [Run("teacher", name, partial(embedded, name=name)) for name in names]
    for seed in SEEDS:
        for start in ("pruned", "random"):
            for how in ("distill", "train"):
                make = partial(t14, start=start, how=how, seed=seed)
                found.append(Run("t14", f"{start}-{how}-{seed}", make))
    for seed in SEEDS:
        make_random = partial(t14_random_pruning, seed=seed)
        found.append(Run("t14", f"random-pruning-distill-{seed}", make_random))
        for steps in (1, 2):
            make_quarter = partial(t14_quarter, steps=steps, seed=seed)
            found.append(Run("t14", f"quarter-{steps}-{seed}", make_quarter))
    for seed in SEEDS:
        for start in ("inner", "random"):
            found.append(Run("t1", f"{start}-{seed}", partial(t1, start=start, seed=seed)))
        for axis in ("width", "depth"):
            found.append(Run("t13", f"{axis}-{seed}", partial(t13, axis=axis, seed=seed)))
        for kind in KINDS:
            found.append(Run("t15", f"{kind}-{seed}", partial(t15, kind=kind, seed=seed)))
        for student, alpha in (("half", "dynamic"), ("depth", 0.0), ("depth", "dynamic")):
            make_inner = partial(t17, student=student, alpha=alpha, seed=seed)
            found.append(Run("t17", f"{student}-{alpha}-{seed}", make_inner))
        for is_on in (False, True):
            make_residual = partial(residual, is_on=is_on, seed=seed)
            found.append(Run("residual", f"{'on' if is_on else 'off'}-{seed}", make_residual))
    for candidate in CANDIDATES:
        found.append(Run("ranking", candidate, partial(ranking, candidate=candidate)))
    for seed in SEEDS:
        for is_corrected in (False, True):
            make_corrected = partial(correction, is_corrected=is_corrected, seed=seed)
            name = f"{'corrected' if is_corrected else 'as-it-is'}-{seed}"
            found.append(Run("correction", name, make_corrected))
    for way in ("cut", "select", "rotate"):
        for seed in SEEDS:
            found += [start_run(way, 0, 0.0, seed)]
        rates = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
        found += [start_run(way, 65_536, rate, 0) for rate in rates]
    for tokens, ways in BEST_RATES.items():
        asked = [(way, rate) for way, rates in ways.items() for rate in rates]
        for seed in SEEDS if tokens <= 262_144 else SEEDS[:1]:
            if (tokens, seed) != (65_536, 0):  # above, at all rates
                found += [start_run(way, tokens, rate, seed) for way, rate in asked]
    for thousands in (16, 32, 64, 128, 256, 512):
        tokens = thousands * 1024
        found.append(Run("curve", f"distill-{tokens}", partial(distill_curve, tokens=tokens)))
    for thousands in (256, 512, 1024, 2048, 4096):
        tokens = thousands * 1024
        found.append(Run("curve", f"scratch-{tokens}", partial(scratch_curve, tokens=tokens)))
    return found


def main() -> None:
    """Run everything that has no result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models")
    parser.add_argument(
        "--only", nargs="+", help="t13 t14 t15 t17 residual curve ranking correction start"
    )
    parser.add_argument("--other", help="a text unlike the corpus, for the table correction")
    parser.add_argument("--match", default="", help="only runs whose name holds this")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    work = Work.open(options.work, options.corpus, options.held_out, options.other)
    asked = [run for run in runs() if not options.only or run.table in options.only]
    asked = [run for run in asked if options.match in run.name]
    left = [run for run in asked if not run.result.exists()]
    print(f"{len(asked) - len(left)} of {len(asked)} are there", flush=True)
    for number, run in enumerate(left, 1):
        found = run.make(work)
        run.result.parent.mkdir(parents=True, exist_ok=True)
        write_json(run.result, found)
        print(f"{number} of {len(left)}: {run.table} {run.name}: {found['loss']:.4f}", flush=True)


if __name__ == "__main__":
    main()
