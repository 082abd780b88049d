"""Projection: how the smaller model's stream sees the source's, by channels or by directions.

Measures the directions, and makes the smaller model before anything is fitted.

    how = hidden_choice("auto", source.architecture, plan.target)
    covariance = covariance_of(source, streams, Processes(), progress.advance)
    pair_of(source, plan, covariance, Processes()).projection   # x to x P
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial

import torch

from minitron.errors import TargetError
from minitron.files.lazy_tensor import DerivedTensor, LazyTensor
from minitron.model.architecture import Architecture
from minitron.model.family import EMBEDDING
from minitron.model.plan import PruningPlan
from minitron.model.source import Source
from minitron.recipes.pruning import Hidden
from minitron.reconstruction.least_squares import TOKENS_AT_ONCE, add_products, products_dtype
from minitron.reconstruction.rotation import (
    RotatedSource,
    normalized,
    principal_basis,
    share_of_variance,
)
from minitron.reconstruction.side_by_side import Pair, input_and_output
from minitron.reconstruction.token_states import Streams
from minitron.sources.layer_stream import LayerStream
from minitron.sources.processes import Processes
from minitron.sources.pruned import PrunedSource, pruned_tensors


def hidden_choice(hidden: Hidden, source: Architecture, target: Architecture) -> str:
    """Whether hidden_size is cut by channels (select) or by directions (rotate).

    `auto` rotates where that costs no parameters: not where embeddings are tied, which a rotation
    unties, since the final norm is folded into the output embedding alone.
    """
    check_turns(hidden, source)
    if hidden != "auto":
        return hidden
    is_free = not source.tie_word_embeddings and not source.family.output_norms
    return "rotate" if target.hidden_size < source.hidden_size and is_free else "select"


def check_turns(hidden: Hidden, source: Architecture) -> None:
    """Refuse to rotate the stream of a family that no rotation leaves as it is."""
    if hidden == "rotate" and source.family.output_norms:
        raise TargetError(
            f"{source.model_type} norms what a layer adds to the stream, and the weights of such a "
            "norm are of channels, which a rotation mixes: give --hidden select"
        )


def covariance_of(
    source: Source,
    streams: Streams,
    processes: Processes,
    advance: Callable[[float], object],
) -> torch.Tensor:
    """The covariance (hidden, hidden) of what the source's norms see, summed over all norms."""
    device = processes.device
    stream = LayerStream.of_source(source, dtype=torch.float32, device=device, keep=False)
    width = stream.config.hidden_size
    centred = _is_centred(source)
    covariance = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(states: torch.Tensor) -> None:
        for run in states.flatten(0, -2).split(TOKENS_AT_ONCE):
            seen = normalized(run.to(products_dtype(streams.dtype)), centred=centred)
            add_products(covariance, seen, seen)
            advance(len(seen))

    states = streams.before(stream, "source")
    for index, layer in stream.layers():
        for place in range(len(states)):
            before = states[place].to(device)
            with streams.multiplying(device):
                after, result = input_and_output(
                    stream.decoder.mlp_branch(index)[0], partial(stream.run, index, layer, before)
                )
            states[place] = result
            add(before)
            add(after)
    for place in range(len(states)):
        add(states[place].to(device))
    processes.add_in_place(covariance)
    return covariance.cpu()


def pair_of(
    source: Source,
    plan: PruningPlan,
    covariance: torch.Tensor | None,
    processes: Processes,
) -> Pair:
    """The source and the smaller model, which sees its stream by channels, or by directions where
    the stream's covariance is given."""
    whole = source.architecture.hidden_size
    narrow = replace(
        plan, target=plan.target.resized(hidden_size=whole), hidden=tuple(range(whole))
    )
    rows = pruned_tensors(narrow, source.weights)
    if covariance is None:
        kept = torch.tensor(plan.hidden, device=processes.device)
        small: Source = PrunedSource(source, plan)
        if source.architecture.family.scales.embedding == "hidden_size":
            small = _ScaledEmbedding(small, math.sqrt(whole / plan.target.hidden_size))
        return Pair(source, small, rows, lambda x: x[..., kept], plan.layers)
    basis = principal_basis(covariance, plan.target.hidden_size, centred=_is_centred(source))
    basis = processes.of_first(basis)
    target = replace(plan.target, flags=plan.target.flags - {"tie_word_embeddings"})
    turned = RotatedSource(PrunedSource(source, narrow), basis, target)
    projection = basis.to(device=processes.device, dtype=torch.float32)
    share = share_of_variance(covariance, basis)
    return Pair(source, turned, rows, lambda x: x @ projection, plan.layers, share)


class _ScaledEmbedding(Source):
    """A pruned source whose class multiplies embeddings by less than the source's does.

    The embedding makes up for it, and where it is the output embedding too, the final norm.
    """

    layout = "pruned"

    def __init__(self, source: Source, by: float) -> None:
        self.name, self.format, self.revision = source.name, source.format, source.revision
        self.config, self.companions = source.config, source.companions
        self._source, self._by = source, by

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors, located but not read."""
        weights = dict(self._source.weights)
        if self._by != 1:
            family = self.architecture.family
            weights[EMBEDDING] = _Times(weights[EMBEDDING], self._by)
            if self.architecture.tie_word_embeddings:
                name = family.tensor("final_norm")
                centre = 1 if family.norm.is_zero_centered else 0
                weights[name] = _Times(weights[name], 1 / self._by, centre)
        return weights


class _Times(DerivedTensor):
    """A tensor by a number, of which `centre` was subtracted."""

    def __init__(self, tensor: LazyTensor, by: float, centre: float = 0) -> None:
        super().__init__(tensor.dtype, tensor.shape)
        self._tensor, self._by, self._centre = tensor, by, centre

    def _read(self, start: int, stop: int) -> torch.Tensor:
        rows = self._tensor.read(start, stop).double()
        return ((rows + self._centre) * self._by - self._centre).to(self.dtype)


def _is_centred(source: Source) -> bool:
    return source.architecture.family.norm.kind == "layer"
