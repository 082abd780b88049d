"""Distributed checkpoints of Megatron's zarr backend: one file for each chunk of a tensor.

One directory a tensor, zarr version 2, as Megatron-core wrote it until 2024: raw chunks, and
`"dtype": "bfloat16"`, which zarr itself cannot open. No chunk is read here.

    zarr_tensors(archive, "model_weights")["model.output_layer.weight"].whole().read(0, 10)
"""

import json
from itertools import product
from math import ceil, prod
from typing import Any

import torch

from minitron.conversion.chunked_tensor import LARGEST_SIZE, Chunk, ChunkedTensor
from minitron.conversion.megatron_names import canonical_name
from minitron.conversion.nemo_archive import MOST_MEMBERS, Archive
from minitron.errors import SourceError
from minitron.files.stored_tensor import StoredTensor

ARRAY = ".zarray"
LARGEST_ARRAY_JSON = 1 << 16
DTYPES = {
    "bfloat16": torch.bfloat16,
    # bfloat16 as a zarr without Megatron's patch writes it
    "<V2": torch.bfloat16,
    "|V2": torch.bfloat16,
    "<f2": torch.float16,
    "<f4": torch.float32,
    "<f8": torch.float64,
}


def zarr_tensors(archive: Archive, folder: str) -> dict[str, ChunkedTensor]:
    """Every weight below `folder` by its key. Raises SourceError for a chunk that is missing."""
    found = {}
    for name in archive.names():
        key = name.removeprefix(f"{folder}/").removesuffix(f"/{ARRAY}")
        if name == f"{folder}/{key}/{ARRAY}" and "/" not in key and canonical_name(key) is not None:
            found[key] = _tensor(archive, f"{folder}/{key}", f"{archive.name}: {key}")
    return found


def _tensor(archive: Archive, folder: str, where: str) -> ChunkedTensor:
    settings = _array_json(archive, folder, where)
    dtype = DTYPES[settings["dtype"]]
    shape, chunk = settings["shape"], settings["chunks"]
    counts = [ceil(size / step) for size, step in zip(shape, chunk, strict=True)]
    if prod(counts) > MOST_MEMBERS:
        raise SourceError(f"{where} needs {prod(counts)} chunks: most are missing")
    separator = settings.get("dimension_separator") or "."
    chunks = []
    for position in product(*map(range, counts)):
        name = separator.join(map(str, position)) or "0"
        offsets = tuple(index * step for index, step in zip(position, chunk, strict=True))
        stored = _chunk(archive, f"{folder}/{name}", f"{where}, chunk {name}", dtype, chunk)
        for axis, (offset, size) in enumerate(zip(offsets, shape, strict=True)):
            # zarr pads a chunk at the edge of the array to a full one.
            stored = stored.narrow(axis, 0, min(stored.shape[axis], size - offset))
        chunks.append(Chunk(offsets, stored))
    return ChunkedTensor(where, dtype, shape, tuple(chunks))


def _chunk(
    archive: Archive, name: str, where: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> StoredTensor:
    if name not in archive:
        raise SourceError(f"{where} is missing")
    member = archive.member(name)
    expected = prod(shape) * dtype.itemsize
    if member.size != expected:
        raise SourceError(f"{where} has {member.size} bytes, {expected} are expected")
    return StoredTensor(member, dtype, shape, offset=0)


def _array_json(archive: Archive, folder: str, where: str) -> dict[str, Any]:
    """The array's .zarray, checked for everything that this reader relies on."""
    try:
        settings = json.loads(archive.read(f"{folder}/{ARRAY}", LARGEST_ARRAY_JSON))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: its {ARRAY} is damaged: {error}") from None
    if not isinstance(settings, dict):
        raise SourceError(f"{where}: its {ARRAY} is not a JSON object")
    supported: dict[str, tuple[object, ...]] = {
        "zarr_format": (2,),
        "order": ("C",),
        "compressor": (None,),
        "filters": (None, []),
        "dimension_separator": (None, ".", "/"),
        "dtype": tuple(DTYPES),
    }
    for name, values in supported.items():
        if settings.get(name) not in values:
            raise SourceError(f"{where} has {name} {settings.get(name)!r:.80}, not {values[0]!r}")
    for name in ("shape", "chunks"):
        settings[name] = _sizes(settings.get(name), f"{where}: its {name}")
    if len(settings["shape"]) != len(settings["chunks"]):
        raise SourceError(f"{where} has shape {settings['shape']}, chunks {settings['chunks']}")
    return settings


def _sizes(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 8:
        raise SourceError(f"{what} is not a list of sizes: {value!r:.80}")
    for size in value:
        if type(size) is not int or not 0 < size < LARGEST_SIZE:
            raise SourceError(f"{what} is not a list of sizes: {value!r:.80}")
    return tuple(value)
