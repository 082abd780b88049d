"""Which family of the Hub a NeMo GPT is, and what one may be that none of them holds, and why.

A GPT with LayerNorm and one up projection is a Nemotron, one with RMSNorm and a SwiGLU a Llama; or
a Qwen2 where only q, k and v have biases; or a Mistral where it attends to a window, or its width
is no multiple of its heads, as a Llama's must be. Holds a table of settings with the values that
change nothing. Reads no file and makes no config; `nemo_config` asks it first.

    >>> family_of_gpt({"position_embedding_type": "rope", "qk_layernorm": True})
    ArchitectureError: the NeMo config says qk_layernorm: True, but Nemotron norms no q or k
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minitron.errors import ArchitectureError, SourceError
from minitron.files.plain_yaml import shown
from minitron.model.families import LLAMA, MISTRAL, NEMOTRON, QWEN2, Family

# Language models among the classes with GPT in their name; these others have no output layer, a
# memory beside the text, or weights that lie in adapters.
_OTHER_CLASSES = (
    "Reward Regression Critic Retro Embedding Adapter Lora PTuning Prompt Peft IA3 Neva".lower()
)


def _off(value: Any) -> bool:
    return value is None or value is False or value == 0


def _one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value.lower() in values


@dataclass(frozen=True)
class Refusal:
    """A setting, what NeMo takes it for when it is absent, and the values Nemotron holds."""

    key: str
    holds: Callable[[Any], bool]
    reason: str
    absent: Any = None
    is_of_nemotron: bool = False  # the other families are told from it by these
    but_mistral: bool = False  # which has a setting for it


# Absent values: `self.cfg.get(key, value)` in NeMo's megatron_gpt_model.py, megatron_base_model.py.
REFUSALS = (
    Refusal(
        "position_embedding_type",
        _one_of("rope"),
        "{family}'s positions are rotary",
        "learned_absolute",
    ),
    Refusal(
        "normalization",
        _one_of("layernorm", "layernorm1p"),
        "{family}'s norm is LayerNorm with a bias",
        "layernorm",
        is_of_nemotron=True,
    ),
    Refusal(
        "transformer_block_type",
        _one_of("pre_ln"),
        "{family} norms before attention and MLP, and only there",
        "pre_ln",
    ),
    Refusal(
        "attention_type", _one_of("multihead"), "{family} attends with several heads", "multihead"
    ),
    Refusal(
        "normalize_attention_scores", lambda value: value is True, "{family} scales scores", True
    ),
    Refusal("rotary_interleaved", _off, "{family} rotates the halves of a head, not neighbours"),
    Refusal("rope_scaling", _off, "its kind of scaling is not {family}'s linear one"),
    Refusal("scale_positional_embedding", _off, "its kind of scaling is not {family}'s linear one"),
    Refusal(
        "gated_linear_unit",
        _off,
        "{family}'s MLP has one up projection and no gate",
        is_of_nemotron=True,
    ),
    # 1 is what NeMo's own, older mixture of experts calls none.
    Refusal("num_moe_experts", lambda value: _off(value) or value == 1, "{family} has one MLP"),
    Refusal(
        "window_size",
        lambda value: window_of(value) is None,
        "{family} attends to the whole context",
        but_mistral=True,
    ),
    Refusal("sliding_window", _off, "{family} attends to the whole context"),
    Refusal("multi_latent_attention", _off, "{family} keeps keys and values of full width"),
    Refusal("qk_layernorm", _off, "{family} norms no q or k"),
    Refusal("attention_output_gate", _off, "{family} gates no attention"),
    Refusal("softmax_scale", _off, "{family} scales scores by the root of head_dim"),
    Refusal("apply_embedding_scaling", _off, "{family} takes embeddings as they are"),
    Refusal("headscale", _off, "{family} scales no heads"),
    Refusal("parallel_attention", _off, "{family}'s MLP comes after attention"),
    Refusal(
        "apply_residual_connection_post_layernorm", _off, "{family}'s residual skips the norms"
    ),
    Refusal("hyena", _off, "{family} has attention"),
    Refusal("onnx_safe", _off, "it replaces the activation that the config names"),
    Refusal(
        "name",  # of the layer specification, get_specs in megatron_gpt_model.py
        lambda value: value not in ("megatron_falcon_gpt", "te_gpt_hyena"),
        "its layers are not those of {family}",
        "",
    ),
)


def family_of_gpt(settings: Mapping[str, Any]) -> Family:
    """The family whose class computes what these settings say, where one does.

    Raises SourceError for what is no GPT, ArchitectureError for a GPT that none holds.
    """
    target = settings.get("target")
    if target is not None and not _is_language_model(target):
        raise SourceError(
            f"the NeMo config is of {shown(target)}: only GPT language models can be converted"
        )
    family = _family(settings)
    for refusal in REFUSALS:
        if refusal.is_of_nemotron and family is not NEMOTRON:
            continue
        if refusal.but_mistral and family is MISTRAL:
            continue
        said = settings.get(refusal.key)
        value = refusal.absent if said is None else said
        if not refusal.holds(value):
            default = " (NeMo's default)" if said is None else ""
            reason = refusal.reason.format(family=family.name)
            raise ArchitectureError(
                f"the NeMo config says {refusal.key}: {shown(value)}{default}, "
                f"but {reason}: no Hugging Face {family.name} can hold this model"
            )
    return family


def is_gated(settings: Mapping[str, Any]) -> bool:
    """Whether the MLP has a gate beside its up projection."""
    activation = settings.get("activation")
    named = isinstance(activation, str) and activation.lower().endswith("glu")
    return named or settings.get("gated_linear_unit") is True


def _family(settings: Mapping[str, Any]) -> Family:
    if not is_gated(settings) or str(settings.get("normalization")).lower() != "rmsnorm":
        return NEMOTRON
    if settings.get("bias") is not False:  # NeMo's default is a bias
        return LLAMA
    if settings.get("qkv_bias") is True:
        return QWEN2
    is_windowed = window_of(settings.get("window_size")) is not None
    return MISTRAL if is_windowed or _is_no_llama(settings) else LLAMA


def window_of(value: Any) -> int | None:
    """How many tokens each one sees, itself among them; None for all before it.

    NeMo's `window_size` is how many Megatron lets it see to the left and to the right of itself,
    and -1 without end. Raises ArchitectureError for any other value.
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
        f"the NeMo config says window_size: {shown(value)}; known is a list of the tokens before "
        "each one (-1: all) and 0"
    )


def _is_no_llama(settings: Mapping[str, Any]) -> bool:
    """Whether the width is no multiple of the heads; values of other types are refused later."""
    hidden, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if not (type(hidden) is int and type(heads) is int and heads > 0):
        return False
    return LLAMA.hidden_divides_by_heads and hidden % heads != 0


def _is_language_model(target: Any) -> bool:
    """Whether the class that wrote the archive is a GPT with an output layer."""
    name = target.rpartition(".")[2].lower() if isinstance(target, str) else ""
    return "gpt" in name and not any(other in name for other in _OTHER_CLASSES.split())
