"""A tensor that lies in a file: where its bytes are, and how to bring some of its rows to memory.

It knows no file format. Readers of formats say where the bytes are; `read` brings exactly the
rows asked for into a fresh tensor, without mapping the file.

    >>> StoredTensor(Path("model.bin"), torch.bfloat16, (256000, 3072), offset=4096).read(0, 10)
"""

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minitron.errors import SourceError
from minitron.files.file_identity import FileIdentity, open_unchanged
from minitron.files.lazy_tensor import FileRange


@dataclass(frozen=True)
class StoredTensor:
    """Bytes in place. `strides` is in elements; None is row-major without gaps."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of the first element, in bytes from the start of the file
    strides: tuple[int, ...] | None = None
    identity: FileIdentity | None = field(default=None, compare=False, repr=False)

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
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        elements = self._read_elements(offset, span)
        if self.strides is None:
            return elements.reshape(shape)
        return elements.as_strided(shape, strides).clone(memory_format=torch.contiguous_format)

    def ranges(self, start: int = 0, stop: int | None = None) -> tuple[FileRange, ...] | None:
        """Where the bytes of these rows lie; None for a tensor with gaps."""
        if self.strides is not None:
            return None
        size = self.shape[0] if self.shape else 1
        start, stop, _ = slice(start, stop).indices(size)
        row = self.nbytes // max(size, 1)
        offset, nbytes = self.offset + start * row, max(stop - start, 0) * row
        return (FileRange(self.path, offset, nbytes, self.identity),)

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

    def _read_elements(self, offset: int, count: int) -> torch.Tensor:
        """`count` elements from byte `offset` on; the file is asked for its size before memory is
        taken, because a damaged header may claim any."""
        end = offset + count * self.dtype.itemsize
        with open_unchanged(self.path, self.identity, end) as descriptor:
            elements = torch.empty(count, dtype=self.dtype)
            unread = elements.view(torch.uint8).numpy().data
            while unread:
                done = os.preadv(descriptor, [unread], offset)
                if done == 0:
                    raise SourceError(f"{self.path} is truncated: it ends at byte {offset}")
                unread, offset = unread[done:], offset + done
        return elements


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
