"""A safetensors file written in a thread of its own, while pieces of tensors are handed to it.

Knows the order and the sizes that its header promises. Pieces that are made wait in memory, so few
of them may; those that are file ranges cost nothing, and any number may wait.

    shard = ShardFile(path, specs, progress)
    pool.submit(shard.write)
    shard.put("w", rows)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from queue import SimpleQueue
from threading import BoundedSemaphore, Event

import torch

from minitron.files.lazy_tensor import FileRange
from minitron.files.piece_writer import write_piece
from minitron.files.safetensors_file import safetensors_header
from minitron.files.tensor_stream import Piece

_WAITING = 4  # pieces in memory
_PATIENCE = 0.2  # seconds between two looks at whether the writer is still there


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
    """One file of weights, to be written by whoever runs `write` while another calls `put`."""

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], progress: Callable[[int], object]
    ) -> None:
        """`progress` hears of bytes as they are written, from the thread that writes."""
        self._path, self._specs, self._progress = path, specs, progress
        self._pieces: SimpleQueue[tuple[str, Piece] | None] = SimpleQueue()
        self._room = BoundedSemaphore(_WAITING)
        self._is_over = Event()

    def put(self, name: str, piece: Piece) -> None:
        """Hand on the next bytes of a tensor; waits while too much is in memory."""
        if not isinstance(piece, FileRange):
            while not self._room.acquire(timeout=_PATIENCE):
                if self._is_over.is_set():
                    return  # `write` has raised, which its future tells
        self._pieces.put((name, piece))

    def give_up(self) -> None:
        """No more is to come: `write` returns at its next piece, whatever is missing."""
        self._is_over.set()
        self._pieces.put(None)

    def write(self) -> None:
        """Write header and pieces until all of the tensors are there.

        Raises SourceError where a file that holds a piece ends early, OSError for a full disk.
        """
        header = {name: (spec.dtype, spec.shape) for name, spec in self._specs.items()}
        left = {name: spec.nbytes for name, spec in self._specs.items() if spec.nbytes}
        coming = self._coming()
        try:
            with self._path.open("wb", buffering=0) as file:
                file.write(safetensors_header(header))
                while left and (item := next(coming, None)) is not None:
                    name, piece = item
                    assert name == next(iter(left)), f"{next(iter(left))} was planned, {name} came"
                    dtype = self._specs[name].dtype
                    left[name] -= write_piece(file, piece, dtype, self._progress)
                    assert left[name] >= 0, f"{name}: {-left[name]} bytes too many"
                    if left[name] == 0:
                        del left[name]
        finally:
            self._is_over.set()

    def _coming(self) -> Iterator[tuple[str, Piece]]:
        while not self._is_over.is_set() and (item := self._pieces.get()) is not None:
            if not isinstance(item[1], FileRange):
                self._room.release()
            yield item
