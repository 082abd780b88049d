"""The Evidence tab says what the result files say, and leaves out what was not run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from minitron.space.jobs.catalog import Family
from minitron.space.tabs.ablations import TABLES, ablations, tokens_to_a_loss
from minitron.space.tabs.evidence import sections
from minitron.space.tabs.ranked import rankings
from minitron.space.tabs.records import Records
from minitron.space.tabs.section import Section, with_code
from minitron.space.ui.dot_plot import Dot, StripRow, strip
from minitron.space.ui.html import Html

ROWS = {row["runs"]: row for table in yaml.safe_load(TABLES.read_text()) for row in table["rows"]}
TEACHER = {"loss": 3.9, "held_out_tokens": 73_728, "parameters": 6_724_096}


def put(place: Path, name: str, loss: float, tokens: int = 131_072, **more: object) -> None:
    path = place / "family" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"before": 4.625, "loss": loss, "tokens": tokens, "parameters": 345, "seconds": 81.0}
    path.write_text(json.dumps({**run, **more}))


def put_seeds(place: Path, name: str, *losses: float) -> None:
    for seed, loss in enumerate(losses):
        put(place, f"{name}-{seed}", loss)


def records(place: Path) -> Records:
    return Records((place / "nowhere", place))


def the_only(found: list[Section]) -> str:
    (section,) = found
    return section.html()


def best_rows(html: str) -> list[str]:
    return re.findall(r'mt-strip-best"><span class="mt-strip-name">([^<]+)<', html)


def test_nothing_is_shown_of_what_was_not_run(tmp_path: Path) -> None:
    assert ablations(records(tmp_path)) == []
    assert rankings(records(tmp_path)) == []
    assert tokens_to_a_loss(records(tmp_path)) is None
    titles = [section.title for section in sections(Family.of(["tiny"]), [tmp_path])]
    assert titles[0] == "The models of this Space"


def test_a_row_is_mean_and_sample_deviation_with_a_dot_a_seed(tmp_path: Path) -> None:
    put_seeds(tmp_path, "t13/width", 4.10, 4.12, 4.17)
    put_seeds(tmp_path, "t13/depth", 4.50, 4.51, 4.52)
    html = the_only([s for s in ablations(records(tmp_path)) if s.title == "Width against depth"])
    assert "4.130 ± 0.036" in html  # 0.0361 over two degrees of freedom, 0.0294 over three
    assert "4.510 ± 0.010" in html
    assert html.count("mt-strip-dot") == 6
    assert "81 s of training (t13/depth-2.json)" in html
    assert best_rows(html) == ["width"]
    assert "0.380 nats a token below depth" in html
    assert "131,072 tokens a run" in html
    assert "before 4.625 · paper 2.155" in html


def test_rows_within_the_seeds_spread_are_not_told_apart(tmp_path: Path) -> None:
    put_seeds(tmp_path, "residual/off", 4.10, 4.20, 4.30)
    put_seeds(tmp_path, "residual/on", 4.11, 4.19, 4.27)
    html = the_only(ablations(records(tmp_path)))
    assert "Too close to tell" in html
    assert "Best" not in html


def test_a_missing_row_leaves_the_others(tmp_path: Path) -> None:
    put_seeds(tmp_path, "t14/random-train", 5.7)
    put_seeds(tmp_path, "t14/pruned-train", 4.1)
    html = the_only(ablations(records(tmp_path)))
    assert html.count("mt-strip-track") == 2
    assert "±" not in re.sub("mean ± sample", "", html)


def test_a_single_row_is_no_comparison(tmp_path: Path) -> None:
    put_seeds(tmp_path, "residual/on", 4.1, 4.2)
    assert ablations(records(tmp_path)) == []


def test_a_name_that_begins_another_does_not_take_its_runs(tmp_path: Path) -> None:
    put_seeds(tmp_path, "t15/forward_kl", 4.1)
    put_seeds(tmp_path, "t15/forward_kl + cross-entropy", 4.2)
    put_seeds(tmp_path, "t15/cosine", 4.3)
    assert len(records(tmp_path).runs("t15/forward_kl").all) == 1


@pytest.mark.parametrize("runs", ROWS)
def test_every_row_of_the_family_tables_is_shown_where_it_was_run(
    runs: str, tmp_path: Path
) -> None:
    for name in ROWS:
        put_seeds(tmp_path, name, 4.1, 4.2)
    html = "".join(section.html() for section in ablations(records(tmp_path)))
    assert Html(f"({runs}-1.json)") in html


def curve(place: Path, kind: str, losses: dict[int, float]) -> None:
    for tokens, loss in losses.items():
        put(place, f"curve/{kind}-{tokens}", loss, tokens)


def test_the_ratio_is_of_the_fewest_tokens_that_reach_the_longest_run(tmp_path: Path) -> None:
    put(tmp_path, "teacher/tiny", **TEACHER)  # type: ignore[arg-type]
    curve(tmp_path, "scratch", {262_144: 5.7, 4_194_304: 4.25})
    curve(tmp_path, "distill", {16_384: 4.33, 131_072: 4.12, 32_768: 4.25})
    section = tokens_to_a_loss(records(tmp_path))
    assert section is not None
    html = section.html()
    assert "128×" in html
    assert "at least" not in html
    assert "4.19 M tokens reach 4.250" in html
    assert "32.8 k tokens give 4.250" in html
    assert "the teacher: 3.900" in html
    assert html.count("<circle") == 5
    assert "73,728 held-out tokens" in html


def test_the_ratio_is_a_least_one_where_the_shortest_run_is_enough(tmp_path: Path) -> None:
    curve(tmp_path, "scratch", {400_000: 4.5})
    curve(tmp_path, "distill", {20_000: 4.3, 40_000: 4.2})
    section = tokens_to_a_loss(records(tmp_path))
    assert section is not None
    assert "at least 20 times fewer tokens" in section.html()


def test_no_ratio_is_claimed_that_no_run_reaches(tmp_path: Path) -> None:
    curve(tmp_path, "scratch", {400_000: 4.1})
    curve(tmp_path, "distill", {20_000: 4.3})
    section = tokens_to_a_loss(records(tmp_path))
    assert section is not None
    assert "times fewer" not in section.html()


def test_importance_and_chance_are_told_with_their_spread(tmp_path: Path) -> None:
    shutil.copy(next(iter(Records().folders)) / "importance_against_random.json", tmp_path)
    html = the_only(rankings(records(tmp_path)))
    assert "6.008 ± 0.039" in html
    assert "4.224 ± 0.003" in html
    assert best_rows(html) == ["by importance", "by importance"]
    assert "0.977 nats a token" in html


def test_axes_name_what_ranked_best_and_hold_every_number(tmp_path: Path) -> None:
    rows = [
        {"table": "axes", "cut": cut, "how": how, "parameters": 3_000, "loss": loss, "spread": s}
        for cut, how, loss, s in [
            ("hidden", "importance", 5.25, None),
            ("hidden", "random, mean of 3", 6.5, 0.125),
            ("layers", "importance", 7.0, None),
            ("layers", "random, mean of 3", 6.75, 0.25),
        ]
    ]
    rows.append({**rows[0], "table": "depth", "cut": "other"})
    results = {"teacher": 3.93, "tokens": 61_000, "samples": 128, "rows": rows}
    (tmp_path / "zero_shot.json").write_text(json.dumps(results))
    html = the_only(rankings(records(tmp_path)))
    assert "5.250 by importance" in html
    assert "6.750 by random, mean of 3" in html
    assert "<td>6.500 ± 0.125</td>" in html
    assert "61,000 held-out tokens" in html
    assert "other" not in html


def test_dots_lie_where_their_values_are() -> None:
    rows = [StripRow("a", [Dot(1.0, "")], "1"), StripRow("b", [Dot(2.0, ""), Dot(3.0, "")], "2.5")]
    html = strip(rows, "metres")
    places = [float(at) for at in re.findall(r'class="mt-strip-dot[^>]*left:([\d.]+)%', html)]
    assert places[0] < places[1] < places[2]
    assert places[1] == pytest.approx(50, abs=0.01)
    assert places[0] == pytest.approx(100 - places[2], abs=0.02)
    assert "metres" in html


def test_the_whole_zoo_has_its_loss_against_parameters(tmp_path: Path) -> None:
    family = Family.of(["tiny", "tiny-half", "tiny-quarter"])
    found = {section.title: section for section in sections(family, [tmp_path])}
    assert found["Loss against parameters"].html().count("<circle") == 3
    told = found["The models of this Space"].html()
    for loss in ("3.922", "3.962", "4.052"):
        assert loss in told


def test_words_in_backticks_are_code_and_escaped() -> None:
    assert with_code("a `b<` c") == "a <code>b&lt;</code> c"
