"""Charts of evidence.json: where lines, dots and ticks are drawn. The templates write the SVG.

line_chart({"x": "tokens", "y": "loss", "series": [...]}).dots
dot_plots([{"unit": "loss", "rows": [...]}])[0].rows
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron.space.ui.html import count

WIDTH, HEIGHT = 540.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 14.0, 14.0, 26.0  # margins
_OTHER = 5  # the series of dots that are not of the lowest row
_DOT = 3.2  # percent of a dot plot's width that a dot takes on a phone

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
        tuple(Tick(height(value), f"{value:g}") for value in _ticks(low, high, 4)),
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
    level: int  # dots that would cover each other are below each other


@dataclass(frozen=True)
class PlotRow:
    """A name, its dots, and their mean or summary in words."""

    name: str
    note: str
    value: str
    is_lowest: bool
    dots: tuple[PlotDot, ...]

    @property
    def levels(self) -> int:
        """How many dots are below each other."""
        return 1 + max(dot.level for dot in self.dots)


@dataclass(frozen=True)
class DotPlot:
    """Named rows of dots on one axis; `level` is a vertical line with a name."""

    unit: str
    legend: tuple[str, ...]
    rows: tuple[PlotRow, ...]
    ticks: tuple[Tick, ...]
    level: Tick | None


def dot_plots(plots: Sequence[Mapping[str, Any]]) -> list[DotPlot]:
    """The dot plots of a section of evidence.json, on a common axis."""
    rows = [row for plot in plots for row in plot["rows"]]
    levels = [plot["level"] for plot in plots if "level" in plot]
    values = [dot["value"] for row in rows for dot in row["dots"]]
    values += [level["value"] for level in levels]
    if not values:
        return []
    low, high = _padded(min(values), max(values), 0.04)

    def across(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    ticks = tuple(Tick(across(value), f"{value:g}") for value in _ticks(low, high, 3))
    return [_dot_plot(plot, across, ticks) for plot in plots]


def _dot_plot(
    plot: Mapping[str, Any], across: Callable[[float], float], ticks: tuple[Tick, ...]
) -> DotPlot:
    legend, level = tuple(plot.get("legend", ())), plot.get("level")
    rows = tuple(_plot_row(row, across, has_legend=bool(legend)) for row in plot["rows"])
    line = Tick(across(level["value"]), f"{level['name']}: {level['value']:.3f}") if level else None
    return DotPlot(plot["unit"], legend, rows, ticks, line)


def _plot_row(
    row: Mapping[str, Any], across: Callable[[float], float], *, has_legend: bool
) -> PlotRow:
    is_lowest = row.get("is_lowest", False)
    one_colour = 0 if is_lowest else _OTHER
    at = [across(dot["value"]) for dot in row["dots"]]
    dots = tuple(
        PlotDot(
            place,
            dot.get("series", 0) if has_legend else one_colour,
            f"{dot['label']} ({dot['source']})",
            level,
        )
        for dot, place, level in zip(row["dots"], at, _levels(at), strict=True)
    )
    return PlotRow(row["name"], _note(row), _value(row), is_lowest, dots)


def _levels(at: Sequence[float]) -> list[int]:
    """For each dot the first level at which no dot before it covers it."""
    levels: list[int] = []
    for index, place in enumerate(at):
        others = zip(at[:index], levels, strict=True)
        used = {level for other, level in others if abs(other - place) < _DOT}
        levels.append(next(level for level in range(index + 1) if level not in used))
    return levels


def _value(row: Mapping[str, Any]) -> str:
    if "summary" in row:
        return str(row["summary"])
    spread = f" ± {row['spread']:.3f}" if "spread" in row else ""
    return f"{row['mean']:.3f}{spread}"


def _note(row: Mapping[str, Any]) -> str:
    notes = [
        count(row["parameters"]) if "parameters" in row else "",
        f"before retraining {row['before']:.3f}" if "before" in row else "",
        f"paper {row['paper']}" if "paper" in row else "",
        row.get("note", ""),
    ]
    return " · ".join(filter(None, notes))


def _padded(low: float, high: float, share: float) -> Point:
    """A range with some room on both sides, also of a single value."""
    spread = (high - low) or abs(high) * 0.2 or 1.0
    return low - share * spread, high + share * spread or low + 1.0


def _ticks(low: float, high: float, least: int) -> list[float]:
    """Round values, as few as possible but `least`."""
    power = 10.0 ** math.floor(math.log10(high - low))
    ticks: list[float] = []
    for by in (5, 2, 1, 0.5, 0.2, 0.1):
        step = power * by
        steps = range(math.ceil(low / step), math.floor(high / step) + 1)
        ticks = [round(index * step, 12) for index in steps]
        if len(ticks) >= least:
            break
    return ticks


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade; in a narrow range, more round values."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1, 2, 5), range(1, 10)):
        values = [by * 10.0**decade for decade in decades for by in digits]
        inside = [value for value in values if low <= math.log10(value) <= high]
        if len(inside) > 3:
            return inside
    return _ticks(10**low, 10**high, 4)


def _short_count(value: float) -> str:
    """3 M rather than 3.00 M."""
    digits, _, unit = count(value).partition(" ")
    return " ".join(filter(None, (f"{float(digits):g}", unit))) if value else "0"
