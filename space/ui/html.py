"""HTML of the page's parts, from the templates beside this file; all values are escaped.

render("head", models=[("tiny", 6_724_096)])
"""

import re
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_INLINE = (  # of Markdown, what the texts of evidence.json use
    (re.compile(r"\*\*(.+?)\*\*"), r"<b>\1</b>"),
    (re.compile(r"`(.+?)`"), r"<code>\1</code>"),
    (re.compile(r"\[(.+?)\]\((https://[^)]+)\)"), r'<a href="\2">\1</a>'),
    (re.compile(r"\barXiv (\d{4}\.\d{5})"), r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>'),
)


class Html(str):
    """Text that is HTML already: templates do not escape what has this method."""

    def __html__(self) -> str:
        return str(self)


def render(template: str, **values: Any) -> str:
    """The HTML of templates/TEMPLATE.html.jinja."""
    return _ENVIRONMENT.get_template(f"{template}.html.jinja").render(values)


def count(value: float) -> str:
    """A number of things in three digits: 6.72 M."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{_three_digits(value / size)}{unit}"
    return _three_digits(value)


def byte_size(value: float) -> str:
    """Bytes in three digits: 26.9 MB."""
    for unit_size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit_size:
            return f"{_three_digits(value / unit_size)} {unit}"
    return f"{value:.0f} B"


def percent(share: float) -> str:
    """A share: 83 %, and 99.6 % where it is nearly all."""
    return f"{100 * share:.1f} %" if 0.99 <= share < 1 else f"{100 * share:.0f} %"


def inline(text: str) -> Html:
    """Text with **bold**, `code`, [links](https://...) and arXiv numbers."""
    html = escape(text)
    for pattern, replacement in _INLINE:
        html = pattern.sub(replacement, html)
    return Html(html)


def _three_digits(value: float) -> str:
    """3.40, 26.9, 262."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters |= {
    "count": count,
    "byte_size": byte_size,
    "percent": percent,
    "inline": inline,
}
