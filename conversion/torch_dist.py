"""Distributed checkpoints of torch's own format: which item of which .distcp holds which chunk.

The index, `.metadata`, is a pickle and is read as data. Each item is a file of torch.save inside a
.distcp; its header is read when its tensor is, so that naming thousands costs one small file.

    torch_dist_tensors(archive, "model_weights")["model.output_layer.weight"].whole().read(0, 10)
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import torch

from minitron.conversion.chunked_tensor import LARGEST_SIZE, Chunk, ChunkedTensor
from minitron.conversion.megatron_keys import canonical_name
from minitron.conversion.nemo_archive import Archive
from minitron.errors import SourceError
from minitron.files.inert_pickle import Global, Inert, read_pickle
from minitron.files.stored_tensor import DeferredTensor, StoredTensor
from minitron.files.torch_file import read_torch_object
from minitron.files.torch_tensors import DTYPES

METADATA = ".metadata"
LARGEST_METADATA = 1 << 26  # bytes; with an optimizer over many ranks some tens of megabytes

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """Where torch.save wrote a chunk: bytes of one of the archive's members."""

    member: str
    offset: int
    length: int


def torch_dist_tensors(archive: Archive, folder: str) -> dict[str, ChunkedTensor]:
    """Every weight of the checkpoint in `folder` by its key.

    Raises SourceError for an index that is damaged or names what is not in the folder.
    """
    where = f"{archive.name}: {folder}/{METADATA}"
    pickled = archive.read(f"{folder}/{METADATA}", LARGEST_METADATA)
    index = _fields(read_pickle(io.BytesIO(pickled), {}, where), where)
    items = dict(_items(archive, folder, index.get("storage_data"), where))
    described = index.get("state_dict_metadata")
    if not isinstance(described, dict):
        raise SourceError(f"{where} is damaged: it lists no tensors")
    return {
        key: _tensor(archive, key, _fields(value, where), items)
        for key, value in described.items()
        if isinstance(key, str) and canonical_name(key) is not None and _is_tensor(value)
    }


def _is_tensor(value: object) -> bool:
    """Whether an entry describes a tensor; others describe pickled bytes."""
    match value:
        case Inert(call=Global(name=name)):
            return name == "TensorStorageMetadata"
    return False


def _tensor(
    archive: Archive,
    key: str,
    described: Mapping[str, object],
    items: Mapping[tuple[str, Sizes], Item],
) -> ChunkedTensor:
    where = f"{archive.name}: {key}"
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
        if (key, offsets) not in items:
            raise SourceError(f"{where}: the chunk at {list(offsets)} is stored nowhere")
        tensor = _deferred(
            archive, f"{where}, chunk {list(offsets)}", dtype, sizes, items[key, offsets]
        )
        chunks[offsets] = Chunk(offsets, tensor)
    return ChunkedTensor(where, dtype, shape, tuple(chunks.values()))


def _deferred(
    archive: Archive, where: str, dtype: torch.dtype, sizes: Sizes, item: Item
) -> DeferredTensor:
    if item.length < prod(sizes) * dtype.itemsize:
        raise SourceError(f"{where} of sizes {list(sizes)} cannot be in {item.length} bytes")

    @cache
    def locate() -> StoredTensor:
        try:
            found = read_torch_object(archive.member(item.member).window(item.offset, item.length))
        except SourceError as error:
            raise SourceError(f"{where} cannot be read: {error}") from None
        if not isinstance(found, StoredTensor):
            raise SourceError(f"{where} is no tensor but a {type(found).__name__}")
        if (found.dtype, found.shape) != (dtype, sizes):
            raise SourceError(
                f"{where} is {found.dtype} {list(found.shape)}, {METADATA} says {dtype} "
                f"{list(sizes)}"
            )
        return found

    return DeferredTensor(dtype, sizes, locate)


def _items(
    archive: Archive, folder: str, storage: object, where: str
) -> Iterator[tuple[tuple[str, Sizes], Item]]:
    """(key, offsets of the chunk) to item; those of pickled bytes have no offsets."""
    if not isinstance(storage, dict):
        raise SourceError(f"{where} is damaged: it says nowhere what is stored where")
    for index, information in storage.items():
        named, place = _fields(index, where), _fields(information, where)
        key, offsets = named.get("fqn"), named.get("offset")
        if not isinstance(key, str) or offsets is None or canonical_name(key) is None:
            continue
        if place.get("transform_descriptors"):
            raise SourceError(f"{where}: {key} is stored transformed (compressed); save it without")
        yield (key, _sizes(offsets, where)), _item(archive, folder, place, f"{where}: {key}")


def _item(archive: Archive, folder: str, place: Mapping[str, object], where: str) -> Item:
    path, offset, length = (place.get(name) for name in ("relative_path", "offset", "length"))
    if not isinstance(path, str) or "/" in path or "\\" in path or path in ("", ".", ".."):
        raise SourceError(f"{where} is stored in {path!r:.80}, which is no file of this folder")
    member = f"{folder}/{path}"
    begin, count = _sizes((offset, length), where)
    if member not in archive:
        raise SourceError(f"{where} is stored in {path}, which is missing")
    if begin + count > archive.member(member).size:
        raise SourceError(f"{where}: {path} is truncated, {begin + count} bytes are needed")
    return Item(member, begin, count)


def _dtype(properties: object, where: str) -> torch.dtype:
    """Of torch's TensorProperties, whose state is a tuple that begins with it, or a dict."""
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
        raise SourceError(f"{where} has a size that is no short tuple")
    for size in value:
        if type(size) is not int or not least <= size < LARGEST_SIZE:
            raise SourceError(f"{where} has a size that is no reasonable number")
    return tuple(value)
