"""docs/family.md and its pictures, from the result files of benchmarks/family.py and zero_shot.py.

Writes no number that is not in a file under benchmarks/results; what has not been run is left out.

    python benchmarks/family_page.py
"""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "family.md"
PICTURES = PAGE.parent / "pictures"
GREEN, BLUE, AMBER, GREY = "#76b900", "#3b7dd8", "#f2a900", "#9aa0a6"


@dataclass(frozen=True)
class Found:
    """The runs of one row: the same but for their seed."""

    runs: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, table: str, name: str) -> "Found":
        """Those whose files are `name-SEED.json`."""
        paths = sorted((RESULTS / "family" / table).glob(f"{name}-[0-9].json"))
        return cls(tuple(json.loads(path.read_text()) for path in paths))

    def __bool__(self) -> bool:
        return bool(self.runs)

    @property
    def loss(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(run["loss"] for run in self.runs)

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over the seeds."""
        return statistics.stdev(r["loss"] for r in self.runs) if len(self.runs) > 1 else None

    @property
    def told(self) -> str:
        """Mean and spread."""
        spread = "" if self.spread is None else f" ± {self.spread:.4f}"
        return f"{self.loss:.4f}{spread}"

    def cells(self) -> list[str]:
        """Parameters, loss before, loss after, seeds."""
        before = self.runs[0]["before"]
        return [
            f"{self.runs[0]['parameters']:,}",
            "" if before is None else f"{before:.4f}",
            self.told,
            str(len(self.runs)),
        ]


HEAD = ["", "parameters", "before", "after", "seeds"]


def table_of(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """Markdown of rows (words, table, name), those that have been run."""
    found = [(words, Found.of(table, name)) for words, table, name in rows]
    return markdown(HEAD, [[words, *row.cells()] for words, row in found if row])


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table, nothing where it has no row."""
    if not rows:
        return []
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


T14 = [
    ("random weights, cross-entropy", "t14", "random-train"),
    ("random weights, distilled", "t14", "random-distill"),
    ("pruned at random, distilled", "t14", "random-pruning-distill"),
    ("pruned by importance, cross-entropy", "t14", "pruned-train"),
    ("**pruned by importance, distilled**", "t14", "pruned-distill"),
]
QUARTER = [
    ("teacher → quarter", "t14", "quarter-1"),
    ("teacher → half, distilled → quarter", "t14", "quarter-2"),
]
T13 = [("width", "t13", "width"), ("depth", "t13", "depth")]
T15 = [
    (kind, "t15", kind)
    for kind in (
        "forward_kl",
        "reverse_kl",
        "jsd",
        "mse",
        "cosine",
        "forward_kl + cross-entropy",
    )
]
T17 = [
    ("half, predictions only", "t17", "half-0.0"),
    ("half, inner states too", "t17", "half-dynamic"),
    ("depth cut to a third, predictions only", "t17", "depth-0.0"),
    ("depth cut to a third, inner states too", "t17", "depth-dynamic"),
]
RESIDUAL = [("dropped", "residual", "off"), ("folded into kept heads", "residual", "on")]
SECTIONS: list[tuple[str, str, list[tuple[str, str, str]]]] = [
    (
        "Start and signal (table 14)",
        "Half of the teacher's parameters, retrained on the same tokens.",
        T14,
    ),
    (
        "At once or by steps (table 14)",
        "A quarter of the parameters; the last retraining has the same tokens either way.",
        QUARTER,
    ),
    ("Width against depth (table 13)", "About the same parameters, distilled.", T13),
    ("Distance from the teacher (table 15)", "The pruned half, distilled.", T15),
    ("Inner states (table 17)", "`--alpha dynamic` against none.", T17),
    ("The head residual (section 2.3)", "4 of 8 heads, distilled.", RESIDUAL),
]


def teacher() -> list[str]:
    """The line that all losses are to be read against."""
    path = RESULTS / "family" / "teacher" / "tiny.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return [
        f"The teacher has {found['loss']:.4f} on the same {found['held_out_tokens']:,} held-out "
        f"tokens, with {found['parameters']:,} parameters.",
        "",
    ]


def curve(kind: str) -> list[dict[str, Any]]:
    """The runs of a curve by their tokens."""
    paths = (RESULTS / "family" / "curve").glob(f"{kind}-*.json")
    return sorted((json.loads(p.read_text()) for p in paths), key=lambda run: run["tokens"])


def headline() -> list[str]:
    """How many tokens from random weights reach what few tokens after pruning reach."""
    distilled, scratch = curve("distill"), curve("scratch")
    if not (distilled and scratch):
        return []
    best = scratch[-1]
    enough = [run for run in distilled if run["loss"] <= best["loss"]]
    rows = [
        [how, f"{run['tokens']:,}", f"{run['loss']:.4f}"]
        for how, runs in (
            ("random weights, cross-entropy", scratch),
            ("pruned, distilled", distilled),
        )
        for run in runs
    ]
    lines = ["## Tokens to a loss", ""]
    if enough:
        ratio = best["tokens"] / enough[0]["tokens"]
        lines += [
            f"A model of the half's sizes trained from random weights on {best['tokens']:,} tokens "
            f"reaches {best['loss']:.4f}. The pruned half, distilled on "
            f"{enough[0]['tokens']:,} tokens, has {enough[0]['loss']:.4f}: at least {ratio:.0f}x "
            "fewer tokens. The papers say 40x.",
            "",
        ]
    picture = draw_curve(distilled, scratch)
    return [
        *lines,
        f"![Held-out loss against training tokens]({picture})",
        "",
        *markdown(["", "tokens", "loss"], rows),
        "",
    ]


def draw_curve(distilled: list[dict[str, Any]], scratch: list[dict[str, Any]]) -> str:
    """Loss against tokens."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for runs, colour, label in (
        (scratch, GREY, "from random weights"),
        (distilled, GREEN, "pruned and distilled"),
    ):
        axis.plot(
            [run["tokens"] for run in runs],
            [run["loss"] for run in runs],
            "o-",
            color=colour,
            label=label,
        )
    axis.set_xscale("log", base=2)
    axis.set_xlabel("training tokens")
    axis.set_ylabel("held-out loss (nats a token)")
    axis.legend(frameon=False)
    return saved(figure, axis, "tokens.png")


def draw_bars(rows: list[tuple[str, str, str]], name: str) -> str | None:
    """The rows' losses side by side, each seed a dot."""
    found = [(words, Found.of(table, run)) for words, table, run in rows]
    found = [(words.strip("*"), row) for words, row in found if row]
    if len(found) < 2:
        return None
    figure, axis = plt.subplots(figsize=(7, 0.5 + 0.42 * len(found)), layout="constrained")
    least = min(row.loss for _, row in found)
    for place, (_, row) in enumerate(found):
        colour = GREEN if row.loss == least else GREY
        losses = [run["loss"] for run in row.runs]
        axis.plot([least, row.loss], [place, place], color=colour, linewidth=2)
        axis.plot(losses, [place] * len(losses), "o", color=colour)
    axis.set_yticks(range(len(found)), [words for words, _ in found])
    axis.invert_yaxis()
    axis.set_xlabel("held-out loss (nats a token)")
    return saved(figure, axis, name)


def saved(figure: Any, axis: Any, name: str) -> str:
    """The picture's path as the page names it; the same bytes for the same numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / name, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return f"pictures/{name}"


def zero_shot() -> list[str]:
    """The tables without retraining."""
    path = RESULTS / "zero_shot.json"
    if not path.exists():
        return []
    results = json.loads(path.read_text())
    lines = [
        "## Without retraining",
        "",
        f"Teacher {results['teacher']:.4f} nats a token on {results['tokens']:,} held-out tokens; "
        f"importance from {results['samples']} sequences of 512 tokens.",
        "",
    ]
    words = {
        "axes": "Axes and what ranks them (table 1)",
        "aggregation": "Aggregations, batch and sequence (table 11)",
        "neurons": "Where neurons are scored",
        "depth": "What ranks layers",
        "steps": "Importance measured in steps (table 12)",
        "residual": "Heads dropped, or folded into kept ones (section 2.3)",
    }
    for table, title in words.items():
        rows = [
            [
                f"{row['cut']}, {row['how']}",
                f"{row['parameters']:,}",
                f"{row['loss']:.4f}" + ("" if row["spread"] is None else f" ± {row['spread']:.4f}"),
            ]
            for row in results["rows"]
            if row["table"] == table
        ]
        lines += [f"### {title}", "", *markdown(["", "parameters", "loss"], rows), ""]
        if table == "axes":
            lines += ["![Loss by axis and by what ranks](../benchmarks/results/zero_shot.png)", ""]
    return lines


def page() -> str:
    """The whole page."""
    lines = [
        "# The tiny family: the papers' tables in miniature",
        "",
        "Everything here is measured on the embedded teacher `tiny` (6.7 M parameters, books), by "
        "`python benchmarks/family.py` and `python benchmarks/zero_shot.py`; each number is in a "
        "file of `benchmarks/results`, from which `python benchmarks/family_page.py` makes this "
        "page. Losses are nats a token on held-out books; ± is the sample standard deviation over "
        "seeds. Tables are those of [2407.14679](https://arxiv.org/abs/2407.14679).",
        "",
        *teacher(),
        *headline(),
    ]
    for title, what, rows in SECTIONS:
        table = table_of(rows)
        if not table:
            continue
        tokens = max(r["tokens"] for _, t, n in rows for r in Found.of(t, n).runs)
        lines += [f"## {title}", "", f"{what} {tokens:,} tokens a run.", "", *table, ""]
        picture = draw_bars(rows, title.split("(")[0].strip().lower().replace(" ", "-") + ".png")
        if picture:
            lines += [f"![{title}]({picture})", ""]
    return "\n".join([*lines, *zero_shot()]).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
