"""The sizes and options of a Nemotron model, under the names that transformers uses.

Reads every key that a published Nemotron config has: those of transformers 5, the NeMo names of the
first configs (`kv_channels`, `rope_percent`, `rope_percentage`), and the flat rotary keys of
transformers 4 (`rope_theta`, `partial_rotary_factor`, `rope_scaling`). Writes both
`rope_parameters` and the flat keys, so that transformers 4 and 5 load what it saves. Two keys that
contradict each other are an error. Knows no tensors.

    NemotronConfig(hidden_size=4096, num_attention_heads=48, kv_channels=128).head_dim  # 128
"""

# transformers is typed only in parts.
# mypy: allow-untyped-calls

from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig, strict  # type: ignore[attr-defined]
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

PARTIAL_ROTARY_FACTOR = 0.5  # of every published model, and the default of a config without the key
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@strict
class NemotronConfig(PreTrainedConfig):
    """Configuration of the Nemotron family; the defaults describe Nemotron-4 15B.

    `num_key_value_heads` defaults to `num_attention_heads` (no grouping) and `head_dim` to
    `hidden_size / num_attention_heads`. A new value of `rope_parameters` without `rope_theta` or
    `partial_rotary_factor` keeps the previous one. A config from which no model can be built raises
    ValueError in its constructor.
    """

    model_type = "nemotron"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 256000
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 32
    num_attention_heads: int = 48
    head_dim: int | None = None
    num_key_value_heads: int | None = None
    hidden_act: str = "relu2"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.0134
    norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    mlp_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.head_dim = _single_value(
            {"head_dim": self.head_dim, "kv_channels": kwargs.pop("kv_channels", None)}
        )
        _require_positive(self)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = _equal_share(self.hidden_size, self.num_attention_heads)
        self.rope_parameters = _merge_rope(self.rope_parameters, kwargs)
        super().__post_init__(**kwargs)
        self.validate_architecture()  # @strict runs it too, but raises its own type

    def __setattr__(self, key: str, value: Any) -> None:
        previous = getattr(self, "rope_parameters", None) if key == "rope_parameters" else None
        # Only a complete rope_parameters, which has a rope_type, has values to keep.
        if previous is value or "rope_type" not in (previous or {}):
            super().__setattr__(key, value)
            return
        kept = {
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        super().__setattr__(key, {**kept, **(value or {})})
        self.standardize_rope_params()

    @property
    def rope_theta(self) -> float:
        theta: float = (self.rope_parameters or {}).get("rope_theta", self.default_theta)
        return theta

    @rope_theta.setter
    def rope_theta(self, value: float) -> None:
        self.rope_parameters = {**(self.rope_parameters or {}), "rope_theta": value}

    @property
    def partial_rotary_factor(self) -> float:
        """The fraction of each head's dimensions that is rotated; the others hold no position."""
        factor: float = (self.rope_parameters or {}).get(
            "partial_rotary_factor", PARTIAL_ROTARY_FACTOR
        )
        return factor

    @partial_rotary_factor.setter
    def partial_rotary_factor(self, value: float) -> None:
        self.rope_parameters = {**(self.rope_parameters or {}), "partial_rotary_factor": value}

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, with the flat rotary keys that transformers 4 reads."""
        flat: dict[str, Any] = {
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        rope = self.rope_parameters or {}
        if rope.get("rope_type", "default") != "default":
            flat["rope_scaling"] = {key: rope[key] for key in rope if key not in flat}
        return {**super().to_dict(), **flat}

    def validate_architecture(self) -> None:
        """Raise ValueError unless a Nemotron can be built from these values."""
        super().validate_architecture()
        if self.is_heterogeneous:  # super() checked the config of each layer
            return
        _require_positive(self)
        assert self.head_dim is not None
        assert self.num_key_value_heads is not None
        assert self.rope_parameters is not None
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}: every key-value head serves the "
                "same number of query heads."
            )
        _require_plain_activation(self.hidden_act)
        _require_rotary(self.head_dim, self.rope_parameters)


def _single_value(by_key: Mapping[str, Any]) -> Any:
    """The value that all keys with a value share, None without any; else raise ValueError."""
    given = {key: value for key, value in by_key.items() if value is not None}
    values = list(given.values())
    if any(value != values[0] for value in values):
        listed = ", ".join(f"{key} {value!r}" for key, value in given.items())
        raise ValueError(f"The config contradicts itself: {listed}. Keep the right one of them.")
    return values[0] if values else None


def _merge_rope(parameters: Mapping[str, Any] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` completed from the older keys, which are removed from `kwargs`."""
    nested = {
        "rope_parameters": dict(parameters or {}),
        "rope_scaling": dict(kwargs.pop("rope_scaling", None) or {}),
    }
    flat = {
        "rope_theta": ("rope_theta",),
        "partial_rotary_factor": ("partial_rotary_factor", "rope_percent", "rope_percentage"),
    }
    for rope in nested.values():
        kind = _single_value({"rope_type": rope.get("rope_type"), "type": rope.pop("type", None)})
        if kind is not None:
            rope["rope_type"] = kind
    keys = dict.fromkeys([*nested["rope_scaling"], *nested["rope_parameters"], *flat])
    complete = {
        key: _single_value(
            {f"{name}['{key}']": rope.get(key) for name, rope in nested.items()}
            | {name: kwargs.pop(name, None) for name in flat.get(key, ())}
        )
        for key in keys
    }
    defaults = {
        "rope_type": "default",
        "rope_theta": NemotronConfig.default_theta,
        "partial_rotary_factor": PARTIAL_ROTARY_FACTOR,
    }
    return {**defaults, **{key: value for key, value in complete.items() if value is not None}}


def _equal_share(hidden_size: int, heads: int) -> int:
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}, so the "
            "size of a head does not follow from them: give head_dim."
        )
    return hidden_size // heads


def _require_positive(config: NemotronConfig) -> None:
    for name in SIZES:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}: it must be at least 1.")


def _require_plain_activation(name: str) -> None:
    if "glu" in name:
        raise ValueError(
            f"hidden_act {name!r} is gated, and the Nemotron MLP has one up projection and no "
            "gate. A gated model is another architecture (for instance Llama)."
        )
    if name not in ACT2FN:
        raise ValueError(
            f"hidden_act {name!r} is not an activation transformers knows. Nemotron's squared "
            f"ReLU is 'relu2'; all names: {', '.join(sorted(ACT2FN))}."
        )


def _require_rotary(head_dim: int, rope: Mapping[str, Any]) -> None:
    kind, factor = rope["rope_type"], rope["partial_rotary_factor"]
    if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
        known = ", ".join(["default", *ROPE_INIT_FUNCTIONS])
        raise ValueError(f"rope_type {kind!r} is not one of {known}.")
    if not 0 < factor <= 1:
        raise ValueError(f"partial_rotary_factor is {factor}: it must be above 0 and at most 1.")
    rotary_size = int(head_dim * factor)
    if rotary_size % 2 or rotary_size == 0:
        raise ValueError(
            f"head_dim {head_dim} with partial_rotary_factor {factor} rotates {rotary_size} "
            "dimensions of a head: rotary embeddings turn pairs, so it must be even and not 0."
        )


__all__ = ["NemotronConfig"]
