"""Tensors that are not in memory: how they are read row by row, and how one is made of others.

`StoredTensor` is one in a file. Those here are made of others: rows or columns of one, several
joined, one shifted or cast. None knows a format or reads before it is asked, and bytes that need no
arithmetic are known as ranges of local files, so that they can be copied from file to file.

    fused = Joined((rank_0, rank_1), axis=0)        # tensor-parallel shards
    Rows(fused, ((0, 128), (256, 384))).read(0, 10)
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Protocol

import torch

from minitron.files.file import LocalFile


class LazyTensor(Protocol):
    """A tensor of known dtype and shape, whose rows are read when they are needed."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int:
        """Bytes of the whole in memory."""

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first axis, fresh and contiguous, on the CPU."""

    def ranges(self, start: int = 0, stop: int | None = None) -> tuple[LocalFile, ...] | None:
        """The bytes of these rows in local files, in order; None where they must be computed."""


class DerivedTensor:
    """A tensor made of others; subclasses implement how rows are read."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.dtype = dtype
        self.shape = shape

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        start, stop = self._bounds(start, stop)
        if start == stop:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        return self._read(start, stop)

    def ranges(self, start: int = 0, stop: int | None = None) -> tuple[LocalFile, ...] | None:
        return None

    def _read(self, start: int, stop: int) -> torch.Tensor:
        raise NotImplementedError

    def _bounds(self, start: int, stop: int | None) -> tuple[int, int]:
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        return start, max(start, stop)


class _Sequence(DerivedTensor):
    """Parts one after another along the first axis: (tensor, first row, last row + 1)."""

    def __init__(self, parts: Sequence[tuple[LazyTensor, int, int]]) -> None:
        first = parts[0][0]
        rows = sum(stop - start for _, start, stop in parts)
        super().__init__(first.dtype, (rows, *first.shape[1:]))
        self.parts = tuple(parts)

    def ranges(self, start: int = 0, stop: int | None = None) -> tuple[LocalFile, ...] | None:
        found: list[LocalFile] = []
        for tensor, first, last in self._covered(*self._bounds(start, stop)):
            ranges = tensor.ranges(first, last)
            if ranges is None:
                return None
            found += ranges
        return tuple(found)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        parts = [tensor.read(first, last) for tensor, first, last in self._covered(start, stop)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _covered(self, start: int, stop: int) -> Iterator[tuple[LazyTensor, int, int]]:
        """The rows of each part that are among these rows."""
        begin = 0
        for tensor, first, last in self.parts:
            low, high = max(start - begin, 0), min(stop - begin, last - first)
            if low < high:
                yield tensor, first + low, first + high
            begin += last - first


class Rows(_Sequence):
    """Runs [start, stop) of one tensor's rows, one after another."""

    def __init__(self, tensor: LazyTensor, runs: Sequence[tuple[int, int]]) -> None:
        assert all(0 <= start <= stop <= tensor.shape[0] for start, stop in runs), runs
        super().__init__([(tensor, start, stop) for start, stop in runs])


class Stacked(_Sequence):
    """Tensors of equal width joined along the first axis."""

    def __init__(self, tensors: Sequence[LazyTensor]) -> None:
        assert len({(tensor.dtype, tensor.shape[1:]) for tensor in tensors}) == 1
        super().__init__([(tensor, 0, tensor.shape[0]) for tensor in tensors])


class SideBySide(DerivedTensor):
    """Matrices of equal height joined along the second axis."""

    def __init__(self, tensors: Sequence[LazyTensor]) -> None:
        assert len({(tensor.dtype, tensor.shape[0]) for tensor in tensors}) == 1
        width = sum(tensor.shape[1] for tensor in tensors)
        super().__init__(tensors[0].dtype, (tensors[0].shape[0], width))
        self.tensors = tuple(tensors)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return torch.cat([tensor.read(start, stop) for tensor in self.tensors], dim=1)


class Columns(DerivedTensor):
    """Columns [start, stop) of a matrix."""

    def __init__(self, tensor: LazyTensor, start: int, stop: int) -> None:
        assert 0 <= start <= stop <= tensor.shape[1]
        super().__init__(tensor.dtype, (tensor.shape[0], stop - start))
        self.tensor, self.start, self.stop = tensor, start, stop

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return self.tensor.read(start, stop)[:, self.start : self.stop].contiguous()


class Shifted(DerivedTensor):
    """A tensor plus a number, added in float32 or better and cast once."""

    def __init__(self, tensor: LazyTensor, by: float, dtype: torch.dtype | None = None) -> None:
        super().__init__(dtype or tensor.dtype, tensor.shape)
        self.tensor, self.by = tensor, by

    def _read(self, start: int, stop: int) -> torch.Tensor:
        rows = self.tensor.read(start, stop)
        wide = torch.promote_types(rows.dtype, torch.float32)
        return (rows.to(wide) + self.by).to(self.dtype)


class Cast(DerivedTensor):
    """A tensor in another dtype."""

    def __init__(self, tensor: LazyTensor, dtype: torch.dtype) -> None:
        super().__init__(dtype, tensor.shape)
        self.tensor = tensor

    def ranges(self, start: int = 0, stop: int | None = None) -> tuple[LocalFile, ...] | None:
        return self.tensor.ranges(start, stop) if self.tensor.dtype == self.dtype else None

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return self.tensor.read(start, stop).to(self.dtype)


class Zeros(DerivedTensor):
    """Rows of zeros, such as those that pad a vocabulary."""

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return torch.zeros((stop - start, *self.shape[1:]), dtype=self.dtype)
