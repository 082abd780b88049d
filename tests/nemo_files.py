"""Write NeMo checkpoints of every layout from one dict of Megatron tensors, for tests to read.

The tensors are not split over ranks, and have canonical names: no prefix, one tensor per layer,
norms as modules of their own (`decoder.layers.3.input_layernorm.weight`). `settings` is the content
of model_config.yaml.

    settings = nemo_settings()
    write_nemo_file(path, megatron_tensors(settings), settings, layout="zarr", tensor_parallel=2)
"""

import gzip
import io
import json
import pickle
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

Tensors = Mapping[str, torch.Tensor]
Members = dict[str, bytes]

LAYOUTS = ("zarr", "torch_dist", "torch_dist per layer", "state_dict")
PACKS = ("tar", "tar.gz", "folder", "nemo2")
ROWS = re.compile(r"word_embeddings|output_layer|linear_qkv|linear_fc1")
COLUMNS = re.compile(r"linear_(proj|fc2)\.weight")
LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.*)")
TE_NORMS = {
    r"\.input_layernorm\.": ".self_attention.linear_qkv.layer_norm_",
    r"\.pre_mlp_layernorm\.": ".mlp.linear_fc1.layer_norm_",
}
OLD_MODULES = {
    r"\.self_attention\.linear_qkv\.": ".self_attention.query_key_value.",
    r"\.self_attention\.linear_proj\.": ".self_attention.dense.",
    r"\.mlp\.linear_fc1\.": ".mlp.dense_h_to_4h.",
    r"\.mlp\.linear_fc2\.": ".mlp.dense_4h_to_h.",
    r"\.pre_mlp_layernorm\.": ".post_attention_layernorm.",
}
# The spellings of names in state dicts, as replacements in a canonical name, applied in order.
SPELLINGS: dict[str, dict[str, str]] = {
    "te": TE_NORMS,
    "local": {},
    "legacy": {
        **OLD_MODULES,
        r"^decoder\.": "encoder.",
        r"^": "language_model.",
    },
    "megatron_legacy": {
        **OLD_MODULES,
        r"\.self_attention\.": ".attention.",
        r"^decoder\.": "transformer.",
        r"^": "language_model.",
    },
    "te_legacy": {
        r"\.input_layernorm\.": ".self_attention.layernorm_qkv.layer_norm_",
        r"\.self_attention\.linear_qkv\.": ".self_attention.layernorm_qkv.",
        r"\.self_attention\.linear_proj\.": ".self_attention.proj.",
        r"\.pre_mlp_layernorm\.": ".layernorm_mlp.layer_norm_",
        r"\.mlp\.linear_(fc[12])\.": r".layernorm_mlp.\1_",
        r"^decoder\.": "encoder.",
        r"^": "language_model.",
    },
}


def nemo_settings(**changed: Any) -> dict[str, Any]:
    """A tiny model_config.yaml. All sizes differ, and kv_channels is not hidden / heads."""
    return {
        "num_layers": 4,
        "hidden_size": 42,
        "ffn_hidden_size": 66,
        "num_attention_heads": 6,
        "num_query_groups": 2,
        "kv_channels": 8,
        "max_position_embeddings": 64,
        "encoder_seq_length": 64,
        "init_method_std": 0.0134,
        "normalization": "layernorm1p",
        "layernorm_epsilon": 1e-5,
        "position_embedding_type": "rope",
        "rotary_percentage": 0.5,
        "activation": "squared-relu",
        "bias": False,
        "share_embeddings_and_output_weights": False,
        "make_vocab_size_divisible_by": 8,
        "tokenizer": {"library": "sentencepiece", "model": None},
        "precision": "bf16",
        "mcore_gpt": True,
        **changed,
    }


def megatron_tensors(
    settings: Mapping[str, Any],
    *,
    vocab_size: int = 104,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Random tensors of the model of these settings, not split over ranks."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.2).to(dtype)
        for name, shape in _shapes(settings, vocab_size)
    }


def _shapes(settings: Mapping[str, Any], vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head_dim = settings["hidden_size"], settings["kv_channels"]
    heads = settings["num_attention_heads"]
    groups = settings.get("num_query_groups") or heads
    gated = 2 if "glu" in settings["activation"] or settings.get("gated_linear_unit") else 1
    kinds = ("weight",) if settings["normalization"] == "rmsnorm" else ("weight", "bias")
    matrices = {
        "self_attention.linear_qkv": ((heads + 2 * groups) * head_dim, hidden),
        "self_attention.linear_proj": (hidden, heads * head_dim),
        "mlp.linear_fc1": (gated * settings["ffn_hidden_size"], hidden),
        "mlp.linear_fc2": (hidden, settings["ffn_hidden_size"]),
    }
    yield "embedding.word_embeddings.weight", (vocab_size, hidden)
    for layer in range(settings["num_layers"]):
        for norm in ("input_layernorm", "pre_mlp_layernorm"):
            for kind in kinds:
                yield f"decoder.layers.{layer}.{norm}.{kind}", (hidden,)
        for module, shape in matrices.items():
            yield f"decoder.layers.{layer}.{module}.weight", shape
            if settings["bias"] or (settings.get("qkv_bias") and "qkv" in module):
                yield f"decoder.layers.{layer}.{module}.bias", shape[:1]
    for kind in kinds:
        yield f"decoder.final_layernorm.{kind}", (hidden,)
    if not settings["share_embeddings_and_output_weights"]:
        yield "output_layer.weight", (vocab_size, hidden)


def write_nemo_file(
    path: Path,
    tensors: Tensors,
    settings: Mapping[str, Any],
    *,
    layout: str = "zarr",
    pack: str = "tar",
    files: Mapping[str, bytes] | None = None,
    **options: Any,
) -> Path:
    """Write a checkpoint to `path`. `pack` is its container; `files` are added to it, by name.

    `options` are those of `nemo_members`. A nemo2 pack is a folder with context/ and weights/.
    """
    members = nemo_members(tensors, layout=layout, is_nemo2=pack == "nemo2", **options)
    config = "context/model.yaml" if pack == "nemo2" else "model_config.yaml"
    members[config] = yaml.safe_dump(dict(settings)).encode()
    return pack_members(path, {**members, **(files or {})}, pack)


def nemo_members(
    tensors: Tensors,
    *,
    layout: str,
    is_nemo2: bool = False,
    prefix: str | None = None,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    virtual_pipeline: int = 1,
    spelling: str = "te",
    is_gated: bool = False,
    wrapper: str | None = None,
    is_zip: bool = True,
) -> Members:
    """The files that hold the weights, by name.

    `prefix` is the beginning of every key; `spelling`, `wrapper` (a dict around the state dict) and
    `is_zip` (the newer format of torch.save) are for state dicts, as `virtual_pipeline` is.
    """
    assert layout in LAYOUTS, layout
    prefix = prefix if prefix is not None else ("module." if is_nemo2 else "model.")
    if layout == "state_dict":
        members = {}
        for tp in range(tensor_parallel):
            for pp in range(pipeline_parallel):
                state = _rank_state(
                    tensors,
                    prefix,
                    (tp, tensor_parallel),
                    (pp, pipeline_parallel, virtual_pipeline),
                    spelling,
                    is_gated,
                )
                folder = _rank_folder(tp, tensor_parallel, pp, pipeline_parallel)
                wrapped = {wrapper: state, "epoch": 3} if wrapper else state
                members[f"{folder}model_weights.ckpt"] = torch_bytes(wrapped, is_zip=is_zip)
        return members
    folder = "weights" if is_nemo2 else "model_weights"
    named = _te_names(tensors, prefix)
    if layout != "torch_dist per layer":
        named = _stack_layers(named)
    write = _zarr if layout == "zarr" else _torch_dist
    members = write(named, tensor_parallel, is_gated)
    metadata = {
        "sharded_backend": layout.split()[0],
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    members |= {"metadata.json": json.dumps(metadata).encode(), "common.pt": torch_bytes({})}
    return {f"{folder}/{name}": data for name, data in members.items()}


def pack_members(path: Path, members: Mapping[str, bytes], pack: str) -> Path:
    """Write members as a tar like NeMo's, as a tar.gz, or as a folder."""
    assert pack in PACKS, pack
    if pack in ("folder", "nemo2"):
        for name, data in members.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path
    data = tar_bytes(members)
    path.write_bytes(gzip.compress(data, 1, mtime=0) if pack == "tar.gz" else data)
    return path


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """A tar of a folder named ".", which has an entry for each folder too."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as tar:
        folders = {folder for name in members for folder in Path(name).parents}
        for folder in sorted(folders):
            entry = tarfile.TarInfo("." if str(folder) == "." else f"./{folder}")
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        for name, data in sorted(members.items()):
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def torch_bytes(value: object, *, is_zip: bool = True) -> bytes:
    """The bytes that torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


def element_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _te_names(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + _respell(name, TE_NORMS): tensor for name, tensor in tensors.items()}


def _respell(name: str, replacements: Mapping[str, str]) -> str:
    for pattern, text in replacements.items():
        name = re.sub(pattern, text, name)
    return name


def _stack_layers(named: Tensors) -> dict[str, torch.Tensor]:
    """The tensors of all layers stacked, with the layer as the first axis."""
    kinds: dict[str, list[torch.Tensor]] = {}
    for name, tensor in named.items():
        kinds.setdefault(re.sub(r"layers\.\d+\.", "layers.", name), []).append(tensor)
    return {
        kind: torch.stack(layers) if ".layers." in kind else layers[0]
        for kind, layers in kinds.items()
    }


def _chunk_shape(
    name: str, tensor: torch.Tensor, tensor_parallel: int, is_gated: bool
) -> list[int]:
    """A chunk for each layer and rank; gate and up projection of a rank are separate chunks."""
    is_stacked = ".layers." in name and not re.search(r"layers\.\d", name)
    shape = list(tensor.shape)
    if is_stacked:
        shape[0] = 1
    parts = tensor_parallel * (2 if is_gated and "fc1" in name else 1)
    if "layer_norm" in name:
        parts = 1
    if ROWS.search(name):
        shape[int(is_stacked)] //= parts
    elif COLUMNS.search(name):
        shape[-1] //= parts
    return shape


def _chunks(tensor: torch.Tensor, shape: list[int]) -> Iterator[tuple[tuple[int, ...], Any]]:
    """(position in the grid, chunk)."""
    counts = [size // step for size, step in zip(tensor.shape, shape, strict=True)]
    for position in torch.cartesian_prod(*map(torch.arange, counts)).reshape(-1, len(shape)):
        index = tuple(position.tolist())
        yield (
            index,
            tensor[tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, shape, strict=True))],
        )


def _zarr(named: Tensors, tensor_parallel: int, is_gated: bool) -> Members:
    dtypes = {torch.bfloat16: "bfloat16", torch.float32: "<f4", torch.float16: "<f2"}
    members = {}
    for name, tensor in named.items():
        shape = _chunk_shape(name, tensor, tensor_parallel, is_gated)
        description = {
            "chunks": shape,
            "compressor": None,
            "dtype": dtypes[tensor.dtype],
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": list(tensor.shape),
            "zarr_format": 2,
        }
        members[f"{name}/.zarray"] = json.dumps(description, indent=4).encode()
        for position, chunk in _chunks(tensor, shape):
            members[f"{name}/{'.'.join(map(str, position))}"] = element_bytes(chunk)
        if name.endswith("linear_fc1.weight"):
            state = f"{name.removesuffix('weight')}_extra_state/shard_0_4.pt"
            members[state] = torch_bytes(io.BytesIO())
    return members


def _torch_dist(named: Tensors, tensor_parallel: int, is_gated: bool) -> Members:
    """Two .distcp files, written alternately as by two threads, and the pickled index."""
    files = {"__0_0.distcp": bytearray(), "__0_1.distcp": bytearray()}
    described: dict[str, Any] = {}
    storage: dict[MetadataIndex, Any] = {}

    def store(index: MetadataIndex, data: bytes) -> None:
        name = sorted(files)[len(storage) % 2]
        storage[index] = _StorageInfo(name, len(files[name]), len(data))
        files[name] += data

    for name, tensor in named.items():
        shape = _chunk_shape(name, tensor, tensor_parallel, is_gated)
        boxes = []
        for position, chunk in _chunks(tensor, shape):
            offsets = torch.Size(i * n for i, n in zip(position, shape, strict=True))
            boxes.append(ChunkStorageMetadata(offsets, torch.Size(shape)))
            store(MetadataIndex(name, offsets), torch_bytes(chunk.clone()))
        properties = TensorProperties(dtype=tensor.dtype)
        described[name] = TensorStorageMetadata(properties, tensor.shape, boxes)
        if name.endswith("linear_fc1.weight"):
            state = f"{name.removesuffix('weight')}_extra_state/shard_0_4"
            described[state] = BytesStorageMetadata()
            store(MetadataIndex(state), torch_bytes([io.BytesIO()]))
    index = Metadata(described, storage_data=storage)
    return {".metadata": pickle.dumps(index, protocol=4), **{k: bytes(v) for k, v in files.items()}}


def _rank_folder(tp: int, tensor_parallel: int, pp: int, pipeline_parallel: int) -> str:
    if pipeline_parallel > 1:
        return f"tp_rank_{tp:02d}_pp_rank_{pp:03d}/"
    return f"mp_rank_{tp:02d}/" if tensor_parallel > 1 else ""


def _rank_state(
    tensors: Tensors,
    prefix: str,
    tensor_rank: tuple[int, int],
    stage: tuple[int, int, int],
    spelling: str,
    is_gated: bool,
) -> dict[str, Any]:
    """The state dict of one rank: its shards of its layers, numbered from 0 in each stage."""
    pp, pipeline_parallel, virtual_pipeline = stage
    layers = 1 + max(int(match[1]) for name in tensors if (match := LAYER.match(name)))
    run = layers // (pipeline_parallel * virtual_pipeline)
    stages: list[dict[str, Any]] = [{} for _ in range(virtual_pipeline)]
    for name, tensor in tensors.items():
        at, owner, local = 0, 0, name
        if match := LAYER.match(name):
            at, rest = divmod(int(match[1]), run * pipeline_parallel)
            owner, number = divmod(rest, run)
            local = f"decoder.layers.{number}.{match[2]}"
        elif "word_embeddings" not in name:
            at, owner = virtual_pipeline - 1, pipeline_parallel - 1
        if owner == pp:
            # A later virtual stage has tensors only if the model has layers for it.
            key = prefix + _respell(local, SPELLINGS[spelling])
            stages[at][key] = _shard(name, tensor, tensor_rank, is_gated)
            if "te" in spelling and key.endswith("linear_fc1.weight"):
                stages[at][key.removesuffix("weight") + "_extra_state"] = io.BytesIO(b"fp8")
    stages[0][f"{prefix}rotary_pos_emb.inv_freq"] = torch.ones(4)
    if virtual_pipeline == 1:
        return stages[0]
    return {f"model{at}": state for at, state in enumerate(stages)}


def _shard(
    name: str, tensor: torch.Tensor, rank_of: tuple[int, int], is_gated: bool
) -> torch.Tensor:
    rank, count = rank_of
    if is_gated and "linear_fc1" in name:
        return torch.cat([half.chunk(count)[rank] for half in tensor.chunk(2)])
    if ROWS.search(name):
        return tensor.chunk(count)[rank].clone()
    if COLUMNS.search(name):
        return tensor.chunk(count, dim=1)[rank].clone()
    return tensor.clone()
