"""Measuring: the importance of every axis of a source, by the method that a recipe names.

Decides which methods need text, fits the work into memory, divides it among processes and resumes
it; the formulas are in `activation_scores`, `layer_cuts` and `weight_scores`.

    score(open_source("tiny"), CalibrationRecipe(corpus="books.jsonl.gz")).layers
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch

from minitron.errors import CorpusError, ImportanceError, TargetError
from minitron.files.device_memory import free_memory, memory_in_use, readable_bytes
from minitron.files.dtypes import dtype_named, name_of
from minitron.files.unfinished import RESULT, partial_of, resumable_file
from minitron.model.architecture import Architecture
from minitron.model.family import EMBEDDING
from minitron.model.importance import Importance
from minitron.model.source import Source
from minitron.options import flag_of, parse_bytes
from minitron.progress import Progress
from minitron.recipe import record_of
from minitron.recipes.importance import ByActivations, CalibrationRecipe, ImportanceRecipe
from minitron.scores.activation_scores import Measurement, importance_of, made_by, sums_over
from minitron.scores.aggregation import Aggregation
from minitron.scores.calibration import Calibration, calibration, length_and_samples
from minitron.scores.contribution import contribution_bytes
from minitron.scores.layer_cuts import cuts_of, passes_of
from minitron.scores.surgeon import ChunkPlace, stored_bytes, surgeon_bytes
from minitron.scores.sweep import (
    Chunk,
    Needs,
    Sums,
    SweepPlan,
    Weights,
    plan_sweep,
    sequences_of,
    sweep,
)
from minitron.scores.weight_scores import magnitude_scores, random_scores
from minitron.sources.layer_stream import LayerStream
from minitron.sources.loading import default_device, fast_dtype
from minitron.sources.processes import Processes
from minitron.text.encoding import TokenIds

BY_ACTIVATIONS = get_args(ByActivations)

logger = logging.getLogger(__name__)


def score(
    source: Source,
    recipe: CalibrationRecipe,
    text: Calibration | None = None,
    processes: Processes | None = None,
) -> Importance:
    """The importance of every axis of `source`, by `recipe.scores`.

    `text` is what `recipe` names, where it is loaded already. `processes` share it; else this
    process is alone.
    """
    architecture = source.architecture
    if recipe.scores in BY_ACTIVATIONS:
        processes = processes or Processes(device=default_device())
        task = _Task(source, recipe, measurement_of(recipe, source), processes)
        return _score_by_activations(task, text or _calibration_text(task))
    source.check_weights()
    by_weights = recipe.scores == "magnitude"
    scores = magnitude_scores(source) if by_weights else random_scores(architecture, recipe.seed)
    return replace(scores, made_by={**scores.made_by, "model": source.description})


def text_of(source: Source, recipe: CalibrationRecipe) -> Calibration:
    """The text that `recipe` names, loaded once the measurement on it is known to fit into memory.

    Raises CorpusError where it does not fit the model, TargetError where memory is too small.
    """
    processes = Processes.of_run()
    if recipe.scores not in BY_ACTIVATIONS:
        return calibration(source, recipe, processes.device)
    return _calibration_text(_Task(source, recipe, measurement_of(recipe, source), processes))


def check_corpus_named(recipe: CalibrationRecipe) -> None:
    """Refuse to rank by activations without text; CorpusError names the choices."""
    if recipe.corpus is None and recipe.scores in BY_ACTIVATIONS:
        raise CorpusError(
            "ranking by activations needs --corpus: a text file, a Hub dataset, self or random"
        )


def measurement_of(recipe: CalibrationRecipe, source: Source) -> Measurement:
    """What a recipe asks to measure. Raises TargetError for settings that do not go together."""
    check_corpus_named(recipe)
    assert recipe.scores != "magnitude"
    assert recipe.scores != "random"
    measurement = Measurement(
        aggregation=Aggregation.parse(recipe.aggregation),
        scores=recipe.scores,
        neurons=recipe.neurons,
        layer_scores=recipe.layer_scores,
        block_size=recipe.block_size,
    )
    _check_own_formulas(measurement)
    layers = source.architecture.num_hidden_layers
    if recipe.block_size is not None and not 2 <= recipe.block_size < layers:
        raise TargetError(
            f"--block-size is {recipe.block_size}: it must be from 2 to {layers - 1}, "
            f"fewer than the model's {layers} layers"
        )
    return measurement


def _check_own_formulas(measurement: Measurement) -> None:
    """Refuse settings of formulas that these scores do not have."""
    own = {
        "modelopt": ("aggregation", "neurons", "layer_scores"),
        "contribution": ("aggregation", "neurons"),
        "obs": ("aggregation", "neurons"),
    }.get(measurement.scores, ())
    if any(getattr(measurement, name) != getattr(Measurement(), name) for name in own):
        *names, last = map(flag_of, own)
        raise TargetError(
            f"--scores {measurement.scores} has its own {', '.join(names)} and {last}: leave them"
        )


@dataclass(frozen=True)
class _Task:
    """A source to score by activations, how, and who does it."""

    source: Source
    recipe: CalibrationRecipe
    measurement: Measurement
    processes: Processes

    @property
    def architecture(self) -> Architecture:
        """The source's sizes."""
        return self.source.architecture

    @property
    def stored_dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return self.source.tensors[EMBEDDING].dtype

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in: the recipe's, else the stored one where the hardware has it.

        Whether the model fits into memory changes no score, and so not the dtype either.
        """
        if self.recipe.compute_dtype is not None:
            return dtype_named(self.recipe.compute_dtype)
        return fast_dtype(self.stored_dtype, self.processes.device)


def measure_and_save(
    source: Source, recipe: ImportanceRecipe, out: Path
) -> tuple[Importance, bool]:
    """Scores by activations, measured by all processes and saved by the first, resumable.

    Returns whether this process is that one.
    """
    measurement = measurement_of(recipe, source)
    processes = Processes.of_run()
    task = _Task(source, recipe, measurement, processes)
    text = _calibration_text(task)
    record = record_of(recipe)
    begun = {
        **{key: record[key] for key in record if key not in ("memory_budget", "plot")},
        "corpus_digest": text.corpus.digest,
        "model_digest": source.digest,
        "processes": processes.count,
    }
    claimed = resumable_file(out, begun, reached=_reached) if processes.is_first else nullcontext()
    with claimed as folder:
        processes.wait()  # for the folder
        importance = _score_by_activations(task, text, folder or partial_of(out))
        if folder is not None:
            importance.save(folder / RESULT)
    return importance, processes.is_first


def _reached(unfinished: Path) -> str | None:
    """Where a run continues in the folder of an earlier one; None where that measured no chunk."""
    done = sum(map(sequences_of, unfinished.glob("sums-*.safetensors")))
    return f"sequence {done:,}" if done else None


def _calibration_text(task: _Task) -> Calibration:
    """The calibration text, loaded once its measurement is known to fit into memory."""
    task.source.check_weights()
    seq_len, samples = length_and_samples(task.source, task.recipe)
    assert task.recipe.corpus is not None
    if not task.recipe.corpus.endswith(".npy"):  # whose sequences may be shorter
        is_self = task.recipe.corpus == "self"
        _plan(task, [seq_len] * samples, "all" if is_self else "layers")
    return calibration(task.source, task.recipe, task.processes.device)


def _score_by_activations(
    task: _Task, text: Calibration, partial: Path | None = None
) -> Importance:
    """Scores from one sweep over the text, shared by all processes, resumable in `partial`."""
    processes = task.processes
    if len(text.sequences) < processes.count:
        raise TargetError(
            f"{len(text.sequences)} sequences cannot be shared by {processes.count} processes"
        )
    sequences = text.sequences[processes.part(len(text.sequences))]
    lengths = [len(sequence) for sequence in sequences]
    if task.measurement.layer_scores == "loss" and max(lengths) < 2:
        raise TargetError("--layer-scores loss needs sequences of at least 2 tokens")
    plan = _plan(task, lengths, "layers" if text.model is None else "loaded")
    if processes.is_first:
        _log_plan(task, plan, sum(lengths))
    stream = (
        LayerStream.of_source(
            task.source, dtype=task.dtype, device=processes.device, keep=plan.keep
        )
        if text.model is None
        else LayerStream.of_model(text.model)
    )
    with _folder_for_moments(task, plan, sum(lengths), partial) as moments:
        kept = None if partial is None else partial / f"sums-{processes.rank}.safetensors"
        mine = _sweep_sequences(task, stream, sequences, plan, kept, moments)
    sums = processes.add_up(mine)
    described = {
        **made_by(text.corpus, stream.dtype),
        "tokens": int(sums["tokens"]),
        "model": task.source.description,
    }
    return importance_of(sums, task.measurement, stream.config, described)


@contextmanager
def _folder_for_moments(
    task: _Task, plan: SweepPlan, tokens: int, partial: Path | None
) -> Iterator[Path | None]:
    """Where moments are stored between chunks: in `partial`, else in a temporary folder."""
    if task.measurement.scores != "obs" or plan.chunk_tokens >= tokens:
        yield partial
        return
    if task.processes.is_first:
        size = readable_bytes(stored_bytes(task.architecture))
        logger.info("what the layers' linears read is summed up on the disk: at most %s", size)
    with nullcontext(partial) if partial else TemporaryDirectory() as folder:
        yield Path(folder)


def _sweep_sequences(
    task: _Task,
    stream: LayerStream,
    sequences: list[TokenIds],
    plan: SweepPlan,
    kept: Path | None,
    moments: Path | None,
) -> Sums:
    """The sums over this process's sequences."""
    total, is_first = sum(map(len, sequences)), task.processes.is_first
    start = sequences_of(kept) if kept is not None and kept.exists() else 0
    with Progress("score", total=total, unit="token", is_shown=is_first) as progress:

        def measure(chunk: Chunk) -> Sums:
            nonlocal start
            stop = start + sum(map(len, chunk))
            is_last = stop == len(sequences)
            place = ChunkPlace(start, stop, is_last, moments, task.processes)
            sums = sums_over(stream, chunk, task.measurement, progress, place)
            start = stop
            if not all(tensor.isfinite().all() for tensor in sums.values()):
                raise ImportanceError(
                    f"activations are not finite in {name_of(stream.dtype)}: "
                    "compute with --compute-dtype float32, or mend the model"
                )
            return sums

        return sweep(
            sequences,
            measure,
            batch_tokens=plan.batch_tokens,
            chunk_tokens=plan.chunk_tokens,
            kept=kept,
            # There the processes compute errors together, which one alone could not do again.
            keeps_last=task.measurement.scores != "obs",
        )


def _log_plan(task: _Task, plan: SweepPlan, tokens: int) -> None:
    """Log the plan, and the cost of scoring layers by leaving them out."""
    logger.info(plan.text(tokens))
    measure, layers = task.measurement.layer_scores, task.architecture.num_hidden_layers
    if measure != "influence":
        passes = passes_of(cuts_of(layers, task.measurement.block_size), layers)
        logger.info("layers by %s take the work of %.1f passes more", measure, passes)


def _plan(task: _Task, lengths: list[int], weights: Weights) -> SweepPlan:
    """How the sweep fits into the memory budget. Raises TargetError where it does not."""
    device, block_size = task.processes.device, task.measurement.block_size
    in_use = memory_in_use(device)
    if task.recipe.memory_budget is None:
        budget = in_use + free_memory(device)
    else:
        budget = parse_bytes(task.recipe.memory_budget, "--memory-budget")
    has_logits = task.measurement.layer_scores != "influence"
    cuts = cuts_of(task.architecture.num_hidden_layers, block_size)
    summing = {"contribution": contribution_bytes, "obs": surgeon_bytes}.get(
        task.measurement.scores, lambda _: 0
    )
    needs = Needs(
        itemsize=task.dtype.itemsize,
        stored_itemsize=task.stored_dtype.itemsize,
        states_held=1 + (len(cuts) if has_logits else block_size or 0),
        has_logits=has_logits,
        has_masks=bool(task.source.config.get("sliding_window")),
        summing=summing(task.architecture),
        base=in_use,
        weights=weights,
    )
    return plan_sweep(task.architecture, lengths, budget=budget, needs=needs)
