"""The Hub's family of a NeMo GPT, and the settings that no family can hold.

A GPT with LayerNorm and one up projection is a Nemotron, one with RMSNorm and a SwiGLU a Llama; it
is a Qwen2 where only q, k and v have biases, and a Mistral where it attends to a window, or where
its width is not a multiple of its heads, as a Llama's must be. REQUIREMENTS lists the settings that
must have certain values, because the Hub's classes compute only these.

    >>> family_of_settings({"position_embedding_type": "rope", "qk_layernorm": True})
    ArchitectureError: the NeMo config says qk_layernorm: True, but Nemotron norms no q or k
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minitron.conversion.nemo_settings import NemoSettings
from minitron.errors import ArchitectureError, SourceError
from minitron.files.plain_yaml import short_repr
from minitron.model.families import LLAMA, MISTRAL, NEMOTRON, QWEN2
from minitron.model.family import Family

# Classes with GPT in their name that are not plain language models: they have no output layer, a
# memory beside the text, or weights in adapters.
_OTHER_CLASSES = [
    "reward",
    "regression",
    "critic",
    "retro",
    "embedding",
    "adapter",
    "lora",
    "ptuning",
    "prompt",
    "peft",
    "ia3",
    "neva",
]


def _off(value: Any) -> bool:
    return value is None or value is False or value == 0


def _one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value.lower() in values


@dataclass(frozen=True)
class Requirement:
    """A setting with the values that the families hold, and why they hold no other."""

    key: str
    is_met: Callable[[Any], bool]
    reason: str
    default: Any = None  # NeMo's
    families: tuple[Family, ...] = (NEMOTRON, LLAMA, MISTRAL, QWEN2)  # those that require it


_OTHER_SCALING = "its kind of scaling is not {family}'s linear one"
# Defaults: `self.cfg.get(key, value)` in NeMo's megatron_gpt_model.py and megatron_base_model.py.
REQUIREMENTS = (
    Requirement(
        "position_embedding_type",
        _one_of("rope"),
        "{family}'s positions are rotary",
        "learned_absolute",
    ),
    Requirement(
        "normalization",
        _one_of("layernorm", "layernorm1p"),
        "{family}'s norm is LayerNorm with a bias",
        "layernorm",
        families=(NEMOTRON,),
    ),
    Requirement(
        "transformer_block_type",
        _one_of("pre_ln"),
        "{family} norms before attention and MLP, and only there",
        "pre_ln",
    ),
    Requirement(
        "attention_type", _one_of("multihead"), "{family} attends with several heads", "multihead"
    ),
    Requirement(
        "normalize_attention_scores", lambda value: value is True, "{family} scales scores", True
    ),
    Requirement(
        "rotary_interleaved", _off, "{family} rotates the halves of a head, not neighbours"
    ),
    Requirement("rope_scaling", _off, _OTHER_SCALING),
    Requirement("scale_positional_embedding", _off, _OTHER_SCALING),
    Requirement(
        "gated_linear_unit",
        _off,
        "{family}'s MLP has one up projection and no gate",
        families=(NEMOTRON,),
    ),
    # In NeMo's own, older mixture of experts, 1 means none.
    Requirement("num_moe_experts", lambda value: _off(value) or value == 1, "{family} has one MLP"),
    Requirement(
        "window_size",
        lambda value: attention_window(value) is None,
        "{family} attends to the whole context",
        families=(NEMOTRON, LLAMA, QWEN2),
    ),
    Requirement("sliding_window", _off, "{family} attends to the whole context"),
    Requirement("multi_latent_attention", _off, "{family} keeps keys and values of full width"),
    Requirement("qk_layernorm", _off, "{family} norms no q or k"),
    Requirement("attention_output_gate", _off, "{family} gates no attention"),
    Requirement("softmax_scale", _off, "{family} scales scores by the root of head_dim"),
    Requirement("apply_embedding_scaling", _off, "{family} scales no embeddings"),
    Requirement("headscale", _off, "{family} scales no heads"),
    Requirement("parallel_attention", _off, "{family}'s MLP comes after attention"),
    Requirement(
        "apply_residual_connection_post_layernorm", _off, "{family}'s residual skips the norms"
    ),
    Requirement("hyena", _off, "{family} has attention"),
    Requirement("onnx_safe", _off, "it replaces the activation that the config names"),
    Requirement(
        "name",  # of the layer specification, get_specs in megatron_gpt_model.py
        lambda value: value not in ("megatron_falcon_gpt", "te_gpt_hyena"),
        "its layers are not those of {family}",
        "",
    ),
)


def family_of_settings(settings: NemoSettings) -> Family:
    """The family whose class computes what a NeMo model with these settings does.

    Raises SourceError for what is not a GPT, ArchitectureError for a GPT that no family holds.
    """
    target = settings.get("target")
    if target is not None and not _is_language_model(target):
        raise SourceError(
            f"the NeMo config is of {short_repr(target)}: only GPT language models can be converted"
        )
    family = _nearest_family(settings)
    for requirement in REQUIREMENTS:
        if family not in requirement.families:
            continue
        is_absent = settings.get(requirement.key) is None
        value = requirement.default if is_absent else settings[requirement.key]
        if not requirement.is_met(value):
            default = " (NeMo's default)" if is_absent else ""
            reason = requirement.reason.format(family=family.name)
            raise ArchitectureError(
                f"the NeMo config says {requirement.key}: {short_repr(value)}{default}, "
                f"but {reason}: no Hugging Face {family.name} can hold this model"
            )
    return family


def is_gated(settings: NemoSettings) -> bool:
    """Whether the MLP has a gate beside its up projection."""
    activation = settings.get("activation")
    is_glu = isinstance(activation, str) and activation.lower().endswith("glu")
    return is_glu or settings.get("gated_linear_unit") is True


def _nearest_family(settings: NemoSettings) -> Family:
    """The only family that these settings may be of; other settings may still exclude it."""
    if not is_gated(settings) or str(settings.get("normalization")).lower() != "rmsnorm":
        return NEMOTRON
    if settings.get("bias") is not False:  # NeMo's default is a bias
        return LLAMA
    if settings.get("qkv_bias") is True:
        return QWEN2
    is_windowed = attention_window(settings.get("window_size")) is not None
    return MISTRAL if is_windowed or _is_no_llama(settings) else LLAMA


def attention_window(value: Any) -> int | None:
    """How many tokens each token attends to, itself included; None for all before it.

    NeMo's `window_size` is a pair: how many tokens to the left and to the right of itself a token
    attends to, -1 for all. Raises ArchitectureError for any other value.
    """
    if _off(value):
        return None
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) == 2 and all(type(number) is int for number in numbers):
        left, right = numbers
        if right in (0, -1) and left == -1:
            return None
        if right == 0 and 0 <= left < 2**31 - 1:
            return int(left) + 1
    raise ArchitectureError(
        f"the NeMo config says window_size: {short_repr(value)}; it must be a list of the tokens "
        "before each one (-1: all) and 0"
    )


def _is_no_llama(settings: NemoSettings) -> bool:
    """Whether the width is not a multiple of the heads; values of other types are refused later."""
    hidden, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if not (type(hidden) is int and type(heads) is int and heads > 0):
        return False
    return LLAMA.hidden_divides_by_heads and hidden % heads != 0


def _is_language_model(target: Any) -> bool:
    """Whether the class that wrote the archive is a GPT with an output layer."""
    name = target.rpartition(".")[2].lower() if isinstance(target, str) else ""
    return "gpt" in name and not any(other in name for other in _OTHER_CLASSES)
