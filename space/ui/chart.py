"""Chart: points and lines as SVG, in the page's own colours and letters.

chart([Series("tiny", [(6.7e6, 3.92)])], x="parameters", y="loss", log_x=True)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minitron.space.ui.html import Html, count, tag

_WIDTH, _HEIGHT = 540.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 42.0, 14.0, 14.0, 26.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points of one kind, each a dot with its own name; or a line, whose dots tell theirs when
    pointed at."""

    name: str
    points: Sequence[Point]
    labels: Sequence[str]  # of the points
    is_line: bool = False


def chart(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    level: tuple[str, float] | None = None,
) -> Html:
    """All series on the same axes, with a legend of the lines; `level` is a height with a name."""
    points = [point for one in series for point in one.points]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    scale = math.log10 if log_x else float
    left, right = padded(min(map(scale, xs)), max(map(scale, xs)), 0.06 if log_x else 0.0)
    if level is not None:
        ys.append(level[1])
    low, high = padded(min(ys), max(ys), 0.08)

    def at(point: Point) -> Point:
        across = (scale(point[0]) - left) / (right - left)
        up = (point[1] - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    drawn = [shape for index, one in enumerate(series) for shape in _drawn(one, index, at)]
    return tag(
        "figure",
        _legend(series),
        tag("div", y, class_="mt-axis-name"),
        tag(
            "svg",
            *_grid(left, right, low, high, at, log_x=log_x),
            *_level(level, at, xs),
            *drawn,
            viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
            role="img",
            aria_label=f"{y} against {x}: {', '.join(one.name for one in series)}",
        ),
        tag("div", x, class_="mt-axis-name mt-axis-x"),
        class_="mt-chart",
    )


def _drawn(one: Series, index: int, at: Callable[[Point], Point]) -> list[Html]:
    kind = f"mt-series-{index % 5}"
    shapes = []
    if one.is_line:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, one.points))
        shapes.append(tag("polyline", points=line, class_=f"mt-line {kind}"))
    for point, label in zip(one.points, one.labels, strict=True):
        x, y = at(point)
        told = label if one.is_line else f"{label}: {point[1]:.3f} at {count(point[0])}"
        shapes.append(
            tag(
                "g",
                tag("title", told),
                tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=5),
                class_=f"mt-dot {kind}",
            )
        )
        if one.is_line:
            continue
        side = "end" if x > _WIDTH * 0.75 else "start"
        shift = -9 if side == "end" else 9
        shapes.append(
            tag(
                "text",
                label,
                x=f"{x + shift:.1f}",
                y=f"{y + 4:.1f}",
                text_anchor=side,
                class_="mt-dot-name",
            )
        )
    return shapes


def _grid(
    left: float, right: float, low: float, high: float, at: Callable[[Point], Point], *, log_x: bool
) -> list[Html]:
    shapes = []
    for value in ticks(low, high):
        _, y = at((10**left if log_x else left, value))
        shapes.append(
            tag(
                "line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="mt-grid"
            )
        )
        shapes.append(
            tag("text", f"{value:g}", x=_LEFT - 7, y=f"{y + 4:.1f}", class_="mt-tick mt-tick-y")
        )
    values = _log_ticks(left, right) if log_x else ticks(left, right)
    for value in values:
        x, _ = at((value, low))
        shapes.append(
            tag(
                "text",
                _tick(value),
                x=f"{x:.1f}",
                y=_HEIGHT - _BOTTOM + 16,
                class_="mt-tick",
            )
        )
    return shapes


def _level(
    level: tuple[str, float] | None, at: Callable[[Point], Point], xs: Sequence[float]
) -> list[Html]:
    if level is None:
        return []
    _, y = at((xs[0], level[1]))
    line = {"x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": f"{y:.1f}", "y2": f"{y:.1f}"}
    told = f"{level[0]}: {level[1]:.3f}"
    return [
        tag("line", **line, class_="mt-level"),
        tag("text", told, x=_LEFT + 6, y=f"{y - 5:.1f}", class_="mt-dot-name"),
    ]


def _legend(series: Sequence[Series]) -> Html:
    if not any(one.is_line for one in series):  # named dots say it
        return Html("")
    keys = (
        tag("span", tag("i", class_=f"mt-swatch mt-series-{index % 5}"), one.name)
        for index, one in enumerate(series)
    )
    return tag("div", *keys, class_="mt-chart-legend")


def padded(low: float, high: float, share: float) -> Point:
    """A range with some room on both sides, also of a single value."""
    spread = (high - low) or abs(high) * 0.2 or 1.0
    return low - share * spread, high + share * spread or low + 1.0


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * by for by in (1, 2, 5, 10) if power * by >= rough)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, int(high / step) + 1)]


def _tick(value: float) -> str:
    """3 M rather than 3.00 M."""
    told, _, unit = count(value).partition(" ")
    return " ".join(filter(None, (f"{float(told):g}", unit))) if value else "0"


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade; of a narrow range, round values."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    values = [by * 10.0**decade for decade in decades for by in (1, 2, 5)]
    inside = [value for value in values if low <= math.log10(value) <= high]
    return inside if len(inside) > 1 else ticks(10**low, 10**high)
