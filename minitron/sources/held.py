"""Held source: a source whose tensors are in memory, to be pruned several times and read once.

held = held_source(open_source("tiny"))
PrunedSource(held, plan)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from minitron.files.lazy_tensor import LazyTensor
from minitron.model.source import Source


@dataclass(frozen=True)
class HeldTensor:
    """A tensor in memory, under the protocol of those that are not."""

    tensor: torch.Tensor
    # Whether a read copies: training a model that shares this memory would change it.
    copies: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """As it is stored."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.tensor.nbytes

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop)."""
        rows = self.tensor if (start, stop) == (0, None) else self.tensor[start:stop]
        return rows.clone() if self.copies else rows

    def ranges(self, start: int = 0, stop: int | None = None) -> None:
        """None: it is in no file."""


class HeldSource(Source):
    """Another source, with its tensors in memory."""

    layout: str | None
    tensors: Mapping[str, LazyTensor]

    def __init__(self, source: Source, tensors: Mapping[str, LazyTensor]) -> None:
        self.name, self.format, self.revision = source.name, source.format, source.revision
        self.config, self.writer = source.config, source.writer
        self.tensors, self.layout, self.companions = tensors, source.layout, source.companions


def stored_bytes(source: Source) -> int:
    """Bytes of all tensors as they are stored."""
    return sum(tensor.nbytes for tensor in source.weights.values())


def held_source(source: Source) -> Source:
    """`source` with every tensor read. Raises SourceError for weights that are incomplete."""
    held = {name: HeldTensor(tensor.read()) for name, tensor in source.weights.items()}
    return HeldSource(source, held)
