"""A `.npy` file that is checked before numpy opens it: a damaged header claims any size.

open_npy("ids.npy").shape   # (samples, length)
"""

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from minitron.errors import CorpusError, foreign_parser
from minitron.text.text_file import check_regular_file

MAX_HEADER_BYTES = 10_000  # as numpy itself
_REMEDY = "save an array of whole numbers with numpy.save"


def open_npy(name: str) -> npt.NDArray[Any]:
    """The array of a file, mapped and not read. Pickles are never run. Raises CorpusError."""
    check_regular_file(name)
    size = Path(name).stat().st_size
    with foreign_parser(name, CorpusError, _REMEDY):
        with Path(name).open("rb") as file:
            _check_header(file, name, size)
        array: npt.NDArray[Any] = np.load(name, allow_pickle=False, mmap_mode="r")
    return array


def _check_header(file: BinaryIO, name: str, size: int) -> None:
    """Refuse a header that claims what the file does not hold, before anything is allocated."""
    head = file.read(12)
    if head.startswith(b"PK"):
        raise CorpusError(f"{name} is an .npz of several arrays: save one with numpy.save")
    if not head.startswith(npy.MAGIC_PREFIX):
        raise CorpusError(f"{name} is no .npy: {_REMEDY}")
    file.seek(0)
    version = npy.read_magic(file)
    length = int.from_bytes(head[8:10] if version == (1, 0) else head[8:12], "little")
    if length > min(MAX_HEADER_BYTES, size):
        raise CorpusError(f"{name} is damaged: its header claims {length:,} bytes: {_REMEDY}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise CorpusError(f"{name} holds Python objects, which are not read: {_REMEDY}")
    if any(count < 0 for count in shape):
        raise CorpusError(f"{name} is damaged: its shape is {shape}: {_REMEDY}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != size - file.tell():
        raise CorpusError(
            f"{name} is damaged: its header claims {claimed:,} bytes of shape {str(shape):.60}, "
            f"and {size - file.tell():,} follow: {_REMEDY}"
        )
