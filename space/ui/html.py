"""Markup: HTML and SVG made of nested calls, escaped wherever text comes in.

tag("p", "1 < 2", tag("b", "!"), title="so")   # <p title="so">1 &lt; 2<b>!</b></p>
"""

from html import escape

_EMPTY = frozenset({"br", "circle", "line", "path", "polyline", "rect"})


class Html(str):
    """Text that is HTML already."""


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element. `class_` and `data_tip` read as class and data-tip; None leaves one out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Html(f"<{name}{said}/>")
    return Html(f"<{name}{said}>{joined(*content)}</{name}>")


def joined(*content: object) -> Html:
    """Parts one after the other, each escaped unless it is HTML."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in content))


def count(value: float) -> str:
    """A number of things in three digits: 6.72 M."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{_three_digits(value / size)}{unit}"
    return _three_digits(value)


def size(value: float) -> str:
    """Bytes in three digits: 26.9 MB."""
    for unit_size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit_size:
            return f"{_three_digits(value / unit_size)} {unit}"
    return f"{value:.0f} B"


def _three_digits(value: float) -> str:
    """3.40, 26.9, 262."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"


def percent(share: float) -> str:
    """A share: 83 %, and 99.6 % where it is nearly all."""
    return f"{100 * share:.1f} %" if 0.99 <= share < 1 else f"{100 * share:.0f} %"


def stat(label: str, value: str, measured: str, *, extra: object = "") -> Html:
    """A number with its name, and how it was measured when asked."""
    return tag(
        "div",
        tag("dt", label),
        tag("dd", value, extra),
        class_="mt-stat",
        title=measured,
    )
