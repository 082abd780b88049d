"""One table of a GPT's settings: each under its NeMo 1, Hub and NeMo 2 name.

Holds the value that an absent key has in each vocabulary. They differ: a NeMo model is tied, has
biases, rotates whole heads and uses GELU unless its settings say otherwise. `nemo_to_hub` reads the
table in one direction, `hub_to_nemo` in the other.

    >>> next(setting.hub for setting in SETTINGS if setting.nemo == "ffn_hidden_size")
    'intermediate_size'
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minitron.errors import ArchitectureError
from minitron.files.plain_yaml import short_repr

NemoSettings = Mapping[str, Any]  # the model section of a NeMo config, by NeMo 1's names


@dataclass(frozen=True)
class Setting:
    """One setting of a model under its three names, with its defaults.

    `least` and `most` bound its value: outside of them no model computes numbers.
    """

    nemo: str
    hub: str
    kind: type
    # A value, or how it follows from the settings before it; None: NeMo has no default.
    nemo_default: Callable[[NemoSettings], Any] | float | None = None
    hub_default: Any = None  # Architecture completes sizes and flags
    nemo2_name: str = ""  # where NeMo 2 has another than NeMo 1
    least: float = 0
    most: float = math.inf

    @property
    def nemo2(self) -> str:
        """The name in NeMo 2."""
        return self.nemo2_name or self.nemo


def _head_dim(settings: NemoSettings) -> int:
    hidden_size, heads = settings["hidden_size"], settings["num_attention_heads"]
    if hidden_size % heads:
        raise ArchitectureError(
            f"the NeMo config says hidden_size: {hidden_size} and num_attention_heads: {heads}, "
            "which does not divide it: kv_channels must say the size of a head"
        )
    return int(hidden_size // heads)


# NeMo's defaults: `self.cfg.get(key, value)` in megatron_gpt_model.py and megatron_base_model.py;
# where they pass nothing on, megatron-core's TransformerConfig.
# The Hub's: transformers' configuration_nemotron.py.
SETTINGS = (
    Setting("num_layers", "num_hidden_layers", int),
    Setting("hidden_size", "hidden_size", int),
    Setting("num_attention_heads", "num_attention_heads", int),
    Setting("ffn_hidden_size", "intermediate_size", int, lambda s: 4 * s["hidden_size"]),
    Setting("num_query_groups", "num_key_value_heads", int, lambda s: s["num_attention_heads"]),
    Setting("kv_channels", "head_dim", int, _head_dim),
    Setting(
        "max_position_embeddings",
        "max_position_embeddings",
        int,
        lambda s: s.get("encoder_seq_length") or 512,
        hub_default=4096,
        nemo2_name="seq_length",
    ),
    Setting("init_method_std", "initializer_range", float, 0.02, 0.0134),
    Setting("layernorm_epsilon", "norm_eps", float, 1e-5, 1e-5, least=1e-30, most=1),
    Setting(
        "rotary_percentage", "partial_rotary_factor", float, 1.0, 0.5, nemo2_name="rotary_percent"
    ),
    Setting("rotary_base", "rope_theta", float, 10000, 10000.0, least=1, most=1e30),
    Setting("attention_dropout", "attention_dropout", float, 0.1, 0.0),
    Setting("share_embeddings_and_output_weights", "tie_word_embeddings", bool, True, False),
)
# NeMo 2's names to NeMo 1's; all others are the same in both.
NEMO2_NAMES: Mapping[str, str] = {
    **{setting.nemo2: setting.nemo for setting in SETTINGS},
    "add_bias_linear": "bias",
    "add_qkv_bias": "qkv_bias",
    "activation_func": "activation",
    "vocab_size": "override_vocab_size",
}


@dataclass(frozen=True)
class Activation:
    """An ungated activation under its names; NeMo 2's is the path of a function."""

    nemo: str
    hub: str
    nemo2: str
    is_in_nemo1: bool = False


ACTIVATIONS = (
    Activation("squared-relu", "relu2", "nemo.collections.llm.fn.activation.squared_relu", True),
    Activation("gelu", "gelu", "torch.nn.functional.gelu", True),
    Activation("relu", "relu", "torch.nn.functional.relu"),
    Activation("silu", "silu", "torch.nn.functional.silu"),
    Activation("quick_gelu", "quick_gelu", "megatron.core.fusions.fused_bias_geglu.quick_gelu"),
)
TANH_GELU = "gelu_pytorch_tanh"  # NeMo's openai_gelu, and its gelu where fused with a bias
ZERO_CENTERED = "layernorm1p"  # the normalization whose weights are the gain minus one


def flag(settings: NemoSettings, key: str, *, default: bool = False) -> bool:
    """A setting that is true or false. Raises ArchitectureError for any other value."""
    value = settings.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise setting_error(key, value, "it must be true or false")
    return value


def setting_error(key: str, value: object, remedy: str) -> ArchitectureError:
    """The error about a value that a setting may not have."""
    return ArchitectureError(f"the NeMo config says {key}: {short_repr(value)}; {remedy}")
