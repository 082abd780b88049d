"""Evidence: what was measured of this family, read from where it was recorded.

Every number comes from a file: the members' minitron.json, what benchmarks/ has written, and the
published family's sheet. A file that is not there leaves its section out.

    sections(family)   # [Section("Loss against parameters", ...)]
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from minitron.errors import MinitronError
from minitron.records.minitron_json import FILE, read_record
from minitron.space.jobs.catalog import Family, Member
from minitron.space.tabs.ablations import ablations, tokens_to_a_loss
from minitron.space.tabs.ranked import rankings
from minitron.space.tabs.records import RESULTS, Records
from minitron.space.tabs.section import Section, table
from minitron.space.ui.chart import Series, chart
from minitron.space.ui.html import Html, joined, tag

_LOSS = "loss (nats a token)"


def sections(family: Family, results: Sequence[Path] = RESULTS) -> list[Section]:
    """All there are."""
    records = Records(tuple(results))
    found = [
        tokens_to_a_loss(records),
        _loss_against_parameters(family, records),
        *rankings(records),
        *ablations(records),
        _members(family),
        _published(),
    ]
    return [section for section in found if section is not None]


def recorded_loss(member: Member) -> float | None:
    """The held-out loss that minitron.json holds; None where none was recorded."""
    record = _record(member)
    results = record.get("results") or {}
    if _LOSS not in results.get("columns", ()):
        return None
    column = results["columns"].index(_LOSS)
    for row in results["rows"]:
        if row["name"] == member.name:
            return float(row["values"][column])
    return None


def _loss_against_parameters(family: Family, records: Records) -> Section | None:
    measured = [
        ((float(member.inspection.parameters), loss), member.name)
        for member in family.members
        if (loss := recorded_loss(member)) is not None
    ]
    series = [Series("the family", [m[0] for m in measured], [m[1] for m in measured])]
    against = records.result("importance_against_random")
    if against:
        size = float(against["parameters"])
        for stage, name in (("pruned", "just pruned"), ("retrained", "pruned, briefly retrained")):
            loss = _student(against, "importance")[stage]["loss"]
            series.append(Series(name, [(size, loss)], [name]))
    series = [one for one in series if one.points]
    if sum(len(one.points) for one in series) < 2:
        return None
    return Section(
        "Loss against parameters",
        chart(series, x="parameters, embeddings included", y=_LOSS, log_x=True),
        "Held-out text that no model has trained on: minitron.json of each model"
        + (", benchmarks/results/importance_against_random.json." if against else "."),
    )


def _members(family: Family) -> Section:
    rows = []
    for member in family.members:
        found, loss = member.inspection, recorded_loss(member)
        rows.append(
            [
                member.name,
                f"{found.parameters:,}",
                f"{found.hidden_size:,}",
                f"{found.intermediate_size:,}",
                f"{found.num_attention_heads} / {found.num_key_value_heads}",
                str(found.num_hidden_layers),
                "" if loss is None else f"{loss:.3f}",
            ]
        )
    header = ["model", "parameters", "hidden", "MLP", "heads / KV", "layers", "held-out loss"]
    told = "minitron inspect; loss in nats a token, from each model's minitron.json."
    return Section("The models of this Space", table(header, rows), told, is_wide=True)


def _published() -> Section | None:
    """The published models' scores, each with its paper."""
    sheet = resources.files("minitron") / "records" / "published_cards.yaml"
    if not sheet.is_file():
        return None
    said = yaml.safe_load(sheet.read_text(encoding="utf-8"))
    benchmarks: Mapping[str, Any] = said["benchmarks"]
    rows = [row for name, member in said["members"].items() for row in _scores(name, member, said)]
    shown = [key for key in benchmarks if any(key in scores for _, _, scores in rows)]
    header = ["model", *(_benchmark(benchmarks[key]) for key in shown), "source"]
    body = [
        [name, *(f"{scores[key]:.1f}" if key in scores else "" for key in shown), source]
        for name, source, scores in rows
    ]
    if not body:
        return None
    return Section(
        "What the papers report of the published models",
        table(header, body),
        "Percent; after each benchmark the examples shown before the question. Not measured here.",
        is_wide=True,
    )


def _scores(
    name: str, member: Mapping[str, Any], said: Mapping[str, Any]
) -> Iterator[tuple[str, Html, Mapping[str, float]]]:
    for where, scores in (member.get("scores") or {}).items():
        paper = said["sources"].get(where.partition(" ")[0])
        if paper is not None:
            place = where.partition(" ")[2]
            link = tag("a", place or paper["title"], href=paper["url"], title=paper["title"])
            yield name, link, scores


def _benchmark(said: Mapping[str, Any]) -> str:
    return f"{said['name']} ({said['shots']})"


def page(family: Family) -> Html:
    """The whole tab."""
    return tag(
        "div", joined(*(section.html() for section in sections(family))), class_="mt-sections"
    )


def _record(member: Member) -> dict[str, Any]:
    path = member.open().companions.file(FILE)
    if path is None:
        return {}
    try:
        return read_record(path.parent)
    except MinitronError:
        return {}


def _student(against: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(one for one in against["students"] if one["name"] == name)
    return found
