"""A Hub config as NeMo's settings: model_config.yaml of a `.nemo`, or model.yaml of NeMo 2.

Adds the settings that NeMo and Megatron need to build a model and the Hub's config does not have.
Reads no file and no tensor.

    settings = nemo1_settings(config, dtype=torch.bfloat16, tokenizer=found)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch

from minitron.conversion.nemo_settings import ACTIVATIONS, SETTINGS, TANH_GELU, ZERO_CENTERED
from minitron.conversion.nemo_tokenizer import FoundTokenizer
from minitron.errors import TargetError
from minitron.files.dtypes import name_of
from minitron.files.plain_yaml import short_repr
from minitron.model.architecture import Architecture
from minitron.model.config_json import resized_config

_PRECISIONS: Mapping[torch.dtype, str | int] = {
    torch.bfloat16: "bf16",
    torch.float16: 16,
    torch.float32: 32,
}


def nemo1_settings(
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    tokenizer: FoundTokenizer | None = None,
    tokenizer_size: int | None = None,
    dist_ckpt_format: str = "torch_dist",
) -> dict[str, Any]:
    """The model_config.yaml of a `.nemo` with a distributed checkpoint, for one GPU.

    `tokenizer` names its file inside the archive; the archive's writer may set it later.
    `tokenizer_size` is vocab_size unless given. Raises ArchitectureError for a config that
    contradicts itself, TargetError for one that NeMo has no settings for.
    """
    model = _Model.from_config(config)
    activations = {known.hub: known.nemo for known in ACTIVATIONS if known.is_in_nemo1}
    activations[TANH_GELU] = "gelu"
    if model.hidden_act not in activations:
        raise TargetError(
            f"hidden_act is {model.hidden_act!r}; NeMo 1 knows only {', '.join(activations)}"
        )
    return {
        **_NEMO1,
        **{setting.nemo: model.values[setting.hub] for setting in SETTINGS},
        "encoder_seq_length": model.values["max_position_embeddings"],
        "seq_len_interpolation_factor": model.interpolation_factor,
        "activation": activations[model.hidden_act],
        "openai_gelu": model.hidden_act == TANH_GELU,
        "bias": model.bias,
        "make_vocab_size_divisible_by": model.vocab_multiple(tokenizer_size),
        "tokenizer": _nemo1_tokenizer(tokenizer or FoundTokenizer("sentencepiece")),
        "precision": _precision(dtype),
        "megatron_amp_O2": dtype != torch.float32,  # else NeMo would make the weights float32
        "dist_ckpt_format": dist_ckpt_format,
        "nemo_version": "1.23.0",
    }


def nemo2_settings(
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    tokenizer: FoundTokenizer | None = None,
    tokenizer_size: int | None = None,
) -> dict[str, Any]:
    """The context/model.yaml of a NeMo 2 folder; arguments and errors as of `nemo1_settings`."""
    model = _Model.from_config(config)
    activations = {known.hub: known.nemo2 for known in ACTIVATIONS}
    if model.hidden_act not in activations:
        raise TargetError(
            f"hidden_act is {model.hidden_act!r}; NeMo 2 can be given {', '.join(activations)}"
        )
    precision = _precision(dtype)
    return {
        "_target_": "nemo.collections.llm.gpt.model.nemotron.NemotronModel",
        "config": {
            "_target_": "nemo.collections.llm.gpt.model.nemotron.NemotronConfig",
            **{setting.nemo2: model.values[setting.hub] for setting in SETTINGS},
            "seq_len_interpolation_factor": model.interpolation_factor,
            "normalization": "LayerNorm",
            "layernorm_zero_centered_gamma": True,
            "add_bias_linear": model.bias,
            "add_qkv_bias": False,
            "gated_linear_unit": False,
            "activation_func": {"_target_": activations[model.hidden_act], "_call_": False},
            "bias_activation_fusion": False,
            "position_embedding_type": "rope",
            "hidden_dropout": 0.0,
            "make_vocab_size_divisible_by": model.vocab_multiple(tokenizer_size),
            "bf16": precision == "bf16",
            "fp16": precision == 16,
            "params_dtype": {"_target_": str(dtype), "_call_": False},
        },
        "tokenizer": _nemo2_tokenizer(tokenizer or FoundTokenizer("sentencepiece")),
    }


@dataclass(frozen=True)
class _Model:
    """The values of a Hub config that the settings of both NeMos are made of."""

    values: Mapping[str, Any]  # of all SETTINGS, by the Hub's names
    hidden_act: str
    bias: bool
    interpolation_factor: float | None
    vocab_size: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "_Model":
        architecture = Architecture.from_config(config)
        if "nemo" not in architecture.family.formats:
            raise TargetError(
                f"model_type is {architecture.model_type!r}: only Nemotron can be written for NeMo"
            )
        modern = resized_config(config, architecture)
        biased = architecture.flags & {"attention_bias", "mlp_bias"}
        if len(biased) == 1:
            raise TargetError(
                f"config.json sets {', '.join(biased)} alone: NeMo has one bias for attention "
                "and MLP"
            )
        values: dict[str, Any] = {setting.hub: modern.get(setting.hub) for setting in SETTINGS}
        for setting in SETTINGS:
            if values[setting.hub] is None:
                values[setting.hub] = setting.hub_default
        if float(values["rope_theta"]).is_integer():
            values["rope_theta"] = int(values["rope_theta"])  # as megatron-core types rotary_base
        return cls(
            values=values,
            hidden_act=modern.get("hidden_act") or "relu2",
            bias=bool(biased),
            interpolation_factor=_linear_factor(modern["rope_parameters"]),
            vocab_size=architecture.vocab_size,
        )

    def vocab_multiple(self, tokenizer_size: int | None) -> int:
        """A make_vocab_size_divisible_by for an embedding of vocab_size rows."""
        return vocab_multiple(tokenizer_size or self.vocab_size, self.vocab_size)


def padded_vocab_size(tokenizer_size: int, multiple: int = 128) -> int:
    """How many rows Megatron gives the embedding of a tokenizer, on one GPU."""
    return -(-tokenizer_size // multiple) * multiple


def vocab_multiple(tokenizer_size: int, rows: int) -> int:
    """A make_vocab_size_divisible_by with which Megatron pads the tokenizer to these rows.

    NeMo 2's importer halves 128 until it divides the rows: that power of two where it gives these
    rows, else the smallest number that does. Raises TargetError for a tokenizer larger than the
    rows.
    """
    if not 0 < tokenizer_size <= rows:
        raise TargetError(
            f"the tokenizer has {tokenizer_size} tokens and the embedding {rows} rows: "
            "Megatron only ever adds rows"
        )
    halved = 128
    while rows % halved:
        halved //= 2
    if padded_vocab_size(tokenizer_size, halved) == rows:
        return halved
    padding = rows - tokenizer_size
    return next(step for step in range(padding + 1, rows + 1) if rows % step == 0)


# The other settings of a model_config.yaml: those that MegatronGPTModel reads without a default,
# and those that are on by default. Keys and order follow NeMo's megatron_gpt_config.yaml.
_NEMO1: Mapping[str, Any] = {
    "mcore_gpt": True,
    "micro_batch_size": 1,
    "global_batch_size": 8,
    "rampup_batch_size": None,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "use_scaled_init_method": True,
    "hidden_dropout": 0.0,
    "ffn_dropout": 0.0,
    "apply_query_key_layer_scaling": False,
    "normalization": ZERO_CENTERED,
    "do_layer_norm_weight_decay": False,
    "pre_process": True,
    "post_process": True,
    "persist_layer_norm": True,
    "qkv_bias": False,
    "bias_activation_fusion": False,  # Megatron fuses no squared ReLU, and computes gelu by tanh
    "bias_dropout_add_fusion": False,  # Megatron refuses it without a bias
    "masked_softmax_fusion": True,
    "gradient_accumulation_fusion": False,
    "headscale": False,
    "transformer_block_type": "pre_ln",
    "normalize_attention_scores": True,
    "position_embedding_type": "rope",
    "rotary_interleaved": False,
    "attention_type": "multihead",
    "seed": 1234,
    "use_cpu_initialization": False,
    "transformer_engine": True,
    "sequence_parallel": False,
    "apply_rope_fusion": False,
    "fp8": False,
    "optim": {"name": "fused_adam", "lr": 1e-4},  # megatron_base_model.py reads the name
    "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
}


def _nemo1_tokenizer(tokenizer: FoundTokenizer) -> dict[str, Any]:
    return {
        "library": tokenizer.kind,
        "type": tokenizer.hub_id,
        "model": f"nemo:{PurePosixPath(tokenizer.member)}" if tokenizer.member else None,
        "vocab_file": None,
        "merge_file": None,
        "delimiter": None,
        "sentencepiece_legacy": False,
    }


def _nemo2_tokenizer(tokenizer: FoundTokenizer) -> dict[str, Any]:
    package = "nemo.collections.common.tokenizers"
    if tokenizer.kind == "sentencepiece":
        return {
            "_target_": f"{package}.sentencepiece_tokenizer.SentencePieceTokenizer",
            "model_path": tokenizer.member,
        }
    return {
        "_target_": f"{package}.huggingface.auto_tokenizer.AutoTokenizer",
        "pretrained_model_name": tokenizer.member or tokenizer.hub_id,
    }


def _linear_factor(rope: Mapping[str, Any]) -> float | None:
    if rope["rope_type"] == "default":
        return None
    factor = rope.get("factor")
    if rope["rope_type"] != "linear" or not isinstance(factor, int | float):
        raise TargetError(
            f"config.json scales its rotary positions by {short_repr(rope['rope_type'])}, "
            f"factor {short_repr(factor)}: NeMo's settings know only linear scaling"
        )
    return float(factor)


def _precision(dtype: torch.dtype) -> str | int:
    if dtype not in _PRECISIONS:
        known = ", ".join(name_of(known) for known in _PRECISIONS)
        raise TargetError(f"dtype is {dtype}; NeMo has a precision for {known}")
    return _PRECISIONS[dtype]
