"""Write docs/family.md with its pictures, and space/evidence.json, from benchmarks/results.

Both have the same sections (family_evidence.py). Numbers are read from the result files.

    python benchmarks/family_page.py
"""

import json
from pathlib import Path
from typing import Any

import evidence
import matplotlib.pyplot as plt
import yaml
from evidence import DotPlot, Section, loss_text, markdown
from family_evidence import (
    compare_rankings,
    family_runs,
    recorded_loss,
    result,
    sections,
    shown_axis,
    zoo_record,
)
from reconstruction_tables import WAYS, Curves, reconstruction_lines

import minitron
import minitron.space
from minitron.candidates.fit import TOKENS_AN_INPUT

ROOT = Path(__file__).parent.parent
RECIPES = Path(minitron.__file__).parent / "recipes"
TEACHER_RECIPES = ("tiny.yaml", "tiny-continued.yaml")
PAPER = Path(__file__).parent / "zero_shot_paper.yaml"
PAGE = ROOT / "docs" / "family.md"
EVIDENCE = Path(minitron.space.__file__).parent / "evidence.json"
PICTURES = PAGE.parent / "pictures"
# The losses of importance_against_random.json while --samples took the beginning of the text.
EARLIER_DRAW = {"pruned": 5.031, "retrained": 4.162}
GREEN, BLUE, AMBER, GREY = "#76b900", "#3b7dd8", "#f2a900", "#9aa0a6"


def section_lines(section: Section) -> list[str]:
    """A table of the papers: explanation, verdict, rows, picture."""
    (plot,) = section.plots
    return [
        f"## {section.title}",
        "",
        f"{section.explanation} {section.source}",
        "",
        section.verdict,
        "",
        *markdown(*table_of(plot)),
        "",
        *([section.paper_verdict, ""] if section.paper_verdict else []),
        f"![{section.title}]({draw_bars(plot, section.title)})",
        "",
    ]


def table_of(plot: DotPlot) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: parameters, loss before and after, seeds, the paper's number."""
    has_paper = any(row.paper for row in plot.rows)
    head = ["", "parameters", "before", "after", "seeds", *(["the paper"] if has_paper else [])]
    rows = [
        [
            f"**{row.name}**" if row is plot.lowest else row.name,
            f"{row.parameters:,}",
            "" if row.before is None else f"{row.before:.4f}",
            loss_text(row.mean, row.spread, 4),
            str(len(row.dots)),
            *([row.paper] if has_paper else []),
        ]
        for row in plot.rows
    ]
    return head, rows


def reference_losses() -> list[str]:
    """The losses of the embedded models on the tokens of the tables."""
    found = result("family/teacher/tiny")
    if not found:
        return []
    losses = [f"a loss of {found['loss']:.4f}"]
    for child in ("tiny-half", "tiny-quarter"):
        if of := result(f"family/teacher/{child}"):
            losses.append(f"`{child}` {of['loss']:.4f}")
    return [
        f"On the {found['held_out_tokens']:,} held-out tokens of the tables, the teacher "
        f"({found['parameters']:,} parameters) has {', '.join(losses)}.",
        "",
    ]


def draw_of_text() -> list[str]:
    """Which calibration text the models were pruned with, and how much today's draw changes."""
    against = result("importance_against_random")
    if not against:
        return []
    ours = next(one for one in against["students"] if one["name"] == "importance")
    stages = [
        f"{before:.3f} to {ours[stage]['loss']:.3f} {stage}"
        for stage, before in EARLIER_DRAW.items()
    ]
    return [
        "The models of the tables that follow were pruned without reconstruction, except where a "
        "row or a column says reconstructed, and with an "
        "earlier draw of calibration text: `--samples` took the beginning of the text, and now "
        "draws from the whole text. README's comparison of importance with random pruning was "
        "measured with both draws: by "
        f"importance, the loss changed from {' and from '.join(stages)}.",
        "",
    ]


def token_lines(section: Section) -> list[str]:
    """Loss against training tokens: the ratio, the picture, a table of all runs."""
    assert section.chart is not None
    rows = [
        [series.name, f"{point['x']:,}", f"{point['y']:.4f}"]
        for series in section.chart.series
        for point in series.points
    ]
    return [
        f"## {section.title}",
        "",
        f"{section.explanation} {section.source}",
        "",
        *([f"{section.finding} {section.verdict}", ""] if section.finding else []),
        f"![Held-out loss against training tokens]({draw_curve(section)})",
        "",
        *markdown(["", "tokens", "loss"], rows),
        "",
    ]


def tally_table(section: Section) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each table of the papers, and its comparisons by their outcome."""
    outcomes = {"same": "same order", "opposite": "opposite order", "close": "too close to tell"}
    rows = []
    for tally in section.tallies:
        found = [one.outcome for one in tally.comparisons]
        rows.append([tally.name, *(str(found.count(outcome)) for outcome in outcomes)])
    return ["", *outcomes.values()], rows


def draw_curve(section: Section) -> str:
    """Draw loss against training tokens; return the path of the picture."""
    assert section.chart is not None
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    points = []
    for series, colour in zip(section.chart.series, (GREEN, GREY), strict=True):
        points += series.points
        xs, ys = ([point[key] for point in series.points] for key in ("x", "y"))
        axis.plot(xs, ys, "o-", color=colour, label=series.name)
    if level := section.chart.level:
        name = f"the {level['name']}"
        axis.axhline(level["value"], color=BLUE, linestyle="--", linewidth=1, label=name)
    axis.set_xscale("log", base=2)
    ticks = [point["x"] for point in points]
    axis.set_xticks(ticks, [f"{tokens >> 10:,} Ki" for tokens in ticks])
    axis.set_xlabel(section.chart.x)
    axis.set_ylabel(evidence.LOSS)
    axis.legend(frameon=False)
    return save_picture(figure, axis, "tokens.png")


def draw_starts(curves: Curves) -> str:
    """Draw the loss of each start against its tokens of distillation; return the path."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    counts = sorted({tokens for losses in curves.values() for tokens in losses})
    for (way, losses), colour in zip(curves.items(), (GREY, AMBER, GREEN), strict=True):
        places = [counts.index(tokens) for tokens in losses]
        axis.plot(places, list(losses.values()), "o-", color=colour, label=WAYS[way])
    if teacher := result("family/teacher/tiny"):
        axis.axhline(teacher["loss"], color=BLUE, linestyle="--", linewidth=1, label="the teacher")
    names = [f"{tokens >> 10} Ki" if tokens else "0" for tokens in counts]
    axis.set_xticks(range(len(counts)), names)
    axis.set_xlabel("tokens of distillation")
    axis.set_ylabel(evidence.LOSS)
    axis.legend(frameon=False)
    return save_picture(figure, axis, "reconstructed-starts.png")


def draw_bars(plot: DotPlot, title: str) -> str:
    """Draw the losses of the rows, a dot per seed; return the path of the picture."""
    name = title.lower().replace(" ", "-").replace(",", "") + ".png"
    figure, axis = plt.subplots(figsize=(7, 0.5 + 0.42 * len(plot.rows)), layout="constrained")
    least = plot.lowest.mean
    for height, row in enumerate(plot.rows):
        colour = GREEN if row is plot.lowest else GREY
        losses = [dot.value for dot in row.dots]
        axis.plot([least, row.mean], [height, height], color=colour, linewidth=2)
        axis.plot(losses, [height] * len(losses), "o", color=colour)
    axis.set_yticks(range(len(plot.rows)), [row.name for row in plot.rows])
    axis.invert_yaxis()
    axis.set_xlabel(evidence.LOSS)
    return save_picture(figure, axis, name)


def save_picture(figure: Any, axis: Any, name: str) -> str:
    """Write a picture, the same bytes for the same numbers; return its path for the page."""
    axis.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / name, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return f"pictures/{name}"


def members() -> list[str]:
    """The section on the embedded models: size, loss and speed."""
    results = result("members")
    if not results:
        return []
    rows = [
        [
            name,
            f"{of['parameters']:,}",
            f"{recorded_loss(name):.4f}",
            f"{of['weights_bytes'] / 1e6:.1f} MB",
            f"{of['kv_bytes_a_token']:,} bytes",
            f"{of['read_tokens_a_second']:,.0f} ({of['times_the_teacher']['read']:.1f}x)",
            f"{of['generated_tokens_a_second']:,.0f} ({of['times_the_teacher']['generate']:.1f}x)",
        ]
        for name, of in results["members"].items()
    ]
    head = ["", "parameters", "loss", "weights", "KV cache per token", "read", "generated"]
    return [
        "## The family in the package",
        "",
        "Loss: nats per token on all of the held-out books (470,082 tokens), from each model's "
        "minitron.json. Weights and cache: in bfloat16. Read and generated: tokens per second of "
        f"one sequence in float32, medians of {results['rounds']} interleaved rounds, "
        f"{results['threads']} thread (`python benchmarks/members.py`), and the ratio to the "
        "teacher.",
        "",
        *markdown(head, rows),
        "",
        *compute(results["members"]),
    ]


def compute(measured: dict[str, Any]) -> list[str]:
    """The compute of the family, compared with training each model on all tokens."""
    recipes = [yaml.safe_load((RECIPES / name).read_text()) for name in TEACHER_RECIPES]
    corpus = zoo_record("tiny")["training"]["corpus_tokens"]
    whole = corpus * sum(recipe["epochs"] for recipe in recipes)
    sizes = {name: of["parameters"] for name, of in measured.items()}
    children = {name: zoo_record(name)["training"]["tokens"] for name in sizes if name != "tiny"}
    scratch = 6 * whole * sum(sizes.values())
    training = 6 * (whole * sizes["tiny"] + sum(sizes[n] * t for n, t in children.items()))
    teaching = 2 * sizes["tiny"] * sum(children.values())
    tokens = next(iter(children.values()))
    return [
        f"The teacher was trained on {whole / 1e6:.1f} M tokens, each child on "
        f"{tokens / 1e6:.1f} M, {whole / tokens:.1f} times fewer. Training each child on as many "
        f"tokens as the teacher would take {scratch / training:.2f} times the compute of the "
        "family, at 6 operations per parameter and token, as the paper computes its factor of "
        f"1.8. It would take {scratch / (training + teaching):.2f} times if the family's compute "
        "includes the teacher's predictions, at 2 operations per parameter and token. The "
        "paper's children were trained on 40 times fewer tokens than their teacher.",
        "",
    ]


def ranking() -> list[str]:
    """The section on the order of candidates during a brief retraining."""
    found = {Path(source).stem: run["looks"] for source, run in family_runs("ranking/*")}
    if len(found) < 3:
        return []
    steps = [look["step"] for look in next(iter(found.values()))]
    at = {step: {name: _at(looks, step) for name, looks in found.items()} for step in steps}
    order = {step: sorted(losses, key=lambda name: losses[name]) for step, losses in at.items()}
    last = order[steps[-1]]
    stable = next(s for s in steps if all(order[later] == last for later in steps if later >= s))
    rows = [
        [name, *(f"{order[step].index(name) + 1} ({at[step][name]:.3f})" for step in steps)]
        for name in last
    ]
    head = ["", *(f"step {step}" for step in steps)]
    return [
        "## The order of candidates during retraining",
        "",
        f"{len(found)} candidates of `minitron search` with half of the teacher's parameters, each "
        "distilled with the same batches of 2,048 tokens per step. A cell has the rank and the "
        "loss on 16,352 held-out tokens. "
        f"{_steadiness(order, at, stable)} In the paper, ranks change until about 300 steps of "
        "4.7 M tokens (arXiv 2407.14679, section 2.3).",
        "",
        *markdown(head, rows),
        "",
        f"![Loss of candidates during retraining]({draw_ranking(found)})",
        "",
    ]


def candidate_order() -> list[str]:
    """The section on which cheap loss ranks candidates as a long distillation does."""
    found = result("candidate_order")
    if not found:
        return []
    losses, correlations = found["losses"], found["rank_correlations"]
    *cheap, longest = sorted(next(iter(losses.values())), key=lambda way: way not in correlations)
    cheap.sort(key=lambda way: (correlations[way], found["seconds"].get(way, 0)))
    ranked = sorted(losses, key=lambda name: losses[name][longest])
    shown = [way for way in cheap if way not in found["seconds"] or way == "as cut"]
    rows = [[name, *(f"{losses[name][way]:.3f}" for way in (*shown, longest))] for name in ranked]
    evaluated = found["seconds"]["as cut"]
    ways = [
        [
            way,
            f"{correlations[way]:.2f}",
            f"{losses[min(losses, key=lambda name: losses[name][way])][longest]:.3f}",
            _seconds(found["seconds"].get(way), 0 if way == "as cut" else evaluated),
        ]
        for way in cheap
    ]
    return [
        "## Which loss ranks candidates",
        "",
        f"{len(losses)} candidates of `minitron search` with half of the teacher's parameters, of "
        "4 layers or more, on the same held-out text. Each cheaper loss is compared with that "
        "after a long distillation from the reconstructed candidate: its rank correlation "
        "(Spearman's), and the loss after that distillation of the candidate that it ranks first. "
        "Seconds are those of one core, of a machine with other work, for a candidate as `minitron "
        "search` measures it: its fit where it is reconstructed, and its loss on 16,384 tokens. "
        "`minitron search`, and "
        "`minitron prune` within a budget, reconstruct candidates where the result is "
        f"reconstructed, on {TOKENS_AN_INPUT} tokens for each input of the source's widest linear, "
        f"here {TOKENS_AN_INPUT * 1024:,}; `--retrain-on teacher` distills the best of them. One "
        "seed. Measured by benchmarks/candidate_order.py.",
        "",
        *markdown(["ranked by the loss", "rank correlation", "its first", "seconds"], ways),
        "",
        *markdown(["", *shown, longest], rows),
        "",
    ]


def _seconds(measured: float | None, evaluated: float) -> str:
    """The time of a fit and an evaluation; empty where it was not measured."""
    return "" if measured is None else f"{measured + evaluated:.1f}"


def _steadiness(order: dict[int, list[str]], at: dict[int, dict[str, float]], stable: int) -> str:
    """The step after which ranks do not change, or how many change at the end."""
    *_, before, last = order
    if stable < last:
        return f"The order does not change after step {stable}."
    changed = [name for one, name in zip(order[before], order[last], strict=True) if one != name]
    apart = max(at[last][name] for name in changed) - min(at[last][name] for name in changed)
    return (
        f"{len(changed)} ranks still change between the last two measurements, among candidates "
        f"that are {apart:.3f} nats apart."
    )


def _at(looks: list[dict[str, Any]], step: int) -> float:
    return float(next(look["loss"] for look in looks if look["step"] == step))


def draw_ranking(found: dict[str, list[dict[str, Any]]]) -> str:
    """Draw the loss of each candidate above that of the best; return the path of the picture."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    steps = [look["step"] for look in next(iter(found.values()))]
    best = {step: min(_at(looks, step) for looks in found.values()) for step in steps}
    for name, looks in sorted(found.items(), key=lambda item: item[1][-1]["loss"]):
        axis.plot(steps, [_at(looks, s) - best[s] for s in steps], "o-", label=name)
    axis.set_xlabel("steps of retraining")
    axis.set_ylabel("loss above the best one's (nats per token)")
    axis.set_yscale("symlog", linthresh=0.05)
    axis.legend(frameon=False, fontsize=8)
    return save_picture(figure, axis, "ranking.png")


def zero_shot() -> list[str]:
    """The section of the tables without retraining."""
    results = result("zero_shot")
    if not results:
        return []
    lines = [
        "## Without retraining",
        "",
        f"The teacher has {results['teacher']:.4f} nats per token on {results['tokens']:,} "
        f"held-out tokens. Importance is measured on {results['samples']} sequences of 512 tokens.",
        "",
    ]
    words = {
        "axes": "Axes and scores (table 1)",
        "aggregation": "Aggregations over the batch and the sequence (table 11)",
        "neurons": "Neurons scored before or after the activation",
        "depth": "Scores of layers",
        "steps": "Pruned in steps, importance measured before each (table 12)",
        "residual": "Pruned heads dropped, or added to the kept heads (section 2.3)",
    }
    papers = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    for table, title in words.items():
        paper = papers.get(table, {})
        found = [row for row in results["rows"] if row["table"] == table]
        rows = []
        for row in found:
            name = f"{row['cut']}, {row['how']}"
            least = min(other["loss"] for other in found if other["cut"] == row["cut"])
            loss = f"**{row['loss']:.4f}**" if row["loss"] == least else f"{row['loss']:.4f}"
            spread = "" if row["spread"] is None else f" ± {row['spread']:.4f}"
            cells = [shown_axis(name), f"{row['parameters']:,}", loss + spread]
            rows.append([*cells, *([paper[name]] if paper else [])])
        head = ["", "parameters", "loss", *(["the paper"] if paper else [])]
        lines += [f"### {title}", "", *markdown(head, rows), ""]
        if table == "axes":
            lines += [compare_rankings(found), ""]
            lines += ["![Loss by axis and by score](../benchmarks/results/zero_shot.png)", ""]
    return lines


def page(found: list[Section]) -> str:
    """The content of docs/family.md."""
    tables = [section for section in found if section.plots and section.plots[0].rows[0].tokens]
    curves = [section for section in found if section.chart and section.chart.series[0].is_line]
    orders = [section for section in found if section.tallies]
    lines = [
        "# The tiny family: the papers' tables in miniature",
        "",
        "This page repeats tables of the Minitron papers with the embedded teacher `tiny` (6.7 M "
        "parameters, trained on books). `python benchmarks/family.py` and `python "
        "benchmarks/zero_shot.py` measured the numbers; `python benchmarks/family_page.py` writes "
        "the page from the files of `benchmarks/results`. Losses are nats per token on held-out "
        "books; ± is the sample standard deviation over seeds. The papers are "
        "[arXiv 2407.14679](https://arxiv.org/abs/2407.14679) and "
        "[arXiv 2408.11796](https://arxiv.org/abs/2408.11796).",
        "",
        *members(),
        *reconstruction_lines(draw_starts),
        "## How to read the tables",
        "",
        *reference_losses(),
        *draw_of_text(),
        f"The row with the lowest mean is bold. {evidence.RULE} The last column has the paper's "
        "number for the same row. The paper's models are about a thousand times larger and its "
        "units differ: compare the order of the rows, not the numbers.",
        "",
    ]
    for section in orders:
        lines += [f"## {section.title}", "", section.finding, ""]
        lines += [*markdown(*tally_table(section)), ""]
    for section in curves:
        lines += token_lines(section)
    for section in tables:
        lines += section_lines(section)
    lines += [*ranking(), *candidate_order()]
    return "\n".join([*lines, *zero_shot()]).rstrip() + "\n"


def evidence_json(found: list[Section]) -> str:
    """The content of space/evidence.json, which the Space draws."""
    content = {"rule": evidence.RULE, "sections": [section.to_json() for section in found]}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the page and the Space's file."""
    found = sections()
    PAGE.write_text(page(found), encoding="utf-8")
    EVIDENCE.write_text(evidence_json(found), encoding="utf-8")


if __name__ == "__main__":
    main()
