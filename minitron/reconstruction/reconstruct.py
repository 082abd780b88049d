"""Reconstruct: a pruned model made good again on calibration text, without training.

Chooses how the small model's stream sees the source's (channels or directions), holds a part of the
text out, fits every linear, and keeps the result only where its loss on the held-out text is lower
than that of the pruned model as it was.

    made = reconstruct(source, plan, sequences, folder, hidden="auto", device="cpu")
    made.source.tensors, made.record
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from minitron.errors import TargetError
from minitron.files.device_memory import free_memory, memory_in_use
from minitron.model.architecture import Architecture
from minitron.model.families import EMBEDDING
from minitron.model.plan import PruningPlan
from minitron.model.source import Source
from minitron.options import parse_bytes
from minitron.progress import Progress
from minitron.recipes.pruning import Hidden
from minitron.reconstruction.finished import Finished, Refit, RefittedSource, batch_tokens_of
from minitron.reconstruction.memory import MemoryPlan, plan_memory
from minitron.reconstruction.projection import covariance_of, hidden_choice, pair_of
from minitron.reconstruction.refit import PASSES, refit
from minitron.reconstruction.side_by_side import SideBySide
from minitron.reconstruction.token_states import Streams
from minitron.scores.sweep import BATCH_TOKENS, Needs, batches_of
from minitron.sources.processes import Processes
from minitron.sources.pruned import PrunedSource
from minitron.sources.streamed_loss import streamed_loss
from minitron.text.encoding import TokenIds

_HELD_OUT_EVERY = 20  # of the sequences one is held out
# `tiny` cut to half has 4.046 nats a token with 32, 4.049 with 4, and 4.044 with 128.
_TOKENS_A_DIRECTION = 32
_TOKENS_AN_INPUT = 4  # fewer, and a fit follows the text rather than the model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconstructed:
    """The model that results, and what was done."""

    source: Source
    record: dict[str, Any] | None  # None where nothing was fitted


def memory_of(
    source: Source,
    target: Architecture,
    sequences: Sequence[TokenIds],
    *,
    hidden: Hidden,
    dtype: torch.dtype,
    processes: Processes,
    memory_budget: str | None = None,
    folder: Path | None = None,
    is_logged: bool = True,
) -> MemoryPlan:
    """How the work fits into memory, and logs it. Raises TargetError where it does not.

    `folder` may hold what an interrupted call has finished, of whose batches these are.
    """
    device = processes.device
    in_use = memory_in_use(device)
    budget = in_use + free_memory(device)
    if memory_budget is not None:
        budget = parse_bytes(memory_budget, "--memory-budget")
    needs = Needs(
        itemsize=dtype.itemsize,
        stored_itemsize=source.tensors[EMBEDDING].dtype.itemsize,
        has_masks=bool(source.config.get("sliding_window")),
        base=in_use,
    )
    fitted, held_out = split(sequences)
    mine = [part[processes.part(len(part))] for part in (fitted, held_out)]
    lengths = [len(sequence) for part in mine for sequence in part]
    if len(fitted) < processes.count:
        raise TargetError(
            f"{len(fitted)} sequences to fit on cannot be shared by {processes.count} processes"
        )
    plan = plan_memory(
        source.architecture,
        target,
        lengths,
        budget=budget,
        needs=needs,
        rotates=hidden_choice(hidden, source.architecture, target) == "rotate",
        streams_count=torch.device(device).type == "cpu",
        batch_tokens=None if folder is None else batch_tokens_of(folder),
    )
    if processes.is_first and is_logged:
        logger.info("%s", plan.text(sum(lengths)))
    return plan


def reconstruct(
    source: Source,
    plan: PruningPlan,
    sequences: Sequence[TokenIds],
    folder: Path,
    *,
    hidden: Hidden,
    dtype: torch.dtype,
    device: str,
    memory: MemoryPlan | None = None,
    processes: Processes | None = None,
) -> Reconstructed:
    """The pruned model of `plan`, its linears fitted to the source on `sequences`.

    Fitted tensors are written to `folder`, which the result reads; what an interrupted call has
    finished there is not done again. `processes` share the sequences, and the first one writes. The
    result is the pruned model itself where its loss on the held-out sequences is not higher. Raises
    TargetError for fewer than two sequences, of which one is held out.
    """
    processes = processes or Processes(device=device)
    fitted, held_out = split(sequences)
    _warn_of_few_tokens(plan.target, sum(map(len, fitted)))
    how = hidden_choice(hidden, source.architecture, plan.target)
    memory = memory or memory_of(
        source,
        plan.target,
        sequences,
        hidden=hidden,
        dtype=dtype,
        processes=processes,
        folder=folder,
    )
    made, refits, share = fitted_model(
        source,
        plan,
        fitted,
        held_out,
        folder,
        how=how,
        dtype=dtype,
        device=device,
        memory=memory,
        processes=processes,
    )
    pruned = PrunedSource(source, plan)
    losses = {
        name: held_out_loss(model, held_out, memory.batch_tokens, processes)
        for name, model in (("source", source), ("pruned", pruned), ("reconstructed", made))
    }
    record = _record(how, share, refits, sum(map(len, sequences)), losses)
    text = "loss on held-out text %.4f, of the pruned model %.4f, of the source %.4f"
    numbers = losses["reconstructed"], losses["pruned"], losses["source"]
    if losses["reconstructed"] >= losses["pruned"]:
        logger.warning(f"not reconstructed: {text}", *numbers)
        return Reconstructed(pruned, {**record, "used": False})
    logger.info(f"reconstructed: {text}", *numbers)
    return Reconstructed(made, record)


def fitted_model(
    source: Source,
    plan: PruningPlan,
    fitted: Sequence[TokenIds],
    held_out: Sequence[TokenIds],
    folder: Path,
    *,
    how: str,
    dtype: torch.dtype,
    device: str,
    memory: MemoryPlan | None = None,
    processes: Processes | None = None,
) -> tuple[Source, list[Refit], float | None]:
    """The model fitted on `fitted`, by what helps on `held_out`; what became of each linear; and
    the share of the stream's variance that is kept, where directions are.

    What an interrupted call has finished in `folder` is not done again.
    """
    processes = processes or Processes(device=device)
    memory = memory or MemoryPlan(BATCH_TOKENS, BATCH_TOKENS, on_disk=False, peak=0)
    finished = Finished.at(folder, memory.batch_tokens, writes=processes.is_first)
    processes.wait()  # until all know what is finished
    batches, is_held_out = _batches(fitted, held_out, finished.batch_tokens, processes)
    passes = PASSES * (plan.target.num_hidden_layers - finished.layers) + 1
    total = passes * sum(batch.numel() for batch in batches)
    covariance = finished.covariance()
    turning: list[torch.Tensor] = []
    if how == "rotate" and covariance is None:
        enough = _enough([*fitted, *held_out], source.architecture.hidden_size)
        turning, _ = _batches(enough, [], finished.batch_tokens, processes)
        passes = 2 * source.architecture.num_hidden_layers + 1
        total += passes * sum(batch.numel() for batch in turning)
    place = folder / f"process-{processes.rank}" if memory.on_disk else None
    streams = Streams(batches, dtype, memory.embedded_tokens, place)
    if place is not None:
        place.mkdir(exist_ok=True)
    with (
        Progress("reconstruct", total=total, unit="token", is_shown=processes.is_first) as progress,
        torch.inference_mode(),
    ):
        if how == "rotate" and covariance is None:
            first = replace(streams, batches=turning)
            covariance = covariance_of(source, first, processes, progress.advance)
            finished.keep_covariance(covariance)
        pair = pair_of(source, plan, covariance, dtype, processes)
        if not finished.has_head:
            made = RefittedSource(pair.small, finished)
            both = SideBySide(pair, made, streams, device=device)
            refit(both, is_held_out, finished, progress.advance, processes)
    processes.wait()  # until the last file is written
    return RefittedSource(pair.small, finished), finished.refits, pair.share_of_variance


def _enough(sequences: Sequence[TokenIds], hidden_size: int) -> Sequence[TokenIds]:
    """The first sequences, as many as show which directions carry the stream."""
    ends = accumulate(map(len, sequences))
    needed = _TOKENS_A_DIRECTION * hidden_size
    return sequences[: 1 + sum(end < needed for end in ends)]


def _batches(
    fitted: Sequence[TokenIds],
    held_out: Sequence[TokenIds],
    tokens: int,
    processes: Processes,
) -> tuple[list[torch.Tensor], list[bool]]:
    """This process's batches of at most so many tokens, and which of them are held out."""
    batches: list[torch.Tensor] = []
    is_held_out: list[bool] = []
    for held, sequences in ((False, fitted), (True, held_out)):
        mine = sequences[processes.part(len(sequences))]
        batches += batches_of(mine, tokens)
        is_held_out += [held] * (len(batches) - len(is_held_out))
    return batches, is_held_out


def split(sequences: Sequence[TokenIds]) -> tuple[list[TokenIds], list[TokenIds]]:
    """The sequences to fit on, and those held out: one of twenty, spread over the text."""
    if len(sequences) < 2:
        raise TargetError(
            "--reconstruct needs at least 2 sequences of calibration text, one of which is held "
            "out: give more --samples, or --reconstruct none"
        )
    every = min(_HELD_OUT_EVERY, len(sequences))
    is_held_out = [index % every == every - 1 for index in range(len(sequences))]
    both = list(zip(sequences, is_held_out, strict=True))
    return [s for s, held in both if not held], [s for s, held in both if held]


def widest_input(architecture: Architecture) -> int:
    """The inputs of the linear that has most of them."""
    queries = architecture.num_attention_heads * architecture.head_dim
    return max(architecture.hidden_size, architecture.intermediate_size, queries)


def _warn_of_few_tokens(target: Architecture, tokens: int) -> None:
    """Log, before the work, that a fit of the widest input needs more tokens."""
    widest = widest_input(target)
    needed = _TOKENS_AN_INPUT * widest
    if tokens < needed:
        logger.warning(
            "reconstructing on %s tokens: a linear of %s inputs wants %s or more",
            f"{tokens:,}",
            f"{widest:,}",
            f"{needed:,}",
        )


def held_out_loss(
    model: Source, sequences: Sequence[TokenIds], tokens: int, processes: Processes
) -> float:
    """The mean loss in nats of each next token of the sequences, in batches of so many tokens."""
    mine = sequences[processes.part(len(sequences))]
    windows = [batch.numpy() for batch in batches_of(mine, tokens)]
    inputs, targets = ([w[:, cut] for w in windows] for cut in (slice(None, -1), slice(1, None)))
    found = streamed_loss(model, inputs, targets, device=processes.device)
    sums = torch.tensor(found, dtype=torch.float64, device=processes.device)
    processes.add_in_place(sums)
    return float(sums[0] / sums[1].clamp(min=1))


def _record(
    how: str,
    share: float | None,
    refits: Sequence[Refit],
    tokens: int,
    losses: dict[str, float],
) -> dict[str, Any]:
    """What minitron.json holds of a reconstruction."""
    return {
        "hidden": how,
        **({} if share is None else {"share_of_variance_kept": round(share, 6)}),
        "tokens": tokens,
        "losses": {name: round(loss, 6) for name, loss in losses.items()},
        "linears": {
            refit.name: {
                "alpha": refit.alpha,
                "error_before": round(refit.error_before, 6),
                "error_after": round(refit.error_after, 6),
                "used": refit.is_used,
            }
            for refit in refits
        },
        "used": True,
    }
