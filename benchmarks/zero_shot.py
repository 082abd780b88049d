"""The papers' tables without retraining, on the embedded teacher: kinds of scores, axis by axis.

Each row prunes the teacher in memory and evaluates it on held-out text. The rows follow arXiv
2407.14679: axes (table 1), aggregations (11), pruning in steps (12), width against depth (13), the
head residual (section 2.3); and they have ModelOpt's scores where these differ. Writes
benchmarks/results/zero_shot.{json,md,png}; takes some minutes on two cores.

    python benchmarks/zero_shot.py --corpus books.jsonl.gz --held-out valid.jsonl.gz
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from minitron.evaluation.loss import evaluate_text
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import PruningPlan, choose_plan
from minitron.model.target_sizes import between
from minitron.recipes.pruning import PruneRecipe
from minitron.scores.measuring import score
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from minitron.sources.pruned import PrunedSource
from minitron.text.corpus import HeldOut, held_out_text

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
SAMPLES, SEQ_LEN = 128, 512
HALF: dict[str, dict[str, int]] = {
    "hidden": {"hidden_size": 160},
    "ffn": {"intermediate_size": 512},
    "heads": {"num_attention_heads": 4},
    "KV groups": {"num_key_value_heads": 1, "num_attention_heads": 4},
    "layers": {"num_hidden_layers": 4},
    "width": {"hidden_size": 192, "intermediate_size": 704, "num_attention_heads": 6},
    "all": {
        "hidden_size": 208,
        "intermediate_size": 768,
        "num_attention_heads": 6,
        "num_hidden_layers": 5,
    },
}


@dataclass(frozen=True)
class Row:
    """One pruned model and its held-out loss."""

    table: str
    cut: str
    how: str
    parameters: int
    loss: float  # nats per token
    spread: float | None = None  # sample standard deviation over the seeds


class Bench:
    """The teacher, the texts, and importance measured once for each set of options."""

    def __init__(self, corpus: str, held_out: str, windows: int) -> None:
        self.source = open_source("tiny")
        self.whole = self.source.architecture
        self.corpus = corpus
        text = held_out_text(held_out, load_tokenizer(self.source), SEQ_LEN)
        self.held_out = HeldOut((text.inputs[0][:windows],), (text.targets[0][:windows],), None)
        self._measured: dict[str, Importance] = {}

    def importance(self, source: Any = None, **options: Any) -> Importance:
        """Importance by these options, of the teacher or of another source."""
        key = json.dumps(options, sort_keys=True)
        if source is None and key in self._measured:
            return self._measured[key]
        needs_text = options.get("scores", "paper") in ("paper", "modelopt")
        text = {"corpus": self.corpus, "samples": SAMPLES, "seq_len": SEQ_LEN} if needs_text else {}
        recipe = PruneRecipe(self.source.name, "unused", **text, **options)
        measured = score(source or self.source, recipe)
        if source is None:
            self._measured[key] = measured
        return measured

    def plan(self, target: Architecture, importance: Importance, **choices: Any) -> PruningPlan:
        """The pruning plan for these scores."""
        return choose_plan(importance, self.whole, target, **choices)

    def loss(self, plan: PruningPlan | None) -> float:
        """Held-out loss of the teacher, pruned or whole."""
        source = self.source if plan is None else PrunedSource(self.source, plan)
        return evaluate_text(load_model(source), self.held_out).loss

    def row(self, table: str, cut: str, how: str, plan: PruningPlan) -> Row:
        """A row of a table."""
        row = Row(table, cut, how, plan.target.parameters, self.loss(plan))
        print(f"{table:12} {cut:12} {how:28} {row.parameters:>9,} {row.loss:.4f}", flush=True)
        return row


def axes(bench: Bench) -> Iterator[Row]:
    """Each axis alone, width, and all axes: by activations, ModelOpt, magnitude, at random."""
    for cut, sizes in HALF.items():
        target = bench.whole.resized(**sizes)
        ways: dict[str, dict[str, Any]] = {
            "importance": {},
            "modelopt": {"scores": "modelopt"},
            "magnitude": {"scores": "magnitude"},
        }
        for how, options in ways.items():
            yield bench.row("axes", cut, how, bench.plan(target, bench.importance(**options)))
        random = [
            bench.loss(bench.plan(target, bench.importance(scores="random", seed=seed)))
            for seed in SEEDS
        ]
        mean, spread = statistics.mean(random), statistics.stdev(random)
        print(f"{'axes':12} {cut:12} {'random, mean of 3':28} {mean:.4f} ({spread:.4f})")
        yield Row("axes", cut, "random, mean of 3", target.parameters, mean, spread)


def aggregations(bench: Bench) -> Iterator[Row]:
    """Every aggregation over the batch and the sequence, on width."""
    target = bench.whole.resized(**HALF["width"])
    for batch, sequence in product(("l2", "mean", "var"), repeat=2):
        importance = bench.importance(aggregation=f"{batch},{sequence}")
        yield bench.row(
            "aggregation", "width", f"({batch}, {sequence})", bench.plan(target, importance)
        )


def neurons(bench: Bench) -> Iterator[Row]:
    """Neurons scored before and after the activation."""
    target = bench.whole.resized(**HALF["ffn"])
    for where in ("after", "before"):
        plan = bench.plan(target, bench.importance(neurons=where))
        yield bench.row("neurons", "ffn", f"{where} the activation", plan)


def depth(bench: Bench) -> Iterator[Row]:
    """Scores of layers, single or adjacent, and width with as many parameters as four layers."""
    target = bench.whole.resized(**HALF["layers"])
    for ranked in ("influence", "loss", "logits"):
        plan = bench.plan(target, bench.importance(layer_scores=ranked))
        yield bench.row("depth", "layers", f"by {ranked}", plan)
    plan = bench.plan(target, bench.importance(), contiguous=True)
    yield bench.row("depth", "layers", "neighbours, by influence", plan)
    narrow = bench.whole.resized(hidden_size=224, intermediate_size=640)
    yield bench.row("depth", "width", "hidden and ffn", bench.plan(narrow, bench.importance()))


def steps(bench: Bench) -> Iterator[Row]:
    """Hidden size in one, two and four steps, each measured on the model of the step before."""
    target = bench.whole.resized(**HALF["hidden"])
    for count in (1, 2, 4):
        plan: PruningPlan | None = None
        for step in range(1, count + 1):
            before = bench.whole if plan is None else plan.target
            after = between(bench.whole, target, step / count)
            left = None if plan is None else PrunedSource(bench.source, plan)
            decided = choose_plan(bench.importance(left), before, after)
            plan = decided if plan is None else plan.then(decided)
        assert plan is not None
        yield bench.row("steps", "hidden", f"{count}", plan)


def residual(bench: Bench) -> Iterator[Row]:
    """Pruned query heads added to kept heads, or dropped."""
    for heads in (6, 4, 2):
        target = bench.whole.resized(num_attention_heads=heads)
        for folds in (False, True):
            plan = bench.plan(target, bench.importance(), head_residual=folds)
            how = "head residual" if folds else "dropped"
            yield bench.row("residual", f"{heads} heads", how, plan)


TABLES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "axes": axes,
    "aggregation": aggregations,
    "neurons": neurons,
    "depth": depth,
    "steps": steps,
    "residual": residual,
}


def markdown(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines = [
        "# Zero-shot ablations on the embedded teacher",
        "",
        f"Teacher {results['teacher']:.4f} nats a token on {results['tokens']:,} held-out tokens; "
        f"importance from {SAMPLES} sequences of {SEQ_LEN} tokens; nothing is retrained. Remade by "
        "`python benchmarks/zero_shot.py --corpus TEXT --held-out TEXT`.",
    ]
    for table in TABLES:
        lines += ["", f"## {table}", "", "| cut | how | parameters | loss |", "|---|---|---:|---:|"]
        for row in results["rows"]:
            if row["table"] == table:
                spread = "" if row["spread"] is None else f" ({row['spread']:.4f})"
                lines.append(
                    f"| {row['cut']} | {row['how']} | {row['parameters']:,} "
                    f"| {row['loss']:.4f}{spread} |"
                )
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the loss by axis and by kind of scores."""
    rows = [row for row in results["rows"] if row["table"] == "axes"]
    ways = list(dict.fromkeys(row["how"] for row in rows))
    colours = ["#76b900", "#3b7dd8", "#f2a900", "#9aa0a6"]
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for place, cut in enumerate(HALF):
        for index, how in enumerate(ways):
            row = next(row for row in rows if (row["cut"], row["how"]) == (cut, how))
            axis.bar(
                place + 0.2 * (index - 1.5),
                row["loss"] - results["teacher"],
                0.2,
                bottom=results["teacher"],
                yerr=row["spread"],
                color=colours[index],
                label=how if place == 0 else None,
            )
    axis.axhline(results["teacher"], color="black", linestyle="--", linewidth=1)
    axis.set_xticks(range(len(HALF)), list(HALF))
    axis.set_ylabel("held-out loss (nats a token)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure every table; write JSON, Markdown and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, help="text to measure on")
    parser.add_argument("--held-out", required=True, help="text to evaluate on")
    parser.add_argument("--windows", type=int, default=120, help="of 512 tokens to evaluate on")
    options = parser.parse_args()
    bench = Bench(options.corpus, options.held_out, options.windows)
    teacher = bench.loss(None)
    rows = [asdict(row) for fill in TABLES.values() for row in fill(bench)]
    tokens = int(sum((targets != -100).sum() for targets in bench.held_out.targets))
    results = {"teacher": teacher, "tokens": tokens, "samples": SAMPLES, "rows": rows}
    path = RESULTS / "zero_shot.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    draw(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
