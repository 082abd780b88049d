"""The model families, as tables: which tensors a model has and which named axes they lie on.

A new family is a new entry in `FAMILIES`, not new code. Sources: each family's modeling file in
transformers 5 (state-dict names and shapes) and its configuration file (defaults of absent keys).

    FAMILIES["llama"].rows[0]   # Row("model.embed_tokens.weight", (("vocab",), ("hidden",)))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Every axis, with the config key that holds its size.
AXIS_KEYS: Mapping[str, str] = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "layers": "num_hidden_layers",
    "vocab": "vocab_size",
}
# As state dicts of every family name them. Tied, the output embedding is the input embedding.
BASE_PREFIX = "model."
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
PRUNABLE = ("hidden", "ffn", "heads", "kv_heads", "layers")
PER_LAYER = ("ffn", "heads", "kv_heads")  # ranked in every layer by itself


@dataclass(frozen=True)
class Row:
    """One kind of tensor: its name, the axes of each dimension, and the flag that brings it."""

    template: str
    axes: tuple[tuple[str, ...], ...]  # a dimension of several axes is flattened, first one slowest
    when: str | None = None  # config flag; "not x" reads as its negation

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.template

    def name(self, layer: int | None = None) -> str:
        """The tensor's name, of `layer` where it is per layer."""
        return self.template.format(layer=layer)


@dataclass(frozen=True)
class Rotary:
    """The rotary settings that a family reads, and what a silent config means."""

    theta: float = 10000.0
    partial: float | None = None  # the part of a head that is rotated; None: all, and no key for it
    old_type: bool = False  # an engine reads `type` in rope_scaling, and not `rope_type`: mlx-lm


@dataclass(frozen=True)
class EngineLimit:
    """What an engine's own code of a family cannot hold."""

    engine: str
    # "square": heads x head_dim must be hidden_size; "derived": head_dim must be hidden_size //
    # heads; "rope_type": it must be one of `rope_types`; or a config flag that must not be set.
    what: str
    rope_types: tuple[str, ...] = ()
    loads: bool = False  # loads a model that is beyond the limit, and computes another


@dataclass(frozen=True)
class Family:
    """A `model_type`: its rows, and what an absent config key means there."""

    model_type: str
    architecture: str  # the class name that config.json carries in `architectures`
    rows: tuple[Row, ...]
    absent: Mapping[str, int] = field(default_factory=dict)  # sizes that do not follow others
    old_keys: Mapping[str, str] = field(default_factory=dict)  # earlier name -> today's name
    has_layer_types: bool = False  # writes one attention kind a layer
    rotary: Rotary = Rotary()
    engine_limits: tuple[EngineLimit, ...] = ()
    # Tool to what its user has to know about this family, where it loads the model at all.
    engine_remarks: Mapping[str, str] = field(default_factory=dict)
    # Whether hidden_size must be a multiple of num_attention_heads, even with head_dim given, as
    # transformers 5's LlamaConfig.validate_architecture asks; the other families take any.
    hidden_divides_by_heads: bool = False
    # How a norm's weights are stored, less one or as they are, and the config key of its epsilon.
    norms_are_zero_centered: bool = False
    norm_epsilon: str = "rms_norm_eps"

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate beside its up projection."""
        return any(".gate_proj." in row.template for row in self.rows)

    @property
    def name(self) -> str:
        """As people write it."""
        return self.architecture.removesuffix("ForCausalLM")


def _row(name: str, *dimensions: str, when: str | None = None) -> Row:
    return Row(name, tuple(tuple(dimension.split("*")) for dimension in dimensions), when)


def _linear(name: str, rows: str, columns: str, bias: str | None) -> tuple[Row, ...]:
    """A weight and its bias: `bias` is a config flag, "always", or None for never."""
    weight = _row(f"{name}.weight", rows, columns)
    if bias is None:
        return (weight,)
    return (weight, _row(f"{name}.bias", rows, when=None if bias == "always" else bias))


def _decoder(
    *,
    qkv_bias: str | None,
    o_bias: str | None,
    mlp_bias: str | None,
    norm_bias: bool = False,
    gated: bool = True,
    head_norms: bool = False,
) -> tuple[Row, ...]:
    """The rows of a pre-norm decoder: five families differ only in these switches."""
    layer = "model.layers.{layer}"

    def norm(name: str) -> tuple[Row, ...]:
        weight = _row(f"{name}.weight", "hidden")
        return (weight, _row(f"{name}.bias", "hidden")) if norm_bias else (weight,)

    attention = (
        *_linear(f"{layer}.self_attn.q_proj", "heads*head_dim", "hidden", qkv_bias),
        *_linear(f"{layer}.self_attn.k_proj", "kv_heads*head_dim", "hidden", qkv_bias),
        *_linear(f"{layer}.self_attn.v_proj", "kv_heads*head_dim", "hidden", qkv_bias),
        *_linear(f"{layer}.self_attn.o_proj", "hidden", "heads*head_dim", o_bias),
    )
    per_head = (
        _row(f"{layer}.self_attn.q_norm.weight", "head_dim"),
        _row(f"{layer}.self_attn.k_norm.weight", "head_dim"),
    )
    mlp = (
        *(_linear(f"{layer}.mlp.gate_proj", "ffn", "hidden", mlp_bias) if gated else ()),
        *_linear(f"{layer}.mlp.up_proj", "ffn", "hidden", mlp_bias),
        *_linear(f"{layer}.mlp.down_proj", "hidden", "ffn", mlp_bias),
    )
    return (
        _row("model.embed_tokens.weight", "vocab", "hidden"),
        *norm(f"{layer}.input_layernorm"),
        *attention,
        *(per_head if head_norms else ()),
        *norm(f"{layer}.post_attention_layernorm"),
        *mlp,
        *norm("model.norm"),
        _row("lm_head.weight", "vocab", "hidden", when="not tie_word_embeddings"),
    )


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "nemotron",
            "NemotronForCausalLM",
            _decoder(
                qkv_bias="attention_bias",
                o_bias="attention_bias",
                mlp_bias="mlp_bias",
                norm_bias=True,
                gated=False,
            ),
            old_keys={
                "kv_channels": "head_dim",
                "rope_percent": "partial_rotary_factor",
                "rope_percentage": "partial_rotary_factor",
            },
            norms_are_zero_centered=True,
            norm_epsilon="norm_eps",
            rotary=Rotary(partial=0.5, old_type=True),
            engine_limits=(
                EngineLimit("llama.cpp", "square"),
                EngineLimit("llama.cpp", "tie_word_embeddings"),
                EngineLimit("llama.cpp", "rope_type", ("default", "linear"), loads=True),
                EngineLimit("mlx-lm", "rope_type", ("default", "linear")),
                EngineLimit("transformers 4", "rope_type", ("default",), loads=True),
            ),
            engine_remarks={
                # llama.cpp takes true where the file is silent; its converter writes the key for
                # Llama, never for Nemotron.
                "llama.cpp": "its converter writes no add_space_prefix for Nemotron, so a blank "
                "is put before the text: `--override-kv "
                "tokenizer.ggml.add_space_prefix=bool:false` gives the ids of tokenizer.json",
                "PEFT": "it has no default target modules for Nemotron: "
                '`LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", '
                '"down_proj"])`',
            },
        ),
        Family(
            "llama",
            "LlamaForCausalLM",
            _decoder(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
            hidden_divides_by_heads=True,
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            _decoder(qkv_bias=None, o_bias=None, mlp_bias=None),
            absent={"num_key_value_heads": 8},
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            _decoder(qkv_bias="always", o_bias=None, mlp_bias=None),
            absent={"num_key_value_heads": 32},
            has_layer_types=True,
            engine_limits=(
                EngineLimit("llama.cpp", "square"),
                EngineLimit("mlx-lm", "derived"),
                EngineLimit("vLLM", "derived"),
            ),
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            _decoder(
                qkv_bias="attention_bias",
                o_bias="attention_bias",
                mlp_bias=None,
                head_norms=True,
            ),
            absent={"num_key_value_heads": 32, "head_dim": 128},
            has_layer_types=True,
            engine_limits=(
                EngineLimit("llama.cpp", "attention_bias"),
                EngineLimit("mlx-lm", "attention_bias"),
                EngineLimit("vLLM", "attention_bias", loads=True),  # ignores a bias it lacks
            ),
        ),
    )
}
