"""The Evidence tab draws every value of evidence.json where it belongs, and the Space's models."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minitron.space.jobs.catalog import Catalog
from minitron.space.tabs.evidence import EVIDENCE, evidence_tab
from minitron.space.ui.chart import dot_plots, line_chart

DOT = {"label": "a run", "source": "t13/a-0.json"}


@pytest.fixture(scope="module")
def whole_zoo() -> Catalog:
    return Catalog.of(["tiny", "tiny-half", "tiny-quarter"])


def drawn(section: dict[str, Any], catalog: Catalog, tmp_path: Path) -> str:
    """The HTML of one section."""
    path = tmp_path / "evidence.json"
    sections = [{"title": "Question", "explanation": "From a file.", **section}]
    path.write_text(json.dumps({"rule": "the rule", "sections": sections}))
    return evidence_tab(catalog, path).partition("The models of this Space")[0]


def row(name: str, *values: float, **more: object) -> dict[str, Any]:
    return {"name": name, "mean": 1.0, "dots": [{**DOT, "value": v} for v in values], **more}


def test_every_section_of_the_file_is_drawn_with_all_its_dots(whole_zoo: Catalog) -> None:
    evidence, html = json.loads(EVIDENCE.read_text()), evidence_tab(whole_zoo)
    assert evidence["rule"].partition("2·")[0] in html
    for section in evidence["sections"]:
        assert f"<h3>{section['title']}</h3>" in html
    plots = [plot for section in evidence["sections"] for plot in section.get("plots", ())]
    charts = [section["chart"] for section in evidence["sections"] if "chart" in section]
    dots = sum(len(row["dots"]) for plot in plots for row in plot["rows"])
    points = sum(len(series["points"]) for chart in charts for series in chart["series"])
    assert dots > 100
    assert html.count("mt-plot-dot") == dots
    assert html.count("<circle") == points


def test_a_row_shows_mean_spread_and_what_the_paper_has(whole_zoo: Catalog, tmp_path: Path) -> None:
    rows = [
        row("width", 4.1, 4.2, mean=4.13, spread=0.0361, parameters=3_451_008, is_lowest=True),
        row("depth", 4.5, mean=4.5, before=4.625, paper="2.155"),
    ]
    section = {"plots": [{"unit": "loss", "rows": rows}], "verdict": "Lowest: **width**."}
    html = drawn(section, whole_zoo, tmp_path)
    assert "4.130 ± 0.036" in html
    assert re.search(r'mt-plot-lowest">\s*<span class="mt-plot-name">width<em>lowest', html)
    assert "3.45 M" in html
    assert "before retraining 4.625 · paper 2.155" in html
    assert "a run (t13/a-0.json)" in html
    assert "Lowest: <b>width</b>." in html


def test_no_row_that_is_too_close_is_called_the_lowest() -> None:
    for section in json.loads(EVIDENCE.read_text())["sections"]:
        rows = [row for plot in section.get("plots", ()) for row in plot["rows"]]
        if section.get("verdict", "").startswith("Too close to tell"):
            assert not any(row.get("is_lowest") for row in rows)
        elif section.get("verdict", "").startswith("Lowest"):
            assert [row.get("is_lowest") for row in rows].count(True) == 1


def test_the_page_has_one_word_for_the_mlp_and_explains_modelopt(whole_zoo: Catalog) -> None:
    html = evidence_tab(whole_zoo)
    assert not re.search(r"\bffn\b", html)
    assert "Model Optimizer measures it" in html


def test_dots_are_where_their_values_are() -> None:
    (plot,) = dot_plots([{"unit": "metres", "rows": [row("a", 1.0), row("b", 2.0, 3.0)]}])
    at = [dot.at for one in plot.rows for dot in one.dots]
    assert at[0] < at[1] < at[2]
    assert at[1] == pytest.approx(50, abs=0.01)
    assert at[0] == pytest.approx(100 - at[2], abs=0.02)
    assert plot.unit == "metres"


def test_no_dot_covers_another_and_every_axis_has_ticks() -> None:
    evidence = json.loads(EVIDENCE.read_text())
    plots = [dot_plots(section.get("plots", ())) for section in evidence["sections"]]
    assert sum(map(len, plots)) > 10
    for plot in (plot for found in plots for plot in found):
        assert len(plot.ticks) >= 3
        for one in plot.rows:
            places = [(dot.at, dot.level) for dot in one.dots]
            for index, (at, level) in enumerate(places):
                others = places[index + 1 :]
                assert all(abs(at - a) > 3 or level != other for a, other in others)
    for chart in (section["chart"] for section in evidence["sections"] if "chart" in section):
        assert len(line_chart(chart).x_ticks) >= 4


def test_plots_of_a_section_have_one_axis() -> None:
    level = {"name": "teacher", "value": 0.5}
    plots = [{"unit": "loss", "rows": [row("a", 1.0)], "level": level}]
    first, second = dot_plots([*plots, {"unit": "loss", "rows": [row("b", 1.0, 2.0)]}])
    assert first.rows[0].dots[0].at == second.rows[0].dots[0].at
    assert first.ticks == second.ticks
    assert first.level is not None
    assert (first.level.text, second.level) == ("teacher: 0.500", None)


def test_the_page_begins_with_four_findings_and_folds_the_rest(whole_zoo: Catalog) -> None:
    findings, _, rest = evidence_tab(whole_zoo).partition("All measurements")
    assert findings.count('<p class="mt-finding">') == 4
    assert findings.count("<svg") == 2
    assert findings.count('<i class="mt-pair ') == 27 + 3  # and the legend
    assert rest.count("<summary><h3>") == 12
    assert "benchmarks/" not in findings + rest  # paths that a visitor cannot open


def test_points_of_a_chart_are_where_their_values_are() -> None:
    points = [{**DOT, "x": 10**power, "y": float(power)} for power in range(1, 4)]
    series = [{"name": "line", "points": points, "is_line": True}]
    chart = line_chart({"x": "tokens", "y": "loss", "series": series})
    first, second, third = chart.dots
    assert second.x - first.x == pytest.approx(third.x - second.x, abs=0.2)
    assert first.y - second.y == pytest.approx(second.y - third.y, abs=0.2)
    assert first.y > third.y  # in SVG, down is more
    assert chart.lines[0][1] == " ".join(f"{dot.x},{dot.y}" for dot in chart.dots)


def test_a_table_holds_every_cell_and_its_links(whole_zoo: Catalog, tmp_path: Path) -> None:
    table = [["model", "MMLU", "source"], ["A", "64.5", "[2407.14679, table 2](https://arxiv.org)"]]
    table.append(["B", "", "none"])
    html = drawn({"table": table}, whole_zoo, tmp_path)
    assert '<th scope="col">MMLU</th>' in html
    assert "<td>64.5</td>" in html
    assert '<td title="No number is known.">–</td>' in html
    assert '<a href="https://arxiv.org">2407.14679, table 2</a>' in html
    folded = drawn({"table": table, "table_title": "All numbers"}, whole_zoo, tmp_path)
    assert "<summary>All numbers</summary>" in folded


def test_the_models_of_the_space_have_their_sizes_and_recorded_loss(whole_zoo: Catalog) -> None:
    _, _, models = evidence_tab(whole_zoo).partition("The models of this Space")
    for loss in ("3.9225", "3.9548", "4.0481"):
        assert loss in models
    assert models.count("<tr>") == 4


def test_the_losses_of_the_models_give_the_differences_of_the_findings(whole_zoo: Catalog) -> None:
    findings, _, models = evidence_tab(whole_zoo).rpartition("The models of this Space")
    teacher, *students = map(float, re.findall(r"<td>([34]\.\d+)</td>", models))
    assert "teacher: 3.923" in findings
    assert len(students) == 2
    for loss in students:
        assert f"<b>{loss - teacher:.3f} higher</b>" in findings


def test_the_published_models_are_shown_with_their_source(whole_zoo: Catalog) -> None:
    html = evidence_tab(whole_zoo)
    assert "Minitron-8B-Base" in html
    assert 'href="https://arxiv.org/abs/2407.14679"' in html
