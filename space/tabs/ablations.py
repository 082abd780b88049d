"""Ablations: the papers' tables in miniature, and how many tokens pruning saves.

The tables are those of benchmarks/family_tables.yaml, their runs those of benchmarks/family.py. A
row that was not run is left out, and a table of fewer than two rows.

    ablations(Records())   # [Section("Start and signal", ...), ...]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minitron.space.tabs.records import Records, Run, Runs
from minitron.space.tabs.section import Section, with_code
from minitron.space.ui.chart import Series, chart
from minitron.space.ui.dot_plot import Dot, StripRow, strip
from minitron.space.ui.html import Html, count, joined, tag

TABLES = Path(__file__).parent.parent / "family_tables.yaml"
PAPERS = {"M1": "arXiv 2407.14679", "M2": "arXiv 2408.11796"}
LOSS = "held-out loss (nats a token)"


@dataclass(frozen=True)
class Measured:
    """A row of a table that was run."""

    words: str
    runs: Runs
    paper: str  # what the paper prints

    @property
    def told(self) -> str:
        """Mean and spread."""
        spread = "" if self.runs.spread is None else f" ± {self.runs.spread:.3f}"
        return f"{self.runs.loss:.3f}{spread}"

    def strip_row(self, *, is_best: bool) -> StripRow:
        """As it is drawn."""
        first = self.runs.all[0]
        notes = [count(first.parameters)]
        if first.before is not None:
            notes.append(f"before {first.before:.3f}")
        if self.paper:
            notes.append(f"paper {self.paper}")
        dots = [Dot(run.loss, _told(run), 0 if is_best else 5) for run in self.runs.all]
        return StripRow(self.words, dots, self.told, " · ".join(notes), is_best)


def ablations(records: Records) -> list[Section]:
    """The tables, those of two rows and more."""
    tables = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    found = [_section(table, records) for table in tables]
    return [section for section in found if section is not None]


def tokens_to_a_loss(records: Records) -> Section | None:
    """Loss against tokens, from random weights and out of the teacher."""
    scratch, distilled = records.curve("scratch"), records.curve("distill")
    if not (scratch and distilled):
        return None
    teacher = records.result("family/teacher/tiny")
    series = [
        _line("pruned and distilled", distilled),
        _line("from random weights", scratch),
    ]
    drawn = chart(
        series,
        x="tokens trained on",
        y=LOSS,
        log_x=True,
        level=("the teacher", teacher["loss"]) if teacher else None,
    )
    held_out = f"{teacher['held_out_tokens']:,} held-out tokens" if teacher else "held-out text"
    return Section(
        "Tokens to reach a loss",
        tag("div", _ratio(scratch, distilled), drawn, class_="mt-headline"),
        f"Two models of the same sizes ({count(scratch[-1].parameters)} parameters), one run a "
        f"point, evaluated on {held_out}; what the teacher was trained on is not counted. "
        "benchmarks/family.py, in benchmarks/results/family/curve.",
        is_wide=True,
    )


def _ratio(scratch: list[Run], distilled: list[Run]) -> Html:
    """How many tokens the longest run from random weights needs for what few reach here."""
    last = scratch[-1]
    enough = next((run for run in distilled if run.loss <= last.loss), None)
    if enough is None:
        return Html("")
    ratio = last.tokens / enough.tokens
    at_least = "at least " if enough is distilled[0] else ""
    return tag(
        "div",
        tag("p", f"{ratio:.0f}×", class_="mt-big"),
        tag("p", tag("b", f"{at_least}{ratio:.0f} times fewer tokens")),
        tag(
            "p",
            f"From random weights, {count(last.tokens)} tokens reach {last.loss:.3f} nats a token. "
            f"Pruned from the teacher and distilled, {count(enough.tokens)} tokens give "
            f"{enough.loss:.3f}. The papers say up to 40 times.",
        ),
        class_="mt-ratio-told",
    )


def _line(name: str, runs: list[Run]) -> Series:
    points = [(float(run.tokens), run.loss) for run in runs]
    return Series(name, points, [_told(run) for run in runs], is_line=True)


def _section(table: dict[str, Any], records: Records) -> Section | None:
    rows = [
        Measured(row["words"], runs, row.get("paper", ""))
        for row in table["rows"]
        if (runs := records.runs(row["runs"]))
    ]
    if len(rows) < 2:
        return None
    best = min(rows, key=lambda row: row.runs.loss)
    tokens = max(run.tokens for row in rows for run in row.runs.all)
    seeds = sorted({len(row.runs.all) for row in rows})
    folders = sorted({Path(row.runs.all[0].file).parent.name for row in rows})
    many = " to ".join(map(str, seeds))
    source = joined(
        with_code(table["what"].strip()),
        f" {tokens:,} tokens a run; {many} seeds a row, each a dot; mean ± sample standard "
        "deviation. Mirrors ",
        _cited(table["source"]),
        f". benchmarks/results/family/{', '.join(folders)}.",
    )
    body = strip([row.strip_row(is_best=row is best) for row in rows], LOSS)
    return Section(table["title"], body, source, said=_said(rows, best))


def _said(rows: list[Measured], best: Measured) -> Html:
    """The lowest row and its distance from the next, by the seeds' own spread."""
    second = min((row for row in rows if row is not best), key=lambda row: row.runs.loss)
    gap = second.runs.loss - best.runs.loss
    spread = ((best.runs.spread or 0) ** 2 + (second.runs.spread or 0) ** 2) ** 0.5
    if gap <= 2 * spread:
        return joined(
            "Too close to tell: ",
            tag("b", best.words),
            f" and {second.words} differ by {gap:.3f}, within two standard deviations.",
        )
    return joined("Best: ", tag("b", best.words), f", {gap:.3f} nats a token below {second.words}.")


def _told(run: Run) -> str:
    return (
        f"{run.loss:.4f} nats a token after {run.tokens:,} tokens, {run.seconds:,.0f} s of "
        f"training ({run.file})"
    )


def _cited(text: str) -> str:
    for short, paper in PAPERS.items():
        text = text.replace(f"{short} ", f"{paper} ")
    return text
