"""A safetensors file written in a thread of its own from a queue of pieces of tensors.

Knows the order and the sizes that its header promises. At most 4 in-memory pieces are queued
(back-pressure); file ranges hold no memory and are not limited.

    shard = ShardFile(path, specs, progress)
    pool.submit(shard.write)
    shard.add("w", rows)
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from queue import SimpleQueue
from threading import BoundedSemaphore, Event

import torch

from minitron.errors import SourceError
from minitron.files.file import LocalFile
from minitron.files.safetensors_file import safetensors_header
from minitron.files.tensor_stream import Piece

_QUEUED = 4  # pieces in memory
_POLL = 0.2  # seconds between two checks whether the writer has failed
_PROGRESS_BYTES = 1 << 26  # bytes copied between two reports of progress
_CHUNK = 1 << 20  # bytes read at once where the kernel cannot copy between the files
_CANNOT_COPY = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ETXTBSY,
    errno.EPERM,
}


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


class ShardFile:
    """One file of weights: one thread runs `write` while another calls `add`."""

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], progress: Callable[[int], object]
    ) -> None:
        """`progress` is called with the bytes written, in the thread that runs `write`."""
        self._path, self._specs, self._progress = path, specs, progress
        self._pieces: SimpleQueue[tuple[str, Piece] | None] = SimpleQueue()
        self._room = BoundedSemaphore(_QUEUED)
        self._is_over = Event()

    def add(self, name: str, piece: Piece) -> None:
        """Queue the next bytes of a tensor; waits while too many pieces are in memory."""
        if not isinstance(piece, LocalFile):
            while not self._room.acquire(timeout=_POLL):
                if self._is_over.is_set():
                    return  # `write` has raised: its future has the error
        self._pieces.put((name, piece))

    def give_up(self) -> None:
        """Let `write` return at its next piece, whatever is missing."""
        self._is_over.set()
        self._pieces.put(None)

    def write(self) -> None:
        """Write header and pieces until all of the tensors are there.

        Raises SourceError where a file that holds a piece ends early, OSError for a full disk.
        """
        try:
            write_safetensors(self._path, self._specs, self._queued(), self._progress)
        finally:
            self._is_over.set()

    def _queued(self) -> Iterator[tuple[str, Piece]]:
        while not self._is_over.is_set() and (item := self._pieces.get()) is not None:
            if not isinstance(item[1], LocalFile):
                self._room.release()
            yield item


def write_safetensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    pieces: Iterable[tuple[str, Piece]],
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Write a safetensors file of pieces, which come in the order of `specs` and of their bytes.

    No more pieces are taken than the tensors have bytes.
    """
    left = {name: spec.nbytes for name, spec in specs.items() if spec.nbytes}
    coming = iter(pieces)
    with path.open("wb", buffering=0) as file:
        file.write(safetensors_header({n: (spec.dtype, spec.shape) for n, spec in specs.items()}))
        while left and (item := next(coming, None)) is not None:
            name, piece = item
            assert name == next(iter(left)), f"{next(iter(left))} was planned, {name} came"
            left[name] -= write_piece(file, piece, specs[name].dtype, progress)
            assert left[name] >= 0, f"{name}: {-left[name]} bytes too many"
            if left[name] == 0:
                del left[name]


def write_piece(
    file: FileIO, piece: Piece, dtype: torch.dtype, progress: Callable[[int], object]
) -> int:
    """Append a piece to an unbuffered file and return its size; `progress` is called with it.

    Raises SourceError where the file that holds the piece is gone, changed or ends early.
    """
    if isinstance(piece, LocalFile):
        return _copy(file, piece, progress)
    assert piece.dtype == dtype, f"{dtype} planned, not {piece.dtype}"
    left = piece.contiguous().view(-1).view(torch.uint8).numpy().data
    while left:
        left = left[file.write(left) :]
    progress(piece.nbytes)
    return piece.nbytes


def _copy(file: FileIO, piece: LocalFile, progress: Callable[[int], object]) -> int:
    """Copy by the kernel where it can, else through memory."""
    with piece.open() as source:
        done = 0
        while done < piece.size:
            count = min(piece.size - done, _PROGRESS_BYTES)
            moved = _move(source, file.fileno(), piece.start + done, count)
            if moved == 0:
                raise SourceError(f"{piece.name} is truncated: it ends at {piece.start + done}")
            done += moved
            progress(moved)
    return done


def _move(source: int, target: int, offset: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, offset)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
    data = memoryview(os.pread(source, min(count, _CHUNK), offset))
    moved = len(data)
    while data:
        data = data[os.write(target, data) :]
    return moved
