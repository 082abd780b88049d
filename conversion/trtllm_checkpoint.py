"""Writes a TensorRT-LLM checkpoint: config.json and one safetensors file a rank.

Knows how TensorRT-LLM's GPT model names, joins and splits the tensors of a Nemotron (sources:
tensorrt_llm/models/gpt, and modelopt's exporter for it). Builds no engine. TensorRT-LLM has its own
converters for the other families.

    write_trtllm(Path("OUT.partial"), config, tensors, tp=2, pp=1, dtype=torch.bfloat16)
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from minitron.conversion.megatron_names import check_shapes
from minitron.errors import TargetError
from minitron.files.dtypes import is_finite, name_of
from minitron.files.lazy_tensor import (
    Cast,
    Columns,
    LazyTensor,
    Rows,
    Shifted,
    Stacked,
    Zeros,
)
from minitron.files.safetensors_file import TensorSpec, write_safetensors
from minitron.files.tensor_stream import pieces_of
from minitron.model.architecture import Architecture
from minitron.model.config_json import resized_config

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def write_trtllm(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    *,
    tp: int,
    pp: int,
    dtype: torch.dtype,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Write the checkpoint of `tp * pp` ranks into `folder`, a few megabytes in memory at a time.

    `config` and the names of `tensors` are the Hub's; `progress` is called with the number of bytes
    after each write. Engines compute in float16 and bfloat16; float32 is for comparisons.

    Pass tensors in their stored dtype, so that a norm's 1 is added before the only cast. Raises,
    before anything is written: TargetError where TensorRT-LLM's GPT cannot hold the model or split
    it so, SourceError where a tensor is missing or has another shape; and while tensors are read,
    TargetError for values that `dtype` cannot hold.
    """
    architecture = Architecture.from_config(config)
    modern = resized_config(config, architecture)
    _check_target(architecture, tp, pp, dtype)
    trtllm_config = _trtllm_config(modern, architecture, tp, pp, dtype)
    check_shapes(tensors, architecture.shapes())
    weights = _Weights(architecture, tensors, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(tp * pp):
        rank = _Rank(number % tp, tp, number // tp, pp)
        parts = dict(_rank_tensors(weights, rank))
        specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in parts.items()}
        pieces = ((n, t.read(*run)) for n, t in parts.items() for run in pieces_of(t))
        write_safetensors(folder / f"rank{number}.safetensors", specs, pieces, progress)
    (folder / "config.json").write_text(
        json.dumps(trtllm_config, indent=4) + "\n", encoding="utf-8"
    )


@dataclass(frozen=True)
class _Rank:
    """One process of the engine: its tensor-parallel rank and its pipeline stage."""

    tp_rank: int
    tp: int
    stage: int
    pp: int

    def run(self, size: int) -> tuple[int, int]:
        """This rank's range of an axis that is split evenly."""
        return self.tp_rank * size // self.tp, (self.tp_rank + 1) * size // self.tp

    def kv_run(self, heads: int, head_dim: int) -> tuple[int, int]:
        """The rows of this rank's KV heads; with more ranks than heads, several ranks hold one."""
        first, last = self.run(heads)
        return first * head_dim, max(last, first + 1) * head_dim


class _CheckedCast(Cast):
    """A tensor in another dtype. Reading raises TargetError for values that it cannot hold."""

    def __init__(self, tensor: LazyTensor, dtype: torch.dtype, name: str) -> None:
        super().__init__(tensor, dtype)
        self.name = name

    def _read(self, start: int, stop: int) -> torch.Tensor:
        rows = super()._read(start, stop)
        if not is_finite(rows):
            dtype = name_of(self.dtype)
            raise TargetError(
                f"{self.name} holds values that are not finite in {dtype}: choose another dtype"
            )
        return rows


@dataclass(frozen=True)
class _Weights:
    """The source's tensors in the target's dtype."""

    architecture: Architecture
    tensors: Mapping[str, LazyTensor]
    dtype: torch.dtype

    @property
    def kinds(self) -> tuple[str, ...]:
        """What every linear layer has: TensorRT-LLM has one flag for all biases."""
        has_bias = {"attention_bias", "mlp_bias"} & self.architecture.flags
        return ("weight", "bias") if has_bias else ("weight",)

    def linear(self, part: str, kind: str, layer: int | None = None) -> LazyTensor:
        """A weight or bias; zeros for a bias that the source does not have."""
        family = self.architecture.family
        name = family.tensor(part, kind, layer)
        if name not in self.tensors:
            return Zeros(self.dtype, self.tensors[family.tensor(part, layer=layer)].shape[:1])
        return self._cast(name)

    def norm(self, part: str, layer: int | None = None) -> Iterator[tuple[str, LazyTensor]]:
        """A zero-centered norm as a plain LayerNorm, whose weight is the gain itself."""
        family = self.architecture.family
        weight = family.tensor(part, layer=layer)
        gain = Shifted(self.tensors[weight], 1.0, self.dtype)
        yield "weight", _CheckedCast(gain, self.dtype, weight)
        yield "bias", self._cast(family.tensor(part, "bias", layer))

    def _cast(self, name: str) -> LazyTensor:
        tensor = self.tensors[name]
        return tensor if tensor.dtype == self.dtype else _CheckedCast(tensor, self.dtype, name)


def _rank_tensors(weights: _Weights, rank: _Rank) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors of one rank's file; layers count from 0 in every stage."""
    head = "embedding" if weights.architecture.tie_word_embeddings else "head"
    layers = weights.architecture.num_hidden_layers // rank.pp
    if rank.stage == 0:
        yield "transformer.vocab_embedding.weight", _vocabulary(weights, "embedding", rank)
    for local in range(layers):
        for name, tensor in _layer_tensors(weights, rank.stage * layers + local, rank):
            yield f"transformer.layers.{local}.{name}", tensor
    if rank.stage == rank.pp - 1:
        for kind, tensor in weights.norm("final_norm"):
            yield f"transformer.ln_f.{kind}", tensor
        yield "lm_head.weight", _vocabulary(weights, head, rank)


def _layer_tensors(weights: _Weights, layer: int, rank: _Rank) -> Iterator[tuple[str, LazyTensor]]:
    """A rank's part of one layer, by the names inside the layer."""
    sizes = weights.architecture
    inner = rank.run(sizes.num_attention_heads * sizes.head_dim)
    kv = rank.kv_run(sizes.num_key_value_heads, sizes.head_dim)
    ffn = rank.run(sizes.intermediate_size)
    for kind in weights.kinds:
        qkv = [
            Rows(weights.linear(part, kind, layer), [run])
            for part, run in (("q", inner), ("k", kv), ("v", kv))
        ]
        yield f"attention.qkv.{kind}", Stacked(qkv)
        output = weights.linear("o", kind, layer)
        down = weights.linear("down", kind, layer)
        # The ranks' outputs are summed; then every rank adds the bias, which is not split.
        split = kind == "weight"
        yield f"attention.dense.{kind}", Columns(output, *inner) if split else output
        yield f"mlp.fc.{kind}", Rows(weights.linear("up", kind, layer), [ffn])
        yield f"mlp.proj.{kind}", Columns(down, *ffn) if split else down
    for name, norm in (("input_layernorm", "attention_norm"), ("post_layernorm", "mlp_norm")):
        for kind, tensor in weights.norm(norm, layer):
            yield f"{name}.{kind}", tensor


def _vocabulary(weights: _Weights, part: str, rank: _Rank) -> LazyTensor:
    """This rank's rows of an embedding, padded with zeros to a multiple of the ranks."""
    rows = weights.linear(part, "weight")
    missing = -rows.shape[0] % rank.tp
    padded = Stacked([rows, Zeros(rows.dtype, (missing, *rows.shape[1:]))])
    return Rows(padded, [rank.run(padded.shape[0])])


def _check_target(architecture: Architecture, tp: int, pp: int, dtype: torch.dtype) -> None:
    """Raise TargetError where the format cannot hold the model, or it cannot be split so."""
    if "trtllm" not in architecture.family.formats:
        known = architecture.family.trtllm_example
        example = f"{known} example" if known else "example of the family, where it has one"
        raise TargetError(
            f"model_type is {architecture.model_type}: only nemotron is written for TensorRT-LLM; "
            f"convert others with convert_checkpoint.py of TensorRT-LLM's {example}"
        )
    if dtype not in DTYPES:
        names = ", ".join(name_of(known) for known in DTYPES)
        name = name_of(dtype)
        raise TargetError(f"dtype is {name}: TensorRT-LLM's GPT takes {names}; choose one of them")
    for option, ranks in (("tp", tp), ("pp", pp)):
        if ranks < 1:
            raise TargetError(f"{option} is {ranks}: it must be at least 1")
    for option, ranks, key in (
        ("tp", tp, "num_attention_heads"),
        ("tp", tp, "intermediate_size"),
        ("pp", pp, "num_hidden_layers"),
    ):
        if (size := getattr(architecture, key)) % ranks:
            raise TargetError(f"{option} is {ranks}: choose one that divides {key}, {size}")
    kv_heads = architecture.num_key_value_heads
    if kv_heads % tp and tp % kv_heads:
        raise TargetError(
            f"tp is {tp}: choose a divisor or a multiple of num_key_value_heads, {kv_heads}"
        )


def _trtllm_config(
    config: Mapping[str, Any], architecture: Architecture, tp: int, pp: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The checkpoint's config.json. Raises TargetError for what it has no key for."""
    if (activation := config.get("hidden_act", "relu2")) != "relu2":
        raise TargetError(f"hidden_act is {activation!r}: only Nemotron's relu2 can be written")
    rotary = config["rope_parameters"]
    scaling = _rotary_scaling(rotary)
    return {
        "producer": {"name": "minitron", "version": version("minitron")},
        "architecture": architecture.family.architecture,
        "dtype": name_of(dtype),
        "logits_dtype": "float32",
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_attention_heads": architecture.num_attention_heads,
        "num_key_value_heads": architecture.num_key_value_heads,
        "hidden_size": architecture.hidden_size,
        "norm_epsilon": config.get(architecture.family.norm.epsilon, 1e-5),
        "vocab_size": architecture.vocab_size,  # without the padding
        "max_position_embeddings": config.get("max_position_embeddings", 4096),
        "hidden_act": "squared-relu",
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "head_size": architecture.head_dim,
        "intermediate_size": architecture.intermediate_size,
        "position_embedding_type": "rope_gpt_neox",
        "share_embedding_table": False,  # the last stage has its own copy of a tied embedding
        "residual_mlp": False,
        "bias": bool({"attention_bias", "mlp_bias"} & architecture.flags),
        "rotary_pct": rotary["partial_rotary_factor"],
        "rank": 0,
        "decoder": "gpt",
        "rmsnorm": architecture.family.norm.kind == "rms",
        "lm_head_bias": False,
        "rotary_base": float(rotary["rope_theta"]),
        **({"rotary_scaling": scaling} if scaling else {}),
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }


def _rotary_scaling(rotary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Linear interpolation: the only scaling that engine and transformers compute alike."""
    kind = rotary["rope_type"]
    if kind == "default":
        return None
    if kind != "linear":
        raise TargetError(
            f"rope_type is {kind!r}: TensorRT-LLM's GPT takes default and linear; retrain with "
            "one of them or run the model elsewhere"
        )
    return {"type": "linear", "factor": float(rotary["factor"])}
