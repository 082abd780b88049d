"""A GGUF file: its metadata, and its tensors as lazy ones, dequantised as their rows are read.

Format: ggml's docs/gguf.md. Bytes of an unknown file are never trusted: what the header claims is
compared with the size of the file before memory is allocated for it. Does not know what the
metadata and the tensors mean. Needs the extra `gguf`.

    file = read_gguf(LocalFile.at(Path("model.gguf")))
    file.metadata["general.architecture"], file.tensors["token_embd.weight"].read(0, 10)
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import Any

import numpy as np
import torch

from minitron.errors import MissingExtraError, SourceError
from minitron.files.file import File
from minitron.files.lazy_tensor import DerivedTensor, LazyTensor, StoredTensor

MAGIC = b"GGUF"
ALIGNMENT = 32  # of tensors, where the file names none
_VERSIONS = (2, 3)
_LARGEST_HEADER = 1 << 28  # bytes
_MOST_KEYS, _MOST_TENSORS = 1 << 16, 1 << 20
_LARGEST_ALIGNMENT = 1 << 20
_AT_ONCE = 1 << 18  # numbers
_WINDOW = 1 << 20  # bytes of the header that are read at once
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"} | {
    12: "d"
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_PLAIN = {  # types of ggml that are no blocks
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file holds; arrays of the metadata are lists of texts or of numbers."""

    name: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]  # under ggml's names, in the order of the file
    types: Mapping[str, str]  # tensor name to ggml's name of its type, as Q4_K


def gguf_package() -> Any:
    """The package `gguf`: names and layouts of llama.cpp, and the arithmetic of its blocks."""
    try:
        return import_module("gguf")
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None


def read_gguf(file: File) -> GgufFile:
    """Read the header of a GGUF file; no tensor is read.

    Raises SourceError for what is no GGUF file, is damaged or cut off, or holds a type of tensor
    that cannot be dequantised.
    """
    header = _Header(file)
    tensor_count, key_count = header.begin()
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = header.text()
        if key in metadata:
            raise header.damaged(f"the key {key:.80} is there twice")
        metadata[key] = header.value(header.number("I"))
    places = [_Place.of(header) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    is_power = type(alignment) is int and alignment > 0 and alignment & (alignment - 1) == 0
    if not is_power or alignment > _LARGEST_ALIGNMENT:
        raise header.damaged(f"general.alignment is {alignment!r:.80}, no power of two")
    data = -(-header.position // alignment) * alignment
    tensors: dict[str, LazyTensor] = {}
    for place in places:
        if place.name in tensors:
            raise header.damaged(f"the tensor {place.name:.80} is there twice")
        if place.offset % alignment:
            raise header.damaged(f"{place.name:.80} begins at {place.offset}, not aligned")
        tensors[place.name] = place.tensor(file, data)
    return GgufFile(file.name, metadata, tensors, {each.name: each.kind for each in places})


class BlockTensor(DerivedTensor):
    """A tensor that is stored in quantised blocks, as float32."""

    def __init__(self, stored: StoredTensor, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__(torch.float32, shape)
        self.stored, self.kind = stored, kind

    def _read(self, start: int, stop: int) -> torch.Tensor:
        gguf, rows = gguf_package(), torch.empty(stop - start, *self.shape[1:])
        kind = gguf.GGMLQuantizationType[self.kind]
        for first, last in row_runs(self.shape, start, stop):
            blocks = self.stored.read(first, last).numpy()
            made = gguf.quants.dequantize(blocks, kind)
            rows[first - start : last - start] = torch.from_numpy(made)
        return rows


def row_runs(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Runs of rows that are quantised or dequantised at once: numpy makes many copies of them."""
    step = max(1, _AT_ONCE // prod(shape[1:]))
    return ((first, min(first + step, stop)) for first in range(start, stop, step))


@dataclass(frozen=True)
class _Place:
    """Where a tensor is, as the header describes it."""

    name: str
    kind: str
    shape: tuple[int, ...]  # the first axis is the slowest, as torch counts
    offset: int  # from the first tensor on

    @classmethod
    def of(cls, header: "_Header") -> "_Place":
        name = header.text()
        axes = header.number("I")
        if not 1 <= axes <= 4:
            raise header.damaged(f"{name:.80} has {axes} axes")
        shape = tuple(reversed([header.number("Q") for _ in range(axes)]))
        number, offset = header.number("I"), header.number("Q")
        kinds = gguf_package().GGMLQuantizationType
        if number not in list(kinds):
            raise SourceError(
                f"{header.name}: {name:.80} is of ggml's type {number}, which the installed "
                "package gguf does not know: pip install -U gguf, or take another file"
            )
        return cls(name, kinds(number).name, shape, offset)

    def tensor(self, file: File, data: int) -> LazyTensor:
        """The tensor in `file`, whose tensors begin at `data`. Raises SourceError."""
        if self.kind in _PLAIN:
            dtype = _PLAIN[self.kind]
            stored = StoredTensor(file, dtype, self.shape, data + self.offset)
            file.check_end(data + self.offset + stored.nbytes)
            return stored
        gguf = gguf_package()
        kind = gguf.GGMLQuantizationType[self.kind]
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        if len(self.shape) < 2 or self.shape[-1] % block:
            raise SourceError(
                f"{file.name} is damaged: {self.name:.80} of shape {list(self.shape)} has rows "
                f"that are no whole blocks of {self.kind}: fetch it again"
            )
        shape = (*self.shape[:-1], self.shape[-1] // block * nbytes)
        file.check_end(data + self.offset + prod(shape))
        _check_kind(kind, nbytes, file.name)
        return BlockTensor(
            StoredTensor(file, torch.uint8, shape, data + self.offset), self.kind, self.shape
        )


def _check_kind(kind: Any, nbytes: int, name: str) -> None:
    """Refuse blocks that the package cannot dequantise."""
    try:
        gguf_package().quants.dequantize(np.zeros((1, nbytes), np.uint8), kind)
    except NotImplementedError:
        raise SourceError(
            f"{name} holds {kind.name} tensors, which the package gguf cannot dequantise: take "
            "another file of this model, as Q8_0 or F16"
        ) from None


class _Header:
    """The beginning of a file, read in order, a window at a time."""

    def __init__(self, file: File) -> None:
        self.name, self.position = file.name, 0
        self._file, self._window, self._start = file, b"", 0

    def begin(self) -> tuple[int, int]:
        """The numbers of tensors and of metadata keys."""
        if self._file.size < len(MAGIC) or self.take(len(MAGIC)) != MAGIC:
            raise SourceError(f"{self.name} is no GGUF file: fetch it again, or name another")
        version = self.number("I")
        if version and version & 0xFFFF == 0:
            raise SourceError(f"{self.name} is for big-endian machines: take a little-endian one")
        if version not in _VERSIONS:
            raise SourceError(
                f"{self.name} is GGUF version {version}; 2 and 3 can be read: make it again with "
                "today's llama.cpp"
            )
        tensors, keys = self.number("Q"), self.number("Q")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise self.damaged(f"it claims {tensors} tensors and {keys} keys")
        return tensors, keys

    def damaged(self, how: str) -> SourceError:
        """The error for a header that cannot be right."""
        return SourceError(f"{self.name} is damaged ({how}): fetch it again")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        begin, end = self.position - self._start, self.position - self._start + count
        if end > len(self._window):
            self._move(count)
            begin, end = 0, count
        self.position += count
        return self._window[begin:end]

    def number(self, code: str) -> Any:
        """The next number, whose type is a letter of `struct`."""
        [value] = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return value

    def text(self) -> str:
        """The next text."""
        content = self.take(self.number("Q"))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{content[:40]!r} is no UTF-8") from None

    def value(self, kind: int) -> Any:
        """The next value of the metadata, of this type."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            value = self.number(_SCALARS[kind])
            # 1e-5 and not 9.999999747378752e-06: the shortest number with the same float32
            return float(str(np.float32(value))) if kind == _FLOAT32 else value
        if kind != _ARRAY:
            raise self.damaged(f"its metadata have a value of type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            self._check(8 * count)  # each begins with its length
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.damaged(f"its metadata have an array of values of type {kind}")
        code = "<" + _SCALARS[kind]
        return np.frombuffer(self.take(struct.calcsize(code) * count), code).tolist()

    def _check(self, count: int) -> None:
        """Refuse that many bytes more where the file or the limit ends before."""
        end = self.position + count
        if end > _LARGEST_HEADER:
            raise self.damaged(f"its header claims {end} bytes or more")
        self._file.check_end(end)

    def _move(self, count: int) -> None:
        """Read a window of at least `count` bytes from the position on."""
        self._check(count)
        stop = min(self._file.size, self.position + max(count, _WINDOW))
        self._start, self._window = self.position, self._file.read(self.position, stop)
