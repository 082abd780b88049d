"""Compare pruning by importance with random pruning: the teacher pruned to half in four ways.

One half is chosen by importance, three at random. All have the same sizes; they are evaluated on
held-out text, retrained by cross-entropy on the same tokens, and evaluated again. Writes
benchmarks/results/importance_against_random.{json,png}. Existing models are kept, so an interrupted
run continues.

    python benchmarks/importance_against_random.py --corpus books.jsonl.gz --held-out valid.jsonl.gz
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

import minitron
from minitron.verbs.quickstart import HIDDEN_SIZE, INTERMEDIATE_SIZE

RESULTS = Path(__file__).parent / "results"
RANDOM_SEEDS = (1, 2, 3)
STEPS, BATCH_SIZE, SEQ_LEN = 200, 8, 256  # 0.4 M tokens


def student(work: Path, name: str, scores: str, seed: int, options: Any) -> dict[str, Any]:
    """Prune, evaluate, retrain and evaluate one model."""
    done = work / f"{name}.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    pruned, retrained = str(work / f"{name}-pruned"), str(work / f"{name}-retrained")
    if not Path(pruned).exists():
        minitron.prune(
            "tiny",
            pruned,
            hidden_size=HIDDEN_SIZE,
            intermediate_size=INTERMEDIATE_SIZE,
            scores=scores,
            corpus=options.corpus if scores == "paper" else None,
            samples=256,
            seed=seed,
        )
    if not Path(retrained).exists():
        minitron.train(
            retrained,
            init=pruned,
            corpus=options.corpus,
            samples=STEPS * BATCH_SIZE,
            steps=STEPS,
            batch_size=BATCH_SIZE,
            seq_len=SEQ_LEN,
            learning_rate=1e-3,
            warmup_steps=10,
        )
    before = minitron.evaluate(pruned, corpus=options.held_out)
    after = minitron.evaluate(retrained, corpus=options.held_out)
    row = {"name": name, "pruned": before.to_json(), "retrained": after.to_json()}
    done.write_text(json.dumps(row))
    return row


def against(rows: list[dict[str, Any]], when: str) -> dict[str, float]:
    """The loss by importance, and mean and sample standard deviation of the random ones."""
    losses = [row[when]["loss"] for row in rows]
    mean, spread = statistics.mean(losses[1:]), statistics.stdev(losses[1:])
    return {
        "importance": losses[0],
        "random_mean": mean,
        "random_spread": spread,
        "gain_in_spreads": (mean - losses[0]) / spread,
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the loss of each student before and after retraining, and the teacher's."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for row in results["students"]:
        is_ours = row["name"] == "importance"
        losses = [row[when]["loss"] for when in ("pruned", "retrained")]
        colour, width = ("#76b900", 3) if is_ours else ("#9aa0a6", 1.5)
        axis.plot(
            [0, 1], losses, color=colour, linewidth=width, marker="o", zorder=3 if is_ours else 2
        )
    for place, when in enumerate(("pruned", "retrained")):
        summary, side = results["summary"][when], ("right", "left")[place]
        for name, key, way in (
            ("importance", "importance", "top"),
            ("random", "random_mean", "bottom"),
        ):
            label = f"  {name} {summary[key]:.2f}  "
            axis.text(
                place,
                summary[key],
                label,
                ha=side,
                va=way,
                color="#4d7a00" if name[0] == "i" else "#5f6368",
            )
    teacher = results["teacher"]["loss"]
    axis.axhline(teacher, color="black", linestyle="--", linewidth=1)
    axis.text(0.5, teacher, f"teacher, twice the size: {teacher:.2f}", ha="center", va="top")
    axis.set_xticks([0, 1], ["pruned to half", f"and retrained on {results['tokens']:,} tokens"])
    axis.set_xlim(-0.45, 1.45)
    axis.set_ylim(teacher - 0.35, None)
    axis.set_ylabel("held-out loss (nats a token)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Make the four students, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, help="text to measure and retrain on")
    parser.add_argument("--held-out", required=True, help="text to evaluate on")
    parser.add_argument("--work", type=Path, default=Path("importance_against_random.partial"))
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    rows = [student(options.work, "importance", "paper", 0, options)]
    for seed in RANDOM_SEEDS:
        rows.append(student(options.work, f"random-{seed}", "random", seed, options))
    results = {
        "teacher": minitron.evaluate("tiny", corpus=options.held_out).to_json(),
        "sizes": {"hidden_size": HIDDEN_SIZE, "intermediate_size": INTERMEDIATE_SIZE},
        "parameters": minitron.inspect(str(options.work / "importance-pruned")).parameters,
        "tokens": STEPS * BATCH_SIZE * SEQ_LEN,
        "students": rows,
        "summary": {when: against(rows, when) for when in ("pruned", "retrained")},
    }
    path = RESULTS / "importance_against_random.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    draw(results, path.with_suffix(".png"))
    print(
        "| | importance | random, mean of 3 | spread | gain in spreads |\n|---|---:|---:|---:|---:|"
    )
    for when, summary in results["summary"].items():
        print(f"| {when} | " + " | ".join(f"{value:.3f}" for value in summary.values()) + " |")


if __name__ == "__main__":
    main()
