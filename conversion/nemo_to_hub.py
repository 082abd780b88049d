"""NeMo's settings as the Hub's config.json of a Nemotron, or of a Llama, Mistral or Qwen2.

Most settings are one to one (`nemo_settings.SETTINGS`); activation, biases and scaled positions are
converted here. Reads no file and no tensor, and refuses whatever the Hub's class would compute in
another way.

    config = config_from_nemo(settings, vocab_size=256000, dtype=torch.bfloat16)
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from minitron.conversion.nemo_family import attention_window, family_of_settings, is_gated
from minitron.conversion.nemo_settings import (
    ACTIVATIONS,
    SETTINGS,
    TANH_GELU,
    ZERO_CENTERED,
    NemoSettings,
    Setting,
    flag,
    setting_error,
)
from minitron.errors import ArchitectureError
from minitron.files.dtypes import name_of
from minitron.files.plain_yaml import short_repr
from minitron.model.families import MISTRAL, NEMOTRON, QWEN2
from minitron.model.family import Family

_SWIGLU = ("swiglu", "fast-swiglu")
_NEMOTRON_IDS: Mapping[str, int] = {"bos": 2, "eos": 3, "pad": 0}  # of all its tokenizers


def config_from_nemo(
    settings: NemoSettings,
    *,
    vocab_size: int,
    dtype: torch.dtype | None = None,
    special: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The config.json of the Nemotron, Llama, Mistral or Qwen2 that NeMo's settings describe.

    The settings do not have what the arguments give: `vocab_size`, the rows of the embedding;
    `dtype`, that of the tensors; `special`, the ids of the tokenizer's bos, eos and pad. Without
    `special` the ids are Nemotron's, or none. Raises SourceError for another kind of model,
    ArchitectureError for a GPT that no family holds and for values of the wrong type.
    """
    family = family_of_settings(settings)
    settings = _with_defaults(settings)
    hub = {setting.hub: settings[setting.nemo] for setting in SETTINGS}
    hub[family.norm.epsilon] = hub.pop("norm_eps")
    scaling = _scaling(settings)
    partial = _partial_rotation(hub["partial_rotary_factor"], family)
    if not partial:
        del hub["partial_rotary_factor"]
    bias = _has_bias(settings, family)
    hidden_act = _gate(settings, family) if is_gated(settings) else _hidden_act(settings, bias)
    ids = special or (_NEMOTRON_IDS if family is NEMOTRON else {})
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **hub,
        "rope_parameters": {**scaling, "rope_theta": hub["rope_theta"], **partial},
        "hidden_act": hidden_act,
        **_own_keys(settings, family, bias),
        "vocab_size": vocab_size,
        **{f"{role}_token_id": ids.get(role) for role in _NEMOTRON_IDS},
        "use_cache": True,
        **({} if dtype is None else {"dtype": name_of(dtype)}),
    }


def is_zero_centered(settings: NemoSettings) -> bool:
    """Whether norm weights are the gain minus one."""
    normalization = str(settings.get("normalization")).lower()
    return normalization == ZERO_CENTERED or flag(settings, "layernorm_zero_centered_gamma")


def _with_defaults(settings: NemoSettings) -> NemoSettings:
    """The settings with NeMo's defaults for absent ones. Raises ArchitectureError."""
    complete = dict(settings)
    for setting in SETTINGS:
        complete[setting.nemo] = _value(complete, setting)
    return complete


def _value(settings: NemoSettings, setting: Setting) -> Any:
    value, default = settings.get(setting.nemo), setting.nemo_default
    if value is None:
        if default is None:
            raise ArchitectureError(f"the NeMo config has no {setting.nemo}: it is not a GPT's")
        value = default(settings) if callable(default) else default
    if not _is_valid(value, setting):
        within = f", {setting.least:g} to {setting.most:g}" if setting.most < math.inf else ""
        kinds = {bool: "true or false", int: "a whole number above 0", float: f"a number{within}"}
        raise setting_error(setting.nemo, value, f"it must be {kinds[setting.kind]}")
    return setting.kind(value)


def _is_valid(value: Any, setting: Setting) -> bool:
    if setting.kind is bool or isinstance(value, bool):
        return setting.kind is bool and isinstance(value, bool)
    if setting.kind is int:
        return isinstance(value, int) and 0 < value < 2**31
    is_number = isinstance(value, int | float) and 0 <= value < math.inf
    return is_number and setting.least <= value <= setting.most


def _own_keys(settings: NemoSettings, family: Family, bias: bool) -> dict[str, Any]:
    """The config keys that not every family has."""
    if family is MISTRAL:
        return {"sliding_window": attention_window(settings.get("window_size"))}
    return dict.fromkeys(family.bias_flags, bias)


def _hidden_act(settings: NemoSettings, bias: bool) -> str:
    """The activation of an MLP without a gate."""
    activation = settings.get("activation")
    if activation is None:
        activation = "gelu"
    if flag(settings, "openai_gelu"):
        return TANH_GELU
    # Megatron's fused kernel (bias_gelu_impl) is the tanh approximation; it needs a bias to fuse.
    if activation == "gelu" and bias and flag(settings, "bias_activation_fusion", default=True):
        return TANH_GELU
    for known in ACTIVATIONS:
        if activation == known.nemo:
            return known.hub
    names = ", ".join(known.nemo for known in ACTIVATIONS)
    raise setting_error("activation", activation, f"known are {names}")


def _gate(settings: NemoSettings, family: Family) -> str:
    """The activation of a gated MLP; only SwiGLU is computed alike on both sides."""
    activation = settings.get("activation")
    if family.norm.kind == "layer":
        raise ArchitectureError(
            f"the NeMo config says activation: {short_repr(activation)}, a gated MLP, but "
            "Nemotron's has one up projection and no gate, and Llama's norm is RMSNorm, not "
            f"{short_repr(settings.get('normalization'))}: no Hugging Face Nemotron can hold this "
            "model, nor any Llama"
        )
    is_swiglu = isinstance(activation, str) and activation.lower() in _SWIGLU
    if not is_swiglu and not (activation == "silu" and flag(settings, "gated_linear_unit")):
        names = " and ".join(_SWIGLU)
        raise setting_error(
            "activation", activation, f"of gated ones {names} are known for {family.name}"
        )
    return "silu"


def _partial_rotation(part: float, family: Family) -> dict[str, float]:
    """The part of a head that is rotated, for a family that has a config key for it."""
    if not 0 < part <= 1:
        raise ArchitectureError(
            f"the NeMo config says rotary_percentage: {part}; it must be above 0 and at most 1"
        )
    if family.rotary.partial is not None:
        return {"partial_rotary_factor": part}
    if part != 1:
        raise ArchitectureError(
            f"the NeMo config says rotary_percentage: {part}, but {family.name} rotates whole "
            f"heads: no Hugging Face {family.name} can hold this model"
        )
    return {}


def _has_bias(settings: NemoSettings, family: Family) -> bool:
    """Whether every linear layer has a bias; the Hub's one flag of attention covers q, k, v, o."""
    bias = flag(settings, "bias", default=True)
    if not bias and flag(settings, "qkv_bias") and family is not QWEN2:
        raise ArchitectureError(
            "the NeMo config says qkv_bias: True and bias: False, but attention_bias of Hugging "
            "Face Nemotron gives a bias to q, k, v and o or to none"
        )
    return bias


def _scaling(settings: NemoSettings) -> dict[str, Any]:
    """The kind of rope scaling: NeMo has only linear interpolation, by a factor."""
    key = "seq_len_interpolation_factor"
    factor = 1 if settings.get(key) is None else settings[key]
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not is_number or not 1 <= factor < 2**31:
        raise setting_error(key, factor, "it must be a number of at least 1")
    if factor == 1:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": float(factor)}
