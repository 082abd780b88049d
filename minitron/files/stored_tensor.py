"""A tensor in a file: where its bytes are, and how some of its rows are read.

Knows no file format. Readers of formats say where the bytes are; `read` reads exactly the rows
asked for into a new tensor, without mapping the file.

    file = LocalFile.at(Path("model.bin"))
    StoredTensor(file, torch.bfloat16, (256000, 3072), offset=4096).read(0, 10)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from minitron.errors import SourceError
from minitron.files.cached_file import CachedFile, PieceCache
from minitron.files.file import File, LocalFile


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
