"""The sections of docs/family.md and of the Space's Evidence tab, read from benchmarks/results.

Runs without a result file are left out, and sections without rows.

    sections()[0].to_json()["title"]   # "Loss against parameters"
"""

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from evidence import (
    Chart,
    Comparison,
    Dot,
    DotPlot,
    Row,
    Section,
    Series,
    Tally,
    are_different,
    loss_text,
)

import minitron
from minitron.sources.opening import zoo

RESULTS = Path(__file__).parent / "results"
TABLES = Path(__file__).parent / "family_tables.yaml"
PUBLISHED = Path(minitron.__file__).parent / "records" / "published_cards.yaml"


def sections() -> list[Section]:
    """The sections that have results, in the order of the Evidence tab."""
    tables = paper_tables()
    found = [
        loss_against_parameters(),
        importance_against_random(),
        token_curves(),
        papers_order(tables),
        ranking_by_axis(),
        *tables,
        published_scores(),
    ]
    return [section for section in found if section is not None]


def result(name: str) -> dict[str, Any]:
    """The content of NAME.json; empty if there is no such file."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def family_runs(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """The file names and results of benchmarks/family.py that match a pattern."""
    paths = sorted((RESULTS / "family").glob(f"{pattern}.json"))
    return [(f"{path.parent.name}/{path.name}", json.loads(path.read_text())) for path in paths]


def zoo_record(name: str) -> dict[str, Any]:
    """The minitron.json of an embedded model."""
    return dict(json.loads((zoo()[name] / "minitron.json").read_text(encoding="utf-8")))


def recorded_loss(name: str) -> float:
    """The held-out loss that an embedded model's minitron.json holds."""
    return float(zoo_record(name)["results"]["rows"][0]["values"][0])


def curve(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The runs of a curve, ordered by training tokens."""
    return sorted(family_runs(f"curve/{kind}-*"), key=lambda run: run[1]["tokens"])


def token_curves() -> Section | None:
    """Loss against training tokens, of a pruned model and of one from random weights."""
    scratch, distilled = curve("scratch"), curve("distill")
    if not (scratch and distilled):
        return None
    teacher = result("family/teacher/tiny")
    series = (
        Series("pruned and distilled", tuple(_points(distilled)), is_line=True),
        Series("random weights", tuple(_points(scratch)), is_line=True),
    )
    held_out = f"{teacher['held_out_tokens']:,} held-out tokens" if teacher else "held-out text"
    finding, verdict = _tokens_saved([r for _, r in scratch], [r for _, r in distilled])
    return Section(
        "Tokens to reach a loss",
        f"Two models of the same sizes ({scratch[-1][1]['parameters']:,} parameters), one run per "
        f"point, evaluated on {held_out}.",
        source="Measured by benchmarks/family.py; results in benchmarks/results/family/curve.",
        verdict=verdict,
        finding=finding,
        chart=Chart(
            "training tokens",
            series,
            {"name": "teacher", "value": teacher["loss"]} if teacher else None,
        ),
    )


def _points(runs: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for source, run in runs:
        yield {"x": run["tokens"], "y": run["loss"], "label": _label(run), "source": source}


def _label(run: dict[str, Any]) -> str:
    seconds = f", {run['seconds']:,.0f} s of training" if "seconds" in run else ""
    return f"{run['loss']:.4f} nats per token after {run['tokens']:,} tokens{seconds}"


def _tokens_saved(
    scratch: list[dict[str, Any]], distilled: list[dict[str, Any]]
) -> tuple[str, str]:
    """The finding and verdict: how many times fewer tokens the pruned model needs for the loss of
    the longest run from random weights."""
    longest = scratch[-1]
    enough = next((run for run in distilled if run["loss"] <= longest["loss"]), None)
    if enough is None:
        return "", ""
    ratio = f"{longest['tokens'] / enough['tokens']:.0f}"
    at_least = "at least " if enough is distilled[0] else ""  # fewer tokens were not tried
    finding = (
        f"For the same loss, a pruned and distilled model needs **{at_least}{ratio} times fewer "
        "training tokens** than one from random weights, its teacher's own tokens not counted."
    )
    return finding, (
        f"From random weights, {longest['tokens']:,} tokens reach {longest['loss']:.3f} nats per "
        f"token. Pruned from the teacher and distilled, {enough['tokens']:,} tokens give "
        f"{enough['loss']:.3f}. The papers report up to 40 times fewer tokens than a model that is "
        "trained on as many tokens as the teacher. Our model from random weights was trained on "
        "fewer, and its loss still falls: the two ratios cannot be compared."
    )


def loss_against_parameters() -> Section | None:
    """The losses of the embedded models and of the model of importance_against_random."""
    members = result("members").get("members", {})
    series = [Series("the tiny family", tuple(map(_member_point, members, members.values())))]
    against = result("importance_against_random")
    names = {"pruned": "just pruned", "retrained": "pruned, briefly retrained"} if against else {}
    for stage, name in names.items():
        point = {
            "x": against["parameters"],
            "y": _student(against, "importance")[stage]["loss"],
            "label": name,
            "source": "importance_against_random.json",
        }
        series.append(Series(name, (point,)))
    series = [one for one in series if one.points]
    if sum(len(one.points) for one in series) < 2:
        return None
    return Section(
        "Loss against parameters",
        "The embedded models, of which tiny is the teacher, on held-out books that no model was "
        "trained on; and a pruned model before and after a brief retraining. Single runs.",
        source="From each model's minitron.json, benchmarks/results/members.json and "
        "importance_against_random.json.",
        finding=_cost_of_size(members),
        chart=Chart("parameters, embeddings included", tuple(series)),
    )


def _cost_of_size(members: dict[str, Any]) -> str:
    """The share of parameters and the loss of each child, beside its teacher."""
    teacher, *children = members or [""]
    words = []
    for child in children:
        share = 100 * members[child]["parameters"] / members[teacher]["parameters"]
        more = recorded_loss(child) - recorded_loss(teacher)
        of = "" if words else " of its teacher's parameters"
        words.append(f"{child} has **{share:.0f} %**{of} and a loss **{more:.3f} higher**")
    return f"{'; '.join(words)} (nats per token)." if words else ""


def _member_point(name: str, member: dict[str, Any]) -> dict[str, Any]:
    loss, source = recorded_loss(name), f"{name}/minitron.json"
    return {"x": member["parameters"], "y": loss, "label": name, "source": source}


def _student(against: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(next(one for one in against["students"] if one["name"] == name))


def importance_against_random() -> Section | None:
    """Models of the same sizes, whose kept parts were chosen by importance or at random."""
    against = result("importance_against_random")
    if not against:
        return None
    plots = tuple(_stage(against, key, key) for key in ("pruned", "retrained"))
    answers = [_lower_by(*plot.rows) for plot in plots]
    is_lower = all("lower" in answer for answer in answers)
    after = [
        f"{answer} {'from' if 'close' in answer else 'than at'} random {when}"
        for answer, when in zip(
            answers, ("just after pruning", "after a brief retraining"), strict=True
        )
    ]
    finding = (
        f"{'Importance finds what to keep' if is_lower else 'Importance'}: {', '.join(after)}."
    )
    return Section(
        "Does importance matter?",
        f"Pruned to the same {against['parameters']:,} parameters, kept by importance or at random "
        f"(one dot per seed), then retrained on {against['tokens']:,} tokens. Evaluated on "
        f"{against['teacher']['tokens']:,} held-out tokens, where the teacher has "
        f"{against['teacher']['loss']:.3f}.",
        source="Measured by benchmarks/importance_against_random.py.",
        finding=finding,
        verdict=f"{'Yes: ' if is_lower else ''}importance against random: {answers[0]} just after "
        f"pruning, {answers[1]} after retraining.",
        plots=plots,
    )


def _stage(against: dict[str, Any], stage: str, words: str) -> DotPlot:
    source = "importance_against_random.json"
    dots = {"by importance": [], "at random": []}  # type: dict[str, list[Dot]]
    for student in against["students"]:
        is_ours, loss = student["name"] == "importance", student[stage]["loss"]
        name = student["name"].replace("-", " ")
        label = f"{name}, {words}: {loss:.4f} nats per token"
        dots["by importance" if is_ours else "at random"].append(Dot(loss, label, source))
    note = {"pruned": "just pruned"}.get(words, words)
    return DotPlot(
        tuple(Row(name, tuple(found), note=note) for name, found in dots.items()),
        level={"name": "teacher", "value": against["teacher"]["loss"]},
    )


def _lower_by(ours: Row, other: Row) -> str:
    gap = _shown_gap(other.mean, ours.mean)
    if not are_different(other.mean - ours.mean, ours.spread, other.spread):
        return "too close to tell"
    return f"**{abs(gap):.3f} nats per token {'lower' if gap > 0 else 'higher'}**"


def ranking_by_axis() -> Section | None:
    """Table 1 without retraining: each axis pruned to half, by each kind of scores."""
    results = result("zero_shot")
    rows = [row for row in results.get("rows", ()) if row["table"] == "axes"]
    if not rows:
        return None
    ways = list(dict.fromkeys(row["how"] for row in rows))
    names = dict.fromkeys(row["cut"] for row in rows)
    cuts = {shown_axis(name): [one for one in rows if one["cut"] == name] for name in names}
    table = [("pruned", *ways)]
    for cut, found in cuts.items():
        losses = {row["how"]: loss_text(row["loss"], row["spread"], 3) for row in found}
        table.append((cut, *(losses.get(way, "") for way in ways)))
    return Section(
        "What should rank the parts?",
        f"The teacher ({results['teacher']:.3f}) pruned and not retrained, one axis at a time, as "
        "in arXiv 2407.14679, table 1; on the right the lowest loss. Evaluated on "
        f"{results['tokens']:,} held-out tokens; importance from {results['samples']} sequences. "
        "`modelopt`: importance as NVIDIA's Model Optimizer measures it, on the same sequences.",
        source="Measured by benchmarks/zero_shot.py; results in benchmarks/results/zero_shot.json.",
        verdict=compare_rankings(rows),
        plots=(DotPlot(tuple(_axis_row(cut, cuts[cut], ways) for cut in cuts), tuple(ways)),),
        table=tuple(table),
        table_title="All numbers",
    )


def shown_axis(cut: str) -> str:
    """What is pruned, in the words of the page."""
    return cut.replace("ffn", "MLP")


def _axis_row(cut: str, rows: list[dict[str, Any]], ways: list[str]) -> Row:
    dots = []
    for row in rows:
        loss = loss_text(row["loss"], row["spread"], 3)
        label = f"{cut}, {row['how']}: {loss} nats per token"
        dots.append(Dot(row["loss"], label, "zero_shot.json", ways.index(row["how"])))
    lowest = min(rows, key=lambda row: row["loss"])
    summary = f"{lowest['loss']:.3f} by {lowest['how']}"
    return Row(cut, tuple(dots), rows[0]["parameters"], summary=summary)


def compare_rankings(rows: list[dict[str, Any]]) -> str:
    """The axes on which importance gives a lower loss than magnitude and than random scores."""
    by_cut: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_cut.setdefault(shown_axis(row["cut"]), {})[row["how"]] = row
    sentences = []
    for other in ("magnitude", "random, mean of 3"):
        answers: dict[str, list[str]] = {}
        for cut, found in by_cut.items():
            if {"importance", other} <= found.keys():
                answers.setdefault(_answer(found["importance"], found[other]), []).append(cut)
        words = [f"{answer} on {', '.join(cuts)}" for answer, cuts in answers.items()]
        if words:
            sentences.append(f"Importance against {other.split(',')[0]}: {'; '.join(words)}.")
    return " ".join(sentences)


def _answer(ours: dict[str, Any], other: dict[str, Any]) -> str:
    gap = other["loss"] - ours["loss"]
    if gap == 0:
        return "the same loss"
    if not are_different(gap, ours["spread"], other["spread"]):
        return "too close to tell"
    return "a lower loss" if gap > 0 else "**a higher loss**"


def paper_tables() -> list[Section]:
    """The tables of family_tables.yaml with results for at least two rows."""
    tables = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    return [section for table in tables if (section := _paper_table(table)) is not None]


def _paper_table(table: dict[str, Any]) -> Section | None:
    found = [row for row in table["rows"] if family_runs(f"{row['runs']}-[0-9]")]
    if len(found) < 2:
        return None
    rows = tuple(map(_table_row, found))
    seeds = " to ".join(str(n) for n in sorted({len(row.dots) for row in rows}))
    folders = ", ".join(sorted({row["runs"].split("/")[0] for row in found}))
    comparisons = _comparisons(rows, table.get("higher_is_better", False))
    return Section(
        table["title"],
        f"{table['what'].strip()} {max(row.tokens for row in rows):,} tokens per run, {seeds} "
        "seeds per row; mean ± sample standard deviation. The paper: "
        f"{table['source'].strip()}.",
        source=f"Results in benchmarks/results/family/{folders}.",
        verdict=_lowest_verdict(rows),
        paper_verdict=_paper_verdict(comparisons),
        comparisons=comparisons,
        plots=(DotPlot(rows),),
    )


def _table_row(row: dict[str, Any]) -> Row:
    runs = family_runs(f"{row['runs']}-[0-9]")
    first = runs[0][1]
    return Row(
        row["name"],
        tuple(Dot(run["loss"], _label(run), source) for source, run in runs),
        first["parameters"],
        first["before"],
        max(run["tokens"] for _, run in runs),
        row.get("paper", ""),
        row.get("rank"),
    )


def _shown_gap(loss: float, other: float) -> float:
    """What a reader finds who subtracts the losses as they are shown, with three decimals."""
    return round(loss, 3) - round(other, 3)


def _lowest_verdict(rows: Sequence[Row]) -> str:
    """The row of the lowest loss, and whether the next one differs from it."""
    lowest, second = sorted(rows, key=lambda row: row.mean)[:2]
    shown = _shown_gap(second.mean, lowest.mean)
    if not are_different(second.mean - lowest.mean, lowest.spread, second.spread):
        both = f"Too close to tell: **{lowest.name}** and {_quoted(second.name)}"
        return f"{both} differ by {shown:.3f}." if shown else f"{both} both have {lowest.mean:.3f}."
    return f"Lowest: **{lowest.name}**, {shown:.3f} nats per token below {_quoted(second.name)}."


def _comparisons(rows: Sequence[Row], higher_is_better: bool) -> tuple[Comparison, ...]:
    """Each pair of rows that the paper orders, and whether it has the same order here."""
    found = []
    for pair in combinations([row for row in rows if row.rank is not None], 2):
        better, worse = sorted(pair, key=lambda row: row.rank or 0, reverse=higher_is_better)
        words = f"{_quoted(better.name)} before {_quoted(worse.name)}"
        is_clear = are_different(better.mean - worse.mean, better.spread, worse.spread)
        order = "same" if better.mean < worse.mean else "opposite"
        found.append(Comparison(words, order if is_clear else "close"))
    return tuple(found)


def _paper_verdict(comparisons: Sequence[Comparison]) -> str:
    """Which pairs of rows have the same order as in the paper."""
    words = {
        outcome: [one.words for one in comparisons if one.outcome == outcome]
        for outcome in ("same", "opposite", "close")
    }
    if not comparisons:
        return ""
    if len(comparisons) == 1:
        order = comparisons[0].outcome
        return "" if order == "close" else f"The paper has the {order} order."
    sentences = [
        f"Of the paper's {len(comparisons)} comparisons, {len(words['same'])} have the same order "
        "here."
    ]
    if words["opposite"]:
        sentences.append(f"**The paper has the opposite order**: {'; '.join(words['opposite'])}.")
    if words["close"]:
        sentences.append(f"Too close to tell: {'; '.join(words['close'])}.")
    return " ".join(sentences)


def papers_order(tables: Sequence[Section]) -> Section | None:
    """How many comparisons of the papers have the same order here, table by table."""
    tallies = [Tally(table.title, table.comparisons) for table in tables if table.comparisons]
    outcomes = [one.outcome for tally in tallies for one in tally.comparisons]
    if not outcomes:
        return None
    same, opposite, close = map(outcomes.count, ("same", "opposite", "close"))
    return Section(
        "Do the findings of the papers hold here?",
        "A square is a pair of rows that a table of the papers orders; each table's measurements "
        "are below. The papers' models are about a thousand times larger, and some rows are in "
        "several tables.",
        finding=f"**{same} of the papers' {len(outcomes)} comparisons** have the same order here; "
        f"{opposite} have the opposite order, {close} are too close to tell.",
        tallies=tuple(tallies),
    )


def _quoted(name: str) -> str:
    return f"“{name}”" if "," in name else name


def published_scores() -> Section | None:
    """The scores that the papers report for the published models."""
    cards = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    rows = [row for name, of in cards["members"].items() for row in _scores(name, of, cards)]
    benchmarks = {
        key: benchmark
        for key, benchmark in cards["benchmarks"].items()
        if any(key in scores for _, _, scores in rows)
    }
    head = ("model", *(f"{b['name']} ({b['shots']})" for b in benchmarks.values()))
    body = [
        (f"{name} {source}", *(f"{of[key]:.1f}" if key in of else "" for key in benchmarks))
        for name, source, of in rows
    ]
    return Section(
        "What the papers report of the published models",
        "Percent; in parentheses, the number of examples in the prompt. Reported by the papers, "
        "not measured here.",
        table=(head, *body),
    )


def _scores(
    name: str, member: dict[str, Any], cards: dict[str, Any]
) -> Iterator[tuple[str, str, dict[str, float]]]:
    for where, scores in (member.get("scores") or {}).items():
        short, _, place = where.partition(" ")
        if paper := cards["sources"].get(short):
            number = paper["url"].rpartition("/")[2]
            yield name, f"[{number}, {place}]({paper['url']})", scores
