"""A Hub config as NeMo's settings, and back: nothing of a model is lost on the way."""

from typing import Any

import pytest
import torch
import yaml

from minitron.conversion.hub_to_nemo import (
    nemo1_settings,
    nemo2_settings,
    padded_vocab_size,
    vocab_multiple,
)
from minitron.conversion.nemo_to_hub import config_from_nemo, is_zero_centered
from minitron.conversion.nemo_tokenizer import FoundTokenizer, find_tokenizer
from minitron.conversion.nemo_yaml import read_nemo2_settings, read_settings
from minitron.errors import ArchitectureError, TargetError
from minitron.model.architecture import Architecture
from modeling_nemotron import NemotronConfig
from tests.tiny import SIZES

# 2407.14679, table 10, and the cards: layers, hidden, ffn, heads, kv heads, head_dim, std, exact
# parameters.
PUBLISHED = {
    "Minitron 4B": (32, 3072, 9216, 24, 8, 128, 0.0134, 4_190_509_056),
    "Minitron 8B": (32, 4096, 16384, 48, 8, 128, 0.0134, 8_271_699_968),
    "Nemotron-3 8B": (32, 4096, 16384, 32, 32, 128, 0.010, 8_540_135_424),
    "Nemotron-4 15B": (32, 6144, 24576, 48, 8, 128, 0.0134, 15_628_775_424),
    "Nemotron-4 340B": (96, 18432, 73728, 96, 8, 192, 0.0063, 341_029_195_776),
}


def published(name: str) -> dict[str, Any]:
    layers, hidden, ffn, heads, groups, head_dim, std, _ = PUBLISHED[name]
    return tiny(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        initializer_range=std,
        max_position_embeddings=4096,
        vocab_size=256000,
    )


def tiny(**changed: Any) -> dict[str, Any]:
    """A config.json as this project writes it."""
    rope = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return {
        "architectures": ["NemotronForCausalLM"],
        "model_type": "nemotron",
        **SIZES,
        "max_position_embeddings": 64,
        "initializer_range": 0.0134,
        "norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "hidden_act": "relu2",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        **rope,
        "rope_parameters": {"rope_type": "default", **rope},
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "use_cache": True,
        "dtype": "bfloat16",
        **changed,
    }


def there_and_back(config: dict[str, Any], format_name: str) -> dict[str, Any]:
    """Through the text of the file that NeMo reads."""
    dtype = getattr(torch, config["dtype"])
    if format_name == "nemo":
        text = yaml.safe_dump(nemo1_settings(config, dtype=dtype), sort_keys=False)
        settings = read_settings(text, "model_config.yaml")
    else:
        text = yaml.safe_dump(nemo2_settings(config, dtype=dtype), sort_keys=False)
        settings = read_nemo2_settings(text, "model.yaml")
    assert is_zero_centered(settings)
    return config_from_nemo(settings, vocab_size=config["vocab_size"], dtype=dtype)


ROPE = {"rope_theta": 500000.0, "partial_rotary_factor": 0.25}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: published(name) for name in PUBLISHED},
    "tiny": tiny(),
    "biased": tiny(attention_bias=True, mlp_bias=True),
    "tied": tiny(tie_word_embeddings=True),
    "one group a head": tiny(num_key_value_heads=6),
    "gelu": tiny(hidden_act="gelu"),
    "biased gelu": tiny(hidden_act="gelu", attention_bias=True, mlp_bias=True),
    "other rope": tiny(**ROPE, rope_parameters={"rope_type": "default", **ROPE}),
    "whole rope": tiny(
        rope_theta=10000.5,
        partial_rotary_factor=1.0,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.5,
            "partial_rotary_factor": 1.0,
        },
    ),
    "stretched": tiny(
        rope_parameters={
            "rope_type": "linear",
            "factor": 2.0,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        }
    ),
    "other numbers": tiny(norm_eps=1e-6, initializer_range=0.02, attention_dropout=0.1),
    "float32": tiny(dtype="float32"),
    "float16": tiny(dtype="float16"),
}


@pytest.mark.parametrize("format_name", ["nemo", "nemo2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_comes_back_from_nemo_as_it_was(variant: str, format_name: str) -> None:
    config = VARIANTS[variant]

    assert there_and_back(config, format_name) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_the_published_parameters(name: str) -> None:
    assert Architecture.from_config(published(name)).parameters == PUBLISHED[name][-1]


@pytest.mark.parametrize(
    ("format_name", "hidden_act"),
    [("nemo", "gelu_pytorch_tanh"), ("nemo2", "silu"), ("nemo2", "relu"), ("nemo2", "quick_gelu")],
)
def test_activations_of_one_nemo_come_back(format_name: str, hidden_act: str) -> None:
    config = tiny(hidden_act=hidden_act)

    assert there_and_back(config, format_name) == config


def test_a_config_of_any_age_is_written_under_todays_meaning() -> None:
    first = {  # as nvidia/Minitron-8B-Base had it at first
        key: value
        for key, value in tiny(kv_channels=8, rope_percent=0.5).items()
        if key not in ("head_dim", "rope_parameters", "partial_rotary_factor", "rope_theta")
    }

    assert nemo1_settings(first, dtype=torch.bfloat16) == nemo1_settings(
        tiny(), dtype=torch.bfloat16
    )


def test_keys_absent_from_config_json_mean_what_transformers_takes_them_for() -> None:
    least = {"model_type": "nemotron", **SIZES}
    settings = nemo1_settings(least, dtype=torch.bfloat16)
    built = NemotronConfig(**SIZES)

    back = config_from_nemo(settings, vocab_size=101)

    for key in (
        "initializer_range",
        "norm_eps",
        "attention_dropout",
        "hidden_act",
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
        "max_position_embeddings",
        "rope_parameters",
    ):
        assert back[key] == getattr(built, key), key


def test_the_yaml_has_what_nemo_reads_without_a_default() -> None:
    settings = nemo1_settings(tiny(), dtype=torch.bfloat16)

    assert settings["optim"]["name"]
    assert settings["mcore_gpt"]
    assert settings["target"].endswith(".MegatronGPTModel")
    assert settings["tensor_model_parallel_size"] == settings["pipeline_model_parallel_size"] == 1
    assert settings["normalization"] == "layernorm1p"
    assert settings["position_embedding_type"] == "rope"
    assert settings["encoder_seq_length"] == settings["max_position_embeddings"] == 64
    assert not settings["bias_activation_fusion"]  # Megatron refuses to fuse squared ReLU
    assert not settings["bias_dropout_add_fusion"]
    assert (settings["precision"], settings["megatron_amp_O2"]) == ("bf16", True)
    assert isinstance(settings["rotary_base"], int)


def test_precision_follows_the_tensors() -> None:
    half = nemo1_settings(tiny(), dtype=torch.float16)
    full = nemo1_settings(tiny(), dtype=torch.float32)

    assert (half["precision"], half["megatron_amp_O2"]) == (16, True)
    assert (full["precision"], full["megatron_amp_O2"]) == (32, False)
    with pytest.raises(TargetError, match="float64"):
        nemo1_settings(tiny(), dtype=torch.float64)


@pytest.mark.parametrize(
    "tokenizer",
    [
        FoundTokenizer("sentencepiece", "ab_t.model"),
        FoundTokenizer("huggingface", hub_id="nvidia/Minitron-4B-Base"),
    ],
)
def test_the_tokenizer_is_found_again(tokenizer: FoundTokenizer) -> None:
    one = yaml.safe_dump(nemo1_settings(tiny(), dtype=torch.bfloat16, tokenizer=tokenizer))
    two = yaml.safe_dump(nemo2_settings(tiny(), dtype=torch.bfloat16, tokenizer=tokenizer))
    names = ["ab_t.model", "cd_other.model"]

    assert find_tokenizer(read_settings(one, "yaml"), names) == tokenizer
    assert find_tokenizer(read_nemo2_settings(two, "yaml"), names) == tokenizer


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"attention_bias": True}, "sets attention_bias alone"),
        ({"mlp_bias": True}, "sets mlp_bias alone"),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
    ],
)
def test_what_nemo_has_no_settings_for_is_refused(changed: dict[str, Any], reason: str) -> None:
    for settings in (nemo1_settings, nemo2_settings):
        with pytest.raises(TargetError) as refused:
            settings(tiny(**changed), dtype=torch.bfloat16)
        assert reason in str(refused.value)


def test_an_activation_that_only_nemo_2_knows_is_refused_for_nemo_1() -> None:
    with pytest.raises(TargetError, match="NeMo 1 knows only relu2, gelu, gelu_pytorch_tanh"):
        nemo1_settings(tiny(hidden_act="silu"), dtype=torch.bfloat16)
    with pytest.raises(TargetError, match="'gelu_pytorch_tanh'; NeMo 2"):
        nemo2_settings(tiny(hidden_act="gelu_pytorch_tanh"), dtype=torch.bfloat16)


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="rope_theta"):
        nemo1_settings(tiny(rope_theta=7.0), dtype=torch.bfloat16)
    with pytest.raises(ArchitectureError, match="rope_type 'linear' without factor"):
        nemo1_settings(tiny(rope_parameters={"rope_type": "linear"}), dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("size", "multiple", "rows"),
    [(300, 128, 384), (300, 256, 512), (256000, 1024, 256000), (256, 128, 256), (1, 128, 128)],
)
def test_the_vocabulary_is_padded_as_megatron_pads_it(size: int, multiple: int, rows: int) -> None:
    assert padded_vocab_size(size, multiple) == rows


@pytest.mark.parametrize(
    ("size", "rows", "multiple"),
    [
        (256000, 256000, 128),
        (101, 101, 1),
        (300, 300, 4),
        (300, 384, 128),
        (300, 512, 256),  # padded for two GPUs
        (250, 384, 192),
        (5, 512, 512),
    ],
)
def test_the_multiple_reproduces_the_rows(size: int, rows: int, multiple: int) -> None:
    assert vocab_multiple(size, rows) == multiple
    assert padded_vocab_size(size, multiple) == rows


def test_every_padding_is_reproduced() -> None:
    for rows in range(1, 140):
        for size in range(1, rows + 1):
            assert padded_vocab_size(size, vocab_multiple(size, rows)) == rows


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(TargetError, match="102 tokens and the embedding 101 rows"):
        nemo1_settings(tiny(), dtype=torch.bfloat16, tokenizer_size=102)


def test_padding_is_written_for_the_rows_that_are_written() -> None:
    def multiple(rows: int, **sizes: int) -> int:
        config = tiny(vocab_size=rows)
        settings = nemo1_settings(config, dtype=torch.bfloat16, **sizes)
        two = nemo2_settings(config, dtype=torch.bfloat16, **sizes)["config"]
        assert settings["make_vocab_size_divisible_by"] == two["make_vocab_size_divisible_by"]
        return int(settings["make_vocab_size_divisible_by"])

    assert multiple(101) == 1
    assert multiple(128, tokenizer_size=101) == 128
    assert multiple(101, tokenizer_size=100) == 101
