"""Writes pieces of tensors to an open file: from memory, or copied from file to file.

with path.open("wb", buffering=0) as file:
    write_piece(file, FileRange(source, 4096, 8192), torch.bfloat16, progress.update)
"""

import errno
import os
from collections.abc import Callable
from io import FileIO

import torch

from minitron.errors import SourceError
from minitron.files.file_identity import open_unchanged
from minitron.files.lazy_tensor import FileRange
from minitron.files.tensor_stream import Piece

_AT_ONCE = 1 << 26  # bytes between two tellings of progress
_CHUNK = 1 << 20  # bytes read at once where the system cannot copy by itself
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY, errno.EPERM}


def write_piece(
    file: FileIO, piece: Piece, dtype: torch.dtype, progress: Callable[[int], object]
) -> int:
    """Append a piece to an unbuffered file and return its bytes; `progress` hears of them.

    Raises SourceError where the file that holds the piece is gone, changed or ends early.
    """
    if isinstance(piece, FileRange):
        return _copy(file, piece, progress)
    assert piece.dtype == dtype, f"{dtype} planned, not {piece.dtype}"
    left = piece.contiguous().view(-1).view(torch.uint8).numpy().data
    while left:
        left = left[file.write(left) :]
    progress(piece.nbytes)
    return piece.nbytes


def _copy(file: FileIO, piece: FileRange, progress: Callable[[int], object]) -> int:
    """The kernel copies; where it cannot, we do."""
    with open_unchanged(piece.path, piece.identity) as source:
        done = 0
        while done < piece.nbytes:
            count = min(piece.nbytes - done, _AT_ONCE)
            moved = _move(source, file.fileno(), piece.offset + done, count)
            if moved == 0:
                raise SourceError(f"{piece.path} is truncated: it ends at {piece.offset + done}")
            done += moved
            progress(moved)
    return done


def _move(source: int, target: int, offset: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, offset)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    data = memoryview(os.pread(source, min(count, _CHUNK), offset))
    moved = len(data)
    while data:
        data = data[os.write(target, data) :]
    return moved
