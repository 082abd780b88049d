"""Dtypes: their names in flags, config.json and messages, and which of their values are finite.

NaN and infinity are the bit patterns whose exponent is all ones, so it is enough to look at the
largest integer among the positive and among the negative patterns; torch.isnan on bfloat16 is many
times slower.

    dtype_named("bfloat16")
    check_finite(torch.zeros(3), "model.norm.weight", "nvidia/Minitron-4B-Base")
"""

import mmap
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from minitron.errors import SourceError
from minitron.files.file import LocalFile


@overload
def dtype_named(name: str) -> torch.dtype: ...
@overload
def dtype_named(name: None) -> None: ...
def dtype_named(name: str | None) -> torch.dtype | None:
    """torch's dtype of that name, with or without "torch."; None for None.

    Raises ValueError for a name that no dtype has.
    """
    if name is None:
        return None
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")
    return dtype


def name_of(dtype: torch.dtype | str) -> str:
    """The name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")


# Signed and unsigned integer of the same width, and the smallest pattern that is not finite.
_PATTERNS: dict[torch.dtype, tuple[type[np.signedinteger], type[np.unsignedinteger], int]] = {
    torch.bfloat16: (np.int16, np.uint16, 0x7F80),
    torch.float16: (np.int16, np.uint16, 0x7C00),
    torch.float32: (np.int32, np.uint32, 0x7F800000),
    torch.float64: (np.int64, np.uint64, 0x7FF0000000000000),
    torch.float8_e5m2: (np.int8, np.uint8, 0x7C),
    torch.float8_e4m3fn: (np.int8, np.uint8, 0x7F),  # has one NaN and no infinity
}
_WINDOW = 1 << 22  # bytes of a file mapped at once
_IN_CACHE = 1 << 18  # elements that are read twice while a core's cache holds them
FLOATS = frozenset(_PATTERNS)  # what weights may be stored in


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite; integers always are finite."""
    if tensor.dtype not in _PATTERNS or not tensor.numel():
        return True
    signed = _PATTERNS[tensor.dtype][0]
    bits = tensor.contiguous().view(-1).view(getattr(torch, signed.__name__)).numpy()
    return _are_finite(bits, tensor.dtype)


def is_finite_in_file(part: LocalFile, dtype: torch.dtype) -> bool:
    """The same of elements in a file, which is mapped: nothing is copied to memory."""
    if dtype not in _PATTERNS:
        return True
    signed = _PATTERNS[dtype][0]
    end = part.start + part.size
    with part.open() as descriptor:
        for start in range(part.start, end, _WINDOW):
            length = min(_WINDOW, end - start)
            before = start % mmap.ALLOCATIONGRANULARITY
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            with mmap.mmap(
                descriptor, before + length, flags, mmap.PROT_READ, offset=start - before
            ) as window:
                # The array must be gone before its window is.
                count = length // dtype.itemsize
                if not _are_finite(np.frombuffer(window, signed, count, before), dtype):
                    return False
    return True


def _are_finite(bits: npt.NDArray[Any], dtype: torch.dtype) -> bool:
    _, unsigned, limit = _PATTERNS[dtype]
    sign = 1 << (8 * dtype.itemsize - 1)
    # As signed, the largest is a positive number; as unsigned, the largest negative one, if any.
    for start in range(0, len(bits), _IN_CACHE):
        part = bits[start : start + _IN_CACHE]
        positive, either = int(part.max()), int(part.view(unsigned).max())
        if positive >= limit or (either >= sign and either - sign >= limit):
            return False
    return True


def check_finite(tensor: torch.Tensor, name: str, source: str) -> None:
    """Refuse a tensor that is not finite; SourceError names it."""
    if not is_finite(tensor):
        raise SourceError(
            f"{source}: {name} holds NaN or infinity: the checkpoint is damaged, fetch it again"
        )
