"""One table of a Nemotron's settings: each fact under its NeMo 1, Hub and NeMo 2 name.

Knows what an absent key means in each vocabulary, which is not the same: NeMo's model is tied,
biased, rotated whole and with GELU unless it says otherwise. `nemo_config` reads the table from
NeMo to the Hub, `nemo_settings` the other way.

    >>> next(setting.hub for setting in SETTINGS if setting.nemo == "ffn_hidden_size")
    'intermediate_size'
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minitron.errors import ArchitectureError

Said = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One fact about a model under its three names, and what its absence means.

    `least` and `most` bound what NeMo may say: outside of them no model computes numbers.
    """

    nemo: str
    hub: str
    nemo2: str
    kind: type
    nemo_absent: Callable[[Said], Any] | None  # by the settings before it; None: must be there
    hub_absent: Any = None  # sizes and flags are Architecture's to complete
    least: float = 0
    most: float = math.inf


def _head_dim(said: Said) -> int:
    hidden_size, heads = said["hidden_size"], said["num_attention_heads"]
    if hidden_size % heads:
        raise ArchitectureError(
            f"the NeMo config says hidden_size: {hidden_size} and num_attention_heads: {heads}, "
            "which does not divide it: kv_channels must say the size of a head"
        )
    return int(hidden_size // heads)


# What NeMo takes absent settings for: `self.cfg.get(key, value)` in megatron_gpt_model.py and
# megatron_base_model.py; where they pass nothing on, megatron-core's TransformerConfig.
# The Hub's: transformers' configuration_nemotron.py.
SETTINGS = (
    Setting("num_layers", "num_hidden_layers", "num_layers", int, None),
    Setting("hidden_size", "hidden_size", "hidden_size", int, None),
    Setting("num_attention_heads", "num_attention_heads", "num_attention_heads", int, None),
    Setting(
        "ffn_hidden_size",
        "intermediate_size",
        "ffn_hidden_size",
        int,
        lambda said: 4 * said["hidden_size"],
    ),
    Setting(
        "num_query_groups",
        "num_key_value_heads",
        "num_query_groups",
        int,
        lambda said: said["num_attention_heads"],
    ),
    Setting("kv_channels", "head_dim", "kv_channels", int, _head_dim),
    Setting(
        "max_position_embeddings",
        "max_position_embeddings",
        "seq_length",
        int,
        lambda said: said.get("encoder_seq_length") or 512,
        4096,
    ),
    Setting(
        "init_method_std", "initializer_range", "init_method_std", float, lambda said: 0.02, 0.0134
    ),
    Setting(
        "layernorm_epsilon",
        "norm_eps",
        "layernorm_epsilon",
        float,
        lambda said: 1e-5,
        1e-5,
        least=1e-30,
        most=1,
    ),
    Setting(
        "rotary_percentage",
        "partial_rotary_factor",
        "rotary_percent",
        float,
        lambda said: 1.0,
        0.5,
    ),
    Setting(
        "rotary_base",
        "rope_theta",
        "rotary_base",
        float,
        lambda said: 10000,
        10000.0,
        least=1,
        most=1e30,
    ),
    Setting(
        "attention_dropout", "attention_dropout", "attention_dropout", float, lambda said: 0.1, 0.0
    ),
    Setting(
        "share_embeddings_and_output_weights",
        "tie_word_embeddings",
        "share_embeddings_and_output_weights",
        bool,
        lambda said: True,
        False,
    ),
)
# NeMo 2's names to NeMo 1's; those that are not here are the same in both.
NEMO2_NAMES: Mapping[str, str] = {
    **{setting.nemo2: setting.nemo for setting in SETTINGS},
    "add_bias_linear": "bias",
    "add_qkv_bias": "qkv_bias",
    "activation_func": "activation",
    "vocab_size": "override_vocab_size",
}


@dataclass(frozen=True)
class Activation:
    """An ungated activation under its names; NeMo 2's is the function that is imported."""

    nemo: str
    hub: str
    nemo2: str
    known_to_nemo1: bool = False


ACTIVATIONS = (
    Activation("squared-relu", "relu2", "nemo.collections.llm.fn.activation.squared_relu", True),
    Activation("gelu", "gelu", "torch.nn.functional.gelu", True),
    Activation("relu", "relu", "torch.nn.functional.relu"),
    Activation("silu", "silu", "torch.nn.functional.silu"),
    Activation("quick_gelu", "quick_gelu", "megatron.core.fusions.fused_bias_geglu.quick_gelu"),
)
TANH_GELU = "gelu_pytorch_tanh"  # NeMo's openai_gelu, and its gelu where fused with a bias
ZERO_CENTERED = "layernorm1p"  # the normalization whose weights are stored less one
