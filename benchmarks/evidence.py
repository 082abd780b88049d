"""Evidence: sections of measured values with mean, spread and verdict.

docs/family.md and the Space show them. Has the rule by which two rows are called different; reads
no result files.

    Row("width", (Dot(4.10, "seed 0", "t13/width-0.json"), ...)).mean
"""

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

LOSS = "held-out loss (nats per token)"
RULE = (
    "Two rows are called different only where their means differ by more than 2·√(s₁² + s₂²) and "
    "by 0.001 or more; s is the sample standard deviation over seeds, 0 for a single run."
)


@dataclass(frozen=True)
class Dot:
    """A measured value, and the file it is read from."""

    value: float
    label: str
    source: str
    series: int = 0  # index of its series, which has a colour


@dataclass(frozen=True)
class Row:
    """The runs of one setting, which differ by their seed only."""

    name: str
    dots: tuple[Dot, ...]
    parameters: int | None = None
    before: float | None = None  # the loss before retraining
    tokens: int = 0
    paper: str = ""  # the paper's number for the same row
    rank: float | None = None  # the number by which the paper orders its rows
    note: str = ""
    summary: str = ""  # instead of mean and spread

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(dot.value for dot in self.dots)

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over the seeds; None for a single run."""
        if len(self.dots) < 2:
            return None
        return statistics.stdev(dot.value for dot in self.dots)

    def to_json(self) -> dict[str, Any]:
        """The fields, with mean and spread unless there is a summary."""
        values = _without_empty(asdict(self)) | {
            "dots": [_without_empty(asdict(d)) for d in self.dots]
        }
        values.pop("rank", None)
        if self.summary:
            return values
        return _without_empty({**values, "mean": self.mean, "spread": self.spread})


@dataclass(frozen=True)
class DotPlot:
    """Rows on a common axis; the legend names the series of dots, `level` a value on the axis."""

    rows: tuple[Row, ...]
    legend: tuple[str, ...] = ()
    level: dict[str, Any] | None = None

    @property
    def lowest(self) -> Row:
        """The row with the lowest mean."""
        return min(self.rows, key=lambda row: row.mean)

    def to_json(self) -> dict[str, Any]:
        """The rows; the lowest is marked where dots have one series and it differs by RULE."""
        rows = [row.to_json() for row in self.rows]
        lowest = self.lowest
        others = [row for row in self.rows if row is not lowest]
        second = min(others, key=lambda row: row.mean, default=lowest)
        is_clear = are_different(second.mean - lowest.mean, lowest.spread, second.spread)
        if is_clear and not self.legend:
            rows[self.rows.index(lowest)]["is_lowest"] = True
        values = {"rows": rows, "legend": list(self.legend), "level": self.level}
        return _without_empty({"unit": LOSS, **values})


@dataclass(frozen=True)
class Series:
    """Points of a chart, connected by a line or each with a name."""

    name: str
    points: tuple[dict[str, Any], ...]  # x, y, label, source
    is_line: bool = False


@dataclass(frozen=True)
class Chart:
    """Series on a logarithmic x axis; `level` is a horizontal line with a name."""

    x: str
    series: tuple[Series, ...]
    level: dict[str, Any] | None = None


@dataclass(frozen=True)
class Comparison:
    """Two rows that the paper orders, and whether they have the same order here."""

    words: str
    outcome: str  # "same", "opposite" or "close": too close to distinguish


@dataclass(frozen=True)
class Tally:
    """The comparisons of one table of the papers."""

    name: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Section:
    """A title, the verdict, an explanation of the measurement, plots and a table.

    The Space begins with the sections that have a finding, a sentence that needs no context.
    """

    title: str
    explanation: str
    verdict: str = ""
    paper_verdict: str = ""  # whether the paper has the same order
    finding: str = ""
    source: str = ""  # the script and the result files; paths that the Space does not have
    comparisons: tuple[Comparison, ...] = ()  # with the order of the paper
    chart: Chart | None = None
    plots: tuple[DotPlot, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()  # the first row is the head
    table_title: str = ""  # of a table that is hidden until opened
    tallies: tuple[Tally, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields that are not empty and that the Space shows."""
        values = _without_empty(asdict(self)) | {"plots": [plot.to_json() for plot in self.plots]}
        values = {k: v for k, v in values.items() if k not in ("source", "comparisons")}
        if self.chart is not None:
            values["chart"] = {**_without_empty(asdict(self.chart)), "y": LOSS}
        return _without_empty(values)


def are_different(gap: float, *spreads: float | None) -> bool:
    """Whether two means with these spreads differ by RULE."""
    return abs(gap) >= 0.001 and abs(gap) > 2 * math.hypot(*(spread or 0.0 for spread in spreads))


def loss_text(mean: float, spread: float | None, digits: int) -> str:
    """`4.130 ± 0.036`, or the mean alone without a spread."""
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value or isinstance(value, float)}


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table; none without rows."""
    if not rows:
        return []
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
