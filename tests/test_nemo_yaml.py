"""Settings of NeMo 1 and NeMo 2, under one set of names."""

from typing import Any

import pytest
import torch
import yaml

from minitron.conversion.nemo_to_hub import config_from_nemo, is_zero_centered
from minitron.conversion.nemo_yaml import NEMO2_DEFAULTS, read_nemo2_settings, read_settings
from minitron.errors import ArchitectureError, SourceError
from minitron.model.architecture import Architecture

NEMO1 = """
mcore_gpt: true
encoder_seq_length: 64
max_position_embeddings: ${.encoder_seq_length}
num_layers: 4
hidden_size: 42
ffn_hidden_size: ${multiply:4, ${.hidden_size}}
layernorm_epsilon: 1e-5
precision: ${trainer.precision}
data:
  chat: true
  data_prefix: ${data_dir}/books
  seq_length: ${model.encoder_seq_length}
optim:
  name: fused_adam
  lr: ${oc.env:LR}
"""
PACKAGE = "nemo.collections.llm.gpt.model"


def test_references_are_resolved_and_those_about_training_may_stay() -> None:
    settings = read_settings(NEMO1, "yaml")

    assert settings["max_position_embeddings"] == 64
    assert settings["ffn_hidden_size"] == 168
    assert settings["layernorm_epsilon"] == 1e-5
    assert settings["precision"] == "${trainer.precision}"
    assert settings["data"] == {"chat": True, "data_prefix": "${data_dir}/books", "seq_length": 64}
    assert settings["optim"]["lr"] == "${oc.env:LR}"


def test_of_a_whole_config_the_model_section_is_read() -> None:
    whole = {
        "trainer": {"precision": "bf16", "devices": "${oc.env:DEVICES}"},
        "exp_manager": {"name": "${nothing}"},
        "model": {
            "precision": "${trainer.precision}",
            "hidden_size": 42,
            "ffn_hidden_size": "${multiply:4, ${model.hidden_size}}",
            "optim": {"lr": "${nothing}"},
        },
    }

    settings = read_settings(yaml.safe_dump(whole), "yaml")

    assert settings == {
        "precision": "bf16",
        "hidden_size": 42,
        "ffn_hidden_size": 168,
        "optim": {"lr": "${nothing}"},
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hidden_size: ${.hidden_sise}", "hidden_size refers to a key that is not there"),
        ("model: {hidden_size: '${.hidden_sise}'}", "model.hidden_size refers to a key"),
        ("a: ${b}\nb: ${a}", "a -> b -> a refers to itself"),
        ("- 1", "holds a list, not a mapping"),
        ("", "holds None, not a mapping"),
        ("a: !!python/object:os.x {}", "could not determine a constructor"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SourceError) as refusal:
        read_settings(text, "m.nemo/model_config.yaml")

    assert reason in str(refusal.value)
    assert str(refusal.value).startswith("m.nemo/model_config.yaml")


def nemo2(dataclass: str | None, model: str = "nemotron.NemotronModel", **fields: Any) -> str:
    root: dict[str, Any] = {"_target_": f"{PACKAGE}.{model}"}
    if dataclass is not None:
        root["config"] = {"_target_": f"{PACKAGE}.nemotron.{dataclass}", **fields}
    return yaml.safe_dump(root)


# Layers, hidden, ffn, heads, kv heads, head_dim, init std and exact parameters (2407.14679 table 10
# for the 15B and 8B; NVIDIA's cards for the 340B and the 4B).
SHAPES = {
    "NemotronConfig": (32, 3072, 9216, 24, 8, 128, 0.0134, 4_190_509_056),
    "Nemotron3Config4B": (32, 3072, 9216, 24, 8, 128, 0.0134, 4_190_509_056),
    "Nemotron3Config8B": (32, 4096, 16384, 32, 32, 128, 0.010, 8_540_135_424),
    "Nemotron4Config15B": (32, 6144, 24576, 48, 8, 128, 0.0134, 15_628_775_424),
    "Nemotron4Config340B": (96, 18432, 73728, 96, 8, 192, 0.0063, 341_029_195_776),
}


@pytest.mark.parametrize("dataclass", SHAPES)
def test_a_dataclass_alone_is_the_published_model(dataclass: str) -> None:
    settings = read_nemo2_settings(nemo2(dataclass), "model.yaml")
    config = config_from_nemo(settings, vocab_size=256000, dtype=torch.bfloat16)
    *sizes, std, parameters = SHAPES[dataclass]

    assert [
        config[key]
        for key in (
            "num_hidden_layers",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        )
    ] == sizes
    assert config["initializer_range"] == std
    assert Architecture.from_config(config).parameters == parameters
    assert (config["hidden_act"], config["partial_rotary_factor"]) == ("relu2", 0.5)
    assert not config["attention_bias"]
    assert not config["mlp_bias"]
    assert not config["tie_word_embeddings"]
    assert config["max_position_embeddings"] == 4096
    assert is_zero_centered(settings)


def test_every_known_dataclass_makes_a_model_or_says_what_is_missing() -> None:
    for dataclass in NEMO2_DEFAULTS:
        settings = read_nemo2_settings(nemo2(dataclass), "model.yaml")
        if dataclass == "GPTConfig":
            with pytest.raises(ArchitectureError, match="learned_absolute"):
                config_from_nemo(settings, vocab_size=101)
        elif dataclass == "LlamaConfig":
            with pytest.raises(ArchitectureError, match="has no num_layers"):
                config_from_nemo(settings, vocab_size=101)
        else:
            Architecture.from_config(config_from_nemo(settings, vocab_size=101))


def test_a_model_without_a_config_is_the_default_one() -> None:
    without = read_nemo2_settings(nemo2(None), "model.yaml")

    assert without == read_nemo2_settings(nemo2("NemotronConfig"), "model.yaml")


def test_given_fields_override_defaults_and_null_means_none() -> None:
    text = nemo2(
        "Nemotron3Config4B",
        num_layers=5,
        seq_length=8192,
        rotary_percent=0.25,
        rotary_base=500000,
        kv_channels=None,
        num_query_groups=None,
        share_embeddings_and_output_weights=True,
        add_bias_linear=True,
        layernorm_zero_centered_gamma=False,
        activation_func={"_target_": "torch.nn.functional.silu", "_call_": False},
        params_dtype={"_target_": "torch.bfloat16", "_call_": False},
    )
    settings = read_nemo2_settings(text, "model.yaml")
    config = config_from_nemo(settings, vocab_size=101)

    assert config["num_hidden_layers"] == 5
    assert config["max_position_embeddings"] == 8192
    assert (config["partial_rotary_factor"], config["rope_theta"]) == (0.25, 500000.0)
    assert (config["head_dim"], config["num_key_value_heads"]) == (128, 24)
    assert config["tie_word_embeddings"]
    assert config["attention_bias"]
    assert config["mlp_bias"]
    assert config["hidden_act"] == "silu"
    assert not is_zero_centered(settings)


@pytest.mark.parametrize(
    "function",
    [
        "nemo.collections.nlp.modules.common.megatron.utils.squared_relu",
        "nemo.collections.llm.fn.activation.squared_relu",
        "megatron.core.activations.squared_relu",
    ],
)
def test_squared_relu_is_known_wherever_it_is_imported_from(function: str) -> None:
    text = nemo2("NemotronConfig", activation_func={"_target_": function, "_call_": False})

    assert read_nemo2_settings(text, "model.yaml")["activation"] == "squared-relu"


def test_a_generic_gpt_is_a_nemotron_when_it_says_so() -> None:
    fields = {
        "num_layers": 4,
        "hidden_size": 42,
        "num_attention_heads": 6,
        "kv_channels": 8,
        "position_embedding_type": "rope",
    }
    text = nemo2("GPTConfig", "base.GPTModel", **fields)
    settings = read_nemo2_settings(text, "model.yaml")
    config = config_from_nemo(settings, vocab_size=101)

    assert config["intermediate_size"] == 168
    assert config["hidden_act"] == "gelu"  # megatron-core fuses nothing by default
    assert config["partial_rotary_factor"] == 1.0
    assert config["tie_word_embeddings"]
    assert config["mlp_bias"]
    assert config["max_position_embeddings"] == 1024
    assert not is_zero_centered(settings)


def test_the_tokenizer_is_described_as_nemo_1_describes_it() -> None:
    tokenizers = "nemo.collections.common.tokenizers"
    root = yaml.safe_load(nemo2("NemotronConfig"))
    root["tokenizer"] = {
        "_target_": f"{tokenizers}.sentencepiece_tokenizer.SentencePieceTokenizer",
        "model_path": "context/t.model",
    }
    spm = read_nemo2_settings(yaml.safe_dump(root), "model.yaml")["tokenizer"]
    root["tokenizer"] = {
        "_target_": f"{tokenizers}.huggingface.auto_tokenizer.AutoTokenizer",
        "pretrained_model_name": "nvidia/Minitron-4B-Base",
    }
    hub = read_nemo2_settings(yaml.safe_dump(root), "model.yaml")["tokenizer"]

    assert (spm["library"], spm["model"]) == ("sentencepiece", "context/t.model")
    assert (hub["library"], hub["type"]) == ("huggingface", "nvidia/Minitron-4B-Base")


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        (nemo2("MixtralConfig"), ArchitectureError, "MixtralConfig': known are GPTConfig, "),
        (nemo2("NemotronConfig", "mixtral.MixtralModel"), SourceError, "mixtral.MixtralModel"),
        ("config: {num_layers: 3}", SourceError, "_target_ None"),
        (f"_target_: {PACKAGE}.NemotronModel\nconfig: [1]", SourceError, "config holds a list"),
        (nemo2("NemotronConfig", num_layers="${nothing}"), SourceError, "config.num_layers"),
    ],
)
def test_another_model_of_nemo_2_is_refused(text: str, error: type, reason: str) -> None:
    with pytest.raises(error) as refusal:
        read_nemo2_settings(text, "model.yaml")

    assert reason in str(refusal.value)


def test_a_gate_of_nemo_2_is_refused() -> None:
    settings = read_nemo2_settings(nemo2("NemotronConfig", gated_linear_unit=True), "model.yaml")

    with pytest.raises(ArchitectureError, match="gated_linear_unit: True, but .* no gate"):
        config_from_nemo(settings, vocab_size=101)
