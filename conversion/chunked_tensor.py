"""Tensors stored in chunks, joined to the whole tensor or to one tensor for each layer.

The chunks of a distributed checkpoint tile a tensor as a grid, by layers and by tensor-parallel
ranks. Knows no format. Chunks that follow each other row by row keep their file ranges.

    ChunkedTensor("model.nemo: decoder.layers.mlp.linear_fc1.weight", dtype, shape, chunks).layers()
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch

from minitron.errors import SourceError
from minitron.files.lazy_tensor import DeferredTensor, LazyTensor, SideBySide, Stacked, StoredTensor

MOST_LAYERS = 1 << 14
LARGEST_SIZE = 1 << 48  # of an axis and of a whole tensor, in elements


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor: `offsets` is its first corner."""

    offsets: tuple[int, ...]
    tensor: StoredTensor | DeferredTensor

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.tensor.shape

    def select(self, index: int) -> "Chunk":
        """The entry `index` of the first axis, counted from the chunk's own first entry."""
        return Chunk(self.offsets[1:], self.tensor.select(index))


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor of which only chunks are stored. Errors name it by `where`."""

    where: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def whole(self) -> LazyTensor:
        """All chunks as one tensor. Raises SourceError unless they tile it as a grid."""
        _check_grid(self.where, self.shape, self.chunks)
        return _join_grid(self.where, self.chunks, len(self.shape))

    def layers(self) -> list[LazyTensor]:
        """The entries of the first axis. Raises SourceError as `whole` does."""
        if not self.shape or self.shape[0] > MOST_LAYERS:
            raise SourceError(f"{self.where} has shape {list(self.shape)}: no layers are stacked")
        _check_grid(self.where, self.shape, self.chunks)
        layers: list[list[Chunk]] = [[] for _ in range(self.shape[0])]
        for chunk in self.chunks:
            for index in range(chunk.sizes[0]):
                layers[chunk.offsets[0] + index].append(chunk.select(index))
        return [_join_grid(self.where, chunks, len(self.shape) - 1) for chunks in layers]


def join(where: str, tensors: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Tensors joined along an axis. Raises SourceError where their shapes or dtypes do not fit."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    for tensor in tensors:
        shapes = (first.shape, tensor.shape)
        others = [(*shape[:axis], *shape[axis + 1 :]) for shape in shapes]
        fits = len({len(shape) for shape in shapes}) == 1 and others[0] == others[1]
        if not fits or tensor.dtype != first.dtype or not axis < len(tensor.shape):
            raise SourceError(
                f"{where} is in parts that do not fit: {first.dtype} {list(first.shape)} and "
                f"{tensor.dtype} {list(tensor.shape)}"
            )
    if axis == 0:
        return Stacked(tensors)
    if axis == 1 and len(first.shape) == 2:
        return SideBySide(tensors)
    raise SourceError(f"{where} of shape {list(first.shape)} is cut along axis {axis}")


def _check_grid(where: str, shape: tuple[int, ...], chunks: Sequence[Chunk]) -> None:
    """Raise SourceError unless the chunks are a full grid.

    On every axis each chunk must reach from one cut to the next; none may be missing or twice.
    """
    if not chunks:
        raise SourceError(f"{where} has no chunks")
    cuts = [sorted({chunk.offsets[axis] for chunk in chunks}) for axis in range(len(shape))]
    ends = [
        dict(zip(starts, [*starts[1:], size], strict=True))
        for starts, size in zip(cuts, shape, strict=True)
    ]
    starts_at_zero = all(starts and starts[0] == 0 for starts in cuts)
    fills_cells = all(
        start + size == end[start]
        for chunk in chunks
        for start, size, end in zip(chunk.offsets, chunk.sizes, ends, strict=True)
    )
    count = len({chunk.offsets for chunk in chunks})
    is_full = count == len(chunks) == prod(len(starts) for starts in cuts)
    if not (starts_at_zero and fills_cells and is_full):
        raise SourceError(f"{where}: its {len(chunks)} chunks do not tile shape {list(shape)}")


def _join_grid(where: str, chunks: Sequence[Chunk], axes: int, axis: int = 0) -> LazyTensor:
    if axis == axes:
        return chunks[0].tensor
    ordered = sorted(chunks, key=lambda chunk: chunk.offsets)
    groups = groupby(ordered, key=lambda chunk: chunk.offsets[axis])
    parts = [_join_grid(where, list(group), axes, axis + 1) for _, group in groups]
    return join(where, parts, axis)
