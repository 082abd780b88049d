"""Evidence: what was measured of this family, read from where it was recorded.

Every number comes from a file: the members' minitron.json and training.jsonl, what benchmarks/ has
written, and the published family's sheet. A file that is not there leaves its section out.

    sections(family)   # [Section("Loss against parameters", ...)]
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from minitron.errors import MinitronError
from minitron.provenance import FILE, read_provenance
from minitron.space.chart import Series, chart
from minitron.space.family import Family, Member
from minitron.space.markup import Html, count, joined, tag

RESULTS = (
    Path(__file__).parent / "results",  # as installed
    Path(__file__).parent.parent / "benchmarks" / "results",  # in the repository
)
_LOSS = "loss (nats a token)"
_CURVE = "training.jsonl"


@dataclass(frozen=True)
class Section:
    """A question, what answers it, and where that comes from."""

    title: str
    body: Html
    source: str
    is_wide: bool = False

    def html(self) -> Html:
        """As the page shows it."""
        return tag(
            "section",
            tag("h3", self.title),
            self.body,
            tag("p", self.source, class_="mt-faint"),
            class_=f"mt-card mt-evidence{' mt-wide' if self.is_wide else ''}",
        )


def sections(family: Family, results: Sequence[Path] = RESULTS) -> list[Section]:
    """All there are."""
    found = [
        _loss_against_parameters(family, results),
        _pruned_against_random(results),
        _curves(family),
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


def _loss_against_parameters(family: Family, results: Sequence[Path]) -> Section | None:
    measured = [
        ((float(member.inspection.parameters), loss), member.name)
        for member in family.members
        if (loss := recorded_loss(member)) is not None
    ]
    series = [Series("the family", [m[0] for m in measured], [m[1] for m in measured])]
    against = _result(results, "importance_against_random")
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


def _pruned_against_random(results: Sequence[Path]) -> Section | None:
    against = _result(results, "importance_against_random")
    if not against:
        return None
    rows = [
        [
            student["name"].replace("-", " "),
            f"{student['pruned']['loss']:.3f}",
            f"{student['retrained']['loss']:.3f}",
        ]
        for student in against["students"]
    ]
    rows.insert(0, ["the teacher", f"{against['teacher']['loss']:.3f}", ""])
    return Section(
        "Does importance matter?",
        table(["kept by", "loss, just pruned", "loss, retrained"], rows),
        f"The same cut to {count(against['parameters'])} parameters, by importance and by chance; "
        f"each retrained on {count(against['tokens'])} tokens, nats a token on "
        f"{count(against['teacher']['tokens'])} held-out tokens. "
        "benchmarks/importance_against_random.py.",
    )


def _curves(family: Family) -> Section | None:
    """Tokens to reach a loss, of members trained on text; of distilled ones it is a distance."""
    series = []
    for member in family.members:
        path = member.open().file(_CURVE)
        record = _record(member)
        training = record.get("training") or {}
        if path is None or record.get("command") != "train" or not training.get("epochs"):
            continue
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        corpus = training["corpus_tokens"]
        points = [(line["epoch"] * corpus, line["loss"]) for line in lines if "loss" in line]
        if len(points) > 1:
            series.append(Series(member.name, _smoothed(points)))
    if not series:
        return None
    return Section(
        "Tokens to reach a loss",
        chart(series, x="tokens trained on", y="training loss (nats a token)"),
        "training.jsonl of each model: its last round of training, averaged over five reports.",
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
    sheet = resources.files("minitron") / "cards" / "family.yaml"
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


def page(family: Family) -> Html:
    """The whole tab."""
    return tag(
        "div", joined(*(section.html() for section in sections(family))), class_="mt-sections"
    )


def _record(member: Member) -> dict[str, Any]:
    path = member.open().file(FILE)
    if path is None:
        return {}
    try:
        return read_provenance(path.parent)
    except MinitronError:
        return {}


def _result(results: Sequence[Path], name: str) -> dict[str, Any]:
    for folder in results:
        path = folder / f"{name}.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def _student(against: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(one for one in against["students"] if one["name"] == name)
    return found


def _smoothed(points: list[tuple[float, float]], width: int = 5) -> list[tuple[float, float]]:
    return [
        (
            points[index][0],
            sum(loss for _, loss in points[max(0, index - width + 1) : index + 1])
            / min(width, index + 1),
        )
        for index in range(len(points))
    ]
