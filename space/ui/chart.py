"""Charts of evidence.json: where lines, dots and ticks are drawn. The templates write the SVG.

line_chart({"x": "tokens", "y": "loss", "series": [...]}).dots
dot_plot({"unit": "loss", "rows": [...]}).rows
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron.space.ui.html import count

WIDTH, HEIGHT = 540.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 14.0, 14.0, 26.0  # margins
_OTHER = 5  # the series of dots that are not of the lowest row

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A value beside an axis; `at` is in pixels, or in percent of a dot plot's width."""

    at: float
    text: str


@dataclass(frozen=True)
class ChartDot:
    """A point of a line chart; one that is not on a line has its name beside it."""

    x: float
    y: float
    series: int
    title: str
    name: str

    @property
    def is_near_the_right(self) -> bool:
        """Whether its name is written to its left."""
        return self.x > WIDTH * 0.75


@dataclass(frozen=True)
class LineChart:
    """Lines and dots in pixels, on a logarithmic x axis."""

    x: str
    y: str
    names: tuple[str, ...]  # of the series
    lines: tuple[tuple[int, str], ...]  # the number of the series, the points of the polyline
    dots: tuple[ChartDot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    level: Tick | None  # a horizontal line with a name


def line_chart(chart: Mapping[str, Any]) -> LineChart:
    """A chart of evidence.json."""
    series, level = chart["series"], chart.get("level")
    points = [point for one in series for point in one["points"]]
    xs = [math.log10(point["x"]) for point in points]
    ys = [point["y"] for point in points] + ([level["value"]] if level else [])
    left, right = _padded(min(xs), max(xs), 0.06)
    low, high = _padded(min(ys), max(ys), 0.08)

    def across(x: float) -> float:
        share = (math.log10(x) - left) / (right - left)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def height(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = [
        (index, " ".join(f"{across(p['x'])},{height(p['y'])}" for p in one["points"]))
        for index, one in enumerate(series)
        if one["is_line"]
    ]
    level_tick = (
        Tick(height(level["value"]), f"{level['name']}: {level['value']:.3f}") if level else None
    )
    return LineChart(
        chart["x"],
        chart["y"],
        tuple(one["name"] for one in series),
        tuple(lines),
        tuple(_dots(series, across, height)),
        tuple(Tick(across(value), _short_count(value)) for value in _log_ticks(left, right)),
        tuple(Tick(height(value), f"{value:g}") for value in _ticks(low, high, 5)),
        level_tick,
    )


def _dots(
    series: Sequence[Mapping[str, Any]],
    across: Callable[[float], float],
    height: Callable[[float], float],
) -> Iterator[ChartDot]:
    for index, one in enumerate(series):
        for point in one["points"]:
            x, y, name = point["x"], point["y"], "" if one["is_line"] else point["label"]
            title = f"{name}: {y:.3f} at {count(x)}" if name else point["label"]
            yield ChartDot(across(x), height(y), index, f"{title} ({point['source']})", name)


@dataclass(frozen=True)
class PlotDot:
    """A dot of a dot plot."""

    at: float  # percent of the width
    series: int
    title: str


@dataclass(frozen=True)
class PlotRow:
    """A name, its dots, and their mean or summary in words."""

    name: str
    note: str
    value: str
    is_lowest: bool
    dots: tuple[PlotDot, ...]


@dataclass(frozen=True)
class DotPlot:
    """Named rows of dots on one axis."""

    unit: str
    legend: tuple[str, ...]
    rows: tuple[PlotRow, ...]
    ticks: tuple[Tick, ...]


def dot_plot(plot: Mapping[str, Any]) -> DotPlot:
    """A dot plot of evidence.json."""
    values = [dot["value"] for row in plot["rows"] for dot in row["dots"]]
    low, high = _padded(min(values), max(values), 0.04)

    def across(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    legend = tuple(plot.get("legend", ()))
    rows = tuple(_plot_row(row, across, has_legend=bool(legend)) for row in plot["rows"])
    ticks = tuple(Tick(across(value), f"{value:g}") for value in _ticks(low, high, 3))
    return DotPlot(plot["unit"], legend, rows, ticks)


def _plot_row(
    row: Mapping[str, Any], across: Callable[[float], float], *, has_legend: bool
) -> PlotRow:
    is_lowest = row.get("is_lowest", False)
    one_colour = 0 if is_lowest else _OTHER
    dots = tuple(
        PlotDot(
            across(dot["value"]),
            dot.get("series", 0) if has_legend else one_colour,
            f"{dot['label']} ({dot['source']})",
        )
        for dot in row["dots"]
    )
    return PlotRow(row["name"], _note(row), _value(row), is_lowest, dots)


def _value(row: Mapping[str, Any]) -> str:
    if "summary" in row:
        return str(row["summary"])
    spread = f" ± {row['spread']:.3f}" if "spread" in row else ""
    return f"{row['mean']:.3f}{spread}"


def _note(row: Mapping[str, Any]) -> str:
    notes = [
        count(row["parameters"]) if "parameters" in row else "",
        f"before {row['before']:.3f}" if "before" in row else "",
        f"paper {row['paper']}" if "paper" in row else "",
        row.get("note", ""),
    ]
    return " · ".join(filter(None, notes))


def _padded(low: float, high: float, share: float) -> Point:
    """A range with some room on both sides, also of a single value."""
    spread = (high - low) or abs(high) * 0.2 or 1.0
    return low - share * spread, high + share * spread or low + 1.0


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round values."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * by for by in (1, 2, 5, 10) if power * by >= rough)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, int(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade; in a narrow range, round values."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    values = [by * 10.0**decade for decade in decades for by in (1, 2, 5)]
    inside = [value for value in values if low <= math.log10(value) <= high]
    return inside if len(inside) > 1 else _ticks(10**low, 10**high, 5)


def _short_count(value: float) -> str:
    """3 M rather than 3.00 M."""
    digits, _, unit = count(value).partition(" ")
    return " ".join(filter(None, (f"{float(digits):g}", unit))) if value else "0"
