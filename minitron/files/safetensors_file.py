"""The safetensors format, at the level of bytes: where each tensor is, and a header to write.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes back to back
(github.com/huggingface/safetensors, "Format"). Reading through `StoredTensor` rather than a memory
map keeps resident memory at what is asked for; writing from a header planned beforehand lets each
tensor be read once.

    read_safetensors_header(LocalFile.at(Path("model.safetensors")))["lm_head.weight"].shape
"""

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from minitron.errors import SourceError
from minitron.files.file import File
from minitron.files.stored_tensor import StoredTensor

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
