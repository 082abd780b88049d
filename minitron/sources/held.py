"""Held source: a source whose tensors are in memory, to be cut many times and read once.

held = held_source(open_source("tiny"))
PrunedSource(held, plan)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minitron.files.lazy_tensor import LazyTensor
from minitron.model.architecture import Architecture
from minitron.sources.source import Source, complete_tensors


@dataclass(frozen=True)
class HeldTensor:
    """A tensor in memory, under the protocol of those that are not."""

    tensor: torch.Tensor

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
        """A copy of rows [start, stop), so that a model made of them may be trained."""
        return self.tensor[start:stop].clone()

    def ranges(self, start: int = 0, stop: int | None = None) -> None:
        """None: it lies in no file."""


class HeldSource:
    """A source as another one is, but for where its tensors are."""

    def __init__(self, source: Source, tensors: Mapping[str, LazyTensor]) -> None:
        self.name = source.name
        self.format = source.format
        self.revision = source.revision
        self.config = source.config
        self.tensors = tensors
        self._source = source

    @property
    def layout(self) -> str | None:
        """The source's own."""
        return self._source.layout

    @property
    def writer(self) -> str | None:
        """The source's own."""
        return self._source.writer

    @property
    def tokenizer_names(self) -> list[str]:
        """The source's own."""
        return self._source.tokenizer_names

    def file(self, name: str) -> Path | None:
        """The source's own."""
        return self._source.file(name)

    def tokenizer_files(self) -> Iterator[Path]:
        """The source's own."""
        return self._source.tokenizer_files()

    def license_files(self) -> Iterator[Path]:
        """The source's own."""
        return self._source.license_files()


def stored_bytes(source: Source) -> int:
    """What all tensors take as they are stored."""
    return sum(tensor.nbytes for tensor in _complete(source).values())


def held_source(source: Source) -> Source:
    """`source` with every tensor read. Raises SourceError for weights that are incomplete."""
    held = {name: HeldTensor(tensor.read()) for name, tensor in _complete(source).items()}
    return HeldSource(source, held)


def _complete(source: Source) -> dict[str, Any]:
    return dict(complete_tensors(source, Architecture.from_config(source.config)))
