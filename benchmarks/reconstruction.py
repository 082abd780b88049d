"""Measure what a reconstruction is worth: a model cut, without training, with and without it.

The embedded teacher on each axis alone and on all together, or SmolLM2-135M at three quarters and
at half of its parameters: as it is cut, then with `--reconstruct auto` by channels (select) and,
where hidden_size is cut, by directions (rotate). All have the same importance, measured once a
seed, and the same calibration text; of several texts, as many characters of each. Writes
benchmarks/results/reconstruction/NAME.json after every model, and does not repeat what is there.

    python benchmarks/reconstruction.py --corpus books.jsonl.gz --held-out valid.jsonl.gz
    python benchmarks/reconstruction.py --corpus wikitext.txt --held-out valid.txt valid.jsonl.gz \
        --source path/to/SmolLM2-135M --name smollm2 --samples 32 --held-out-tokens 16384
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import minitron
from minitron.candidates.texts import first_tokens
from minitron.evaluation.loss import evaluate_text
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from minitron.text.corpus import HeldOut, held_out_text
from minitron.text.text_row import Tokenizer
from minitron.text.texts import read_texts

RESULTS = Path(__file__).parent / "results" / "reconstruction"
HALF = {"hidden_size": 192, "intermediate_size": 592}
HALF |= {"num_attention_heads": 6, "num_hidden_layers": 5}  # tiny-half's
CUTS: dict[str, dict[str, int]] = {
    "half": HALF,
    "hidden": {"hidden_size": 160},
    "ffn": {"intermediate_size": 512},
    "heads": {"num_attention_heads": 4},
    "layers": {"num_hidden_layers": 4},
}
# Its hidden size stays a multiple of its nine heads, as transformers asks of a Llama.
SMOLLM2_CUTS: dict[str, dict[str, int]] = {
    "75 % by width": {"hidden_size": 486, "intermediate_size": 1248},
    "75 % by MLP": {"intermediate_size": 888},
    "75 % by MLP and heads": {
        "intermediate_size": 1056,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "75 % by width, more by MLP": {"hidden_size": 540, "intermediate_size": 1016},
    "75 % by width, untied": {"hidden_size": 432, "intermediate_size": 992},
    "75 % by depth": {"num_hidden_layers": 21},
    "75 % by both": {"hidden_size": 513, "intermediate_size": 1408, "num_hidden_layers": 26},
    "50 % by width": {"hidden_size": 387, "intermediate_size": 872},
    "50 % by width, more by MLP": {"hidden_size": 450, "intermediate_size": 600},
    "50 % by width, most by MLP": {"hidden_size": 513, "intermediate_size": 400},
    "50 % by depth": {"num_hidden_layers": 11},
    "50 % by both": {"hidden_size": 450, "intermediate_size": 1088, "num_hidden_layers": 21},
}
SEQ_LEN = 512
BATCH_SIZE = 4  # of distillation
PEAKS = {"as it is cut": 1e-3, "select": 5e-4, "rotate": 2e-4}  # of its learning rate


def mixed(names: Sequence[str], tokenizer: Tokenizer, path: Path) -> str:
    """A file of as many characters of each text as the shortest has, spread over its documents."""
    documents = [[row.text for row in read_texts(name, tokenizer)] for name in names]
    sizes = [sum(map(len, texts)) for texts in documents]
    with path.open("w") as file:
        for texts, size in zip(documents, sizes, strict=True):
            for text in texts:
                kept = text[: len(text) * min(sizes) // size]
                file.write(json.dumps({"text": kept}) + "\n")
    return str(path)


def texts_of(options: argparse.Namespace) -> dict[str, HeldOut]:
    """The first tokens of each held-out text."""
    tokenizer = load_tokenizer(open_source(options.source))
    return {
        name: first_tokens(held_out_text(name, tokenizer, SEQ_LEN), options.held_out_tokens)
        for name in options.held_out
    }


def row_of(model: str, texts: dict[str, HeldOut], **what: Any) -> dict[str, Any]:
    """A model's parameters and its nats a token on each text."""
    loaded = load_model(open_source(model))
    losses = {Path(name).name: evaluate_text(loaded, text).loss for name, text in texts.items()}
    shown = ", ".join(f"{loss:.4f} on {name}" for name, loss in losses.items())
    print(*what.values(), shown, flush=True)
    return {**what, "parameters": minitron.inspect(model).parameters, "losses": losses}


def ways_of(sizes: dict[str, int], text: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How a model is cut: the options of prune, by name."""
    ways: dict[str, dict[str, Any]] = {
        "at random": {"scores": "random", "seed": text["seed"]},
        "as it is cut": {},
        "select": {**text, "reconstruct": "auto", "hidden": "select"},
    }
    if "hidden_size" in sizes:
        ways["rotate"] = {**text, "reconstruct": "auto", "hidden": "rotate"}
    return ways


def calibration(seed: int, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The calibration text: the options of prune."""
    corpus = options.corpus[0]
    if len(options.corpus) > 1:
        tokenizer = load_tokenizer(open_source(options.source))
        corpus = mixed(options.corpus, tokenizer, work / "mixed.jsonl")
    return {"corpus": corpus, "samples": options.samples, "seq_len": SEQ_LEN, "seed": seed}


def measure(seed: int, options: argparse.Namespace, results: Path, work: Path) -> None:
    """Cut the source in each way with the importance and text of one seed; add rows to results."""
    cuts = CUTS if options.source == "tiny" else SMOLLM2_CUTS
    text, texts = calibration(seed, options, work), texts_of(options)
    found, tokens = json.loads(results.read_text()), options.distill_tokens
    done = {(row["cut"], row["way"], row["seed"], row.get("tokens", 0)) for row in found["rows"]}
    scores = work / f"{results.stem}-{seed}.safetensors"
    for cut in options.cuts or cuts:
        for way, chosen in ways_of(cuts[cut], text).items():
            if (cut, way, seed, tokens) in done or (options.ways and way not in options.ways):
                continue
            if way != "at random" and not scores.exists():
                minitron.importance(options.source, str(scores), **text, scores=options.scores)
            out = work / f"{results.stem}-{cut}-{way}-{seed}".replace(" ", "-")
            ranked = {} if way == "at random" else {"importance": str(scores)}
            begun = time.monotonic()
            if not out.exists():
                minitron.prune(options.source, str(out), **ranked, **cuts[cut], **chosen)
            training = distill(out, way, options, text) if tokens else {}
            seconds = round(time.monotonic() - begun, 1)
            model = f"{out}-distilled" if tokens else str(out)
            row = row_of(model, texts, cut=cut, way=way, seed=seed, seconds=seconds, **training)
            found["rows"].append(row)
            found["sizes"] = cuts
            results.write_text(json.dumps(found, indent=1) + "\n")
            if not options.work:
                shutil.rmtree(out)


def distill(
    start: Path, way: str, options: argparse.Namespace, text: dict[str, Any]
) -> dict[str, Any]:
    """Distil a model on the calibration text; how is what is returned."""
    tokens, rate = options.distill_tokens, PEAKS[way]
    minitron.distill(
        str(start),
        f"{start}-distilled",
        teacher=options.source,
        **{**text, "samples": tokens // SEQ_LEN},
        batch_size=BATCH_SIZE,
        learning_rate=rate,
        warmup_steps=tokens // SEQ_LEN // BATCH_SIZE // 8,
        alpha=0.0,
        dtype="float32",
        save_steps=1_000_000,
    )
    return {"tokens": tokens, "rate": rate}


def main() -> None:
    """Measure what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="tiny", help="tiny, or a folder of SmolLM2-135M")
    parser.add_argument("--name", default="tiny", help="of the file of results")
    parser.add_argument("--corpus", required=True, nargs="+")
    parser.add_argument("--scores", default="paper", choices=["paper", "contribution", "obs"])
    parser.add_argument("--held-out", required=True, nargs="+")
    parser.add_argument("--held-out-tokens", type=int, default=73_728, help="of each text")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", help="a folder that keeps importance and models for a later call")
    parser.add_argument("--distill-tokens", type=int, default=0, help="distil the models on these")
    parser.add_argument("--cuts", nargs="+", help="some of the cuts")
    parser.add_argument("--ways", nargs="+", help="some of the ways")
    options = parser.parse_args()
    results = RESULTS / f"{options.name}.json"
    if not results.exists():
        results.parent.mkdir(exist_ok=True)
        whole = row_of(options.source, texts_of(options), cut="nothing")
        found = {
            "calibration_tokens": options.samples * SEQ_LEN,
            "corpus": [Path(name).name for name in options.corpus],
            "scores": options.scores,
            "source": whole,
            "rows": [],
        }
        results.write_text(json.dumps(found, indent=1) + "\n")
    with TemporaryDirectory() as work:
        for seed in options.seeds:
            measure(seed, options, results, Path(options.work or work))


if __name__ == "__main__":
    main()
