"""What NeMo's settings become on the Hub: every default, every refusal."""

import math
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from minitron.conversion.nemo_family import REQUIREMENTS
from minitron.conversion.nemo_settings import ACTIVATIONS, SETTINGS
from minitron.conversion.nemo_to_hub import config_from_nemo, is_zero_centered
from minitron.errors import ArchitectureError, SourceError
from minitron.model.architecture import Architecture
from minitron.sources.loading import hub_config

LEAST: dict[str, Any] = {  # what NeMo has no default for
    "num_layers": 4,
    "hidden_size": 42,
    "num_attention_heads": 6,
    "position_embedding_type": "rope",
}
TINY: dict[str, Any] = {
    **LEAST,
    "ffn_hidden_size": 66,
    "num_query_groups": 2,
    "kv_channels": 8,
    "max_position_embeddings": 64,
    "encoder_seq_length": 32,
    "init_method_std": 0.0134,
    "layernorm_epsilon": 1e-6,
    "normalization": "layernorm1p",
    "rotary_percentage": 0.5,
    "rotary_base": 500000,
    "attention_dropout": 0.0,
    "share_embeddings_and_output_weights": False,
    "activation": "squared-relu",
    "bias": False,
    "apply_query_key_layer_scaling": True,
}


def config_of(**changed: Any) -> dict[str, Any]:
    return config_from_nemo({**TINY, **changed}, vocab_size=101, dtype=torch.bfloat16)


def test_every_setting_has_its_place_in_the_config() -> None:
    assert config_of() == {
        "architectures": ["NemotronForCausalLM"],
        "model_type": "nemotron",
        "num_hidden_layers": 4,
        "hidden_size": 42,
        "num_attention_heads": 6,
        "intermediate_size": 66,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.0134,
        "norm_eps": 1e-6,
        "partial_rotary_factor": 0.5,
        "rope_theta": 500000.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500000.0,
            "partial_rotary_factor": 0.5,
        },
        "hidden_act": "relu2",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": 101,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "use_cache": True,
        "dtype": "bfloat16",
    }


ABSENT = {
    "ffn_hidden_size": ("intermediate_size", 168),
    "num_query_groups": ("num_key_value_heads", 6),
    "kv_channels": ("head_dim", 7),
    "max_position_embeddings": ("max_position_embeddings", 32),
    "init_method_std": ("initializer_range", 0.02),
    "layernorm_epsilon": ("norm_eps", 1e-5),
    "rotary_percentage": ("partial_rotary_factor", 1.0),
    "rotary_base": ("rope_theta", 10000.0),
    "attention_dropout": ("attention_dropout", 0.1),
    "share_embeddings_and_output_weights": ("tie_word_embeddings", True),
    "activation": ("hidden_act", "gelu"),
    "bias": ("mlp_bias", True),
}


@pytest.mark.parametrize("key", ABSENT)
def test_an_absent_or_null_setting_is_nemos_default(key: str) -> None:
    hub, value = ABSENT[key]
    without = {name: value for name, value in TINY.items() if name != key}

    assert config_from_nemo(without, vocab_size=101)[hub] == value
    assert config_of(**{key: None})[hub] == value


def test_the_table_of_defaults_is_whole() -> None:
    optional = {setting.nemo for setting in SETTINGS if setting.nemo_default is not None}

    assert optional | {"activation", "bias"} == set(ABSENT)


def test_the_least_nemo_config_is_a_model_of_nemos_defaults_and_not_the_hubs() -> None:
    config = config_from_nemo(LEAST | {"kv_channels": 8}, vocab_size=101)
    built = hub_config(config)

    assert built.max_position_embeddings == 512
    assert built.rope_parameters["partial_rotary_factor"] == 1.0
    assert built.tie_word_embeddings
    assert built.attention_bias
    assert built.mlp_bias
    assert built.hidden_act == "gelu_pytorch_tanh"  # gelu, fused with the bias
    assert "dtype" not in config


@pytest.mark.parametrize("key", ["num_layers", "hidden_size", "num_attention_heads"])
def test_a_size_that_nemo_has_no_default_for_must_be_there(key: str) -> None:
    with pytest.raises(ArchitectureError, match=f"has no {key}"):
        config_of(**{key: None})


@pytest.mark.parametrize("changed", [{}, {"bias": True}, {"kv_channels": 16}, {"num_layers": 1}])
def test_the_config_is_accepted_and_has_the_sizes(changed: dict[str, Any]) -> None:
    config = config_of(**changed)
    architecture = Architecture.from_config(config)
    built = hub_config(config)

    assert built.head_dim == architecture.head_dim == {**TINY, **changed}["kv_channels"]
    assert architecture.flags == (
        frozenset({"attention_bias", "mlp_bias"}) if "bias" in changed else frozenset()
    )
    assert built.to_dict()["rope_theta"] == 500000.0
    assert built.dtype == torch.bfloat16


def test_stretched_positions_are_linear_scaling() -> None:
    config = config_of(seq_len_interpolation_factor=4)
    built = hub_config(config)

    assert config["rope_parameters"]["rope_type"] == "linear"
    assert built.rope_parameters["factor"] == 4.0
    assert built.rope_parameters["partial_rotary_factor"] == 0.5
    assert config_of(seq_len_interpolation_factor=1)["rope_parameters"]["rope_type"] == "default"


def test_special_ids_are_the_tokenizers_where_there_is_one() -> None:
    found = config_from_nemo(TINY, vocab_size=101, special={"unk": 0, "bos": 1, "eos": 7})
    without = config_from_nemo(TINY, vocab_size=101, special={})

    assert [found[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [1, 7, None]
    assert [without[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [2, 3, 0]


@pytest.mark.parametrize(
    ("settings", "hidden_act"),
    [
        ({"activation": "squared-relu"}, "relu2"),
        ({"activation": "relu"}, "relu"),
        ({"activation": "silu"}, "silu"),
        ({"activation": "quick_gelu"}, "quick_gelu"),
        ({"activation": "gelu"}, "gelu"),
        ({"activation": "gelu", "bias": True}, "gelu_pytorch_tanh"),
        ({"activation": "gelu", "bias": True, "bias_activation_fusion": False}, "gelu"),
        ({"activation": "gelu", "openai_gelu": True}, "gelu_pytorch_tanh"),
        ({"activation": "squared-relu", "bias": True}, "relu2"),
    ],
)
def test_each_activation_is_the_function_that_megatron_computes(
    settings: dict[str, Any], hidden_act: str
) -> None:
    config = config_of(**settings)

    assert config["hidden_act"] == hidden_act
    hub_config(config)


def test_the_fused_gelu_is_megatrons_formula() -> None:
    x = torch.linspace(-4, 4, 101)
    fused = x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))  # bias_gelu

    torch.testing.assert_close(ACT2FN["gelu_pytorch_tanh"](x), fused, rtol=0, atol=1e-6)
    assert not torch.allclose(ACT2FN["gelu"](x), fused, rtol=0, atol=1e-4)
    squared = ACT2FN["relu2"](x)
    torch.testing.assert_close(squared, torch.pow(torch.nn.functional.relu(x), 2))


def test_every_activation_of_the_table_is_one_of_transformers() -> None:
    assert {known.hub for known in ACTIVATIONS} <= ACT2FN.keys()


# Each refusal with a value that it exists for.
REFUSED: dict[str, Any] = {
    "position_embedding_type": "learned_absolute",
    "normalization": "rmsnorm",
    "transformer_block_type": "post_ln",
    "attention_type": "multiquery",
    "normalize_attention_scores": False,
    "rotary_interleaved": True,
    "rope_scaling": True,
    "scale_positional_embedding": True,
    "gated_linear_unit": True,
    "num_moe_experts": 8,
    "window_size": [4096, 0],
    "sliding_window": 4096,
    "multi_latent_attention": True,
    "qk_layernorm": True,
    "attention_output_gate": True,
    "softmax_scale": 0.1,
    "apply_embedding_scaling": True,
    "headscale": True,
    "parallel_attention": True,
    "apply_residual_connection_post_layernorm": True,
    "hyena": {"order": 2},
    "onnx_safe": True,
    "name": "megatron_falcon_gpt",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_no_nemotron_is_is_refused_by_key_value_and_reason(key: str) -> None:
    reason = next(rule.reason for rule in REQUIREMENTS if rule.key == key)
    reason = reason.format(family="Nemotron")

    with pytest.raises(ArchitectureError) as refused:
        config_of(**{key: REFUSED[key]})

    assert f"{key}: " in str(refused.value)
    assert reason in str(refused.value)
    if isinstance(REFUSED[key], str | int):
        assert repr(REFUSED[key]) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_requirement_is_tried() -> None:
    assert {requirement.key for requirement in REQUIREMENTS} == set(REFUSED)


@pytest.mark.parametrize(
    "value", ["alibi", "learned_absolute", "learned_parameters", "sandwich", "none", "mrope", 7]
)
def test_positions_other_than_rotary_are_refused(value: object) -> None:
    with pytest.raises(ArchitectureError, match="positions are rotary"):
        config_of(position_embedding_type=value)


def test_absent_positions_are_learned_and_so_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"'learned_absolute' \(NeMo's default\)"):
        config_of(position_embedding_type=None)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_moe_experts": 1},
        {"num_moe_experts": 0},
        {"normalization": "LayerNorm"},
        {"headscale": False},
        {"name": "te_gpt"},
        {"rotary_interleaved": False},
        {"apply_query_key_layer_scaling": True},
        {
            "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model."
            "MegatronGPTModel"
        },
        {"target": "nemo_aligner.models.nlp.gpt.gpt_sft_model.GPTSFTModel"},
        {"target": "nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model.MegatronGPTDPOModel"},
    ],
)
def test_what_changes_nothing_is_let_through(settings: dict[str, Any]) -> None:
    assert config_of(**settings) == config_of()


@pytest.mark.parametrize(
    "activation", ["swiglu", "fast-swiglu", "geglu", "fast-geglu", "reglu", "fast-reglu", "SwiGLU"]
)
def test_a_gated_mlp_is_refused(activation: str) -> None:
    with pytest.raises(ArchitectureError, match=f"activation: '{activation}', a gated MLP"):
        config_of(activation=activation)


@pytest.mark.parametrize("activation", ["approx-gelu", "tanh", "", ["gelu"], True])
def test_an_unknown_activation_is_refused(activation: object) -> None:
    with pytest.raises(ArchitectureError, match="activation: .*; known are squared-relu, gelu"):
        config_of(activation=activation)


def test_a_bias_of_q_k_v_alone_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="q, k, v and o or to none"):
        config_of(qkv_bias=True)

    assert config_of(qkv_bias=True, bias=True)["attention_bias"]


@pytest.mark.parametrize(
    "target",
    [
        "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE",
        "nemo.collections.nlp.models.language_modeling.megatron_t5_model.MegatronT5Model",
        "nemo.collections.nlp.models.language_modeling.megatron_bert_model.MegatronBertModel",
        "nemo.collections.nlp.models.language_modeling.megatron_retro_model.MegatronGPTRetroModel",
        "nemo_aligner.models.nlp.gpt.megatron_gpt_reward_model.MegatronGPTRewardModel",
        "nemo_aligner.models.nlp.gpt.megatron_gpt_regression_reward_model.MegatronGPTRegression",
        7,
    ],
)
def test_what_is_no_gpt_language_model_is_refused_before_its_sizes(target: object) -> None:
    with pytest.raises(SourceError, match="only GPT language models"):
        config_from_nemo({"target": target}, vocab_size=101)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hidden_size", "42", "a whole number"),
        ("hidden_size", 42.5, "a whole number"),
        ("hidden_size", True, "a whole number"),
        ("hidden_size", 0, "a whole number"),
        ("hidden_size", -42, "a whole number"),
        ("hidden_size", 10**40, "a whole number"),
        ("num_layers", [4], "num_layers: a list"),
        ("kv_channels", "???", "'???'"),
        ("max_position_embeddings", "${.length}", "a whole number"),
        ("layernorm_epsilon", "small", "a number"),
        ("layernorm_epsilon", math.nan, "a number"),
        ("rotary_base", math.inf, "a number"),
        ("rotary_percentage", -0.5, "a number"),
        ("share_embeddings_and_output_weights", "no", "true or false"),
        ("bias", "no", "true or false"),
        ("bias", 1, "true or false"),
        ("openai_gelu", "no", "true or false"),
        ("seq_len_interpolation_factor", 0.5, "at least 1"),
        ("seq_len_interpolation_factor", "4", "at least 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key: str, value: object, reason: str) -> None:
    with pytest.raises(ArchitectureError) as refused:
        config_of(**{key: value})

    assert f"{key}: " in str(refused.value)
    assert reason in str(refused.value)


def test_a_size_of_a_head_that_does_not_follow_must_be_given() -> None:
    with pytest.raises(ArchitectureError, match="kv_channels must say the size of a head"):
        config_of(kv_channels=None, num_attention_heads=4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"normalization": "layernorm1p"}, True),
        ({"normalization": "LayerNorm1P"}, True),
        ({"normalization": "layernorm1p", "layernorm_zero_centered_gamma": False}, True),
        ({"normalization": "layernorm", "layernorm_zero_centered_gamma": True}, True),
        ({"normalization": "LayerNorm", "layernorm_zero_centered_gamma": False}, False),
        ({"normalization": "layernorm"}, False),
        ({}, False),
    ],
)
def test_norm_weights_are_the_gain_minus_one_only_by_the_settings(
    settings: dict[str, Any], expected: bool
) -> None:
    assert is_zero_centered(settings) is expected
