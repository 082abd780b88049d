"""docs/family.md and the Space's evidence.json hold what the result files hold, and one verdict."""

import importlib
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import minitron.space

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "family.md"
EVIDENCE = Path(minitron.space.__file__).parent / "evidence.json"
RESULTS = ROOT / "benchmarks" / "results"
TABLES = yaml.safe_load((ROOT / "benchmarks" / "family_tables.yaml").read_text())
ROWS = [row["runs"] for table in TABLES for row in table["rows"]]
TEACHER = {"loss": 3.9, "held_out_tokens": 73_728, "parameters": 6_724_096}
STALE = "run: python benchmarks/family_page.py"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One of benchmarks/, as its scripts import each other."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


@pytest.fixture
def family_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    found = module("family_page", monkeypatch)
    monkeypatch.setattr(found, "PICTURES", tmp_path / "pictures")
    return found


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Sections of the result files in tmp_path."""
    found = module("family_evidence", monkeypatch)
    monkeypatch.setattr(found, "RESULTS", tmp_path)
    return found


def put(place: Path, name: str, loss: float, tokens: int = 131_072, **more: object) -> None:
    path = place / "family" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"before": 4.625, "loss": loss, "tokens": tokens, "parameters": 345, "seconds": 81.0}
    path.write_text(json.dumps({**run, **more}))


def put_seeds(place: Path, name: str, *losses: float) -> None:
    for seed, loss in enumerate(losses):
        put(place, f"{name}-{seed}", loss)


def the_table(measured: ModuleType, title: str | None = None) -> dict[str, Any]:
    tables = [table.to_json() for table in measured.paper_tables()]
    (found,) = [table for table in tables if title in (None, table["title"])]
    return dict(found)


# The committed files.


def test_the_page_is_what_the_result_files_make(family_page: ModuleType) -> None:
    assert PAGE.read_text() == family_page.page(family_page.sections()), STALE


def test_the_evidence_of_the_space_is_what_the_result_files_make(family_page: ModuleType) -> None:
    assert EVIDENCE.read_text() == family_page.evidence_json(family_page.sections()), STALE


def test_every_picture_of_the_page_is_there() -> None:
    named = re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE.read_text())
    assert named
    assert all((PAGE.parent / name).exists() for name in named)


def test_page_and_evidence_hold_the_same_rule_and_verdicts() -> None:
    evidence, page = json.loads(EVIDENCE.read_text()), PAGE.read_text()
    assert evidence["rule"] in page
    verdicts = [section.get("verdict", "") for section in evidence["sections"]]
    verdicts += [section.get("paper_verdict", "") for section in evidence["sections"]]
    verdicts = [verdict for verdict in verdicts if not verdict.startswith("Yes: importance")]
    assert len([verdict for verdict in verdicts if verdict]) > 15
    assert all(verdict in page for verdict in verdicts)


def test_a_changed_result_changes_the_page(
    family_page: ModuleType, measured: ModuleType, tmp_path: Path
) -> None:
    put_seeds(tmp_path, "t14/pruned-distill", 4.0, 4.5)
    put_seeds(tmp_path, "t14/pruned-train", 5.0)
    page = family_page.page(family_page.sections())
    assert "| 345 | 4.6250 | 4.2500 ± 0.3536 | 2 |" in page


# What is measured.


def test_nothing_is_shown_that_was_not_run(measured: ModuleType) -> None:
    titles = [section.title for section in measured.sections()]
    assert titles == ["What the papers report of the published models"]


def test_a_row_is_mean_and_sample_deviation_with_a_dot_per_seed(
    measured: ModuleType, tmp_path: Path
) -> None:
    put_seeds(tmp_path, "t13/width", 4.10, 4.12, 4.17)
    put_seeds(tmp_path, "t13/depth", 4.50, 4.51, 4.52)
    table = the_table(measured, "Width against depth")
    width, depth = table["plots"][0]["rows"]
    assert width["mean"] == pytest.approx(4.13)
    assert width["spread"] == pytest.approx(0.0361, abs=1e-4)  # two degrees of freedom, not three
    assert depth["spread"] == pytest.approx(0.01)
    assert [len(row["dots"]) for row in (width, depth)] == [3, 3]
    last = depth["dots"][2]
    assert last["source"] == "t13/depth-2.json"
    assert "81 s of training" in last["label"]
    assert [row.get("is_lowest") for row in (width, depth)] == [True, None]
    assert "**width**, 0.380 nats per token below depth" in table["verdict"]
    assert table["paper_verdict"] == "The paper has the same order."
    assert "131,072 tokens per run" in table["explanation"]
    assert (width["before"], width["paper"]) == (4.625, "2.049")


def test_rows_within_the_spread_of_their_seeds_are_not_called_different(
    measured: ModuleType, tmp_path: Path
) -> None:
    put_seeds(tmp_path, "residual/off", 4.10, 4.20, 4.30)
    put_seeds(tmp_path, "residual/on", 4.11, 4.19, 4.27)
    table = the_table(measured)
    verdict = table["verdict"]
    assert not any(row.get("is_lowest") for row in table["plots"][0]["rows"])
    assert verdict.startswith("Too close to tell")
    assert "Lowest" not in verdict


def test_the_rule_is_twice_the_root_of_the_summed_squares(
    measured: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    are_different = module("evidence", monkeypatch).are_different
    assert are_different(1.01, 0.3, 0.4)
    assert not are_different(1.0, 0.3, 0.4)
    assert not are_different(-1.0, 0.3, 0.4)
    assert are_different(0.001, None, None)
    assert not are_different(0.0009, None, None)  # what three decimals do not show


def test_an_order_that_the_paper_does_not_have_is_named(
    measured: ModuleType, tmp_path: Path
) -> None:
    put_seeds(tmp_path, "t15/forward_kl", 4.5, 4.5)  # the paper's best
    put_seeds(tmp_path, "t15/cosine", 4.1, 4.1)
    put_seeds(tmp_path, "t15/mse", 4.0, 4.2)
    verdict = the_table(measured, "Distance from the teacher")["paper_verdict"]
    assert "3 comparisons, 0 have the same order" in verdict
    assert "opposite order**: forward KL before cosine; forward KL before mean squared" in verdict
    assert "Too close to tell: cosine before mean squared error of logits" in verdict


def test_comparisons_of_the_papers_are_counted_by_their_order(
    measured: ModuleType, tmp_path: Path
) -> None:
    put_seeds(tmp_path, "t15/forward_kl", 4.5, 4.5)
    put_seeds(tmp_path, "t15/cosine", 4.6, 4.6)
    put_seeds(tmp_path, "t15/reverse_kl", 4.5, 4.7)
    put_seeds(tmp_path, "t15/mse", 4.0, 4.0)
    section = measured.papers_order(measured.paper_tables())
    assert section.finding.startswith("**1 of the papers' 6 comparisons** have the same order")
    assert "3 have the opposite order, 2 are too close" in section.finding
    assert measured.papers_order([]) is None


def test_no_gain_by_importance_is_not_called_one(measured: ModuleType, tmp_path: Path) -> None:
    against = json.loads((RESULTS / "importance_against_random.json").read_text())
    for student in against["students"]:
        student["retrained"]["loss"] = 4.0
    (tmp_path / "importance_against_random.json").write_text(json.dumps(against))
    finding = measured.importance_against_random().finding
    assert "too close to tell from random after" in finding
    assert "finds what to keep" not in finding


def test_a_missing_row_leaves_the_others(measured: ModuleType, tmp_path: Path) -> None:
    put_seeds(tmp_path, "t14/random-train", 5.7)
    put_seeds(tmp_path, "t14/pruned-train", 4.1)
    rows = the_table(measured)["plots"][0]["rows"]
    assert len(rows) == 2
    assert not any("spread" in row for row in rows)


def test_a_single_row_is_no_comparison(measured: ModuleType, tmp_path: Path) -> None:
    put_seeds(tmp_path, "residual/on", 4.1, 4.2)
    assert measured.paper_tables() == []


def test_a_name_that_begins_another_does_not_take_its_runs(
    measured: ModuleType, tmp_path: Path
) -> None:
    put_seeds(tmp_path, "t15/forward_kl", 4.1)
    put_seeds(tmp_path, "t15/forward_kl + cross-entropy", 4.2)
    put_seeds(tmp_path, "t15/cosine", 4.3)
    assert len(measured.family_runs("t15/forward_kl-[0-9]")) == 1


def test_every_row_of_the_family_tables_is_shown_where_it_was_run(
    measured: ModuleType, tmp_path: Path
) -> None:
    for name in ROWS:
        put_seeds(tmp_path, name, 4.1, 4.2)
    sources = json.dumps([table.to_json() for table in measured.paper_tables()])
    for name in ROWS:
        assert f'"{name}-1.json"' in sources


def curve(place: Path, kind: str, losses: dict[int, float]) -> None:
    for tokens, loss in losses.items():
        put(place, f"curve/{kind}-{tokens}", loss, tokens)


def test_the_ratio_is_of_the_fewest_tokens_that_reach_the_longest_run(
    measured: ModuleType, tmp_path: Path
) -> None:
    put(tmp_path, "teacher/tiny", **TEACHER)  # type: ignore[arg-type]
    curve(tmp_path, "scratch", {262_144: 5.7, 4_194_304: 4.25})
    curve(tmp_path, "distill", {16_384: 4.33, 131_072: 4.12, 32_768: 4.25})
    section = measured.token_curves().to_json()
    assert "needs **128 times fewer training tokens** than" in section["finding"]
    assert "4,194,304 tokens reach 4.250" in section["verdict"]
    assert "32,768 tokens give 4.250" in section["verdict"]
    assert section["chart"]["level"] == {"name": "teacher", "value": 3.9}
    assert [len(series["points"]) for series in section["chart"]["series"]] == [3, 2]
    assert "73,728 held-out tokens" in section["explanation"]


def test_the_ratio_is_a_least_one_where_the_shortest_run_is_enough(
    measured: ModuleType, tmp_path: Path
) -> None:
    curve(tmp_path, "scratch", {400_000: 4.5})
    curve(tmp_path, "distill", {20_000: 4.3, 40_000: 4.2})
    assert "**at least 20 times fewer training tokens**" in measured.token_curves().finding


def test_no_ratio_is_claimed_that_no_run_reaches(measured: ModuleType, tmp_path: Path) -> None:
    curve(tmp_path, "scratch", {400_000: 4.1})
    curve(tmp_path, "distill", {20_000: 4.3})
    section = measured.token_curves()
    assert section.finding == ""
    assert section.verdict == ""


def test_importance_and_chance_are_shown_with_their_spread(
    measured: ModuleType, tmp_path: Path
) -> None:
    shutil.copy(RESULTS / "importance_against_random.json", tmp_path)
    section = measured.importance_against_random().to_json()
    pruned, retrained = (plot["rows"] for plot in section["plots"])
    assert pruned[1]["mean"] == pytest.approx(6.008, abs=5e-4)
    assert pruned[1]["spread"] == pytest.approx(0.039, abs=5e-4)
    assert retrained[1]["mean"] == pytest.approx(4.214, abs=5e-4)
    assert retrained[1]["spread"] == pytest.approx(0.004, abs=5e-4)
    for rows in (pruned, retrained):
        assert [row["name"] for row in rows if row.get("is_lowest")] == ["by importance"]
    assert section["verdict"].startswith("Yes: ")
    assert "0.948 nats per token lower" in section["verdict"]
    assert section["finding"].startswith("Importance finds what to keep: **0.948 nats per token ")


def axis_row(cut: str, how: str, loss: float, spread: float | None) -> dict[str, object]:
    shared = {"table": "axes", "parameters": 3_000}
    return {**shared, "cut": cut, "how": how, "loss": loss, "spread": spread}


def test_axes_name_what_ranked_best_and_hold_every_number(
    measured: ModuleType, tmp_path: Path
) -> None:
    rows = [
        axis_row("hidden", "importance", 5.25, None),
        axis_row("hidden", "random, mean of 3", 6.5, 0.125),
        axis_row("layers", "importance", 7.0, None),
        axis_row("layers", "random, mean of 3", 6.75, 0.25),
        axis_row("heads", "importance", 5.0, None),
        axis_row("heads", "random, mean of 3", 5.5, 0.25),
    ]
    rows.append({**rows[0], "table": "depth", "cut": "other"})
    results = {"teacher": 3.93, "tokens": 61_000, "samples": 128, "rows": rows}
    (tmp_path / "zero_shot.json").write_text(json.dumps(results))
    section = measured.ranking_by_axis().to_json()
    summaries = [row["summary"] for row in section["plots"][0]["rows"]]
    assert summaries[:2] == ["5.250 by importance", "6.750 by random, mean of 3"]
    assert ("hidden", "5.250", "6.500 ± 0.125") in section["table"]
    assert "61,000 held-out tokens" in section["explanation"]
    assert "other" not in json.dumps(section["plots"])
    assert section["verdict"] == (
        "Importance against random: a lower loss on hidden; too close to tell on layers, heads."
    )


def test_the_embedded_family_has_its_loss_against_parameters() -> None:
    sections = json.loads(EVIDENCE.read_text())["sections"]
    (section,) = [one for one in sections if one["title"] == "Loss against parameters"]
    points = {point["label"]: point["y"] for point in section["chart"]["series"][0]["points"]}
    assert points == {"tiny": 3.9225, "tiny-half": 3.9548, "tiny-quarter": 4.0481}
