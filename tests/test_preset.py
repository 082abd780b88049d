"""Presets ask what the papers ask."""

from importlib import resources

import pytest
import yaml

import minitron
from minitron.errors import TargetError
from minitron.evaluation.preset import preset_names, read_preset
from minitron.evaluation.task_harness import Tasks


def test_the_papers_numbers_of_examples_are_those_of_table_2() -> None:
    preset = read_preset("minitron")
    assert preset.tasks == {
        "mmlu": 5,
        "hellaswag": 10,
        "winogrande": 5,
        "arc_challenge": 25,
        "gsm8k": 5,
        "truthfulqa_mc2": 0,
    }
    assert preset.code_tasks == {"mbpp": 0, "humaneval": 0}
    assert preset.summaries is None


def test_the_preset_and_the_cards_of_the_family_ask_alike() -> None:
    cards = resources.files("minitron") / "records" / "published_cards.yaml"
    published = yaml.safe_load(cards.read_text(encoding="utf-8"))["benchmarks"]
    preset = read_preset("minitron")
    asked = {**preset.tasks, **preset.code_tasks}
    asked["truthfulqa"] = asked.pop("truthfulqa_mc2")
    assert {name: published[name]["shots"] for name in asked} == asked


@pytest.mark.slow  # it lists all that there are
def test_lm_eval_has_every_task_of_a_preset() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    for name in preset_names():
        preset = read_preset(name)
        assert {*preset.tasks, *preset.code_tasks} <= known


def test_a_preset_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TargetError, match="is paper: there are cnn_dailymail and minitron"):
        minitron.evaluate("tiny", preset="paper")


@pytest.mark.parametrize("allowed", [False, True])
def test_code_is_run_only_where_it_is_allowed(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int | None] = {}

    def load(names: dict[str, int | None], **_: object) -> Tasks:
        asked.update(names)
        return Tasks({"tasks": {}, "groups": {}}, None, runs_code=False)

    monkeypatch.setattr("minitron.verbs.evaluate.load_tasks", load)
    monkeypatch.setattr("minitron.verbs.evaluate.run_tasks", lambda *_, **__: {})
    minitron.evaluate("tiny", preset="minitron", run_generated_code=allowed)
    preset = read_preset("minitron")
    assert asked == {**preset.tasks, **(preset.code_tasks if allowed else {})}


def test_a_presets_examples_are_not_changed_beside_it() -> None:
    with pytest.raises(TargetError, match="--preset minitron sets the examples of its tasks"):
        minitron.evaluate("tiny", preset="minitron", num_fewshot=1)
