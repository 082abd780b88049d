"""Ranked: what a cut costs by what ranked the parts, with nothing retrained and after it.

Read from results of benchmarks/importance_against_random.py and benchmarks/zero_shot.py.

    rankings(Records())   # [Section("Does importance matter?", ...), ...]
"""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from minitron.space.tabs.records import Records
from minitron.space.tabs.section import Section, table
from minitron.space.ui.dot_plot import Dot, StripRow, strip
from minitron.space.ui.html import count, joined, tag

_STAGES = {"pruned": "just pruned", "retrained": "retrained"}


def rankings(records: Records) -> list[Section]:
    """All there are."""
    found = [_importance_against_random(records), _axes(records)]
    return [section for section in found if section is not None]


def _importance_against_random(records: Records) -> Section | None:
    against = records.result("importance_against_random")
    if not against:
        return None
    strips = [_stage(against, stage, words) for stage, words in _STAGES.items()]
    summary = against["summary"]
    gains = [summary[s]["random_mean"] - summary[s]["importance"] for s in _STAGES]
    return Section(
        "Does importance matter?",
        joined(*strips),
        f"The same cut to {count(against['parameters'])} parameters, kept by importance and by "
        f"chance (a dot a seed, mean ± sample standard deviation); each retrained on "
        f"{count(against['tokens'])} tokens. Nats a token on "
        f"{count(against['teacher']['tokens'])} held-out tokens, where the teacher has "
        f"{against['teacher']['loss']:.3f}. benchmarks/importance_against_random.py.",
        said=joined(
            "Yes: ",
            tag("b", f"{gains[0]:.3f} nats a token"),
            f" lower than by chance when just pruned, {gains[1]:.3f} after retraining.",
        )
        if min(gains) > 0
        else "",
    )


def _stage(against: Mapping[str, Any], stage: str, words: str) -> object:
    losses = {student["name"]: student[stage]["loss"] for student in against["students"]}
    ours = losses.pop("importance")
    chance = [
        Dot(loss, f"{name.replace('-', ' ')}, {words}: {loss:.4f} nats a token", 5)
        for name, loss in losses.items()
    ]
    told = _mean_and_spread([dot.value for dot in chance])
    mine = Dot(ours, f"by importance, {words}: {ours:.4f} nats a token")
    is_best = ours < min(dot.value for dot in chance)
    rows = [
        StripRow("by importance", [mine], f"{ours:.3f}", words, is_best),
        StripRow("by chance", chance, told, words),
    ]
    return strip(rows, "held-out loss (nats a token)")


def _axes(records: Records) -> Section | None:
    """Table 1 without retraining: each axis cut to half, by what ranked it."""
    results = records.result("zero_shot")
    rows = [row for row in results.get("rows", ()) if row["table"] == "axes"]
    if not rows:
        return None
    ways, cuts = _each(row["how"] for row in rows), _each(row["cut"] for row in rows)
    found = {(row["cut"], row["how"]): row for row in rows}
    drawn = []
    for cut in cuts:
        dots = [
            Dot(row["loss"], f"{cut}, {way}: {_loss(row)} nats a token", series)
            for series, way in enumerate(ways)
            if (row := found.get((cut, way)))
        ]
        least = min(dots, key=lambda dot: dot.value)
        parameters = next(row["parameters"] for row in rows if row["cut"] == cut)
        drawn.append(
            StripRow(cut, dots, f"{least.value:.3f} by {ways[least.series]}", count(parameters))
        )
    cells = [
        [cut, *(_loss(found[cut, way]) if (cut, way) in found else "" for way in ways)]
        for cut in cuts
    ]
    return Section(
        "What should rank the parts?",
        joined(
            strip(drawn, "held-out loss (nats a token)", legend=ways),
            tag(
                "details",
                tag("summary", "All numbers"),
                table(["cut", *ways], cells),
                class_="mt-details",
            ),
        ),
        f"The teacher ({results['teacher']:.3f}) cut and not retrained, axis by axis, as in table "
        f"1 of arXiv 2407.14679; on the right the lowest. Nats a token on {results['tokens']:,} "
        f"held-out tokens; importance from {results['samples']} sequences. "
        "benchmarks/zero_shot.py, in benchmarks/results/zero_shot.json.",
        is_wide=True,
    )


def _each(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _loss(row: Mapping[str, Any]) -> str:
    spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
    return f"{row['loss']:.3f}{spread}"


def _mean_and_spread(losses: list[float]) -> str:
    spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.3f}{spread}"
