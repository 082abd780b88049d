"""Section: a question of the Evidence tab, what answers it, and where that comes from.

Section("Does importance matter?", table(["kept by", "loss"], rows), "benchmarks/x.py").html()
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minitron.space.ui.html import Html, joined, tag


@dataclass(frozen=True)
class Section:
    """A question, what answers it, and where that comes from."""

    title: str
    body: Html
    source: object
    said: object = ""  # the answer in a sentence
    is_wide: bool = False

    def html(self) -> Html:
        """As the page shows it."""
        return tag(
            "section",
            tag("h3", self.title),
            *([tag("p", self.said, class_="mt-said")] if self.said else []),
            self.body,
            tag("p", self.source, class_="mt-faint"),
            class_=f"mt-card mt-evidence{' mt-wide' if self.is_wide else ''}",
        )


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Html:
    """Names on the left, numbers on the right; wide ones scroll in their own box."""
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in header))),
            tag("tbody", *body),
            class_="mt-table",
        ),
        class_="mt-scroll",
        tabindex=0,
    )


def with_code(text: str) -> Html:
    """Text whose `words` between backticks are code."""
    parts = text.split("`")
    return joined(*(tag("code", part) if at % 2 else part for at, part in enumerate(parts)))
