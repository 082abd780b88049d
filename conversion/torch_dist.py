"""Distributed checkpoints in torch's own format: their chunks, found by the index `.metadata`.

The index is a pickle and is read as data. A chunk is what torch.save wrote, inside a .distcp file;
its header is read with its tensor, so that listing thousands of chunks reads one small file.

    torch_dist_tensors(archive, "model_weights")["model.output_layer.weight"].whole().read(0, 10)
"""

import io
from collections.abc import Iterator, Mapping
from functools import cache
from math import prod

import torch

from minitron.conversion.chunked_tensor import LARGEST_SIZE, Chunk, ChunkedTensor
from minitron.conversion.megatron_names import canonical_name
from minitron.conversion.nemo_archive import Archive
from minitron.errors import SourceError
from minitron.files.file import File
from minitron.files.inert_pickle import Global, Inert, read_pickle
from minitron.files.stored_tensor import DeferredTensor, StoredTensor
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
