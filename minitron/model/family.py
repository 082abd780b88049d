"""A model family: the columns of the families' table, and what follows from them.

The axes that are pruned, the parts of a model with the axes of their tensors, and a `Family`, whose
rows are every kind of tensor of its models. The table itself is `FAMILIES` in families.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

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
PRUNABLE = ("hidden", "ffn", "heads", "kv_heads", "layers")
PER_LAYER = ("ffn", "heads", "kv_heads")  # ranked in every layer by itself

# The parts of a model, each with the axes of its weight's rows and columns; a bias has those of the
# rows. "*" flattens two axes into one dimension, the first of them slowest.
PART_AXES: Mapping[str, tuple[str, ...]] = {
    "embedding": ("vocab", "hidden"),
    "attention_norm": ("hidden",),  # whose output attention reads
    "q": ("heads*head_dim", "hidden"),
    "k": ("kv_heads*head_dim", "hidden"),
    "v": ("kv_heads*head_dim", "hidden"),
    "o": ("hidden", "heads*head_dim"),
    "q_norm": ("head_dim",),  # of each head
    "k_norm": ("head_dim",),
    "all_q_norm": ("heads*head_dim",),  # of all heads together
    "all_k_norm": ("kv_heads*head_dim",),
    "attention_output_norm": ("hidden",),
    "mlp_norm": ("hidden",),  # whose output the MLP reads
    "gate": ("ffn", "hidden"),
    "up": ("ffn", "hidden"),
    "down": ("hidden", "ffn"),
    "mlp_output_norm": ("hidden",),
    "final_norm": ("hidden",),
    "head": ("vocab", "hidden"),
}
STREAM_NORMS = (
    "attention_norm",
    "attention_output_norm",
    "mlp_norm",
    "mlp_output_norm",
    "final_norm",
)

# Modules that are called the same in every family. A causal language model is a decoder and a head.
DECODER = "model"
LAYERS = f"{DECODER}.layers"
FINAL_NORM = f"{DECODER}.norm"
EMBEDDING = f"{DECODER}.embed_tokens.weight"
HEAD = "lm_head.weight"  # absent from a tied model, whose output embedding is the input embedding

Run = tuple[str, ...]  # axes flattened into one, the first slowest
Dimension = tuple[Run, ...]  # runs behind each other; more than one where projections are fused


@dataclass(frozen=True)
class Row:
    """One kind of tensor: the parts it holds, its name, its dimensions, its config flag.

    A tensor that fuses several parts has a run of rows for each of `parts`.
    """

    parts: tuple[str, ...]
    template: str
    dimensions: tuple[Dimension, ...]
    when: str | None = None  # config flag; "not x" reads as its negation

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{layer}" in self.template

    @property
    def kind(self) -> str:
        """`weight` or `bias`."""
        return self.template.rpartition(".")[2]

    @property
    def has_vocabulary(self) -> bool:
        """Whether it has a row for each token of the vocabulary."""
        return self.dimensions[0] == (("vocab",),)

    def name(self, layer: int | None = None) -> str:
        """The tensor's name, of `layer` where it is per layer."""
        return self.template.format(layer=layer)


@dataclass(frozen=True)
class Norm:
    """How a family norms a token's hidden state, and how the norm's weights are stored."""

    kind: Literal["rms", "layer"] = "rms"  # LayerNorm subtracts the mean, RMSNorm does not
    has_bias: bool = False
    is_zero_centered: bool = False  # the gain is 1 + weight
    epsilon: str = "rms_norm_eps"  # the config key


@dataclass(frozen=True)
class Rotary:
    """The rotary settings that a family reads, and their values where the config has none."""

    theta: float = 10000.0
    partial: float | None = None  # the part of a head that is rotated; None: all, and no key for it
    old_type: bool = False  # an engine reads `type` in rope_scaling, and not `rope_type`: mlx-lm
    kinds: tuple[str, ...] = ()  # of scaling that the family's class takes; none named: all
    renamed: Mapping[str, str] = field(default_factory=dict)  # earlier kind -> today's
    original: int | None = None  # original_max_position_embeddings; None: max_position_embeddings
    # The only keys that transformers 4's class takes in rope_scaling; none named: all.
    old_keys: tuple[str, ...] = ()
    # The key and value of another theta, without scaling, for layers with a sliding window. Its
    # rope_parameters have settings for each kind of layer.
    sliding_theta: tuple[str, float] | None = None


@dataclass(frozen=True)
class Scales:
    """The config keys of the numbers that multiply or bound what passes between modules.

    None where a family has no such number. The value of an absent key is that of the family's
    config class.
    """

    embedding: str | None = None  # "hidden_size": embeddings are multiplied by its square root
    branch: str | None = None  # what attention and the MLP add to the stream is multiplied by it
    logits_divisor: str | None = None
    logits_cap: str | None = None  # c tanh(logits / c)


# A list in the config with an entry for each layer: its values where the config has none.
LayerList = Callable[[Mapping[str, Any]], list[Any]]


@dataclass(frozen=True)
class EngineLimit:
    """What an engine's own code of a family cannot hold."""

    engine: str
    # "square": heads x head_dim must be hidden_size; "derived": head_dim must be hidden_size //
    # heads; "rope_type": it must be one of `rope_types`; "query_pre_attn_scalar": it must be
    # head_dim; a key of `layer_lists`, whose list must be `layers`; or a config flag that must not
    # be set.
    what: str
    rope_types: tuple[str, ...] = ()
    layers: LayerList | None = None
    square_layers: int | None = None  # so many layers: hidden_size // heads in place of head_dim
    loads: bool = False  # loads a model that is beyond the limit, and computes another


@dataclass(frozen=True)
class Gguf:
    """How llama.cpp's converter stores a family in a GGUF file."""

    architecture: str  # general.architecture, and the prefix of its metadata
    # Whether row 2i of a head of q and k is followed by the row that it is rotated with, as
    # llama.cpp's rotary code for some families wants it; the Hub has them half a head apart.
    pairs_rows: bool = False
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")  # that it stores
    numbers: Mapping[str, str] = field(default_factory=dict)  # its key to that of config.json


@dataclass(frozen=True)
class Family:
    """A `model_type`: its modules and tensors, and the values of absent config keys.

    A bias is None for never, "always", or the config flag that adds it.
    """

    model_type: str
    architecture: str  # the class name that config.json carries in `architectures`
    # Part to module, from the layer on, in the order of the tensors. Parts that are fused name the
    # same module, whose rows hold them in this order.
    layer_modules: Mapping[str, str]
    qkv_bias: str | None = None
    o_bias: str | None = None
    mlp_bias: str | None = None
    norm: Norm = Norm()
    rotary: Rotary = Rotary()
    scales: Scales = Scales()
    activation: str = "hidden_act"  # the config key
    has_own_class: bool = False  # in modeling_nemotron; the others run as transformers' own
    # Config keys that list something of each layer. A family without `layer_types` has layers of
    # one kind.
    layer_lists: Mapping[str, LayerList] = field(default_factory=dict)
    # Whether hidden_size must be a multiple of num_attention_heads, even with head_dim given, as
    # transformers 5's LlamaConfig.validate_architecture asks; the other families take any.
    hidden_divides_by_heads: bool = False
    absent: Mapping[str, int] = field(default_factory=dict)  # sizes that do not follow others
    true_if_absent: tuple[str, ...] = ()  # flags; the others are false
    old_keys: Mapping[str, str] = field(default_factory=dict)  # earlier name -> today's name
    formats: tuple[str, ...] = ()  # of `convert --to`, those that not every family has
    trtllm_example: str | None = None  # the folder of TensorRT-LLM's examples that converts it
    gguf: Gguf | None = None  # None: not known how llama.cpp stores it, if it does
    engine_limits: tuple[EngineLimit, ...] = ()
    unread_engines: tuple[str, ...] = ()  # whose code of the family nobody here has read
    # Tool to what its user must know of this family, for tools that load the model.
    engine_remarks: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As people write it."""
        return self.architecture.removesuffix("ForCausalLM")

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate beside its up projection."""
        return "gate" in self.layer_modules

    @property
    def output_norms(self) -> Mapping[str, str]:
        """Each part that writes to the stream, with the norm behind it, where there is one."""
        norms = {"o": "attention_output_norm", "down": "mlp_output_norm"}
        return {part: norm for part, norm in norms.items() if norm in self.layer_modules}

    @property
    def mlp(self) -> str:
        """The module of the whole MLP, from the layer on."""
        return self.layer_modules["up"].rpartition(".")[0]

    def module_name(self, part: str) -> str:
        """A part's module as it is named inside its parent."""
        return self.layer_modules[part].rpartition(".")[2]

    @property
    def bias_flags(self) -> tuple[str, ...]:
        """The config flags that add a bias."""
        flags = dict.fromkeys((self.qkv_bias, self.o_bias, self.mlp_bias))
        return tuple(flag for flag in flags if flag is not None and flag != "always")

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every kind of tensor: embedding, those of a layer, norm, head."""
        parts_of: dict[str, list[str]] = {}
        for part, module in self.layer_modules.items():
            parts_of.setdefault(f"{LAYERS}.{{layer}}.{module}", []).append(part)
        layer = [row for name, parts in parts_of.items() for row in self._rows(name, *parts)]
        embedding, head = (name.removesuffix(".weight") for name in (EMBEDDING, HEAD))
        return (
            *self._rows(embedding, "embedding"),
            *layer,
            *self._rows(FINAL_NORM, "final_norm"),
            *self._rows(head, "head", when="not tie_word_embeddings"),
        )

    def tensor(self, part: str, kind: str = "weight", layer: int | None = None) -> str:
        """The name of the weight or bias that holds a part, of `layer` where every layer has it."""
        return self.row(part, kind).name(layer)

    def row(self, part: str, kind: str = "weight") -> Row:
        """The kind of tensor that holds the weight or bias of a part."""
        [row] = [row for row in self.rows if part in row.parts and row.kind == kind]
        return row

    def _rows(self, module: str, *parts: str, when: str | None = None) -> list[Row]:
        """The weight of a module, and its bias where it may have one."""
        rows = tuple(_run(PART_AXES[part][0]) for part in parts)
        columns = tuple((_run(column),) for column in PART_AXES[parts[0]][1:])
        tensors = [Row(parts, f"{module}.weight", (rows, *columns), when)]
        bias = self._bias(parts[0])
        if bias is not None:
            flag = None if bias == "always" else bias
            tensors.append(Row(parts, f"{module}.bias", (rows,), flag))
        return tensors

    def _bias(self, part: str) -> str | None:
        if part in STREAM_NORMS:
            return "always" if self.norm.has_bias else None
        qkv, mlp = dict.fromkeys("qkv", self.qkv_bias), ("gate", "up", "down")
        return {**qkv, "o": self.o_bias, **dict.fromkeys(mlp, self.mlp_bias)}.get(part)


def _run(axes: str) -> Run:
    return tuple(axes.split("*"))
