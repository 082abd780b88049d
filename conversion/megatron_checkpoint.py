"""A Megatron checkpoint of any layout as one mapping of canonical names to lazy tensors.

Chooses the reader by the members of the archive, and splits tensors that stack all layers. Only
indexes and headers are read.

    checkpoint = read_checkpoint(open_archive(Path("minitron-8b-base.nemo")), is_gated=False)
    checkpoint.tensors["decoder.layers.31.mlp.linear_fc1.weight"].read(0, 10)
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minitron.conversion.chunked_tensor import ChunkedTensor
from minitron.conversion.megatron_names import EMBEDDING, LAYERS, canonical_name, stacked_name
from minitron.conversion.nemo_archive import Archive
from minitron.conversion.state_dicts import has_state_dicts, read_state_dicts
from minitron.conversion.torch_dist import torch_dist_tensors
from minitron.conversion.zarr_arrays import zarr_tensors
from minitron.errors import SourceError
from minitron.files.lazy_tensor import LazyTensor

_DISTRIBUTED = "metadata.json"
_LARGEST_JSON = 1 << 16
_BACKENDS = {"zarr": zarr_tensors, "torch_dist": torch_dist_tensors}


@dataclass(frozen=True)
class MegatronCheckpoint:
    """The tensors of a GPT model; each keeps the file that it is in, which may be a temporary one.

    A tied model that was saved in pipeline stages may have `output_layer.weight` too, the last
    stage's copy of the embedding.
    """

    layout: str  # zarr, torch_dist, nemo2 torch_dist, state_dict, state_dict TP 2 PP 2, ...
    tensors: Mapping[str, LazyTensor]
    writer: str | None = None  # the format and its version, as the checkpoint states it


def read_checkpoint(archive: Archive, *, is_gated: bool) -> MegatronCheckpoint:
    """The model in the archive. `is_gated`: linear_fc1 is the gate above the up projection.

    Raises SourceError for what is not a Megatron GPT checkpoint, is not complete or is damaged.
    """
    for folder, version in (("model_weights", ""), ("weights", "nemo2 ")):
        if f"{folder}/{_DISTRIBUTED}" in archive:
            return _read_distributed(archive, folder, version)
    if has_state_dicts(archive):
        found = read_state_dicts(archive, is_gated=is_gated)
        return MegatronCheckpoint(found.layout, found.tensors)
    seen = ", ".join(archive.names()[:4]) or "nothing"
    raise SourceError(
        f"{archive.name} holds {seen}: a Megatron GPT checkpoint was expected, which has "
        f"model_weights/{_DISTRIBUTED}, weights/{_DISTRIBUTED}, model_weights.ckpt or one a rank"
    )


def _read_distributed(archive: Archive, folder: str, version: str) -> MegatronCheckpoint:
    name = f"{folder}/{_DISTRIBUTED}"
    try:
        metadata = json.loads(archive.read(name, _LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{archive.name}: {name} is damaged: {error}") from None
    backend = metadata.get("sharded_backend") if isinstance(metadata, dict) else None
    if not isinstance(backend, str) or backend not in _BACKENDS:
        raise SourceError(
            f"{archive.name}: {name} names the sharded_backend {backend!r:.80}; "
            f"{' and '.join(_BACKENDS)} can be read"
        )
    chunked = _BACKENDS[backend](archive, folder)
    tensors: dict[str, LazyTensor] = {}
    for canonical, tensor in _single_layers(chunked):
        if canonical in tensors:
            raise SourceError(f"{archive.name} holds {canonical} twice")
        tensors[canonical] = tensor
    if f"{EMBEDDING}.weight" not in tensors:
        seen = ", ".join(list(chunked)[:3]) or "no tensors"
        raise SourceError(
            f"{archive.name} holds {seen}, but no {EMBEDDING}.weight: it is not a Megatron GPT "
            "checkpoint, or not complete"
        )
    writer = f"{backend} version {metadata.get('sharded_backend_version')!r:.20}"
    return MegatronCheckpoint(f"{version}{backend}", tensors, writer)


def _single_layers(chunked: Mapping[str, ChunkedTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """Tensors by canonical name; one that stacks all layers is split into one a layer."""
    for key, tensor in chunked.items():
        name = canonical_name(key)
        assert name is not None, key  # the readers leave out what is not a weight
        part = stacked_name(name)
        if part is None:
            yield name, tensor.whole()
        else:
            for layer, single in enumerate(tensor.layers()):
                yield f"{LAYERS}{layer}.{part}", single
