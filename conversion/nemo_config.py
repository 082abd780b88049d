"""NeMo's settings as the Hub's config.json of a Nemotron, or of a Llama, Mistral or Qwen2.

Knows what NeMo takes each setting for and how its few that are not one to one are read: the
activation, the biases, the stretched positions. Reads no file and no tensor, and refuses whatever
would compute something else under the Hub's class.

    config = hub_config(settings, vocab_size=256000, dtype=torch.bfloat16)
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from minitron.conversion.nemo_refusals import family_of_gpt, is_gated, window_of
from minitron.conversion.nemo_table import (
    ACTIVATIONS,
    SETTINGS,
    TANH_GELU,
    ZERO_CENTERED,
    Said,
    Setting,
)
from minitron.errors import ArchitectureError
from minitron.files.dtypes import name_of
from minitron.files.plain_yaml import shown
from minitron.model.families import MISTRAL, NEMOTRON, QWEN2, Family

_SWIGLU = ("swiglu", "fast-swiglu")
SPECIAL: Mapping[str, int] = {"bos": 2, "eos": 3, "pad": 0}  # of all the family's tokenizers


def hub_config(
    settings: Said,
    *,
    vocab_size: int,
    dtype: torch.dtype | None = None,
    special: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The config.json of the Nemotron, Llama, Mistral or Qwen2 that NeMo's settings describe.

    `vocab_size` is the rows of the embedding, `dtype` that of the tensors, `special` the ids of the
    tokenizer's bos, eos and pad: the settings know none of them. Without a tokenizer the ids are
    Nemotron's, or none. Raises SourceError for another kind of model, ArchitectureError for a GPT
    that none of them can hold and for values of the wrong type.
    """
    family = family_of_gpt(settings)
    said = dict(settings)
    for setting in SETTINGS:
        said[setting.nemo] = _value(said, setting)
    hub = {setting.hub: said[setting.nemo] for setting in SETTINGS}
    rope: dict[str, Any] = {"rope_type": "default"}
    if (factor := _interpolation(said)) > 1:
        rope = {"rope_type": "linear", "factor": factor}
    hub[family.norm.epsilon] = hub.pop("norm_eps")
    flat = {"rope_theta": hub["rope_theta"], **_partial_rotation(hub, family)}
    bias = _bias(said, family)
    ids = special or (SPECIAL if family is NEMOTRON else {})
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **hub,
        "rope_parameters": {**rope, **flat},
        "hidden_act": _gate(said, family) if is_gated(said) else _hidden_act(said, bias),
        **_switches(said, family, bias),
        "vocab_size": vocab_size,
        **{f"{role}_token_id": ids.get(role) for role in SPECIAL},
        "use_cache": True,
        **({} if dtype is None else {"dtype": name_of(dtype)}),
    }


def _switches(said: Said, family: Family, bias: bool) -> dict[str, Any]:
    """What one family has a key for, and another not."""
    if family is MISTRAL:
        return {"sliding_window": window_of(said.get("window_size"))}
    return dict.fromkeys(family.bias_flags, bias)


def is_zero_centered(settings: Said) -> bool:
    """Whether norm weights are stored less one, as the Hub's Nemotron stores them, no Llama."""
    normalization = str(settings.get("normalization")).lower()
    return normalization == ZERO_CENTERED or _flag(settings, "layernorm_zero_centered_gamma")


def _value(said: Said, setting: Setting) -> Any:
    """A setting's value, or what its absence means to NeMo. Raises ArchitectureError."""
    value = said.get(setting.nemo)
    if value is None:
        if setting.nemo_absent is None:
            raise ArchitectureError(f"the NeMo config has no {setting.nemo}: it is no GPT's")
        value = setting.nemo_absent(said)
    if setting.kind is bool:
        fits = isinstance(value, bool)
    elif isinstance(value, bool):
        fits = False
    elif setting.kind is int:
        fits = isinstance(value, int) and 0 < value < 2**31
    else:
        fits = isinstance(value, int | float) and 0 <= value < float("inf")
        fits = fits and setting.least <= value <= setting.most
    if not fits:
        within = f", {setting.least:g} to {setting.most:g}" if setting.most < math.inf else ""
        number = f"a number{within}"
        kinds = {bool: "true or false", int: "a whole number above 0", float: number}
        raise ArchitectureError(
            f"the NeMo config says {setting.nemo}: {shown(value)}; it must be {kinds[setting.kind]}"
        )
    return setting.kind(value)


def _hidden_act(said: Said, bias: bool) -> str:
    activation = said.get("activation")
    if activation is None:
        activation = "gelu"
    if _flag(said, "openai_gelu"):
        return TANH_GELU
    # Megatron's fused kernel (bias_gelu_impl) is the tanh approximation; it needs a bias to fuse.
    if activation == "gelu" and bias and _flag(said, "bias_activation_fusion", absent=True):
        return TANH_GELU
    for known in ACTIVATIONS:
        if activation == known.nemo:
            return known.hub
    names = ", ".join(known.nemo for known in ACTIVATIONS)
    raise ArchitectureError(
        f"the NeMo config says activation: {shown(activation)}; known are {names}"
    )


def _gate(said: Said, family: Family) -> str:
    """The activation of a gated MLP; only SwiGLU is computed alike on both sides."""
    activation = said.get("activation")
    if family.norm.kind == "layer":
        raise ArchitectureError(
            f"the NeMo config says activation: {shown(activation)}, a gated MLP, but Nemotron's "
            f"has one up projection and no gate, and Llama's norm is RMSNorm, not "
            f"{shown(said.get('normalization'))}: no Hugging Face Nemotron can hold this model, "
            "nor any Llama"
        )
    is_swiglu = isinstance(activation, str) and activation.lower() in _SWIGLU
    if not is_swiglu and not (activation == "silu" and _flag(said, "gated_linear_unit")):
        raise ArchitectureError(
            f"the NeMo config says activation: {shown(activation)}; of gated ones "
            f"{' and '.join(_SWIGLU)} are known for {family.name}"
        )
    return "silu"


def _partial_rotation(hub: dict[str, Any], family: Family) -> dict[str, Any]:
    """The part of a head that is rotated, where the family has a word for it; else it is all."""
    part = hub["partial_rotary_factor"]
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
    del hub["partial_rotary_factor"]
    return {}


def _bias(said: Said, family: Family) -> bool:
    """Whether every linear layer has a bias; the Hub's one flag of attention covers q, k, v, o."""
    bias = _flag(said, "bias", absent=True)
    if not bias and _flag(said, "qkv_bias") and family is not QWEN2:
        raise ArchitectureError(
            "the NeMo config says qkv_bias: True and bias: False, but attention_bias of Hugging "
            "Face Nemotron gives a bias to q, k, v and o or to none"
        )
    return bias


def _interpolation(said: Said) -> float:
    """By how much positions are stretched; 1 is not at all."""
    factor = said.get("seq_len_interpolation_factor")
    if factor is None:
        return 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < 2**31:
        raise ArchitectureError(
            f"the NeMo config says seq_len_interpolation_factor: {shown(factor)}; "
            "it must be a number of at least 1"
        )
    return float(factor)


def _flag(said: Said, key: str, *, absent: bool = False) -> bool:
    value = said.get(key)
    if value is None:
        return absent
    if not isinstance(value, bool):
        raise ArchitectureError(
            f"the NeMo config says {key}: {shown(value)}; it must be true or false"
        )
    return value
