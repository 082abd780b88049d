"""Writes a tensor as torch.save does, but streamed: a zip of uncompressed records.

Its size follows from dtype and shape, before any number is read, so that it can be placed inside a
larger file. torch.load reads it, also with weights_only.

    nbytes = zip_nbytes(torch.bfloat16, (256000, 3072))
    write_zip(file, torch.bfloat16, (256000, 3072), pieces)
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

from minitron.files.lazy_tensor import row_major
from minitron.files.torch_tensors import STORAGES

LARGEST = 2**30  # bytes of a tensor: far below where a zip needs its 64-bit records

_STORAGE_KINDS = {
    dtype: getattr(torch, name) for name, dtype in STORAGES.items() if name != "UntypedStorage"
}
Bytes = bytes | memoryview


def write_zip(
    file: IO[bytes], dtype: torch.dtype, shape: tuple[int, ...], pieces: Iterable[Bytes]
) -> None:
    """Append torch.save of a contiguous tensor, whose bytes come in `pieces`."""
    nbytes = prod(shape) * dtype.itemsize
    assert nbytes <= LARGEST, f"{nbytes} bytes are too many for one record"
    with ZipFile(_AppendOnly(file), "w") as archive:
        archive.writestr(_record("data.pkl"), _pickle_tensor(dtype, shape))
        archive.writestr(_record("byteorder"), b"little")
        with archive.open(_record("data/0", nbytes), "w") as record:
            for piece in pieces:
                record.write(piece)
        archive.writestr(_record("version"), b"3\n")


def zip_nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """How many bytes `write_zip` appends: the data, and records of known size."""
    without_data = io.BytesIO()
    write_zip(without_data, dtype, shape, ())
    return len(without_data.getvalue()) + prod(shape) * dtype.itemsize


def torch_save(value: object) -> bytes:
    """torch.save of a small value, as bytes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@dataclass(frozen=True)
class _AppendOnly:
    """A file without seek: ZipFile then writes sizes and checksums after the data."""

    file: IO[bytes]

    def write(self, data: Bytes) -> int:
        return self.file.write(data)

    def flush(self) -> None:
        """Only the owner of the file flushes it."""

    def close(self) -> None:
        """Only the owner of the file closes it."""


def _record(name: str, nbytes: int = 0) -> ZipInfo:
    """A record without time and machine, so that equal content gives equal bytes."""
    record = ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    record.create_system = 3
    record.file_size = nbytes
    return record


@dataclass(frozen=True)
class _Storage:
    """A reference to the numbers, which are in a record of their own."""

    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    """An object that is pickled like a tensor of its dtype and shape."""

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


def _pickle_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, 2).dump(_Tensor(dtype, shape))
    return file.getvalue()
