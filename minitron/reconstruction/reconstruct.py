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
from pathlib import Path
from typing import Any

import torch

from minitron.files.dtypes import name_of
from minitron.model.plan import PruningPlan
from minitron.model.source import Source
from minitron.progress import Progress
from minitron.recipes.pruning import Hidden
from minitron.reconstruction.calibration_tokens import (
    batches_of_process,
    enough_for_directions,
    split,
    warn_of_few_tokens,
)
from minitron.reconstruction.finished import Finished, Refit, RefittedSource
from minitron.reconstruction.memory import MemoryPlan, memory_of
from minitron.reconstruction.projection import covariance_of, hidden_choice, pair_of
from minitron.reconstruction.refit import PASSES, refit
from minitron.reconstruction.side_by_side import SideBySide
from minitron.reconstruction.token_states import Streams
from minitron.scores.sweep import BATCH_TOKENS, batches_of
from minitron.sources.processes import Processes
from minitron.sources.pruned import PrunedSource
from minitron.sources.streamed_loss import streamed_loss
from minitron.text.encoding import TokenIds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconstructed:
    """The model that results, and what was done."""

    source: Source
    record: dict[str, Any] | None  # None where nothing was fitted


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
    warn_of_few_tokens(plan.target, sum(map(len, fitted)))
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
    record = _record(how, dtype, share, refits, sum(map(len, sequences)), losses)
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
    batches, is_held_out = batches_of_process(fitted, held_out, finished.batch_tokens, processes)
    passes = PASSES * (plan.target.num_hidden_layers - finished.layers) + 1
    total = passes * sum(batch.numel() for batch in batches)
    covariance = finished.covariance()
    turning: list[torch.Tensor] = []
    if how == "rotate" and covariance is None:
        enough = enough_for_directions([*fitted, *held_out], source.architecture.hidden_size)
        turning, _ = batches_of_process(enough, [], finished.batch_tokens, processes)
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
        pair = pair_of(source, plan, covariance, processes)
        if not finished.has_head:
            made = RefittedSource(pair.small, finished)
            both = SideBySide(pair, made, streams, device=device)
            refit(both, is_held_out, finished, progress.advance, processes)
    processes.wait()  # until the last file is written
    return RefittedSource(pair.small, finished), finished.refits, pair.share_of_variance


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
    dtype: torch.dtype,
    share: float | None,
    refits: Sequence[Refit],
    tokens: int,
    losses: dict[str, float],
) -> dict[str, Any]:
    """What minitron.json holds of a reconstruction."""
    return {
        "hidden": how,
        "dtype": name_of(dtype),
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
