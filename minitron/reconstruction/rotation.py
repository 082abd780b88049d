"""Rotation of the residual stream: the directions that carry most of it are kept, not channels.

A norm of the whole stream commutes with a rotation Q once its weight is folded into the linears
that read it: norm(x Q) = norm(x) Q. So one matrix P (hidden, kept) for the whole network turns the
source's stream x into the small model's, x P, and a plain architecture results:

| what            | before              | after                                          |
|-----------------|---------------------|------------------------------------------------|
| embedding       | E                   | E P                                            |
| reads a norm    | W, norm weight g, b | W diag(g) P, and W b in the ones direction     |
| writes stream   | W, bias             | P^T W, P^T bias                                |
| norm            | g, b                | sqrt(hidden / kept) everywhere, b: ones        |

The factor sqrt(hidden / kept) makes up for a norm over fewer numbers of about the same length.
LayerNorm subtracts the mean, so its stream is centred first: one direction fewer is kept, in a
basis orthogonal to the ones. What a LayerNorm returns before its bias is added is orthogonal to the
ones too, so that direction is free: in it the bias reaches the readers without an error.

Directions: eigenvectors of the covariance of the stream as norms see it, each token over its root
mean square, summed over all norms. SliceGPT (arXiv 2401.15024) has one rotation for each block;
Ministral 3 (arXiv 2601.08584) has one for the network, as here.

    basis = principal_basis(covariance, kept=160, centred=True)   # P (256, 160)
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial

import torch

from minitron.files.lazy_tensor import DerivedTensor, LazyTensor
from minitron.model.architecture import Architecture, Slot
from minitron.model.family import STREAM_NORMS
from minitron.model.source import Source

# The norm whose output each part reads.
_NORM_OF = {
    **dict.fromkeys(("q", "k", "v"), "attention_norm"),
    **dict.fromkeys(("gate", "up"), "mlp_norm"),
    "head": "final_norm",
}
WRITERS = ("o", "down")  # of the stream
_ROWS_AT_ONCE = 1024  # in float64
RowChange = Callable[[torch.Tensor], torch.Tensor]


def principal_basis(covariance: torch.Tensor, kept: int, *, centred: bool) -> torch.Tensor:
    """P (hidden, kept), in float64: the directions of most variance, by falling variance.

    `covariance` is (hidden, hidden). `centred`: one direction fewer, orthogonal to the ones of the
    source's stream, in a basis that is orthogonal to the ones of the kept stream.
    """
    directions: torch.Tensor = torch.linalg.eigh(covariance.double())[1]
    if not centred:
        return directions.flip(1)[:, :kept].contiguous()
    # The last eigenvector of a centred covariance is the ones: it has no variance.
    free = directions.flip(1)[:, : kept - 1]
    return free @ _orthogonal_to_ones(kept).T


def share_of_variance(covariance: torch.Tensor, basis: torch.Tensor) -> float:
    """The share of the stream's variance that the directions of a basis (hidden, kept) carry."""
    covariance, basis = covariance.double(), basis.double()
    return float(((covariance @ basis) * basis).sum() / covariance.trace())


def _orthogonal_to_ones(size: int) -> torch.Tensor:
    """An orthonormal basis (size, size - 1) of what is orthogonal to the ones (Helmert's)."""
    basis = torch.tril(torch.ones(size, size, dtype=torch.float64), -1).T[:, 1:]
    index = torch.arange(1, size, dtype=torch.float64)
    basis[torch.arange(1, size), torch.arange(size - 1)] = -index
    return basis / (index * (index + 1)).sqrt()


def normalized(states: torch.Tensor, *, centred: bool) -> torch.Tensor:
    """Tokens (tokens, hidden) as a norm sees them: over their root mean square."""
    if centred:
        states = states - states.mean(-1, keepdim=True)
    return states / states.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


class _RowWise(DerivedTensor):
    """Each row of a tensor through a function, which is made when rows are read."""

    def __init__(self, tensor: LazyTensor, width: int, make: Callable[[], RowChange]) -> None:
        super().__init__(tensor.dtype, (tensor.shape[0], width))
        self._tensor, self._make = tensor, make

    def _read(self, start: int, stop: int) -> torch.Tensor:
        change = self._make()
        result = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        for first, last in _runs(start, stop):
            rows = self._tensor.read(first, last).double()
            result[first - start : last - start] = change(rows)
        return result


class _Projected(DerivedTensor):
    """P^T W or P^T b, for which all rows of the tensor are read, some at a time."""

    def __init__(self, tensor: LazyTensor, basis: torch.Tensor) -> None:
        super().__init__(tensor.dtype, (basis.shape[1], *tensor.shape[1:]))
        self._tensor, self._basis = tensor, basis

    def _read(self, start: int, stop: int) -> torch.Tensor:
        result = torch.zeros(stop - start, *self.shape[1:], dtype=torch.float64)
        for first, last in _runs(0, self._tensor.shape[0]):
            rows = self._tensor.read(first, last).double()
            result += self._basis[first:last, start:stop].T @ rows
        return result.to(self.dtype)


class _Filled(DerivedTensor):
    """A vector of one number."""

    def __init__(self, dtype: torch.dtype, size: int, number: float) -> None:
        super().__init__(dtype, (size,))
        self._number = number

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return torch.full((stop - start,), self._number, dtype=self.dtype)


def _runs(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Runs of rows that are cast to float64 at once."""
    return ((at, min(at + _ROWS_AT_ONCE, stop)) for at in range(start, stop, _ROWS_AT_ONCE))


class RotatedSource(Source):
    """A source whose residual stream is turned by P; its other axes stay."""

    layout = "rotated"

    def __init__(self, source: Source, basis: torch.Tensor, target: Architecture) -> None:
        """`basis` is P (hidden, kept). `target` is the source's architecture at that hidden size,
        with an output embedding of its own: the final norm is folded into it alone."""
        assert not target.tie_word_embeddings
        self.name, self.format, self.revision = source.name, source.format, source.revision
        self.config = {**source.config_at(target), "tie_word_embeddings": False}
        self.companions = source.companions
        self._source, self._basis = source, basis

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors of the rotated model, located but not read."""
        weights = self._source.weights
        return {slot.name: self._turned(slot, weights) for slot in self.architecture.slots()}

    def _turned(self, slot: Slot, weights: Mapping[str, LazyTensor]) -> LazyTensor:
        parts, kind = slot.row.parts, slot.row.kind
        stored = weights[slot.name] if slot.name in weights else weights[self._tied_name]
        kept = self._basis.shape[1]
        if parts[0] in STREAM_NORMS:
            gain = math.sqrt(len(self._basis) / kept) if kind == "weight" else 1.0
            if kind == "weight" and self._source.architecture.family.norm.is_zero_centered:
                gain -= 1
            return _Filled(stored.dtype, kept, gain)
        if parts == ("embedding",):
            return _RowWise(stored, kept, lambda: lambda rows: rows @ self._basis)
        if parts[0] in _NORM_OF and kind == "weight":
            norm = _NORM_OF[parts[0]]
            return _RowWise(stored, kept, partial(self._reading, norm, slot.layer, weights))
        return _Projected(stored, self._basis) if parts[0] in WRITERS else stored

    @property
    def _tied_name(self) -> str:
        return self._source.architecture.family.tensor("embedding")

    def _reading(
        self, norm: str, layer: int | None, weights: Mapping[str, LazyTensor]
    ) -> RowChange:
        """What becomes of the rows of a linear that reads a norm."""
        family, kept = self._source.architecture.family, self._basis.shape[1]
        gain = weights[family.tensor(norm, layer=layer)].read().double()
        if family.norm.is_zero_centered:
            gain = 1 + gain
        folded = gain[:, None] * self._basis  # (hidden, kept)
        if not family.norm.has_bias:
            return lambda rows: rows @ folded
        bias = weights[family.tensor(norm, "bias", layer)].read().double()
        return lambda rows: rows @ folded + (rows @ bias / kept)[:, None]
