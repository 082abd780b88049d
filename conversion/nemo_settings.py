"""A Hub config as NeMo's settings: model_config.yaml of a `.nemo`, or model.yaml of NeMo 2.

Knows what NeMo and Megatron need beside the model's own facts to build it. Reads no file and
no tensor.

    settings = nemo_settings(config, dtype=torch.bfloat16, tokenizer=found)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch

from minitron.conversion.nemo_table import ACTIVATIONS, SETTINGS, TANH_GELU, ZERO_CENTERED
from minitron.conversion.nemo_tokenizer import FoundTokenizer
from minitron.conversion.vocab_padding import vocab_multiple
from minitron.errors import TargetError
from minitron.files.dtypes import name_of
from minitron.files.plain_yaml import shown
from minitron.model.architecture import Architecture, resized_config

_PRECISIONS: Mapping[torch.dtype, str | int] = {
    torch.bfloat16: "bf16",
    torch.float16: 16,
    torch.float32: 32,
}


def nemo_settings(
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    tokenizer: FoundTokenizer | None = None,
    tokenizer_size: int | None = None,
    padded_vocab_size: int | None = None,
    dist_ckpt_format: str = "torch_dist",
    nemo_version: str = "1.23.0",
) -> dict[str, Any]:
    """The model_config.yaml of a `.nemo` with a distributed checkpoint, for one GPU.

    `tokenizer` names its file inside the archive; the archive's writer may set it later. The
    tokenizer's size and the rows of the written embedding are vocab_size unless given. Raises
    ArchitectureError for a config that contradicts itself, TargetError for one that NeMo has no
    settings for.
    """
    facts = _Facts.of(config)
    activations = {known.hub: known.nemo for known in ACTIVATIONS if known.known_to_nemo1}
    activations[TANH_GELU] = "gelu"
    if facts.hidden_act not in activations:
        raise TargetError(
            f"hidden_act is {facts.hidden_act!r}; NeMo 1 knows only {', '.join(activations)}"
        )
    return {
        **_NEMO1,
        **{setting.nemo: facts.values[setting.hub] for setting in SETTINGS},
        "encoder_seq_length": facts.values["max_position_embeddings"],
        "seq_len_interpolation_factor": facts.interpolation_factor,
        "activation": activations[facts.hidden_act],
        "openai_gelu": facts.hidden_act == TANH_GELU,
        "bias": facts.bias,
        "make_vocab_size_divisible_by": facts.vocab_multiple(tokenizer_size, padded_vocab_size),
        "tokenizer": _nemo1_tokenizer(tokenizer or FoundTokenizer("sentencepiece")),
        "precision": _precision(dtype),
        "megatron_amp_O2": dtype != torch.float32,  # else NeMo would make the weights float32
        "dist_ckpt_format": dist_ckpt_format,
        "nemo_version": nemo_version,
    }


def nemo2_settings(
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    tokenizer: FoundTokenizer | None = None,
    tokenizer_size: int | None = None,
    padded_vocab_size: int | None = None,
) -> dict[str, Any]:
    """The context/model.yaml of a NeMo 2 folder; arguments and errors as of `nemo_settings`."""
    facts = _Facts.of(config)
    activations = {known.hub: known.nemo2 for known in ACTIVATIONS}
    if facts.hidden_act not in activations:
        raise TargetError(
            f"hidden_act is {facts.hidden_act!r}; NeMo 2 can be given {', '.join(activations)}"
        )
    precision = _precision(dtype)
    return {
        "_target_": "nemo.collections.llm.gpt.model.nemotron.NemotronModel",
        "config": {
            "_target_": "nemo.collections.llm.gpt.model.nemotron.NemotronConfig",
            **{setting.nemo2: facts.values[setting.hub] for setting in SETTINGS},
            "seq_len_interpolation_factor": facts.interpolation_factor,
            "normalization": "LayerNorm",
            "layernorm_zero_centered_gamma": True,
            "add_bias_linear": facts.bias,
            "add_qkv_bias": False,
            "gated_linear_unit": False,
            "activation_func": {"_target_": activations[facts.hidden_act], "_call_": False},
            "bias_activation_fusion": False,
            "position_embedding_type": "rope",
            "hidden_dropout": 0.0,
            "make_vocab_size_divisible_by": facts.vocab_multiple(tokenizer_size, padded_vocab_size),
            "bf16": precision == "bf16",
            "fp16": precision == 16,
            "params_dtype": {"_target_": str(dtype), "_call_": False},
        },
        "tokenizer": _nemo2_tokenizer(tokenizer or FoundTokenizer("sentencepiece")),
    }


@dataclass(frozen=True)
class _Facts:
    """What a Hub config says, ready for either NeMo."""

    values: Mapping[str, Any]  # by the Hub's names, of every row of the table
    hidden_act: str
    bias: bool
    interpolation_factor: float | None
    vocab_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "_Facts":
        architecture = Architecture.from_config(config)
        if "nemo" not in architecture.family.formats:
            raise TargetError(
                f"model_type is {architecture.model_type!r}: only Nemotron can be written for NeMo"
            )
        layers = tuple(range(architecture.num_hidden_layers))
        modern = resized_config(config, architecture, layers)
        biased = architecture.flags & {"attention_bias", "mlp_bias"}
        if len(biased) == 1:
            raise TargetError(
                f"config.json sets {', '.join(biased)} alone: NeMo has one bias for attention "
                "and MLP"
            )
        values = {
            setting.hub: _default(modern.get(setting.hub), setting.hub_absent)
            for setting in SETTINGS
        }
        if float(values["rope_theta"]).is_integer():
            values["rope_theta"] = int(values["rope_theta"])  # as megatron-core types rotary_base
        return cls(
            values=values,
            hidden_act=modern.get("hidden_act") or "relu2",
            bias=bool(biased),
            interpolation_factor=_linear_factor(modern["rope_parameters"]),
            vocab_size=architecture.vocab_size,
        )

    def vocab_multiple(self, tokenizer_size: int | None, rows: int | None) -> int:
        """As `vocab_multiple` says, with the config's vocab_size for what is not known."""
        return vocab_multiple(tokenizer_size or self.vocab_size, rows or self.vocab_size)


# The rest of a model_config.yaml: what MegatronGPTModel reads without a default, and what would
# otherwise be switched on. Keys and order follow NeMo's megatron_gpt_config.yaml.
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
    "optim": {"name": "fused_adam", "lr": 1e-4},  # megatron_base_model.py asks for its name
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
            f"config.json scales its rotary positions by {shown(rope['rope_type'])}, "
            f"factor {shown(factor)}: NeMo's settings know only linear scaling"
        )
    return float(factor)


def _precision(dtype: torch.dtype) -> str | int:
    if dtype not in _PRECISIONS:
        known = ", ".join(name_of(known) for known in _PRECISIONS)
        raise TargetError(f"dtype is {dtype}; NeMo has a precision for {known}")
    return _PRECISIONS[dtype]


def _default(value: Any, absent: Any) -> Any:
    return absent if value is None else value
