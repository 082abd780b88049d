"""Writes what torch.save writes, by streaming: a zip of stored records around one tensor.

The length is known from dtype and shape before a number is read, so that such a zip can stand
inside a larger file. torch.load reads it, also with weights_only.

    nbytes = saved_nbytes(torch.bfloat16, (256000, 3072))
    write_saved(file, torch.bfloat16, (256000, 3072), pieces)
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import IO
from zipfile import ZipFile, ZipInfo

import torch

from minitron.files.stored_tensor import row_major
from minitron.files.torch_tensors import STORAGES

LARGEST = 2**30  # bytes of a tensor: far below where a zip needs its 64-bit records

_STORAGE_KINDS = {
    dtype: getattr(torch, name) for name, dtype in STORAGES.items() if name != "UntypedStorage"
}
Bytes = bytes | memoryview


def write_saved(
    file: IO[bytes], dtype: torch.dtype, shape: tuple[int, ...], pieces: Iterable[Bytes]
) -> None:
    """Append torch.save of a contiguous tensor, whose bytes are `pieces` one after the other."""
    nbytes = prod(shape) * dtype.itemsize
    assert nbytes <= LARGEST, f"{nbytes} bytes are too many for one record"
    with ZipFile(_Appended(file), "w") as archive:
        archive.writestr(_record("data.pkl"), _pickled(dtype, shape))
        archive.writestr(_record("byteorder"), b"little")
        with archive.open(_record("data/0", nbytes), "w") as record:
            for piece in pieces:
                record.write(piece)
        archive.writestr(_record("version"), b"3\n")


def saved_nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """How many bytes `write_saved` appends: all but the data have a length that is fixed."""
    without_data = io.BytesIO()
    write_saved(without_data, dtype, shape, ())
    return len(without_data.getvalue()) + prod(shape) * dtype.itemsize


def saved_object(value: object) -> bytes:
    """torch.save of a small value."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@dataclass(frozen=True)
class _Appended:
    """A file that only grows, and so the zip puts sizes and checksums behind the data."""

    file: IO[bytes]

    def write(self, data: Bytes) -> int:
        return self.file.write(data)

    def flush(self) -> None:
        """Left to whoever opened the file."""

    def close(self) -> None:
        """Likewise."""


def _record(name: str, nbytes: int = 0) -> ZipInfo:
    """A record that bears no time and no trace of the machine."""
    record = ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    record.create_system = 3
    record.file_size = nbytes
    return record


@dataclass(frozen=True)
class _Storage:
    """Stands for the numbers, which are outside the pickle."""

    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    """Pickled as a tensor is."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __reduce__(self) -> tuple[object, ...]:
        storage = _Storage(self.dtype, prod(self.shape))
        no_hooks: OrderedDict[str, object] = OrderedDict()
        arguments = (storage, 0, self.shape, row_major(self.shape), False, no_hooks)
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, _Storage):
            return ("storage", _STORAGE_KINDS[value.dtype], "0", "cpu", value.count)
        return None


def _pickled(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, 2).dump(_Tensor(dtype, shape))
    return file.getvalue()
