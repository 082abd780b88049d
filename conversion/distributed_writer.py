"""Writes a Megatron-core distributed checkpoint, in either of its formats, as a list of files.

Every size is known from shapes before a weight is read; each tensor is then pulled once, some
megabytes at a time. Layers are stacked on a new first axis, one chunk a layer, and an empty state
stands for each Transformer Engine module, which Megatron insists on finding. Does not know what
the files are put into.

    for member in checkpoint_members(tensors, "model.", "torch_dist", progress.update):
        member.write(file)
"""

import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod
from typing import IO, Literal

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from minitron.conversion.megatron_names import FINAL_NORM, FUSED_NORMS, LAYERS
from minitron.conversion.torch_zip import LARGEST, saved_nbytes, saved_object, write_saved
from minitron.errors import TargetError
from minitron.files.dtypes import name_of
from minitron.files.lazy_tensor import LazyTensor, Rows

DistFormat = Literal["torch_dist", "zarr"]
Progress = Callable[[int], object]

# zarr's names; bfloat16 is none, but the one that Megatron writes and asks for.
_ZARR_DTYPES = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "bfloat16"}
# What Transformer Engine keeps an FP8 state for. The final norm has one too, since its version 2;
# None is the state that every version takes for "there is none".
_STATEFUL = (
    "self_attention.core_attention",
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
_LAYERED = re.compile(re.escape(LAYERS) + r"(\d+)\.(.+)")
_DATA_FILE = "__0_0.distcp"
_PIECE_BYTES = 1 << 20  # read at once: what stays in a core's cache until it is written


@dataclass(frozen=True)
class Member:
    """A file to be: its name, its size, and what appends its bytes."""

    name: str
    nbytes: int
    write: Callable[[IO[bytes]], object]

    @classmethod
    def of(cls, name: str, content: bytes) -> "Member":
        """A file whose content is at hand."""
        return cls(name, len(content), lambda file: file.write(content))


def checkpoint_members(
    tensors: Mapping[str, LazyTensor], prefix: str, dist_format: DistFormat, progress: Progress
) -> list[Member]:
    """The files of a checkpoint of `tensors` (Megatron's names with layer numbers, no prefix).

    `progress` hears the bytes of tensors as they are written. Raises TargetError for a dtype that
    the formats do not have, or layers of different dtypes.
    """
    arrays = list(_arrays(tensors, prefix))
    states = list(_states(arrays, prefix))
    make = {"torch_dist": _torch_dist_members, "zarr": _zarr_members}[dist_format]
    about = {
        "sharded_backend": dist_format,
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    common = Member.of("common.pt", saved_object({}))
    metadata = Member.of("metadata.json", json.dumps(about).encode())
    return [*make(arrays, states, progress), common, metadata]


@dataclass(frozen=True)
class _Array:
    """One tensor of the checkpoint: a part a layer, or only one part."""

    key: str
    parts: tuple[LazyTensor, ...]
    is_layered: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        part = self.parts[0].shape
        return (len(self.parts), *part) if self.is_layered else part

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        part = self.parts[0].shape
        return (1, *part) if self.is_layered else part


@dataclass(frozen=True)
class _State:
    """The empty state of a module: of one layer of several, or the only one."""

    key: str
    index: int
    count: int


def _arrays(tensors: Mapping[str, LazyTensor], prefix: str) -> Iterator[_Array]:
    layered: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _ZARR_DTYPES:
            dtype = name_of(tensor.dtype)
            raise TargetError(f"{name} is {dtype}, which Megatron does not store: choose bfloat16")
        if found := _LAYERED.fullmatch(name):
            layered.setdefault(_fused_name(found[2]), {})[int(found[1])] = tensor
        else:
            yield _Array(prefix + name, (tensor,), is_layered=False)
    for name, layers in layered.items():
        parts = tuple(layers[layer] for layer in range(len(layers)))
        if len({part.dtype for part in parts}) > 1:
            raise TargetError(f"{name} has other dtypes in some layers than in others: choose one")
        yield _Array(f"{prefix}{LAYERS}{name}", parts, is_layered=True)


def _fused_name(name: str) -> str:
    for plain, fused in FUSED_NORMS.items():
        name = name.replace(plain, fused)
    return name


def _states(arrays: Iterable[_Array], prefix: str) -> Iterator[_State]:
    layers = max((len(array.parts) for array in arrays if array.is_layered), default=0)
    yield _State(f"{prefix}{FINAL_NORM}._extra_state", 0, 1)
    for module in _STATEFUL:
        for layer in range(layers):
            yield _State(f"{prefix}{LAYERS}{module}._extra_state", layer, layers)


def _zarr_members(
    arrays: Iterable[_Array], states: Iterable[_State], progress: Progress
) -> Iterator[Member]:
    """A folder a tensor, a file a layer."""
    for array in arrays:
        about = {
            "chunks": array.chunk_shape,
            "compressor": None,
            "dtype": _ZARR_DTYPES[array.dtype],
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": array.shape,
            "zarr_format": 2,
        }
        yield Member.of(f"{array.key}/.zarray", json.dumps(about, indent=4).encode())
        for number, part in enumerate(array.parts):
            place = (number if array.is_layered else 0, *(0 for _ in array.chunk_shape[1:]))
            name = f"{array.key}/{'.'.join(map(str, place))}"
            yield Member(name, part.nbytes, partial(_write_tensor, part, progress))
    for state in states:
        name = f"{state.key}/shard_{state.index}_{state.count}.pt"
        yield Member.of(name, saved_object(None))


def _torch_dist_members(
    arrays: Iterable[_Array], states: Iterable[_State], progress: Progress
) -> list[Member]:
    """One file of many torch.save zips, and the pickle that says where each begins."""
    arrays = list(arrays)
    metadata: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    items: list[tuple[MetadataIndex, Member]] = []
    for array in arrays:
        chunks = list(_chunks(array))
        metadata[array.key] = TensorStorageMetadata(
            properties=TensorProperties(dtype=array.dtype),
            size=torch.Size(array.shape),
            chunks=[chunk for chunk, _ in chunks],
        )
        for index, (chunk, tensor) in enumerate(chunks):
            place = MetadataIndex(array.key, chunk.offsets, index)
            items.append((place, _saved_chunk(chunk, tensor, progress)))
    for state in states:
        key = f"{state.key}/shard_{state.index}_{state.count}"
        metadata[key] = BytesStorageMetadata()
        items.append((MetadataIndex(key), Member.of(_DATA_FILE, saved_object([None]))))
    # planner_data is what Megatron wants to be a dict, and is about nested ones; ours is flat.
    about = Metadata(metadata, planner_data={}, storage_data=_places(items))

    def write(file: IO[bytes]) -> None:
        for _, item in items:
            item.write(file)

    nbytes = sum(item.nbytes for _, item in items)
    return [
        Member.of(".metadata", pickle.dumps(about, protocol=4)),
        Member(_DATA_FILE, nbytes, write),
    ]


def _places(items: Iterable[tuple[MetadataIndex, Member]]) -> dict[MetadataIndex, _StorageInfo]:
    items = list(items)
    ends = list(accumulate(item.nbytes for _, item in items))
    return {
        place: _StorageInfo(_DATA_FILE, end - item.nbytes, item.nbytes)
        for (place, item), end in zip(items, ends, strict=True)
    }


def _chunks(array: _Array) -> Iterator[tuple[ChunkStorageMetadata, LazyTensor]]:
    """A chunk a layer, or several of whole rows where one would be too large for its zip."""
    for number, part in enumerate(array.parts):
        rows = part.shape[0]
        step = max(1, LARGEST * rows // max(1, part.nbytes))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            within = (start, *(0 for _ in part.shape[1:]))
            sizes = (stop - start, *part.shape[1:])
            chunk = ChunkStorageMetadata(
                offsets=torch.Size((number, *within) if array.is_layered else within),
                sizes=torch.Size((1, *sizes) if array.is_layered else sizes),
            )
            yield chunk, part if step >= rows else Rows(part, [(start, stop)])


def _saved_chunk(chunk: ChunkStorageMetadata, tensor: LazyTensor, progress: Progress) -> Member:
    shape = tuple(chunk.sizes)
    assert prod(shape) * tensor.dtype.itemsize == tensor.nbytes

    def write(file: IO[bytes]) -> None:
        write_saved(file, tensor.dtype, shape, _pieces(tensor, progress))

    return Member(_DATA_FILE, saved_nbytes(tensor.dtype, shape), write)


def _write_tensor(tensor: LazyTensor, progress: Progress, file: IO[bytes]) -> None:
    for piece in _pieces(tensor, progress):
        file.write(piece)


def _pieces(tensor: LazyTensor, progress: Progress) -> Iterator[memoryview]:
    """The bytes of a tensor, some rows at a time."""
    rows = tensor.shape[0]
    step = max(1, _PIECE_BYTES * rows // max(1, tensor.nbytes))
    for start in range(0, rows, step):
        read = tensor.read(start, min(start + step, rows))
        piece = read.contiguous().view(-1).view(torch.uint8).numpy().data
        yield piece
        progress(piece.nbytes)
