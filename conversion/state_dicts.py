"""Megatron checkpoints of plain state dicts: one file, or one a tensor- and pipeline-parallel rank.

Finds the member of each rank, unwraps its state dict, joins the shards of each kind of tensor, and
numbers the layers of the stages through the model. No tensor is read.

    state_dicts = read_state_dicts(archive, is_gated=False)
    state_dicts.tensors["decoder.layers.3.mlp.linear_fc1.weight"].read(0, 10)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from minitron.conversion.chunked_tensor import join
from minitron.conversion.megatron_names import (
    EMBEDDING,
    HEAD,
    LAYERS,
    canonical_name,
    split_layer,
)
from minitron.conversion.nemo_archive import Archive
from minitron.errors import SourceError
from minitron.files.lazy_tensor import DerivedTensor, LazyTensor, Rows, StoredTensor
from minitron.files.torch_file import read_torch_object

WEIGHTS = "model_weights.ckpt"
MEGATRON_WEIGHTS = "model_optim_rng.pt"
_RANK = re.compile(
    r"mp_rank_(?P<tp>[0-9]{2,4})(?:_(?P<pp>[0-9]{3}))?"
    r"|tp_rank_(?P<tensor>[0-9]{2,4})_pp_rank_(?P<pipeline>[0-9]{3,4})"
)
_WRAPPERS = ("state_dict", "model", "module")
_MOST_VIRTUAL_STAGES = 100  # of a stage in an interleaved pipeline
_DEEPEST = 12  # nested dicts
_MOST_ENTRIES = 1 << 20
# Every tensor-parallel rank trains a copy of the norms; rounding makes them differ by less.
_TOLERANCE = 0.05

_BY_ROWS = re.compile(rf"^(?:{EMBEDDING}|{HEAD})\.weight$|\.linear_(?:qkv|fc1)\.(?:weight|bias)$")
_BY_COLUMNS = re.compile(r"\.linear_(?:proj|fc2)\.weight$")
_GATED = re.compile(r"\.linear_fc1\.(?:weight|bias)$")

Shard = Mapping[str, StoredTensor]  # canonical name to the part of one tensor-parallel rank


@dataclass(frozen=True)
class StateDicts:
    """A model joined from the state dicts of all ranks."""

    layout: str  # the parallelism it was saved with, such as "state_dict TP 2 PP 2"
    tensors: Mapping[str, LazyTensor]


class _ReplicatedTensor(DerivedTensor):
    """The first of the copies on all tensor-parallel ranks, compared with the others when read.

    It has no ranges: copying bytes would skip the comparison.
    """

    def __init__(self, where: str, copies: Sequence[StoredTensor]) -> None:
        super().__init__(copies[0].dtype, copies[0].shape)
        self._where, self._copies = where, tuple(copies)

    def _read(self, start: int, stop: int) -> torch.Tensor:
        first, *others = (copy.read(start, stop) for copy in self._copies)
        tolerances = {"rtol": _TOLERANCE, "atol": _TOLERANCE}
        for rank, other in enumerate(others, start=1):
            if not torch.allclose(first.float(), other.float(), **tolerances, equal_nan=True):
                raise SourceError(
                    f"{self._where} differs between tensor-parallel ranks 0 and {rank}"
                )
        return first


def has_state_dicts(archive: Archive) -> bool:
    """Whether the archive holds weights as state dicts."""
    return bool(_rank_members(archive))


def read_state_dicts(archive: Archive, *, is_gated: bool) -> StateDicts:
    """The model's tensors by canonical name. `is_gated`: linear_fc1 is the gate above the up.

    Raises SourceError for ranks that are missing or do not fit, and for another kind of model.
    """
    members = _rank_members(archive)
    tensor_parallel, pipeline_parallel = _parallel_sizes(archive, members)
    stages = [
        [_shards(archive, members[tp, pp]) for tp in range(tensor_parallel)]
        for pp in range(pipeline_parallel)
    ]
    _check_is_gpt(archive, stages[0][0][0])
    virtual = _virtual_pipeline(archive, stages)
    tensors: dict[str, LazyTensor] = {}
    first_layer = 0
    # An interleaved pipeline gives each stage several runs of layers: the first runs of all stages
    # are followed by the second runs of all stages.
    for number in range(virtual):
        for stage in stages:
            ranks = [virtual_stages[number] for virtual_stages in stage]
            merged = _join_ranks(archive, ranks, is_gated=is_gated)
            first_layer += _add_stage(archive, tensors, merged, first_layer)
    sizes = {"TP": tensor_parallel, "PP": pipeline_parallel, "VPP": virtual}
    layout = ["state_dict", *(f"{name} {size}" for name, size in sizes.items() if size > 1)]
    return StateDicts(" ".join(layout), tensors)


def _rank_members(archive: Archive) -> dict[tuple[int, int], str]:
    """(tensor-parallel rank, pipeline stage) to the member that holds its state dict."""
    folders: dict[str, list[str]] = {}
    for member in archive.names():
        folder, _, name = member.rpartition("/")
        folders.setdefault(folder, []).append(name)
    if (root := _weights_file(folders.get("", []))) is not None:
        return {(0, 0): root}
    members: dict[tuple[int, int], str] = {}
    for folder, files in folders.items():
        match, file = _RANK.fullmatch(folder), _weights_file(files)
        if match is not None and file is not None:
            pipeline = match["pp"] or match["pipeline"] or 0
            rank = int(match["tp"] or match["tensor"]), int(pipeline)
            if rank in members:
                raise SourceError(f"{archive.name} holds two state dicts of rank {rank}: {folder}")
            members[rank] = f"{folder}/{file}"
    return members


def _weights_file(files: Sequence[str]) -> str | None:
    last = [file for file in files if file.endswith("last.ckpt")]
    known = (WEIGHTS, *(last if len(last) == 1 else ()), MEGATRON_WEIGHTS)
    return next((file for file in known if file in files), None)


def _parallel_sizes(archive: Archive, members: Mapping[tuple[int, int], str]) -> tuple[int, int]:
    if not members:
        raise SourceError(f"{archive.name} holds no {WEIGHTS}")
    sizes = max(tp for tp, _ in members) + 1, max(pp for _, pp in members) + 1
    if len(members) != sizes[0] * sizes[1]:
        raise SourceError(
            f"{archive.name} has state dicts of {len(members)} ranks, TP {sizes[0]} x PP "
            f"{sizes[1]} needs {sizes[0] * sizes[1]}: the checkpoint is not complete"
        )
    return sizes


def _shards(archive: Archive, name: str) -> list[Shard]:
    """The state dict of one rank, or one for each of its virtual pipeline stages."""
    where = f"{archive.name}: {name}"
    content = read_torch_object(archive.member(name))
    return [_shard(state, where) for state in _state_dicts(content, where)]


def _shard(state: Mapping[object, object], where: str) -> Shard:
    shard: dict[str, StoredTensor] = {}
    for key, tensor in _flatten(state, where):
        if (name := canonical_name(key)) is None:
            continue
        if name in shard:
            raise SourceError(f"{where} holds {name} twice")
        shard[name] = tensor
    if not shard:
        raise SourceError(f"{where} holds no tensors of a model")
    return shard


def _state_dicts(root: object, where: str) -> list[Mapping[object, object]]:
    """The dicts of model tensors, inside the dicts that training wraps around them."""
    for _ in range(_DEEPEST):
        if not isinstance(root, dict):
            break
        names = [f"model{number}" for number in range(_MOST_VIRTUAL_STAGES)]
        stages = [root[name] for name in names if name in root]
        if stages:
            return [stage if isinstance(stage, dict) else {} for stage in stages]
        inner = [root[key] for key in _WRAPPERS if isinstance(root.get(key), dict)]
        if not inner:
            return [root]
        root = inner[0]
    raise SourceError(f"{where} holds a {type(root).__name__}, not a state dict of a model")


def _flatten(root: Mapping[object, object], where: str) -> Iterator[tuple[str, StoredTensor]]:
    """Every tensor in nested dicts, under its keys joined by dots."""
    waiting: list[tuple[str, object]] = [("", root)]
    for _ in range(_MOST_ENTRIES):
        if not waiting:
            return
        name, value = waiting.pop()
        if isinstance(value, StoredTensor):
            yield name, value
        elif isinstance(value, dict) and name.count(".") < _DEEPEST:
            nested = [(f"{name}.{key}".lstrip("."), inner) for key, inner in value.items()]
            waiting += reversed(nested)
    raise SourceError(f"{where} holds more than {_MOST_ENTRIES} entries: no model does")


def _virtual_pipeline(archive: Archive, stages: Sequence[Sequence[Sequence[Shard]]]) -> int:
    """How many virtual stages each pipeline stage has."""
    counts = {len(virtual_stages) for stage in stages for virtual_stages in stage}
    if len(counts) != 1:
        raise SourceError(f"{archive.name}: its ranks hold {sorted(counts)} parts of the model")
    return counts.pop()


def _check_is_gpt(archive: Archive, first: Shard) -> None:
    if f"{EMBEDDING}.weight" not in first:
        seen = ", ".join(list(first)[:3])
        raise SourceError(
            f"{archive.name} holds tensors such as {seen}, but no {EMBEDDING}.weight: it is "
            "not a Megatron GPT checkpoint"
        )


def _join_ranks(
    archive: Archive, ranks: Sequence[Shard], *, is_gated: bool
) -> dict[str, LazyTensor]:
    """The tensors of one stage, joined from the shards of its tensor-parallel ranks."""
    for rank, shard in enumerate(ranks):
        if differing := sorted(shard.keys() ^ ranks[0].keys()):
            raise SourceError(
                f"{archive.name}: {differing[0]} is on one of tensor-parallel ranks 0 and {rank}, "
                "not on both"
            )
    return {
        name: _join(f"{archive.name}: {name}", name, [shard[name] for shard in ranks], is_gated)
        for name in ranks[0]
    }


def _join(where: str, name: str, shards: Sequence[StoredTensor], is_gated: bool) -> LazyTensor:
    if len(shards) == 1:
        return shards[0]
    if is_gated and _GATED.search(name):
        return join(where, _gates_and_ups(where, shards), axis=0)
    if _BY_ROWS.search(name):
        return join(where, shards, axis=0)
    if _BY_COLUMNS.search(name):
        return join(where, shards, axis=1)
    if len({(shard.dtype, shard.shape) for shard in shards}) > 1:
        raise SourceError(f"{where} has another shape or dtype on each tensor-parallel rank")
    return _ReplicatedTensor(where, shards)


def _gates_and_ups(where: str, shards: Sequence[StoredTensor]) -> list[LazyTensor]:
    """The gate halves of all ranks, then their up halves."""
    for shard in shards:
        if not shard.shape or shard.shape[0] % 2:
            raise SourceError(f"{where} of shape {list(shard.shape)} has no two halves")
    heights = [shard.shape[0] // 2 for shard in shards]
    return [
        Rows(shard, [(half * height, (half + 1) * height)])
        for half in (0, 1)
        for shard, height in zip(shards, heights, strict=True)
    ]


def _add_stage(
    archive: Archive,
    tensors: dict[str, LazyTensor],
    stage: Mapping[str, LazyTensor],
    first_layer: int,
) -> int:
    """Add a stage's tensors to the model's, numbered from `first_layer`; returns its layers."""
    numbers = set()
    for name, tensor in stage.items():
        if (layer := split_layer(name)) is None:
            tensors.setdefault(name, tensor)  # a tied embedding is on the last stage as well
        else:
            numbers.add(layer[0])
            tensors[f"{LAYERS}{first_layer + layer[0]}.{layer[1]}"] = tensor
    if numbers != set(range(len(numbers))):
        raise SourceError(
            f"{archive.name}: a stage has layers {sorted(numbers)[:8]}, not all from 0 on"
        )
    return len(numbers)
