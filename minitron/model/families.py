"""The model families as tables: a family's modules, tensors, norms, defaults and limits.

Every fact in which families differ is here and nowhere else; a new dense family is a new entry in
`FAMILIES`. Sources: each family's modeling file in transformers 5 (state-dict names
and shapes) and its configuration file (defaults of absent keys).

    FAMILIES["llama"].tensor("down", layer=3)   # "model.layers.3.mlp.down_proj.weight"
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from minitron.model.family import (
    EngineLimit,
    Family,
    Gguf,
    LayerList,
    Norm,
    Rotary,
    Scales,
)

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
            _layer_modules(),
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
            _layer_modules(),
            absent={"num_key_value_heads": 8},
            trtllm_example="llama",
            gguf=_LLAMA_GGUF,
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            _layer_modules(),
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
            _layer_modules(),
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
            _layer_modules(),
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
            _layer_modules(),
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
