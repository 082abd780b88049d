"""Plans the files of a Megatron-core distributed checkpoint, in either of its formats.

Every size follows from shapes, before a weight is read; writing then reads each tensor once, in
pieces. Layers are stacked on a new first axis, one chunk a layer. Each Transformer Engine module
has an empty state, because Megatron requires one. Does not know what contains the files.

    for planned in plan_checkpoint(tensors, "model.", "torch_dist", progress.update):
        planned.write(file)
"""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from minitron.conversion.megatron_names import FINAL_NORM, FUSED_NORMS, LAYERS, split_layer
from minitron.conversion.torch_zip import LARGEST, torch_save, write_zip, zip_nbytes
from minitron.errors import TargetError
from minitron.files.dtypes import name_of
from minitron.files.lazy_tensor import LazyTensor, Rows
from minitron.files.tensor_stream import pieces_of

DistFormat = Literal["torch_dist", "zarr"]
Progress = Callable[[int], object]

# zarr's names, but for bfloat16, which zarr does not have: Megatron writes and expects this one.
_ZARR_DTYPES = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "bfloat16"}
# The modules for which Transformer Engine keeps an FP8 state; since version 2 the final norm has
# one too. Every version reads None as "no state".
_MODULES_WITH_STATE = (
    "self_attention.core_attention",
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
_DATA_FILE = "__0_0.distcp"


@dataclass(frozen=True)
class PlannedFile:
    """A file of the checkpoint: its name, its size, and a function that appends its bytes."""

    name: str
    nbytes: int
    write: Callable[[IO[bytes]], object]

    @classmethod
    def of(cls, name: str, content: bytes) -> "PlannedFile":
        """A file whose content is in memory."""
        return cls(name, len(content), lambda file: file.write(content))


def plan_checkpoint(
    tensors: Mapping[str, LazyTensor], prefix: str, dist_format: DistFormat, progress: Progress
) -> list[PlannedFile]:
    """The files of a checkpoint of `tensors` (Megatron's names with layer numbers, no prefix).

    `progress` is called with the number of tensor bytes after each write. Raises TargetError for a
    dtype that the formats do not have, and for layers of different dtypes.
    """
    arrays = list(_arrays(tensors, prefix))
    states = list(_states(arrays, prefix))
    plan = {"torch_dist": _plan_torch_dist, "zarr": _plan_zarr}[dist_format]
    metadata = {
        "sharded_backend": dist_format,
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    common = PlannedFile.of("common.pt", torch_save({}))
    about = PlannedFile.of("metadata.json", json.dumps(metadata).encode())
    return [*plan(arrays, states, progress), common, about]


@dataclass(frozen=True)
class _Array:
    """One tensor of the checkpoint: one part for each layer, or a single part."""

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


def _arrays(tensors: Mapping[str, LazyTensor], prefix: str) -> Iterator[_Array]:
    layered: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _ZARR_DTYPES:
            dtype = name_of(tensor.dtype)
            raise TargetError(f"{name} is {dtype}, which Megatron does not store: choose bfloat16")
        if in_layer := split_layer(name):
            layer, inner = in_layer
            layered.setdefault(_fused_name(inner), {})[layer] = tensor
        else:
            yield _Array(prefix + name, (tensor,), is_layered=False)
    for name, layers in layered.items():
        parts = tuple(layers[layer] for layer in range(len(layers)))
        if len({part.dtype for part in parts}) > 1:
            raise TargetError(f"{name} has other dtypes in some layers than in others: choose one")
        yield _Array(f"{prefix}{LAYERS}{name}", parts, is_layered=True)


def _fused_name(name: str) -> str:
    for separate, fused in FUSED_NORMS.items():
        name = name.replace(separate, fused)
    return name


def _states(arrays: Iterable[_Array], prefix: str) -> Iterator[str]:
    """The keys of the empty states: of the final norm, and of each module in every layer."""
    layers = max((len(array.parts) for array in arrays if array.is_layered), default=0)
    yield f"{prefix}{FINAL_NORM}._extra_state/shard_0_1"
    for module in _MODULES_WITH_STATE:
        for layer in range(layers):
            yield f"{prefix}{LAYERS}{module}._extra_state/shard_{layer}_{layers}"


def _plan_zarr(
    arrays: Iterable[_Array], states: Iterable[str], progress: Progress
) -> Iterator[PlannedFile]:
    """A folder for each tensor, with a file for each layer."""
    for array in arrays:
        zarray = {
            "chunks": array.chunk_shape,
            "compressor": None,
            "dtype": _ZARR_DTYPES[array.dtype],
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": array.shape,
            "zarr_format": 2,
        }
        yield PlannedFile.of(f"{array.key}/.zarray", json.dumps(zarray, indent=4).encode())
        for number, part in enumerate(array.parts):
            position = (number if array.is_layered else 0, *(0 for _ in array.chunk_shape[1:]))
            name = f"{array.key}/{'.'.join(map(str, position))}"
            yield PlannedFile(name, part.nbytes, partial(_write_tensor, part, progress))
    for state in states:
        yield PlannedFile.of(f"{state}.pt", torch_save(None))


def _plan_torch_dist(
    arrays: Iterable[_Array], states: Iterable[str], progress: Progress
) -> list[PlannedFile]:
    """One file of many torch.save zips, and a pickled index of their positions."""
    metadata: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    chunks: list[tuple[MetadataIndex, PlannedFile]] = []
    for array in arrays:
        parts = list(_chunks(array))
        metadata[array.key] = TensorStorageMetadata(
            properties=TensorProperties(dtype=array.dtype),
            size=torch.Size(array.shape),
            chunks=[chunk for chunk, _ in parts],
        )
        for index, (chunk, tensor) in enumerate(parts):
            position = MetadataIndex(array.key, chunk.offsets, index)
            chunks.append((position, _plan_chunk(chunk, tensor, progress)))
    for state in states:
        metadata[state] = BytesStorageMetadata()
        chunks.append((MetadataIndex(state), PlannedFile.of(_DATA_FILE, torch_save([None]))))
    # planner_data describes nested state dicts; ours is flat, but Megatron requires a dict.
    content = Metadata(metadata, planner_data={}, storage_data=_storage_data(chunks))

    def write(file: IO[bytes]) -> None:
        for _, chunk in chunks:
            chunk.write(file)

    nbytes = sum(chunk.nbytes for _, chunk in chunks)
    return [
        PlannedFile.of(".metadata", pickle.dumps(content, protocol=4)),
        PlannedFile(_DATA_FILE, nbytes, write),
    ]


def _storage_data(
    chunks: Sequence[tuple[MetadataIndex, PlannedFile]],
) -> dict[MetadataIndex, _StorageInfo]:
    """Where each chunk is in the data file."""
    ends = accumulate(chunk.nbytes for _, chunk in chunks)
    return {
        position: _StorageInfo(_DATA_FILE, end - chunk.nbytes, chunk.nbytes)
        for (position, chunk), end in zip(chunks, ends, strict=True)
    }


def _chunks(array: _Array) -> Iterator[tuple[ChunkStorageMetadata, LazyTensor]]:
    """One chunk for each layer, or several of whole rows where a zip would be too large."""
    for number, part in enumerate(array.parts):
        rows = part.shape[0]
        step = max(1, LARGEST * rows // max(1, part.nbytes))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            offsets = (start, *(0 for _ in part.shape[1:]))
            sizes = (stop - start, *part.shape[1:])
            chunk = ChunkStorageMetadata(
                offsets=torch.Size((number, *offsets) if array.is_layered else offsets),
                sizes=torch.Size((1, *sizes) if array.is_layered else sizes),
            )
            yield chunk, part if step >= rows else Rows(part, [(start, stop)])


def _plan_chunk(chunk: ChunkStorageMetadata, tensor: LazyTensor, progress: Progress) -> PlannedFile:
    shape = tuple(chunk.sizes)
    assert prod(shape) * tensor.dtype.itemsize == tensor.nbytes

    def write(file: IO[bytes]) -> None:
        write_zip(file, tensor.dtype, shape, _pieces(tensor, progress))

    return PlannedFile(_DATA_FILE, zip_nbytes(tensor.dtype, shape), write)


def _write_tensor(tensor: LazyTensor, progress: Progress, file: IO[bytes]) -> None:
    for piece in _pieces(tensor, progress):
        file.write(piece)


def _pieces(tensor: LazyTensor, progress: Progress) -> Iterator[memoryview]:
    """The bytes of a tensor, some rows at a time."""
    for start, stop in pieces_of(tensor):
        rows = tensor.read(start, stop)
        piece = rows.contiguous().view(-1).view(torch.uint8).numpy().data
        yield piece
        progress(piece.nbytes)
