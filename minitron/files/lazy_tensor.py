"""Tensors that are not in memory: how they are read row by row, and how one is made of others.

`StoredTensor` is one in a file: readers of formats know where its bytes are. The others are made of
such: rows or columns of one, several joined, one shifted or cast. None knows a format or reads
before it is asked, and bytes that need no arithmetic are known as ranges of local files, so that
they can be copied from file to file.

    file = LocalFile.at(Path("model.bin"))
    stored = StoredTensor(file, torch.bfloat16, (256000, 3072), offset=4096)
    Rows(stored, ((0, 128), (256, 384))).read(0, 10)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import torch

from minitron.errors import SourceError
from minitron.files.cached_file import CachedFile, PieceCache
from minitron.files.file import File, LocalFile


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


@dataclass(frozen=True)
class StoredTensor:
    """A LazyTensor in a file. `strides` is in elements; None is row-major without gaps."""

    file: File
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of the first element, in bytes from the start of the file
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory, which an expanded one does not have in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first axis, as a slice would choose them; a scalar is whole."""
        shape, offset = self.shape, self.offset
        strides = self.strides or row_major(shape)
        if shape:
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape = (max(stop - start, 0), *shape[1:])
            offset += start * strides[0] * self.dtype.itemsize
        if 0 in shape:
            return torch.empty(shape, dtype=self.dtype)
        elements = self._read_elements(offset, _span(shape, strides))
        if self.strides is None:
            return elements.reshape(shape)
        return elements.as_strided(shape, strides).clone(memory_format=torch.contiguous_format)

    def ranges(self, start: int = 0, stop: int | None = None) -> tuple[LocalFile, ...] | None:
        """The bytes of these rows; None for a tensor with gaps, or in no file of this machine."""
        if self.strides is not None or not isinstance(self.file, LocalFile):
            return None
        size = self.shape[0] if self.shape else 1
        start, stop, _ = slice(start, stop).indices(size)
        row = self.nbytes // max(size, 1)
        offset, nbytes = self.offset + start * row, max(stop - start, 0) * row
        return (self.file.window(offset, nbytes),)

    def select(self, index: int) -> "StoredTensor":
        """One entry of the first axis, which is dropped."""
        strides = self.strides or row_major(self.shape)
        rest = strides[1:] if self.strides is not None else None
        offset = self.offset + index * strides[0] * self.dtype.itemsize
        return replace(self, shape=self.shape[1:], offset=offset, strides=rest)

    def narrow(self, axis: int, start: int, stop: int) -> "StoredTensor":
        """Positions [start, stop) of one axis; other axes than the first leave gaps."""
        if (start, stop) == (0, self.shape[axis]):
            return self
        strides = self.strides or row_major(self.shape)
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        has_gaps = self.strides is not None or axis > 0
        return replace(
            self,
            shape=shape,
            offset=self.offset + start * strides[axis] * self.dtype.itemsize,
            strides=strides if has_gaps else None,
        )

    def cached(self, windows: PieceCache) -> "StoredTensor":
        """The same tensor of a file that is not here, whose windows are kept for later reads."""
        nbytes = _span(self.shape, self.strides or row_major(self.shape)) * self.dtype.itemsize
        # Windows are counted from the tensor's first byte: none holds bytes of a neighbour.
        own = self.file.window(self.offset, nbytes if 0 not in self.shape else 0)
        return replace(self, file=CachedFile(own, windows), offset=0)

    def _read_elements(self, offset: int, count: int) -> torch.Tensor:
        # Checked before memory is allocated: a damaged header may claim any shape.
        self.file.check_end(offset + count * self.dtype.itemsize)
        elements = torch.empty(count, dtype=self.dtype)
        self.file.read_into(elements.view(torch.uint8).numpy().data, offset)
        return elements


@dataclass(frozen=True)
class DeferredTensor:
    """A LazyTensor of known dtype and shape that is located in its file when it is first read."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    locate: Callable[[], StoredTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first axis."""
        return self._located().read(start, stop)

    def ranges(self, start: int = 0, stop: int | None = None) -> tuple[LocalFile, ...] | None:
        """The bytes of these rows, as those of the located tensor."""
        return self._located().ranges(start, stop)

    def select(self, index: int) -> "DeferredTensor":
        """One entry of the first axis, which is dropped."""
        return DeferredTensor(self.dtype, self.shape[1:], lambda: self._located().select(index))

    def _located(self) -> StoredTensor:
        stored = self.locate()
        if (stored.dtype, stored.shape) != (self.dtype, self.shape):
            raise SourceError(
                f"{stored.file.name} is not the file whose beginning was read: try again"
            )
        return stored


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a tensor that has some, gaps included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
