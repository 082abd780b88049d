"""What a NeMo GPT may be that no Hugging Face Nemotron can, and why.

A table of settings with the values that change nothing. Reads no file and makes no config;
`nemo_config` asks it first.

    >>> refuse_other_models({"position_embedding_type": "rope", "qk_layernorm": True})
    ArchitectureError: the NeMo config says qk_layernorm: True, but Nemotron norms no q or k
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minitron.errors import ArchitectureError, SourceError
from minitron.plain_yaml import shown

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


# Absent values: `self.cfg.get(key, value)` in NeMo's megatron_gpt_model.py, megatron_base_model.py.
REFUSALS = (
    Refusal(
        "position_embedding_type",
        _one_of("rope"),
        "Nemotron's positions are rotary",
        "learned_absolute",
    ),
    Refusal(
        "normalization",
        _one_of("layernorm", "layernorm1p"),
        "Nemotron's norm is LayerNorm with a bias",
        "layernorm",
    ),
    Refusal(
        "transformer_block_type",
        _one_of("pre_ln"),
        "Nemotron norms before attention and MLP, and only there",
        "pre_ln",
    ),
    Refusal(
        "attention_type", _one_of("multihead"), "Nemotron attends with several heads", "multihead"
    ),
    Refusal(
        "normalize_attention_scores", lambda value: value is True, "Nemotron scales scores", True
    ),
    Refusal("rotary_interleaved", _off, "Nemotron rotates the halves of a head, not neighbours"),
    Refusal("rope_scaling", _off, "its kind of scaling is not Nemotron's linear one"),
    Refusal("scale_positional_embedding", _off, "its kind of scaling is not Nemotron's linear one"),
    Refusal("gated_linear_unit", _off, "Nemotron's MLP has one up projection and no gate"),
    # 1 is what NeMo's own, older mixture of experts calls none.
    Refusal("num_moe_experts", lambda value: _off(value) or value == 1, "Nemotron has one MLP"),
    Refusal("window_size", _off, "Nemotron attends to the whole context"),
    Refusal("sliding_window", _off, "Nemotron attends to the whole context"),
    Refusal("multi_latent_attention", _off, "Nemotron keeps keys and values of full width"),
    Refusal("qk_layernorm", _off, "Nemotron norms no q or k"),
    Refusal("attention_output_gate", _off, "Nemotron gates no attention"),
    Refusal("softmax_scale", _off, "Nemotron scales scores by the root of head_dim"),
    Refusal("apply_embedding_scaling", _off, "Nemotron takes embeddings as they are"),
    Refusal("headscale", _off, "Nemotron scales no heads"),
    Refusal("parallel_attention", _off, "Nemotron's MLP comes after attention"),
    Refusal(
        "apply_residual_connection_post_layernorm", _off, "Nemotron's residual skips the norms"
    ),
    Refusal("hyena", _off, "Nemotron has attention"),
    Refusal("onnx_safe", _off, "it replaces the activation that the config names"),
    Refusal(
        "name",  # of the layer specification, get_specs in megatron_gpt_model.py
        lambda value: value not in ("megatron_falcon_gpt", "te_gpt_hyena"),
        "its layers are not those of Nemotron",
        "",
    ),
)


def refuse_other_models(settings: Mapping[str, Any]) -> None:
    """Raise SourceError for what is no GPT, ArchitectureError for a GPT that is no Nemotron."""
    target = settings.get("target")
    if target is not None and not _is_language_model(target):
        raise SourceError(
            f"the NeMo config is of {shown(target)}: only GPT language models can be converted"
        )
    for refusal in REFUSALS:
        said = settings.get(refusal.key)
        value = refusal.absent if said is None else said
        if not refusal.holds(value):
            default = " (NeMo's default)" if said is None else ""
            raise ArchitectureError(
                f"the NeMo config says {refusal.key}: {shown(value)}{default}, "
                f"but {refusal.reason}: no Hugging Face Nemotron can hold this model"
            )


def _is_language_model(target: Any) -> bool:
    """Whether the class that wrote the archive is a GPT with an output layer."""
    name = target.rpartition(".")[2].lower() if isinstance(target, str) else ""
    return "gpt" in name and not any(other in name for other in _OTHER_CLASSES.split())
