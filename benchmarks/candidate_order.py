"""Measure which cheap loss orders candidates as a long distillation does.

Candidates of `minitron search` with half of the teacher's parameters, each measured as it is cut,
reconstructed on few tokens as `minitron search` does and on many as `minitron prune` does, and
after a short distillation from each of these two starts; then after a long distillation from the
reconstructed one. Prints the rank correlation (Spearman's) of each cheap loss with the last. All
candidates have the same importance, texts and held-out tokens. Losses that are in
benchmarks/results/candidate_order.json are not measured again; `seconds` holds the processor's time
of a candidate as it is measured in a search: its evaluation as cut, and its fits on few tokens.

    python benchmarks/candidate_order.py --corpus train.jsonl.gz --held-out valid.jsonl.gz --work W
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from time import process_time

import numpy as np
import torch
from family import SEQ_LEN, Work

import minitron
from minitron.candidates.fit import Fit
from minitron.candidates.texts import first_tokens
from minitron.evaluation.loss import source_loss
from minitron.model.architecture import Architecture
from minitron.model.family import AXIS_KEYS, PRUNABLE
from minitron.model.importance import Importance
from minitron.model.plan import choose_plan
from minitron.recipes.pruning import SearchRecipe
from minitron.records.folder_writer import write_json
from minitron.sources.held import held_source
from minitron.sources.opening import open_source
from minitron.sources.pruned import PrunedSource

RESULTS = Path(__file__).parent / "results" / "candidate_order.json"
BUDGET = {"ratio": 0.5, "min_layers": 4}
CALIBRATION_TOKENS = 65_536
RATES = (1e-4, 5e-4)  # peaks of a distillation from a reconstructed start
FEW = (4_096, 8_192, 16_384)  # tokens to fit a candidate on: 4, 8 and 16 an input of the widest
EVALUATED = 16_384  # tokens that `minitron search` measures a candidate on
SHORT, LONG = 16_384, 131_072  # tokens of a distillation
LONGEST = f"reconstructed, distilled on {LONG:,} tokens"


def distilled(work: Work, start: str, tokens: int, rate: float, *, batch_size: int) -> float:
    """The loss after a distillation of these tokens, of which an eighth warms up."""
    out = work.path(f"{Path(start).name}-{tokens}")
    minitron.distill(
        start,
        out,
        teacher="tiny",
        corpus=work.rows(tokens, 0),
        seq_len=SEQ_LEN,
        batch_size=batch_size,
        learning_rate=rate,
        warmup_steps=tokens // SEQ_LEN // batch_size // 8,
        alpha=0.0,
        dtype="float32",
        save_steps=1_000_000,
    )
    loss = work.loss(out)
    shutil.rmtree(out)
    return loss


def losses_of(work: Work, name: str, sizes: dict[str, int]) -> dict[str, float]:
    """The losses of a candidate, in nats a token on the held-out text, but for few tokens."""
    text = work.rows(CALIBRATION_TOKENS, 1000)
    cut = work.pruned(f"{name}-cut", **sizes, reconstruct="none")
    made = work.pruned(f"{name}-made", **sizes, reconstruct="auto", corpus=text)
    losses = {"as cut": work.loss(cut), "reconstructed": work.loss(made)}
    # Of 4 sequences a step there would be 8 steps: too few, which make a good start worse.
    for way, start, rate in (("as cut", cut, 1e-3), *(("reconstructed", made, r) for r in RATES)):
        found = distilled(work, start, SHORT, rate, batch_size=1)
        losses[f"{way}, distilled on {SHORT:,} tokens at {rate:g}"] = found
    return {**losses, LONGEST: distilled(work, made, LONG, max(RATES), batch_size=4)}


def fits_of(
    work: Work, targets: Mapping[str, Architecture], tokens: int
) -> tuple[dict[str, float], float]:
    """The loss of each candidate fitted on so many tokens, by `search`; and the seconds of a fit.

    The first, which finds the directions of the stream for all, is not counted.
    """
    source = held_source(open_source("tiny"))
    importance = Importance.load(Path(work.importance("tiny")))
    corpus = work.rows(CALIBRATION_TOKENS, 1000)
    rows = [*np.load(corpus)[: tokens // SEQ_LEN]]
    recipe = SearchRecipe("tiny", corpus=corpus, **BUDGET)
    fit = Fit(recipe, rows, rows, work.folder / "few")
    losses, seconds = {}, []
    for name, target in targets.items():
        plan = choose_plan(importance, source.architecture, target)
        begun = process_time()
        with fit.candidate(source, plan, fit.memory(source, target)) as made:
            seconds.append(process_time() - begun)
            losses[name] = source_loss(made, work.held_out)
    shutil.rmtree(work.folder / "few")
    return losses, mean(seconds[1:])


def seconds_as_cut(work: Work, targets: Iterable[Architecture]) -> float:
    """The seconds in which a search measures a candidate as it is cut."""
    source = held_source(open_source("tiny"))
    importance = Importance.load(Path(work.importance("tiny")))
    text, seconds = first_tokens(work.held_out, EVALUATED), []
    for target in targets:
        plan = choose_plan(importance, source.architecture, target)
        begun = process_time()
        source_loss(PrunedSource(source, plan), text)
        seconds.append(process_time() - begun)
    return mean(seconds)


def candidates_of(work: Work, count: int) -> dict[str, Architecture]:
    """The candidates that a search compares, by name; the first are the nearest to the budget."""
    found = minitron.search(
        "tiny",
        importance=work.importance("tiny"),
        held_out=work.held_out_rows(),
        max_candidates=count,
        eval_tokens=SEQ_LEN,
        **BUDGET,
    )
    return {one.name: one.architecture for one in found.candidates}


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Spearman's, of numbers without ties."""
    ranks = [np.argsort(np.argsort(numbers)) for numbers in (ours, theirs)]
    return float(np.corrcoef(*ranks)[0, 1])


def correlations(losses: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of each cheap loss with that after the long distillation."""
    last = [one[LONGEST] for one in losses.values()]
    ways = [way for way in next(iter(losses.values())) if way != LONGEST]
    return {
        way: round(rank_correlation([one[way] for one in losses.values()], last), 3) for way in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models")
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = Work.open(options.work, options.corpus, options.held_out, None)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"losses": {}, "seconds": {}}
    losses, seconds = found["losses"], found.setdefault("seconds", {})
    targets = candidates_of(work, options.candidates)
    for name, target in targets.items():
        if LONGEST in losses.get(name, {}):
            continue
        sizes = {AXIS_KEYS[axis]: target.size(axis) for axis in PRUNABLE}
        losses[name] = losses_of(work, name, sizes)
        measured = (f"{way} {loss:.4f}" for way, loss in losses[name].items())
        print(name, *measured, sep="; ", flush=True)
        write_json(RESULTS, found)
    for tokens in FEW:
        way = f"reconstructed on {tokens:,} tokens"
        if all(way in losses[name] for name in targets):
            continue
        fitted, seconds[way] = fits_of(work, targets, tokens)
        for name, loss in fitted.items():
            losses[name][way] = loss
        print(way, *(f"{name} {loss:.4f}" for name, loss in fitted.items()), sep="; ", flush=True)
        write_json(RESULTS, found)
    if "as cut" not in seconds:
        seconds["as cut"] = seconds_as_cut(work, targets.values())
    found["rank_correlations"] = correlations(losses)
    write_json(RESULTS, found)
    for way, correlation in correlations(losses).items():
        print(f"{correlation:6.3f}  {way}")


if __name__ == "__main__":
    main()
