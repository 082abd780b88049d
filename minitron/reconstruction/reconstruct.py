"""Reconstruct: a pruned model made good again on calibration text, without training.

Chooses how the small model's stream sees the source's (channels or directions), holds a part of the
text out, fits every linear, and keeps the result only where its loss on the held-out text is lower
than that of the pruned model as it was.

    made = reconstruct(source, plan, sequences, folder, hidden="auto", device="cpu")
    made.source.tensors, made.record
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minitron.errors import TargetError
from minitron.files.device_memory import free_memory
from minitron.model.architecture import Architecture
from minitron.model.plan import PruningPlan
from minitron.model.source import Source
from minitron.progress import Progress
from minitron.recipes.pruning import Hidden
from minitron.reconstruction.finished import Finished, Refit, RefittedSource
from minitron.reconstruction.refit import PASSES, refit
from minitron.reconstruction.rotation import (
    RotatedSource,
    normalized,
    principal_basis,
    share_of_variance,
)
from minitron.reconstruction.side_by_side import (
    Pair,
    SideBySide,
    input_and_output,
)
from minitron.scores.sweep import BATCH_TOKENS, batches_of
from minitron.sources.layer_stream import LayerStream
from minitron.sources.pruned import PrunedSource, pruned_tensors
from minitron.sources.streamed_loss import streamed_loss
from minitron.text.encoding import TokenIds

_HELD_OUT_EVERY = 20  # of the sequences one is held out
_TOKENS_AN_INPUT = 4  # fewer, and a fit follows the text rather than the model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconstructed:
    """The model that results, and what was done."""

    source: Source
    record: dict[str, Any] | None  # None where nothing was fitted


def hidden_choice(hidden: Hidden, source: Architecture, target: Architecture) -> str:
    """Whether hidden_size is cut by channels (select) or by directions (rotate).

    `auto` rotates where that costs no parameters: not where embeddings are tied, which a rotation
    unties, since the final norm is folded into the output embedding alone.
    """
    if hidden != "auto":
        return hidden
    is_cut = target.hidden_size < source.hidden_size
    return "rotate" if is_cut and not source.tie_word_embeddings else "select"


def check_reconstructs(source: Architecture) -> None:
    """Refuse a family whose branches are normed before they are added to the stream."""
    if "attention_output_norm" in source.family.layer_modules:
        raise TargetError(
            f"--reconstruct auto: {source.model_type} norms what a layer adds to the stream, and "
            "no fit through that norm is known here: give --reconstruct none"
        )


def reconstruct(
    source: Source,
    plan: PruningPlan,
    sequences: Sequence[TokenIds],
    folder: Path,
    *,
    hidden: Hidden,
    dtype: torch.dtype,
    device: str,
) -> Reconstructed:
    """The pruned model of `plan`, its linears fitted to the source on `sequences`.

    Fitted tensors are written to `folder`, which the result reads. The result is the pruned model
    itself where its loss on the held-out sequences is not higher. Raises TargetError for fewer than
    two sequences, of which one is held out.
    """
    check_reconstructs(source.architecture)
    fitted, held_out = _split(sequences)
    _warn_of_few_tokens(plan.target, sum(map(len, fitted)))
    how = hidden_choice(hidden, source.architecture, plan.target)
    made, refits, share = fitted_model(
        source, plan, fitted, held_out, folder, how=how, dtype=dtype, device=device
    )
    pruned = PrunedSource(source, plan)
    losses = {
        name: _loss(model, held_out, device)
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
) -> tuple[Source, list[Refit], float | None]:
    """The model fitted on `fitted`, by what helps on `held_out`; what became of each linear; and
    the share of the stream's variance that is kept, where directions are.

    What an interrupted call has finished in `folder` is not done again.
    """
    finished = Finished.at(folder, batch_tokens=BATCH_TOKENS)
    batches = list(batches_of(fitted, finished.batch_tokens))
    is_held_out = [False] * len(batches)
    batches += batches_of(held_out, finished.batch_tokens)
    is_held_out += [True] * (len(batches) - len(is_held_out))
    passes = PASSES * (plan.target.num_hidden_layers - finished.layers) + 1
    covariance = finished.covariance()
    if how == "rotate" and covariance is None:
        passes += 2 * source.architecture.num_hidden_layers + 1
    tokens = sum(batch.numel() for batch in batches)
    with (
        Progress("reconstruct", total=tokens * passes, unit="token") as progress,
        torch.inference_mode(),
    ):
        widths = source.architecture.hidden_size + plan.target.hidden_size
        is_large = tokens * widths * dtype.itemsize > free_memory("cpu") // 4
        if how == "rotate" and covariance is None:
            covariance = _covariance(source, batches, dtype, device, progress.advance)
            finished.keep_covariance(covariance)
        pair = _pair(source, plan, covariance, dtype, device)
        made = RefittedSource(pair.small, finished)
        if not finished.has_head:
            both = SideBySide(
                pair, made, batches, folder if is_large else None, dtype=dtype, device=device
            )
            both.embed(tokens)
            refit(both, is_held_out, finished, progress.advance)
    return RefittedSource(pair.small, finished), finished.refits, pair.share_of_variance


def _split(sequences: Sequence[TokenIds]) -> tuple[list[TokenIds], list[TokenIds]]:
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


def _warn_of_few_tokens(target: Architecture, tokens: int) -> None:
    """Log, before the work, that a fit of the widest input needs more tokens."""
    widest = max(
        target.hidden_size,
        target.intermediate_size,
        target.num_attention_heads * target.head_dim,
    )
    needed = _TOKENS_AN_INPUT * widest
    if tokens < needed:
        logger.warning(
            "reconstructing on %s tokens: a linear of %s inputs wants %s or more",
            f"{tokens:,}",
            f"{widest:,}",
            f"{needed:,}",
        )


def _pair(
    source: Source,
    plan: PruningPlan,
    covariance: torch.Tensor | None,
    dtype: torch.dtype,
    device: str,
) -> Pair:
    """The source and the smaller model, which sees its stream by channels, or by directions where
    the stream's covariance is given."""
    whole = source.architecture.hidden_size
    narrow = replace(
        plan, target=plan.target.resized(hidden_size=whole), hidden=tuple(range(whole))
    )
    rows = pruned_tensors(narrow, source.weights)
    if covariance is None:
        kept = torch.tensor(plan.hidden, device=device)
        return Pair(source, PrunedSource(source, plan), rows, lambda x: x[..., kept], plan.layers)
    basis = principal_basis(covariance, plan.target.hidden_size, centred=_is_centred(source))
    target = replace(plan.target, flags=plan.target.flags - {"tie_word_embeddings"})
    turned = RotatedSource(PrunedSource(source, narrow), basis, target)
    projection = basis.to(device=device, dtype=dtype)
    share = share_of_variance(covariance, basis)
    return Pair(source, turned, rows, lambda x: x @ projection, plan.layers, share)


def _covariance(
    source: Source,
    batches: Sequence[torch.Tensor],
    dtype: torch.dtype,
    device: str,
    advance: Callable[[float], object],
) -> torch.Tensor:
    """The covariance (hidden, hidden) of what the source's norms see, summed over all norms."""
    stream = LayerStream.of_source(source, dtype=dtype, device=device, keep=False)
    width = stream.config.hidden_size
    centred = _is_centred(source)
    covariance = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(states: torch.Tensor) -> None:
        seen = normalized(states.flatten(0, -2), centred=centred)
        covariance.addmm_(seen.T, seen)
        advance(len(seen))

    with torch.inference_mode():
        states = [batch.cpu() for batch in stream.embed_all(batches)]
        for index, layer in stream.layers():
            for place, held in enumerate(states):
                before = held.to(device)
                after, result = input_and_output(
                    stream.decoder.mlp_branch(index)[0],
                    partial(stream.run, index, layer, before),
                )
                states[place] = result.cpu()
                add(before)
                add(after)
        for held in states:
            add(held.to(device))
    return covariance.cpu()


def _is_centred(source: Source) -> bool:
    return source.architecture.family.norm.kind == "layer"


def _loss(model: Source, sequences: Sequence[TokenIds], device: str) -> float:
    """The mean loss in nats of each next token of the sequences."""
    windows = [batch.numpy() for batch in batches_of(sequences, BATCH_TOKENS)]
    inputs, targets = ([w[:, cut] for w in windows] for cut in (slice(None, -1), slice(1, None)))
    nats, counted = streamed_loss(model, inputs, targets, device=device)
    return nats / max(1, counted)


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
