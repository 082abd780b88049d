"""Fitting: one run of transformers' Trainer over packed text, in one process or many.

Knows from which checkpoint an interrupted run continues, and collects weights and losses. The
Trainer that it is given computes the loss.

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

from minitron.errors import CorpusError
from minitron.files.unfinished import check_same_inputs
from minitron.model.source import Source
from minitron.recipes.training import FitRecipe
from minitron.sources.loading import hub_config, load_model, new_model
from minitron.sources.processes import processes_of_run
from minitron.text.corpus import Corpus
from minitron.training.progress import CURVE, LossCurve, TrainingProgress, curve_points
from minitron.training.trainer_arguments import trainer_arguments

CHECKPOINTS = "checkpoints"
_COMPILED = "_orig_mod."  # that torch.compile adds to names


@dataclass(frozen=True)
class Texts:
    """The text to train on, and the held-out text, if any, on which the model is evaluated."""

    corpus: Corpus
    held_out: Corpus | None


@dataclass(frozen=True)
class FitResult:
    """The result of a training run."""

    steps: int
    epochs: float
    tokens: int  # trained on, counted in every epoch
    # One point per logged step: step, epoch, loss or eval_loss (nats a token), learning_rate,
    # grad_norm.
    curve: tuple[dict[str, float], ...]
    # Name to trained weight; empty in all processes but the first.
    weights: Mapping[str, torch.Tensor]


def initial_model(source: Source, recipe: FitRecipe) -> PreTrainedModel:
    """The model to train, in float32: with its own weights, or random ones."""
    if recipe.scratch:
        return new_model(hub_config(source.config))
    return load_model(source, dtype=torch.float32)


def digest_of(source: Source) -> str | None:
    """The digest of a source's config and weights; None where it has no weights."""
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
    unfinished: Path | None = None,
) -> FitResult:
    """Train `model` in place; writes checkpoints to `folder`, and resumes an earlier run there.

    `models` maps the role of each model of the run (initial model, student, teacher) to its digest.
    `unfinished` is the folder from which the same command would continue, if there is one.
    A batch holds `input_ids` and `labels` [rows, seq_len], and `row` [rows], the indices of these
    sequences in the corpus. Raises CorpusError for ids outside the vocabulary, TargetError for a
    loss that is NaN, OutputError for an earlier run with other text, models or number of processes.
    """
    processes = processes_of_run()
    arguments = trainer_arguments(recipe, folder, evaluates=texts.held_out is not None)
    _check_texts(texts, model.config.vocab_size)
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
    # The curve of a resumed run starts with the evaluation of the earlier one.
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
        data_collator=_collate,
        callbacks=[progress, LossCurve(folder.parent / CURVE, unfinished)],
    )
    for printer in (PrinterCallback, ProgressCallback):  # `progress` shows the same in one bar
        trainer.remove_callback(printer)
    with _without_progress_bars(), closing(progress):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        # Trainer evaluates every `eval_steps`; the last step need not be one of them.
        evaluated = [point["step"] for point in trainer.state.log_history if "eval_loss" in point]
        if texts.held_out is not None and evaluated[-1:] != [trainer.state.global_step]:
            trainer.evaluate()
    _restore(model, settings)
    model.eval()
    return _result_of(trainer, texts.corpus, processes)


def _check_texts(texts: Texts, vocab_size: int) -> None:
    for corpus in (texts.corpus, texts.held_out):
        if corpus is not None:
            corpus.check_fits(vocab_size)
            if corpus.sequences.shape[1] < 2:
                raise CorpusError(f"{corpus.name} holds single tokens: there is nothing to predict")


def _result_of(trainer: Trainer, corpus: Corpus, processes: PartialState) -> FitResult:
    # Every process takes part: FSDP and DeepSpeed gather the weights from all of them.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    epochs = float(trainer.state.epoch or 0)
    return FitResult(
        steps=trainer.state.global_step,
        epochs=epochs,
        tokens=round(epochs * corpus.tokens),
        curve=curve_points(trainer.state),
        weights={name.replace(_COMPILED, ""): weight for name, weight in weights.items()}
        if processes.is_main_process
        else {},
    )


def _settings_of(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The fields of a model's config and generation config."""
    return [deepcopy(vars(each)) for each in (model.config, model.generation_config) if each]


def _restore(model: PreTrainedModel, settings: list[dict[str, Any]]) -> None:
    """Undo the changes that a Trainer makes in a model's configs, such as `use_cache`."""
    configs = (each for each in (model.config, model.generation_config) if each)
    for each, fields in zip(configs, settings, strict=True):
        vars(each).clear()
        vars(each).update(fields)


def _check_whole_batch(corpus: Corpus, rows: int) -> None:
    """Refuse text with less than one batch, all of which dataloader_drop_last would drop."""
    if len(corpus.sequences) < rows:
        raise CorpusError(
            f"{corpus.name} holds {len(corpus.sequences)} sequences, a batch {rows}: give "
            "more text, a smaller --batch-size, or leave out --trainer.dataloader_drop_last"
        )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hide transformers' own bars, one for each checkpoint; `TrainingProgress` shows ours."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def last_step(unfinished: Path) -> str | None:
    """Where a run continues in the folder of an earlier one; None where that did not train."""
    folder = unfinished / CHECKPOINTS
    if not folder.is_dir():
        return None
    return f"step {max(map(_step_of, filter(_is_complete, _checkpoints(folder))), default=0)}"


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the last one first."""
    return sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _last_checkpoint(folder: Path, processes: PartialState) -> Path | None:
    """The last complete checkpoint; removes later ones, which are incomplete."""
    checkpoints = _checkpoints(folder)
    last = next((path for path in checkpoints if _is_complete(path)), None)
    processes.wait_for_everyone()  # every process looks before the first one removes
    if processes.is_main_process:
        for path in checkpoints[: checkpoints.index(last) if last is not None else None]:
            shutil.rmtree(path)
    return last


def _is_complete(checkpoint: Path) -> bool:
    try:  # transformers writes this file last
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _dataset(corpus: Corpus) -> Dataset:
    rows = {"input_ids": corpus.sequences, "row": np.arange(len(corpus.sequences))}
    return Dataset.from_dict(rows).with_format("torch")


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    input_ids = torch.stack([row["input_ids"] for row in rows]).long()  # (batch, seq_len)
    return {
        "input_ids": input_ids,
        "labels": input_ids,
        "row": torch.stack([row["row"] for row in rows]),
    }
