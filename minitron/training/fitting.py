"""Fitting: one run of transformers' Trainer over packed text, in one process or many.

Knows where an interrupted run goes on, and what is left of a run: its weights and its losses. Does
not know the loss: that is the Trainer it is given.

    fit(model, texts, folder / "checkpoints", recipe, make_trainer=TextTrainer, models={})
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from minitron.errors import CorpusError, TargetError
from minitron.files.unfinished import check_same_inputs
from minitron.model.source import Source
from minitron.recipe import FitRecipe
from minitron.sources.loading import hub_config, load_model, new_model
from minitron.sources.processes import processes_of_run
from minitron.text.corpus import Corpus
from minitron.training.progress import CURVE, LossCurve, TrainingProgress, records_of
from minitron.training.trainer_arguments import check_trainer, trainer_arguments

CHECKPOINTS = "checkpoints"
_COMPILED = "_orig_mod."  # what torch.compile puts into names


@dataclass(frozen=True)
class Texts:
    """What a model is trained on, and what it is measured on where there is such text."""

    corpus: Corpus
    held_out: Corpus | None


@dataclass(frozen=True)
class Fitted:
    """What a training run did."""

    steps: int
    epochs: float
    tokens: int  # trained on, repeated ones too
    # One a logged step: step, epoch, loss or eval_loss (nats a token), learning_rate, grad_norm.
    records: tuple[dict[str, float], ...]
    # By name, as they were trained; only in the first process.
    weights: Mapping[str, torch.Tensor]


def check_options(recipe: FitRecipe) -> None:
    """Refuse options that do not go together, before anything slow. Raises TargetError."""
    if recipe.min_learning_rate > recipe.learning_rate:
        raise TargetError(
            f"--min-learning-rate is {recipe.min_learning_rate:g}: it must be at most "
            f"--learning-rate, {recipe.learning_rate:g}"
        )
    check_trainer(recipe)


def initial_model(source: Source, recipe: FitRecipe) -> PreTrainedModel:
    """The model to train, in float32: with its own weights, or random ones."""
    if recipe.scratch:
        return new_model(hub_config(source.config))
    return load_model(source, dtype=torch.float32)


def digest_of(source: Source) -> str | None:
    """What tells a source from another; None where it has no weights."""
    return None if source.layout is None else source.digest


def fit(
    model: PreTrainedModel,
    texts: Texts,
    folder: Path,
    recipe: FitRecipe,
    *,
    make_trainer: Callable[..., Trainer],
    models: Mapping[str, str | None],
    verb: str = "train",
) -> Fitted:
    """Train `model` in place; checkpoints go to `folder`, and an earlier run there is resumed.

    `models` are the digests of what a run begins with and learns from, by what they are to it.

    A batch holds `input_ids` and `labels` [rows, seq_len], and `row` [rows], their places in the
    corpus. Raises CorpusError for ids outside the vocabulary, TargetError for a loss that became
    NaN, OutputError for a run that was begun on other text or models, or in fewer or more
    processes.
    """
    for corpus in (texts.corpus, texts.held_out):
        if corpus is not None:
            corpus.check_fits(model.config.vocab_size)
            if corpus.sequences.shape[1] < 2:
                raise CorpusError(f"{corpus.name} holds single tokens: there is nothing to predict")
    processes = processes_of_run()
    arguments = trainer_arguments(recipe, folder, evaluates=texts.held_out is not None)
    if arguments.dataloader_drop_last:
        _check_whole_batch(texts.corpus, recipe.batch_size * processes.num_processes)
    if processes.is_main_process:
        folder.mkdir(exist_ok=True)
        check_same_inputs(
            folder,
            folder.parent,
            text=texts.corpus.digest,
            held_out_text=None if texts.held_out is None else texts.held_out.digest,
            processes=processes.num_processes,
            **models,
        )
    checkpoint = _last_checkpoint(folder, processes)
    arguments.eval_on_start = texts.held_out is not None and checkpoint is None
    rows = recipe.batch_size * recipe.gradient_accumulation_steps * processes.num_processes
    tokens_per_step = rows * texts.corpus.sequences.shape[1]
    progress = TrainingProgress(tokens_per_step, verb)
    settings = _settings_of(model)
    trainer = make_trainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(texts.corpus),
        eval_dataset=None if texts.held_out is None else _dataset(texts.held_out),
        data_collator=_stack,
        callbacks=[progress, LossCurve(folder.parent / CURVE)],
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    with _one_bar(), closing(progress):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    evaluated = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    if texts.held_out is not None and evaluated[-1:] != [trainer.state.global_step]:
        trainer.evaluate()
    _restore(model, settings)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model.eval()
    epochs = float(trainer.state.epoch or 0)
    return Fitted(
        steps=trainer.state.global_step,
        epochs=epochs,
        tokens=round(epochs * texts.corpus.tokens),
        records=records_of(trainer.state),
        weights={name.replace(_COMPILED, ""): weight for name, weight in weights.items()}
        if processes.is_main_process
        else {},
    )


def _settings_of(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Every field of a model's config and generation config."""
    return [deepcopy(vars(each)) for each in (model.config, model.generation_config) if each]


def _restore(model: PreTrainedModel, settings: list[dict[str, Any]]) -> None:
    """Undo what a Trainer has set, as `use_cache`: who is given the model wants it as it was."""
    held = (each for each in (model.config, model.generation_config) if each)
    for each, fields in zip(held, settings, strict=True):
        vars(each).clear()
        vars(each).update(fields)


def _check_whole_batch(corpus: Corpus, rows: int) -> None:
    """Refuse text of which dataloader_drop_last would leave nothing."""
    if len(corpus.sequences) < rows:
        raise CorpusError(
            f"{corpus.name} holds {len(corpus.sequences)} sequences, a batch takes {rows}: give "
            "more text, a smaller --batch-size, or leave out --trainer.dataloader_drop_last"
        )


@contextmanager
def _one_bar() -> Iterator[None]:
    """Ours alone: transformers would draw another for each checkpoint it writes."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _last_checkpoint(folder: Path, processes: PartialState) -> Path | None:
    """The last checkpoint that was written whole; later ones, cut short, are removed.

    transformers writes trainer_state.json last.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2]))
    last = next((path for path in found if _is_whole(path)), None)
    processes.wait_for_everyone()  # all have looked
    if processes.is_main_process:
        for path in found[: found.index(last) if last is not None else None]:
            shutil.rmtree(path)
    return last


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _dataset(corpus: Corpus) -> Dataset:
    rows = {"input_ids": corpus.sequences, "row": np.arange(len(corpus.sequences))}
    return Dataset.from_dict(rows).with_format("torch")


def _stack(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    input_ids = torch.stack([row["input_ids"] for row in rows]).long()  # (batch, seq_len)
    return {
        "input_ids": input_ids,
        "labels": input_ids,
        "row": torch.stack([row["row"] for row in rows]),
    }
