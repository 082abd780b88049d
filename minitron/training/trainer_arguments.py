"""A recipe as transformers' TrainingArguments.

Knows which arguments the fields of a recipe set, which are reserved because the exact resume
depends on them, and how the text of any other is parsed.

    trainer_arguments(recipe, Path("checkpoints"), evaluates=True).learning_rate
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from warnings import catch_warnings, simplefilter

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from minitron.errors import TargetError
from minitron.recipes.training import FitRecipe
from minitron.sources.loading import default_device, fast_dtype

_FIELDS = {field.name for field in fields(TrainingArguments)}
_CHECKPOINTING = next(  # renamed between the supported versions
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in _FIELDS
)
_OPTION_OF = {
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch-size",
    "gradient_accumulation_steps": "gradient-accumulation-steps",
    "activation_checkpointing": "gradient-checkpointing",
    "gradient_checkpointing": "gradient-checkpointing",
    "learning_rate": "learning-rate",
    "warmup_steps": "warmup-steps",
    "weight_decay": "weight-decay",
    "adam_beta2": "adam-beta2",
    "max_grad_norm": "max-grad-norm",
    "bf16": "autocast",
    "save_steps": "save-steps",
    "seed": "seed",
    "data_seed": "seed",
    "report_to": "report-to",
    "eval_strategy": "eval-corpus",
}
# The exact resume, the held-out loss and the folder depend on these.
_RESERVED = (
    "output_dir",
    "save_strategy",
    "save_only_model",
    "load_best_model_at_end",
    "ignore_data_skip",
    "eval_steps",
    "eval_on_start",
    "prediction_loss_only",
    "remove_unused_columns",
    "label_names",
    "label_smoothing_factor",
    "logging_nan_inf_filter",
    "disable_tqdm",
    "push_to_hub",
    "resume_from_checkpoint",
    "use_cpu",
    "do_train",
    "do_eval",
    "do_predict",
)
_LOG_STEPS = 10


def trainer_arguments(recipe: FitRecipe, folder: Path, *, evaluates: bool) -> TrainingArguments:
    """The arguments of a run with checkpoints in `folder`.

    Raises TargetError as `check_trainer` does, except for values that only the optimizer, the
    schedule or the data loader refuse.
    """
    _check_names(recipe)
    device = default_device()
    given = _parse(_given_arguments(recipe))
    is_fast = fast_dtype(torch.bfloat16, device) == torch.bfloat16
    is_automatic = recipe.autocast == "auto" and is_fast and not given.get("fp16")
    schedule: dict[str, Any] = {} if "lr_scheduler_type" in given else _cosine_schedule(recipe)
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": recipe.epochs,
            "max_steps": recipe.steps or -1,
            "per_device_train_batch_size": recipe.batch_size,
            "per_device_eval_batch_size": recipe.batch_size,
            "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
            _CHECKPOINTING: recipe.gradient_checkpointing,
            f"{_CHECKPOINTING}_kwargs": {"use_reentrant": False},
            "learning_rate": recipe.learning_rate,
            "warmup_steps": recipe.warmup_steps,
            "weight_decay": recipe.weight_decay,
            "adam_beta2": recipe.adam_beta2,
            "max_grad_norm": recipe.max_grad_norm,
            "bf16": recipe.autocast == "bfloat16" or is_automatic,
            "use_cpu": device == "cpu",
            "save_strategy": "steps",
            "save_steps": recipe.save_steps,
            "save_total_limit": 1,
            "eval_strategy": "steps" if evaluates else "no",
            "eval_steps": recipe.save_steps,
            "prediction_loss_only": True,
            "logging_steps": _LOG_STEPS,
            "logging_first_step": True,
            "logging_nan_inf_filter": False,  # it would replace NaN by the mean of other losses
            "seed": recipe.seed,
            "data_seed": recipe.seed,
            "report_to": _trackers(recipe.report_to) or "none",
            "disable_tqdm": True,
            # Every weight gets a gradient, so DDP need not search the graph of each step.
            "ddp_find_unused_parameters": False,
            "remove_unused_columns": False,  # the model's forward has no argument `row`
            **schedule,
            **given,
        }
    )
    # A process uses one device. With several visible, Trainer would use DataParallel, which is
    # slower than torchrun and whose copies of the model would share one output embedding.
    _ = arguments.device  # reading it sets _n_gpu
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


def check_trainer(recipe: FitRecipe) -> None:
    """Refuse, before anything slow, arguments that transformers does not have, that are reserved or
    whose value it, its optimizer or its schedule refuses, and trackers that are not installed.
    Raises TargetError."""
    _check_names(recipe)
    with TemporaryDirectory() as folder, catch_warnings():  # the run itself warns
        simplefilter("ignore")
        try:
            arguments = trainer_arguments(recipe, Path(folder), evaluates=True)
            arguments.report_to = []
            rows = [{"row": 0}]
            model = torch.nn.Linear(1, 1)
            trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
            trainer.create_optimizer_and_scheduler(1)
            trainer.get_train_dataloader()
            trainer.get_eval_dataloader()
        except (ValueError, TypeError, ImportError, OSError) as error:
            raise TargetError(f"--trainer: {error}") from error


def _check_names(recipe: FitRecipe) -> None:
    for name in _given_arguments(recipe):
        if name in _OPTION_OF:
            raise TargetError(f"trainer.{name}: give it as --{_OPTION_OF[name]}")
        if name in _RESERVED:
            raise TargetError(f"trainer.{name} is set by minitron: leave it out")
        if name not in _FIELDS:
            near = get_close_matches(name, _FIELDS, n=1)
            meant = f": did you mean {near[0]}?" if near else ": see its TrainingArguments"
            raise TargetError(f"trainer.{name} is no argument of transformers' Trainer{meant}")
    _parse(_given_arguments(recipe))
    installed = get_available_reporting_integrations()
    for tracker in _trackers(recipe.report_to):
        if tracker not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise TargetError(f"--report-to is {tracker!r}, which is no tracker: choose {known}")
        if tracker not in installed:
            package = tracker.replace("_", "-")
            raise TargetError(
                f"--report-to is {tracker!r}, which is not installed: pip install {package}"
            )


def _given_arguments(recipe: FitRecipe) -> dict[str, Any]:
    """The arguments of `--trainer`, by transformers' names; a flag may write them with dashes."""
    return {name.replace("-", "_"): value for name, value in (recipe.trainer or {}).items()}


def _cosine_schedule(recipe: FitRecipe) -> dict[str, Any]:
    return {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": recipe.min_learning_rate},
    }


def _trackers(report_to: str) -> list[str]:
    names = [name.strip() for name in report_to.split(",")]
    return [name for name in names if name not in ("", "none")]


def _parse(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse each argument with transformers' own command-line parser."""
    if not given:
        return {}

    def refuse(message: str) -> NoReturn:
        raise TargetError(f"--trainer: {message}")

    parser: argparse.ArgumentParser = HfArgumentParser(TrainingArguments)  # type: ignore[arg-type]
    parser.error = refuse  # type: ignore[method-assign]
    texts = [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in given.items()
        if value is not None
    ]
    parsed = vars(parser.parse_args(texts))
    return {name: parsed[name] for name in given}
