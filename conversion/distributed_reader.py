"""Distributed checkpoints in torch's own format and in Megatron's zarr format: their chunks.

The index of torch's format, `.metadata`, is a pickle and is read as data. A chunk is what
torch.save wrote, inside a .distcp file; its header is read with its tensor, so that listing
thousands of chunks reads one small file.

The zarr format, version 2, is as Megatron-core wrote it until 2024: one directory a tensor, one
file a chunk of raw bytes, and `"dtype": "bfloat16"`, which zarr itself cannot open.

    torch_dist_tensors(archive, "model_weights")["model.output_layer.weight"].whole().read(0, 10)
    zarr_tensors(archive, "model_weights")["model.output_layer.weight"].whole().read(0, 10)
"""

import io
import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from math import ceil, prod
from typing import Any

import torch

from minitron.conversion.chunked_tensor import LARGEST_SIZE, Chunk, ChunkedTensor
from minitron.conversion.megatron_names import canonical_name
from minitron.conversion.nemo_archive import MOST_MEMBERS, Archive
from minitron.errors import SourceError
from minitron.files.file import File
from minitron.files.inert_pickle import Global, Inert, read_pickle
from minitron.files.lazy_tensor import DeferredTensor, StoredTensor
from minitron.files.torch_file import read_torch_object
from minitron.files.torch_tensors import DTYPES

METADATA = ".metadata"
LARGEST_METADATA = 1 << 26  # bytes; with an optimizer over many ranks some tens of megabytes

Sizes = tuple[int, ...]


def torch_dist_tensors(archive: Archive, folder: str) -> dict[str, ChunkedTensor]:
    """Every weight of the checkpoint in `folder` by its key.

    Raises SourceError for an index that is damaged or names what is not in the folder.
    """
    where = f"{archive.name}: {folder}/{METADATA}"
    pickled = archive.read(f"{folder}/{METADATA}", LARGEST_METADATA)
    index = _fields(read_pickle(io.BytesIO(pickled), {}, where), where)
    files = dict(_chunk_files(archive, folder, index.get("storage_data"), where))
    entries = index.get("state_dict_metadata")
    if not isinstance(entries, dict):
        raise SourceError(f"{where} is damaged: it lists no tensors")
    return {
        key: _tensor(f"{archive.name}: {key}", key, _fields(value, where), files)
        for key, value in entries.items()
        if isinstance(key, str) and canonical_name(key) is not None and _is_tensor(value)
    }


def _is_tensor(value: object) -> bool:
    """Whether an entry describes a tensor; others describe pickled bytes."""
    match value:
        case Inert(call=Global(name=name)):
            return name == "TensorStorageMetadata"
    return False


def _tensor(
    where: str,
    key: str,
    described: Mapping[str, object],
    files: Mapping[tuple[str, Sizes], File],
) -> ChunkedTensor:
    shape = _sizes(described.get("size"), where, least=1)
    dtype = _dtype(described.get("properties"), where)
    listed = described.get("chunks")
    if not isinstance(listed, list):
        raise SourceError(f"{where} has no list of chunks in {METADATA}")
    chunks: dict[Sizes, Chunk] = {}  # replicas are listed more than once
    for entry in listed:
        box = _fields(entry, where)
        offsets, sizes = _sizes(box.get("offsets"), where), _sizes(box.get("sizes"), where, least=1)
        if not len(offsets) == len(sizes) == len(shape):
            raise SourceError(f"{where} of shape {list(shape)} has a chunk at {list(offsets)}")
        if (key, offsets) not in files:
            raise SourceError(f"{where}: the chunk at {list(offsets)} is stored nowhere")
        chunk = f"{where}, chunk {list(offsets)}"
        chunks[offsets] = Chunk(offsets, _deferred(chunk, dtype, sizes, files[key, offsets]))
    return ChunkedTensor(where, dtype, shape, tuple(chunks.values()))


def _deferred(where: str, dtype: torch.dtype, sizes: Sizes, file: File) -> DeferredTensor:
    if file.size < prod(sizes) * dtype.itemsize:
        raise SourceError(f"{where} of sizes {list(sizes)} cannot be in {file.size} bytes")

    @cache
    def locate() -> StoredTensor:
        try:
            found = read_torch_object(file)
        except SourceError as error:
            raise SourceError(f"{where} cannot be read: {error}") from None
        if not isinstance(found, StoredTensor):
            raise SourceError(f"{where} is not a tensor but a {type(found).__name__}")
        if (found.dtype, found.shape) != (dtype, sizes):
            raise SourceError(
                f"{where} is {found.dtype} {list(found.shape)}, {METADATA} says {dtype} "
                f"{list(sizes)}"
            )
        return found

    return DeferredTensor(dtype, sizes, locate)


def _chunk_files(
    archive: Archive, folder: str, storage: object, where: str
) -> Iterator[tuple[tuple[str, Sizes], File]]:
    """(key, offsets) of every chunk to its bytes; entries of pickled bytes have no offsets."""
    if not isinstance(storage, dict):
        raise SourceError(f"{where} is damaged: it has no storage_data")
    for index, information in storage.items():
        chunk, storage_info = _fields(index, where), _fields(information, where)
        key, offsets = chunk.get("fqn"), chunk.get("offset")
        if not isinstance(key, str) or offsets is None or canonical_name(key) is None:
            continue
        if storage_info.get("transform_descriptors"):
            raise SourceError(f"{where}: {key} is stored transformed (compressed); save it without")
        yield (
            (key, _sizes(offsets, where)),
            _chunk_file(archive, folder, storage_info, f"{where}: {key}"),
        )


def _chunk_file(
    archive: Archive, folder: str, storage_info: Mapping[str, object], where: str
) -> File:
    keys = ("relative_path", "offset", "length")
    path, offset, length = (storage_info.get(key) for key in keys)
    if not isinstance(path, str) or "/" in path or "\\" in path or path in ("", ".", ".."):
        raise SourceError(f"{where} is stored in {path!r:.80}, which is not a file of this folder")
    member = f"{folder}/{path}"
    start, size = _sizes((offset, length), where)
    if member not in archive:
        raise SourceError(f"{where} is stored in {path}, which is missing")
    if start + size > archive.member(member).size:
        raise SourceError(f"{where}: {path} is truncated, {start + size} bytes are needed")
    return archive.member(member).window(start, size)


def _dtype(properties: object, where: str) -> torch.dtype:
    """The dtype of torch's TensorProperties, pickled as a tuple that begins with it, or a dict."""
    match properties:
        case (
            Inert(state=(Global(module="torch", name=name), *_))
            | Inert(state={"dtype": Global(module="torch", name=name)})
        ) if isinstance(name, str) and name in DTYPES:
            dtype: torch.dtype = DTYPES[name]
            return dtype
    raise SourceError(f"{where} has no dtype that is known")


def _fields(value: object, where: str) -> Mapping[str, object]:
    """The fields of a dataclass, as its pickle sets them."""
    match value:
        case Inert(state=dict(state)):
            return {name: field for name, field in state.items() if isinstance(name, str)}
    raise SourceError(f"{where} is damaged: a {type(value).__name__} is not what it should list")


def _sizes(value: object, where: str, least: int = 0) -> Sizes:
    if not isinstance(value, tuple | list) or len(value) > 8:
        raise SourceError(f"{where} has a size that is not a short tuple")
    for size in value:
        if type(size) is not int or not least <= size < LARGEST_SIZE:
            raise SourceError(f"{where} has a size that is not a reasonable number")
    return tuple(value)


ARRAY = ".zarray"
LARGEST_ARRAY_JSON = 1 << 16
ZARR_DTYPES = {
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
            found[key] = _zarr_tensor(archive, f"{folder}/{key}", f"{archive.name}: {key}")
    return found


def _zarr_tensor(archive: Archive, folder: str, where: str) -> ChunkedTensor:
    settings = _array_json(archive, folder, where)
    dtype = ZARR_DTYPES[settings["dtype"]]
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
        "dtype": tuple(ZARR_DTYPES),
    }
    for name, values in supported.items():
        if settings.get(name) not in values:
            raise SourceError(f"{where} has {name} {settings.get(name)!r:.80}, not {values[0]!r}")
    for name in ("shape", "chunks"):
        settings[name] = _zarr_sizes(settings.get(name), f"{where}: its {name}")
    if len(settings["shape"]) != len(settings["chunks"]):
        raise SourceError(f"{where} has shape {settings['shape']}, chunks {settings['chunks']}")
    return settings


def _zarr_sizes(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 8:
        raise SourceError(f"{what} is not a list of sizes: {value!r:.80}")
    for size in value:
        if type(size) is not int or not 0 < size < LARGEST_SIZE:
            raise SourceError(f"{what} is not a list of sizes: {value!r:.80}")
    return tuple(value)
