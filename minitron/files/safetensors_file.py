"""A safetensors file, at the level of bytes: where each tensor is, and one written from pieces.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes back to back
(github.com/huggingface/safetensors, "Format"). Reading through `StoredTensor` rather than a memory
map keeps resident memory at what is asked for; writing from a header planned beforehand lets each
tensor be read once.

A `ShardFile` is written in a thread of its own from a queue of pieces. At most 4 in-memory pieces
are queued (back-pressure); file ranges hold no memory and are not limited.

    read_safetensors_header(LocalFile.at(Path("model.safetensors")))["lm_head.weight"].shape
    shard = ShardFile(path, specs, progress)
    pool.submit(shard.write)
    shard.add("w", rows)
"""

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from queue import SimpleQueue
from threading import BoundedSemaphore, Event
from typing import Any

import torch

from minitron.errors import SourceError
from minitron.files.file import File, LocalFile
from minitron.files.lazy_tensor import StoredTensor
from minitron.files.tensor_stream import Piece

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the limit that the format's own library sets


def read_safetensors_header(file: File) -> Mapping[str, StoredTensor]:
    """Tensor name to its place in the file. Raises SourceError for a damaged or cut-off file."""
    length = int.from_bytes(file.read(0, min(8, file.size)), "little")
    data = 8 + length  # where the tensors begin
    if data > file.size or length > MAX_HEADER:
        raise SourceError(f"{file.name} is truncated or no safetensors file: fetch it again")
    try:
        entries = _entries(file.read(8, data))
        found = {name: _located(file, data, entry) for name, entry in entries.items()}
        _check_gapless(file, found, data)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{file.name} has a damaged header ({error}): fetch it again") from error


def safetensors_header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The bytes before these tensors, which follow in this order without gaps."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start aligned
    return len(header).to_bytes(8, "little") + header


def _entries(header: bytes) -> dict[str, Any]:
    """The header's tensors. Raises ValueError where the format's own library refuses the header."""
    if not header.startswith(b"{"):
        raise ValueError("it begins with something else than an object")
    entries: dict[str, Any] = json.loads(header, object_pairs_hook=_unique)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(text) is str for text in metadata.values()):
        raise ValueError("its metadata are no texts")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose keys is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{_twice(pairs)} is there twice")
    return found


def _twice(pairs: list[tuple[str, Any]]) -> str:
    names = [name for name, _ in pairs]
    return next(name for name in names if names.count(name) > 1)


def _check_gapless(file: File, tensors: Mapping[str, StoredTensor], end: int) -> None:
    """Refuse tensors that overlap, and bytes of the file that belong to none."""
    found = None
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != end:
            how = "overlaps another tensor" if tensor.offset < end else "has a gap before it"
            found = f"{name} {how}"
            break
        end += tensor.nbytes
    if found is None and end != file.size:
        found = f"{file.size - end} bytes at its end belong to no tensor"
    if found is not None:
        raise SourceError(f"{file.name} is damaged ({found}): fetch it again")


def _located(file: File, data: int, entry: Mapping[str, object]) -> StoredTensor:
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype_name not in _DTYPES:
        raise SourceError(f"{file.name} holds {dtype_name} tensors, which cannot be read here")
    dtype = _DTYPES[str(dtype_name)]
    lengths, (begin, end) = _whole_numbers(shape), _whole_numbers(offsets)
    if min(lengths, default=1) < 0 or begin < 0 or end - begin != prod(lengths) * dtype.itemsize:
        raise ValueError(f"shape {shape} and data_offsets {offsets} disagree")
    if data + end > file.size:
        raise SourceError(
            f"{file.name} is truncated ({file.size} bytes of {data + end}): fetch it again"
        )
    return StoredTensor(file, dtype, lengths, offset=data + begin)


def _whole_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise TypeError(f"{values!r} is no list of whole numbers")
    return tuple(values)


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
