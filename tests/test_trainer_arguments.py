"""Every argument of transformers' Trainer can be given, but those that are ours."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

import minitron
from minitron.errors import TargetError
from minitron.recipes.training import DistillRecipe, TrainRecipe
from minitron.training.trainer_arguments import check_trainer, trainer_arguments


def recipe(**settings: Any) -> TrainRecipe:
    return TrainRecipe("out", init="tiny", corpus="books.txt", **settings)


def arguments(**settings: Any) -> TrainingArguments:
    return trainer_arguments(recipe(**settings), Path("checkpoints"), evaluates=False)


def test_the_recipe_is_what_the_trainer_does() -> None:
    made = arguments(steps=7, batch_size=3, learning_rate=2e-3, min_learning_rate=1e-5, seed=5)
    assert (made.max_steps, made.per_device_train_batch_size, made.seed) == (7, 3, 5)
    assert made.lr_scheduler_type == "cosine_with_min_lr"
    assert made.lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert made.report_to == []


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"optim": "adafactor"}, "optim", "adafactor"),
        ({"logging_steps": "3"}, "logging_steps", 3),
        ({"adam-beta1": "8e-1"}, "adam_beta1", 0.8),
        ({"torch_compile": "false"}, "torch_compile", False),
        ({"dataloader_drop_last": True}, "dataloader_drop_last", True),
        ({"fsdp_config": {"xla": False}}, "fsdp_config", {"xla": False}),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_kwargs", None),
        ({"save_total_limit": 4}, "save_total_limit", 4),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_any_other_argument_is_passed_on_as_its_kind(
    given: dict[str, Any], name: str, value: object
) -> None:
    made = getattr(arguments(trainer=given), name)
    assert made == value or (isinstance(value, dict) and value.items() <= made.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optm": "sgd"}, r"trainer\.optm is no argument of .* did you mean optim\?"),
        ({"optim": "sgdd"}, "argument --optim: invalid choice: 'sgdd'"),
        ({"logging_steps": "many"}, "invalid float value: 'many'"),
        ({"learning_rate": "1"}, "trainer.learning_rate: give it as --learning-rate"),
        ({"max-steps": "1"}, "trainer.max_steps: give it as --steps"),
        ({"output_dir": "x"}, "trainer.output_dir is set by minitron: leave it out"),
        ({"logging_steps": 0}, "--trainer: logging strategy .* requires non-zero --logging_steps"),
        ({"adam_beta1": 7}, r"--trainer: Invalid beta parameter at index 0: 7\.0"),
        ({"lr_scheduler_kwargs": "many"}, "--trainer: .* must be a mapping, not str"),
        ({"lr_scheduler_kwargs": {"end": 1}}, "--trainer: .* unexpected keyword argument 'end'"),
        ({"optim": "galore_adamw"}, "--trainer: .*"),
        ({"deepspeed": "nowhere.json"}, "--trainer: .*"),
        ({"fsdp": "full_shard"}, "--trainer: Using fsdp only works in distributed training"),
        ({"accelerator_config": "nowhere"}, "--trainer: .*nowhere"),
        ({"dataloader_num_workers": -1}, "--trainer: num_workers option should be non-negative"),
        ({"per_device_eval_batch_size": -3}, "--trainer: batch_size should be a positive integer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_unknown_wrong_or_ours_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        check_trainer(recipe(trainer=given))


def test_trackers_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "minitron.training.trainer_arguments.get_available_reporting_integrations", list
    )
    with pytest.raises(TargetError, match="comet_ml.* is not installed: pip install comet-ml"):
        check_trainer(recipe(report_to="comet_ml"))
    with pytest.raises(TargetError, match="'abacus', which is no tracker: choose .*tensorboard, "):
        check_trainer(recipe(report_to="abacus"))


def test_checking_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_trainer(recipe(trainer={"optim": "sgd"}))
    assert not list(tmp_path.iterdir())


def test_every_name_that_is_ours_is_the_trainers() -> None:
    from minitron.training.trainer_arguments import _OPTION_OF, _RESERVED

    fields = set(TrainingArguments.__dataclass_fields__)
    assert {*_RESERVED, *_OPTION_OF} <= fields | {
        "activation_checkpointing",
        "gradient_checkpointing",
    }


@pytest.mark.parametrize("name", ["distill-1-gpu", "distill-8-gpus", "distill-nodes"])
def test_a_distillation_recipe_that_ships_is_one(name: str) -> None:
    path = Path(minitron.__file__).parent / "recipes" / f"{name}.yaml"
    options = yaml.safe_load(path.read_text())
    made = DistillRecipe("student", "out", corpus="books.txt", teacher="teacher", **options)
    check_trainer(made)
    assert made.warmup_steps == 60
    assert made.batch_size * made.gradient_accumulation_steps in (128, 128 / 8, 768 / 128)
