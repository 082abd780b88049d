"""docs/family.md and its pictures, from the result files of benchmarks/family.py and zero_shot.py.

Writes no number that is not in a file under benchmarks/results; what has not been run is left out.

    python benchmarks/family_page.py
"""

import json
import statistics
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml

import minitron
from minitron.sources.opening import zoo

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
RECIPES = Path(minitron.__file__).parent / "recipes"
TEACHER_RECIPES = ("tiny.yaml", "tiny-continued.yaml")
TABLES = Path(__file__).parent / "family_tables.yaml"
PAPER = Path(__file__).parent / "zero_shot_paper.yaml"
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


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is, its runs, and what the paper prints for it."""

    words: str
    runs: str  # TABLE/NAME
    paper: str = ""
    rank: float | None = None  # the paper's number that orders its rows

    @property
    def found(self) -> Found:
        """Its runs, as far as they are there."""
        return Found.of(*self.runs.split("/"))


@dataclass(frozen=True)
class Table:
    """One of the papers' tables in miniature, as benchmarks/family_tables.yaml tells it."""

    title: str
    source: str
    what: str
    rows: tuple[Row, ...]
    higher_is_better: bool = False  # in the paper; our losses are better lower

    @classmethod
    def all(cls) -> list["Table"]:
        """In the order of the page."""
        told = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
        return [cls(**{**t, "rows": tuple(Row(**row) for row in t["rows"])}) for t in told]

    @property
    def measured(self) -> list[tuple[Row, Found]]:
        """The rows that have been run."""
        found = [(row, row.found) for row in self.rows]
        return [(row, runs) for row, runs in found if runs]

    def lines(self) -> list[str]:
        """Its section, nothing before a row has been run."""
        measured = self.measured
        if not measured:
            return []
        least = min(found.loss for _, found in measured)
        has_paper = any(row.paper for row, _ in measured)
        head = ["", "parameters", "before", "after", "seeds", *(["the paper"] if has_paper else [])]
        cells = []
        for row, found in measured:
            words = f"**{row.words}**" if found.loss == least else row.words
            cells.append([words, *found.cells(), *([row.paper] if has_paper else [])])
        tokens = max(run["tokens"] for _, found in measured for run in found.runs)
        lines = [
            f"## {self.title}",
            "",
            f"{self.what} {tokens:,} tokens a run. ({self.source}.)",
            "",
        ]
        lines += [*markdown(head, cells), ""]
        if verdict := self.verdict():
            lines += [verdict, ""]
        if picture := self.picture():
            lines += [f"![{self.title}]({picture})", ""]
        return lines

    def verdict(self) -> str:
        """Which of the paper's comparisons come out the same way, by the runs' own spread."""
        ranked = [(row, found) for row, found in self.measured if row.rank is not None]
        same, other, open_ = [], [], []
        for (first, ours_first), (second, ours_second) in combinations(ranked, 2):
            assert first.rank is not None
            assert second.rank is not None
            paper = (first.rank - second.rank) * (-1 if self.higher_is_better else 1)
            ours = ours_first.loss - ours_second.loss
            better, worse = (first, second) if paper < 0 else (second, first)
            told = f"{better.words} before {worse.words}"
            spread = ((ours_first.spread or 0) ** 2 + (ours_second.spread or 0) ** 2) ** 0.5
            if abs(ours) <= 2 * spread:
                open_.append(told)
            else:
                (same if ours * paper > 0 else other).append(told)
        if not (same or other or open_):
            return ""
        count = len(same) + len(other) + len(open_)
        lines = [f"Of the paper's {count} comparisons, {len(same)} come out the same way here."]
        if count == 1:
            lines = ["The same way round as in the paper."] if same else []
        if other:
            lines.append(f"**The other way round than in the paper**: {'; '.join(other)}.")
        if open_:
            lines.append(f"Too close to tell (within two standard deviations): {'; '.join(open_)}.")
        return " ".join(lines)

    def picture(self) -> str | None:
        """The rows' losses side by side."""
        name = self.title.lower().replace(" ", "-").replace("'", "").replace(",", "") + ".png"
        return draw_bars([(row.words, found) for row, found in self.measured], name)


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table, nothing where it has no row."""
    if not rows:
        return []
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def teacher() -> list[str]:
    """The line that all losses are to be read against."""
    path = RESULTS / "family" / "teacher" / "tiny.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    lines = [
        f"The teacher has {found['loss']:.4f} on the same {found['held_out_tokens']:,} held-out "
        f"tokens, with {found['parameters']:,} parameters.",
    ]
    for child in ("tiny-half", "tiny-quarter"):
        path = RESULTS / "family" / "teacher" / f"{child}.json"
        if path.exists():
            lines.append(f"`{child}` has {json.loads(path.read_text())['loss']:.4f}.")
    return [" ".join(lines), ""]


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
            f"{enough[0]['tokens']:,} tokens, has {enough[0]['loss']:.4f} already: at least "
            f"{ratio:.0f}x fewer tokens, of those measured. The papers' 40x is against a model "
            "trained on all of its teacher's tokens; ours from random weights has seen less than "
            "its teacher and still falls, so the two ratios are not the same question.",
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
    path = RESULTS / "family" / "teacher" / "tiny.json"
    if path.exists():
        teachers = json.loads(path.read_text())["loss"]
        axis.axhline(teachers, color=BLUE, linestyle="--", linewidth=1, label="the teacher")
    axis.set_xscale("log", base=2)
    ticks = [run["tokens"] for run in [*distilled, *scratch]]
    axis.set_xticks(ticks, [f"{tokens >> 10:,} Ki" for tokens in ticks])
    axis.set_xlabel("training tokens")
    axis.set_ylabel("held-out loss (nats a token)")
    axis.legend(frameon=False)
    return saved(figure, axis, "tokens.png")


def draw_bars(found: list[tuple[str, Found]], name: str) -> str | None:
    """The rows' losses side by side, each seed a dot."""
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


def members() -> list[str]:
    """The family in the package: what each member takes, how fast and how good it is."""
    path = RESULTS / "members.json"
    if not path.exists():
        return []
    results = json.loads(path.read_text())
    rows = [
        [
            name,
            f"{of['parameters']:,}",
            _recorded(name),
            f"{of['weights_bytes'] / 1e6:.1f} MB",
            f"{of['kv_bytes_a_token']:,} bytes",
            f"{of['read_tokens_a_second']:,.0f} ({of['times_the_teacher']['read']:.1f}x)",
            f"{of['generated_tokens_a_second']:,.0f} ({of['times_the_teacher']['generate']:.1f}x)",
        ]
        for name, of in results["members"].items()
    ]
    head = ["", "parameters", "loss", "weights", "KV cache a token", "read", "generated"]
    return [
        "## The family in the package",
        "",
        "Loss is nats a token on all of the held-out books (470,082 tokens), as each member's "
        "minitron.json records it; weights and cache in bfloat16; tokens a second of one sequence "
        f"in float32, medians of {results['rounds']} interleaved rounds, {results['threads']} "
        "thread (`python benchmarks/members.py`), and how many times the teacher's.",
        "",
        *markdown(head, rows),
        "",
        *compute(results["members"]),
    ]


def _record(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((zoo()[name] / "minitron.json").read_text())
    return told


def _recorded(name: str) -> str:
    row: dict[str, Any] = _record(name)["results"]["rows"][0]
    return str(row["values"][0])


def compute(told: dict[str, Any]) -> list[str]:
    """What the family cost, beside training each of its members from random weights."""
    recipes = [yaml.safe_load((RECIPES / name).read_text()) for name in TEACHER_RECIPES]
    corpus = _record("tiny")["training"]["corpus_tokens"]
    whole = corpus * sum(recipe["epochs"] for recipe in recipes)
    sizes = {name: of["parameters"] for name, of in told.items()}
    children = {name: _record(name)["training"]["tokens"] for name in sizes if name != "tiny"}
    scratch = 6 * whole * sum(sizes.values())
    training = 6 * (whole * sizes["tiny"] + sum(sizes[n] * t for n, t in children.items()))
    teaching = 2 * sizes["tiny"] * sum(children.values())
    tokens = next(iter(children.values()))
    return [
        f"The teacher was trained on {whole / 1e6:.1f} M tokens, each child on "
        f"{tokens / 1e6:.1f} M: {whole / tokens:.1f}x fewer. Had each child been trained on as "
        f"many as the teacher, the family would have cost {scratch / training:.2f}x the compute "
        "(6 operations a parameter and token, as the paper counts its 1.8x), "
        f"{scratch / (training + teaching):.2f}x if the "
        "teacher's own predictions are counted too (2 more). The paper's children have 40x fewer "
        "tokens.",
        "",
    ]


def ranking() -> list[str]:
    """Whether candidates keep their order while they are briefly retrained."""
    paths = sorted((RESULTS / "family" / "ranking").glob("*.json"))
    found = {path.stem: json.loads(path.read_text())["looks"] for path in paths}
    if len(found) < 3:
        return []
    steps = [look["step"] for look in next(iter(found.values()))]
    at = {step: {name: _at(looks, step) for name, looks in found.items()} for step in steps}
    order = {step: sorted(losses, key=lambda name: losses[name]) for step, losses in at.items()}
    last = order[steps[-1]]
    stable = next(s for s in steps if all(order[later] == last for later in steps if later >= s))
    rows = [
        [name, *(f"{order[step].index(name) + 1} ({at[step][name]:.3f})" for step in steps)]
        for name in last
    ]
    head = ["", *(f"step {step}" for step in steps)]
    return [
        "## The candidates' order while they are retrained",
        "",
        f"{len(found)} of the search's candidates for the half, each distilled by the same steps "
        "of 2,048 tokens: place, and held-out loss on 16,352 tokens. "
        f"{_steadiness(order, at, stable)} In the paper places move until about 300 steps of 4.7 M "
        "tokens (M1 section 2.3).",
        "",
        *markdown(head, rows),
        "",
        f"![Loss of candidates while they are retrained]({draw_ranking(found)})",
        "",
    ]


def _steadiness(order: dict[int, list[str]], at: dict[int, dict[str, float]], stable: int) -> str:
    """When places stop moving, or what still moves at the end."""
    *_, before, last = order
    if stable < last:
        return f"From step {stable} on the order is the last one."
    moving = [name for one, name in zip(order[before], order[last], strict=True) if one != name]
    apart = max(at[last][name] for name in moving) - min(at[last][name] for name in moving)
    return (
        f"At the last look {len(moving)} places still move, among candidates that are {apart:.3f} "
        "nats apart; the others keep theirs."
    )


def _at(looks: list[dict[str, Any]], step: int) -> float:
    return float(next(look["loss"] for look in looks if look["step"] == step))


def draw_ranking(found: dict[str, list[dict[str, Any]]]) -> str:
    """Each candidate's loss above the best one's."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    steps = [look["step"] for look in next(iter(found.values()))]
    best = {step: min(_at(looks, step) for looks in found.values()) for step in steps}
    for name, looks in sorted(found.items(), key=lambda item: item[1][-1]["loss"]):
        axis.plot(steps, [_at(looks, s) - best[s] for s in steps], "o-", label=name)
    axis.set_xlabel("steps of retraining")
    axis.set_ylabel("loss above the best one's (nats a token)")
    axis.set_yscale("symlog", linthresh=0.05)
    axis.legend(frameon=False, fontsize=8)
    return saved(figure, axis, "ranking.png")


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
    papers = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    for table, title in words.items():
        paper = papers.get(table, {})
        found = [row for row in results["rows"] if row["table"] == table]
        rows = []
        for row in found:
            name = f"{row['cut']}, {row['how']}"
            least = min(other["loss"] for other in found if other["cut"] == row["cut"])
            loss = f"**{row['loss']:.4f}**" if row["loss"] == least else f"{row['loss']:.4f}"
            spread = "" if row["spread"] is None else f" ± {row['spread']:.4f}"
            cells = [name, f"{row['parameters']:,}", loss + spread]
            rows.append([*cells, *([paper[name]] if paper else [])])
        head = ["", "parameters", "loss", *(["the paper"] if paper else [])]
        lines += [f"### {title}", "", *markdown(head, rows), ""]
        if table == "axes":
            lines += [ranked_by(found), ""]
            lines += ["![Loss by axis and by what ranks](../benchmarks/results/zero_shot.png)", ""]
    return lines


def ranked_by(rows: list[dict[str, Any]]) -> str:
    """Where importance is ahead of the magnitude of weights and of chance, and where not."""
    losses: dict[str, dict[str, float]] = {}
    for row in rows:
        losses.setdefault(row["cut"], {})[row["how"]] = row["loss"]
    told = []
    for other in ("magnitude", "random, mean of 3"):
        gains = {cut: of[other] - of["importance"] for cut, of in losses.items()}
        words = {
            "is ahead of": [cut for cut, gain in gains.items() if gain > 0],
            "keeps the same as": [cut for cut, gain in gains.items() if gain == 0],
            "**is behind**": [cut for cut, gain in gains.items() if gain < 0],
        }
        told += [
            f"importance {verb} {other.split(',')[0]} on {', '.join(cuts)}"
            for verb, cuts in words.items()
            if cuts
        ]
    return "; ".join(told).capitalize().replace("kv", "KV") + "."


def page() -> str:
    """The whole page."""
    lines = [
        "# The tiny family: the papers' tables in miniature",
        "",
        "Everything here is measured on the embedded teacher `tiny` (6.7 M parameters, books), by "
        "`python benchmarks/family.py` and `python benchmarks/zero_shot.py`; each number is in a "
        "file of `benchmarks/results`, from which `python benchmarks/family_page.py` makes this "
        "page. Losses are nats a token on held-out books; ± is the sample standard deviation over "
        "seeds. M1 is [2407.14679](https://arxiv.org/abs/2407.14679), M2 "
        "[2408.11796](https://arxiv.org/abs/2408.11796).",
        "",
        *members(),
        "## How to read the tables",
        "",
        *teacher(),
        "Bold is the best row. The last column is what the paper prints for the row it mirrors, of "
        "models a thousand times the size, in the paper's own units: compare orders, not numbers.",
        "",
        *headline(),
    ]
    for table in Table.all():
        lines += table.lines()
    lines += ranking()
    return "\n".join([*lines, *zero_shot()]).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
