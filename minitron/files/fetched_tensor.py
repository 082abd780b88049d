"""FetchedTensor: a tensor whose file is brought to this machine when it is first read.

Knows its dtype and shape beforehand; what brings the file is given. Does not know from where.

    FetchedTensor(torch.bfloat16, (256000, 3072), fetch=lambda: folder.stored(name))
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch

from minitron.errors import SourceError
from minitron.files.lazy_tensor import FileRange
from minitron.files.stored_tensor import StoredTensor


@dataclass(frozen=True)
class FetchedTensor:
    """A LazyTensor of a file that may not be here yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    fetch: Callable[[], StoredTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole in memory."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first axis."""
        return self._stored().read(start, stop)

    def ranges(self, start: int = 0, stop: int | None = None) -> tuple[FileRange, ...] | None:
        """Where the bytes of these rows lie, the file being here."""
        return self._stored().ranges(start, stop)

    def _stored(self) -> StoredTensor:
        stored = self.fetch()
        if (stored.dtype, stored.shape) != (self.dtype, self.shape):
            raise SourceError(f"{stored.path} is not the file whose beginning was read: try again")
        return stored
