"""The model families as tables: a family's modules, tensors, norms, defaults and limits.

Every fact in which families differ is here and nowhere else; a new dense family is a new entry in
`FAMILIES`. Sources: each family's modeling file in transformers 5 (state-dict names
and shapes) and its configuration file (defaults of absent keys).

    FAMILIES["llama"].tensor("down", layer=3)   # "model.layers.3.mlp.down_proj.weight"
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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


_ATTENTION: Mapping[str, str] = {part: f"self_attn.{part}_proj" for part in "qkvo"}
_HEAD_NORMS: Mapping[str, str] = {part: f"self_attn.{part}" for part in ("q_norm", "k_norm")}
_ALL_HEAD_NORMS: Mapping[str, str] = {f"all_{part}": path for part, path in _HEAD_NORMS.items()}
_MLP: Mapping[str, str] = {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}


def _layer_modules(*, has_gate: bool = True, has_head_norms: bool = False) -> Mapping[str, str]:
    """The modules of a layer whose attention and MLP each read the output of a norm."""
    return {
        "attention_norm": "input_layernorm",
        **_ATTENTION,
        **(_HEAD_NORMS if has_head_norms else {}),
        "mlp_norm": "post_attention_layernorm",
        **{part: path for part, path in _MLP.items() if has_gate or part != "gate"},
    }


# The modules of a layer whose attention and MLP read the stream, and are normed behind.
_NORMED_BEHIND: Mapping[str, str] = {
    **_ATTENTION,
    **_ALL_HEAD_NORMS,
    "attention_output_norm": "post_attention_layernorm",
    **_MLP,
    "mlp_output_norm": "post_feedforward_layernorm",
}


def _four_norms(*, has_head_norms: bool = False) -> Mapping[str, str]:
    """The modules of a layer whose attention and MLP have a norm before and one behind."""
    return {
        "attention_norm": "input_layernorm",
        **_ATTENTION,
        **(_HEAD_NORMS if has_head_norms else {}),
        "attention_output_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        **_MLP,
        "mlp_output_norm": "post_feedforward_layernorm",
    }


def _kinds(config: Mapping[str, Any], slides: Callable[[int], Any]) -> list[Any]:
    """`layer_types` of a family whose layer of this index has a sliding window."""
    layers = range(config["num_hidden_layers"])
    return ["sliding_attention" if slides(layer) else "full_attention" for layer in layers]


def _last_layers_slide(config: Mapping[str, Any]) -> list[Any]:
    """Qwen's rule: sliding attention from layer max_window_layers on, where it is used at all."""
    is_used = bool(config.get("use_sliding_window")) and config.get("sliding_window", 4096)
    first = config.get("max_window_layers", 28) if is_used else config["num_hidden_layers"]
    return _kinds(config, lambda layer: layer >= first)


def _all_but_each(interval: int) -> LayerList:
    """Sliding attention in all layers but every so-manieth."""
    return lambda config: _kinds(config, lambda layer: (layer + 1) % interval)


def _all_but_each_of_pattern(config: Mapping[str, Any]) -> list[Any]:
    """Sliding attention in all layers but each of `sliding_window_pattern`, of earlier configs."""
    return _all_but_each(config.get("sliding_window_pattern", 6))(config)


def _rotated_but_each(interval: int) -> LayerList:
    """1 where a layer has RoPE, and 0 in every so-manieth."""

    def values(config: Mapping[str, Any]) -> list[Any]:
        return [int((layer + 1) % interval != 0) for layer in range(config["num_hidden_layers"])]

    return values


def _rotated_layers(config: Mapping[str, Any]) -> list[Any]:
    """SmolLM3's rule: every no_rope_layer_interval-th layer is without RoPE."""
    return _rotated_but_each(config.get("no_rope_layer_interval", 4))(config)


def _layers_without_rope_slide(config: Mapping[str, Any]) -> list[Any]:
    """SmolLM3's rule: sliding attention in layers without RoPE, where a window is used."""
    is_used = config.get("use_sliding_window") and config.get("sliding_window") is not None
    rotated = config.get("no_rope_layers") or _rotated_layers(config)
    return _kinds(config, lambda layer: is_used and not rotated[layer])


@dataclass(frozen=True)
class Family:
    """A `model_type`: its modules and tensors, and the values of absent config keys.

    A bias is None for never, "always", or the config flag that adds it.
    """

    model_type: str
    architecture: str  # the class name that config.json carries in `architectures`
    # Part to module, from the layer on, in the order of the tensors. Parts that are fused name the
    # same module, whose rows hold them in this order.
    layer_modules: Mapping[str, str] = field(default_factory=_layer_modules)
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


_LLAMA_GGUF = Gguf("llama", pairs_rows=True, rope_types=("default", "linear", "yarn", "llama3"))
_GRANITE_GGUF = replace(
    _LLAMA_GGUF,
    architecture="granite",
    numbers={
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    },
)
_UNREAD = ("vLLM", "SGLang", "TensorRT-LLM")
FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "nemotron",
            "NemotronForCausalLM",
            _layer_modules(has_gate=False),
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            mlp_bias="mlp_bias",
            norm=Norm("layer", has_bias=True, is_zero_centered=True, epsilon="norm_eps"),
            rotary=Rotary(partial=0.5, old_type=True),
            has_own_class=True,
            old_keys={
                "kv_channels": "head_dim",
                "rope_percent": "partial_rotary_factor",
                "rope_percentage": "partial_rotary_factor",
            },
            formats=("nemo", "nemo2", "trtllm"),
            gguf=Gguf("nemotron"),
            engine_limits=(
                EngineLimit("llama.cpp", "square"),
                EngineLimit("llama.cpp", "tie_word_embeddings"),
                EngineLimit("llama.cpp", "rope_type", ("default", "linear"), loads=True),
                EngineLimit("mlx-lm", "rope_type", ("default", "linear")),
                EngineLimit("transformers 4", "rope_type", ("default",), loads=True),
            ),
            engine_remarks={
                # llama.cpp assumes true where the key is absent; its converter writes the key for
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
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            mlp_bias="mlp_bias",
            hidden_divides_by_heads=True,
            trtllm_example="llama",
            gguf=_LLAMA_GGUF,
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            absent={"num_key_value_heads": 8},
            trtllm_example="llama",
            gguf=_LLAMA_GGUF,
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            qkv_bias="always",
            layer_lists={"layer_types": _last_layers_slide},
            absent={"num_key_value_heads": 32},
            trtllm_example="qwen",
            gguf=Gguf("qwen2"),
            engine_limits=(
                EngineLimit("llama.cpp", "square"),
                EngineLimit("mlx-lm", "derived"),
                EngineLimit("vLLM", "derived"),
            ),
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            _layer_modules(has_head_norms=True),
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            layer_lists={"layer_types": _last_layers_slide},
            absent={"num_key_value_heads": 32, "head_dim": 128},
            trtllm_example="qwen",
            gguf=Gguf("qwen3"),
            engine_limits=(
                EngineLimit("llama.cpp", "attention_bias"),
                EngineLimit("mlx-lm", "attention_bias"),
                EngineLimit("vLLM", "attention_bias", loads=True),  # ignores a bias it lacks
            ),
        ),
        Family(
            "smollm3",
            "SmolLM3ForCausalLM",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            mlp_bias="mlp_bias",
            rotary=Rotary(theta=2000000.0),
            layer_lists={
                "no_rope_layers": _rotated_layers,
                "layer_types": _layers_without_rope_slide,
            },
            absent={"num_key_value_heads": 4},
            true_if_absent=("tie_word_embeddings",),
            gguf=replace(_LLAMA_GGUF, architecture="smollm3"),
            engine_limits=(
                EngineLimit("llama.cpp", "attention_bias"),
                EngineLimit("llama.cpp", "mlp_bias"),
                EngineLimit("llama.cpp", "no_rope_layers", layers=_rotated_but_each(4), loads=True),
            ),
            unread_engines=_UNREAD,
        ),
        Family(
            "seed_oss",
            "SeedOssForCausalLM",
            qkv_bias="attention_bias",
            o_bias="attention_out_bias",
            mlp_bias="mlp_bias",
            absent={"num_key_value_heads": 8, "head_dim": 128},
            true_if_absent=("attention_bias",),
            unread_engines=("llama.cpp", "mlx-lm", *_UNREAD),
        ),
        Family(
            "olmo2",
            "Olmo2ForCausalLM",
            _NORMED_BEHIND,
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            rotary=Rotary(old_keys=("type", "factor")),
            engine_limits=(
                EngineLimit("llama.cpp", "square"),
                EngineLimit("llama.cpp", "tie_word_embeddings"),
                EngineLimit("llama.cpp", "attention_bias"),
                EngineLimit("vLLM", "derived"),
                EngineLimit("vLLM", "attention_bias", loads=True),  # ignores a bias it lacks
                EngineLimit("transformers 4", "rope_type", ("default", "linear", "dynamic")),
            ),
            unread_engines=_UNREAD[1:],
        ),
        Family(
            "granite",
            "GraniteForCausalLM",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            mlp_bias="mlp_bias",
            scales=Scales("embedding_multiplier", "residual_multiplier", "logits_scaling"),
            gguf=_GRANITE_GGUF,
            engine_limits=(
                EngineLimit("llama.cpp", "derived"),  # its converter ignores head_dim
                EngineLimit("mlx-lm", "derived"),
            ),
            unread_engines=_UNREAD[1:],
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            _four_norms(),
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            norm=Norm(is_zero_centered=True),
            scales=Scales("hidden_size", logits_cap="final_logit_softcapping"),
            activation="hidden_activation",
            layer_lists={"layer_types": _all_but_each(2)},
            hidden_divides_by_heads=True,
            absent={"num_key_value_heads": 4, "head_dim": 256},
            true_if_absent=("tie_word_embeddings",),
            engine_limits=(
                EngineLimit("llama.cpp", "layer_types", layers=_all_but_each(2), loads=True),
                EngineLimit("llama.cpp", "query_pre_attn_scalar", square_layers=46, loads=True),
                EngineLimit("llama.cpp", "attention_bias"),
                EngineLimit("mlx-lm", "attention_bias"),
            ),
            unread_engines=_UNREAD,
            engine_remarks={
                "transformers 4": "its default attention leaves out attn_logit_softcapping: load "
                'it with `attn_implementation="eager"`',
            },
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            _four_norms(has_head_norms=True),
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            norm=Norm(is_zero_centered=True),
            rotary=Rotary(1000000.0, sliding_theta=("rope_local_base_freq", 10000.0)),
            scales=Scales("hidden_size", logits_cap="final_logit_softcapping"),
            activation="hidden_activation",
            layer_lists={"layer_types": _all_but_each_of_pattern},
            hidden_divides_by_heads=True,
            absent={"num_key_value_heads": 4, "head_dim": 256},
            true_if_absent=("tie_word_embeddings",),
            engine_limits=(
                EngineLimit("llama.cpp", "layer_types", layers=_all_but_each(6), loads=True),
                EngineLimit("llama.cpp", "query_pre_attn_scalar", square_layers=62, loads=True),
                EngineLimit("llama.cpp", "attention_bias"),
                EngineLimit("mlx-lm", "layer_types", layers=_all_but_each_of_pattern, loads=True),
                EngineLimit("mlx-lm", "attention_bias"),
            ),
            unread_engines=_UNREAD,
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            {
                **_layer_modules(),
                **dict.fromkeys("qkv", "self_attn.qkv_proj"),
                **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
            },
            rotary=Rotary(
                partial=1.0,
                kinds=("default", "longrope"),
                renamed={"su": "longrope", "yarn": "longrope"},
                original=4096,
                old_keys=("type", "short_factor", "long_factor"),
            ),
            engine_limits=(
                EngineLimit("llama.cpp", "square"),
                EngineLimit("mlx-lm", "derived"),
            ),
            unread_engines=_UNREAD,
        ),
    )
}
# The families that a GPT of NeMo may be, by its settings.
NEMOTRON, LLAMA = FAMILIES["nemotron"], FAMILIES["llama"]
MISTRAL, QWEN2 = FAMILIES["mistral"], FAMILIES["qwen2"]
