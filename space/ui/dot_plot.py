"""Strip: named rows of dots on one axis, as HTML whose words stay readable on a phone.

strip([StripRow("pruned", [Dot(4.05, "seed 0: 4.0508")], "4.05", is_best=True)], "loss")
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minitron.space.ui.chart import padded, ticks
from minitron.space.ui.html import Html, tag


@dataclass(frozen=True)
class Dot:
    """A value on the axis."""

    value: float
    told: str  # when pointed at
    series: int = 0


@dataclass(frozen=True)
class StripRow:
    """A name, its dots, and their number in words."""

    name: str
    dots: Sequence[Dot]
    told: str
    note: str = ""
    is_best: bool = False


def strip(rows: Sequence[StripRow], unit: str, legend: Sequence[str] = ()) -> Html:
    """All rows on one axis of that unit; `legend` names the series of dots."""
    values = [dot.value for row in rows for dot in row.dots]
    low, high = padded(min(values), max(values), 0.04)

    def across(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    marks = [
        tag("span", f"{value:g}", style=f"left:{across(value)}")
        for value in ticks(low, high, about=3)
    ]
    return tag(
        "div",
        _legend(legend),
        tag("ul", *(_row(row, across) for row in rows), class_="mt-strip"),
        tag(
            "div",
            tag("div", *marks, class_="mt-strip-ticks"),
            tag("div", unit, class_="mt-strip-unit"),
            class_="mt-strip-axis",
        ),
        class_="mt-strip-box",
    )


def _row(row: StripRow, across: Callable[[float], str]) -> Html:
    values = [dot.value for dot in row.dots]
    first, last = across(min(values)), across(max(values))
    dots = [
        tag("i", class_=f"mt-strip-dot mt-series-{dot.series}", title=dot.told, style=at)
        for dot in row.dots
        for at in [f"left:{across(dot.value)}"]
    ]
    span = tag("b", style=f"left:{first};right:calc(100% - {last})")
    name = [row.name, *([tag("em", "lowest")] if row.is_best else [])]
    return tag(
        "li",
        tag("span", *name, tag("small", row.note), class_="mt-strip-name"),
        tag("span", span, *dots, class_="mt-strip-track", aria_hidden="true"),
        tag("span", row.told, class_="mt-strip-told"),
        class_="mt-strip-best" if row.is_best else None,
    )


def _legend(names: Sequence[str]) -> Html:
    if not names:
        return Html("")
    keys = (
        tag("span", tag("i", class_=f"mt-swatch mt-series-{index}"), name)
        for index, name in enumerate(names)
    )
    return tag("p", *keys, class_="mt-chart-legend")
