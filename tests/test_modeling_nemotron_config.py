"""NemotronConfig reads every key ever published, writes both forms, and refuses what cannot be."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import transformers.models.nemotron as transformers_nemotron
from transformers import AutoConfig

from modeling_nemotron import NemotronConfig, NemotronModel
from tests.nemotron_models import SIZES

COMMON = {
    "architectures": ["NemotronForCausalLM"],
    "bos_token_id": 2,
    "eos_token_id": 3,
    "hidden_act": "relu2",
    "initializer_range": 0.0134,
    "max_position_embeddings": 4096,
    "model_type": "nemotron",
    "norm_eps": 1e-05,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256000,
}
MINITRON_8B = {**COMMON, "hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 48}
MINITRON_4B = {**COMMON, "hidden_size": 3072, "intermediate_size": 9216, "num_attention_heads": 24}
FLAT = {"partial_rotary_factor": 0.5, "rope_theta": 10000}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Minitron-8B-Base, first revision": {
        **MINITRON_8B,
        "kv_channels": 128,
        "rope_percent": 0.5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
    },
    "Minitron-8B-Base": {**MINITRON_8B, "head_dim": 128, **FLAT},
    "Minitron-4B-Base": {**MINITRON_4B, "head_dim": 128, **FLAT},
    "Minitron-4B-Base in vLLM's words": {**MINITRON_4B, "rope_percentage": 0.5, "head_dim": None},
    "Minitron-8B-Base saved by transformers 5": {
        **MINITRON_8B,
        "head_dim": 128,
        "rope_parameters": {
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000,
            "rope_type": "default",
        },
    },
    "Nemotron-4-340B, converted by the community": {
        **COMMON,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_size": 18432,
        "intermediate_size": 73728,
        "initializer_range": 0.0063,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": 96,
        "num_hidden_layers": 96,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "unk_token_id": 1,
        **FLAT,
    },
    "Nemotron-3 8B": {
        **COMMON,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "kv_channels": None,
        **FLAT,
    },
}


def made(**values: Any) -> NemotronConfig:
    return NemotronConfig(**values)


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_every_published_config_loads_as_what_it_means(
    published: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = NemotronConfig.from_pretrained(tmp_path)
    assert config.head_dim == (192 if published["hidden_size"] == 18432 else 128)
    assert config.num_key_value_heads == (published["num_key_value_heads"] or 32)
    assert config.rope_parameters == {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }


def test_the_defaults_are_transformers_own() -> None:
    ours, theirs = NemotronConfig(), transformers_nemotron.NemotronConfig()
    written = ours.to_dict()
    assert {name: written[name] for name in theirs.to_dict()} == {
        **theirs.to_dict(),
        "num_key_value_heads": 48,
    }
    assert ours.base_model_tp_plan == theirs.base_model_tp_plan


def test_what_is_written_holds_the_modern_and_the_flat_form(tmp_path: Path) -> None:
    config = made(hidden_size=96, num_attention_heads=4, rope_percent=0.25, rope_theta=7.0)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for text in (written, config.to_dict(), config.to_diff_dict()):
        assert text["head_dim"] == 24
        assert text["num_key_value_heads"] == 4
        assert (text["rope_theta"], text["partial_rotary_factor"]) == (7.0, 0.25)
        assert text["rope_parameters"] == {
            "rope_type": "default",
            "rope_theta": 7.0,
            "partial_rotary_factor": 0.25,
        }
    assert not {"kv_channels", "rope_percent", "rope_percentage"} & set(written)


def test_what_is_written_reads_back_the_same_in_both_libraries(tmp_path: Path) -> None:
    config = made(**SIZES, rope_theta=7.0, rope_parameters={"rope_type": "linear", "factor": 2.0})
    config.save_pretrained(tmp_path)
    assert NemotronConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is transformers_nemotron.NemotronConfig
    assert theirs.rope_parameters == config.rope_parameters
    assert theirs.head_dim == config.head_dim
    theirs.save_pretrained(tmp_path)
    assert NemotronConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_copies_and_pickles_are_equal() -> None:
    config = made(**SIZES, rope_theta=7.0)
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert NemotronConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_the_callers_dictionary_is_left_alone() -> None:
    rope = {"type": "linear", "factor": 2.0}
    made(rope_scaling=rope)
    made(rope_parameters=rope)
    assert rope == {"type": "linear", "factor": 2.0}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_scaling_is_read_from_either_key_in_either_spelling(key: str, kind: str) -> None:
    config = made(**{key: {kind: "linear", "factor": 2.0}}, rope_theta=7.0)
    assert config.rope_parameters == {
        "rope_type": "linear",
        "factor": 2.0,
        "rope_theta": 7.0,
        "partial_rotary_factor": 0.5,
    }


def test_rope_can_be_changed_after_the_config_is_made() -> None:
    config = made(**SIZES, rope_theta=7.0, partial_rotary_factor=0.2)
    kept = {"rope_theta": 7.0, "partial_rotary_factor": 0.2}
    config.rope_parameters = {"rope_type": "yarn", "factor": 2.0}
    assert config.rope_parameters == {
        **kept,
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
    }
    config.rope_parameters = None
    assert config.rope_parameters == {**kept, "rope_type": "default"}
    config.rope_theta = 9.0
    config.partial_rotary_factor = 1.0
    assert config.to_dict()["rope_parameters"] == {
        "rope_theta": 9.0,
        "partial_rotary_factor": 1.0,
        "rope_type": "default",
    }
    assert NemotronModel(config).rotary_emb.inv_freq.shape == (10,)


def test_from_pretrained_changes_what_it_is_asked_to(tmp_path: Path) -> None:
    made(**SIZES).save_pretrained(tmp_path)
    config = NemotronConfig.from_pretrained(tmp_path, partial_rotary_factor=1.0, rope_theta=7.0)
    assert config.rope_parameters == {
        "rope_type": "default",
        "rope_theta": 7.0,
        "partial_rotary_factor": 1.0,
    }


@pytest.mark.parametrize(
    "stated",
    [
        {"head_dim": 128, "kv_channels": 64},
        {"partial_rotary_factor": 0.5, "rope_percent": 0.25},
        {"rope_percentage": 0.5, "rope_percent": 0.25},
        {"rope_parameters": {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 1.0},
        {"rope_parameters": {"rope_theta": 10000.0}, "rope_theta": 500000.0},
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear"}},
        {"rope_parameters": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
    ],
    ids=str,
)
def test_keys_that_contradict_each_other_are_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="contradicts itself: .*Keep the right one") as refusal:
        made(**stated)
    flat = [value for value in stated.values() if not isinstance(value, dict)]
    assert all(str(value) in str(refusal.value) for value in flat)


def test_keys_that_say_the_same_twice_are_read() -> None:
    config = made(
        head_dim=128,
        kv_channels=128,
        rope_percent=0.5,
        rope_theta=10000,
        rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    assert config.head_dim == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of .* 4"),
        ({"head_dim": 18}, "head_dim 18 with partial_rotary_factor 0.5 rotates 9 dimensions"),
        ({"head_dim": 1}, "rotates 0 dimensions"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5: .* at most 1"),
        ({"partial_rotary_factor": 0.0}, "partial_rotary_factor is 0.0: .* above 0"),
        ({"hidden_act": "swiglu"}, "'swiglu' is gated"),
        ({"hidden_act": "fast-geglu"}, "'fast-geglu' is gated"),
        ({"hidden_act": "squared-relu"}, "'squared-relu' is not .* squared ReLU is 'relu2'"),
        ({"rope_parameters": {"rope_type": "ntk"}}, "rope_type 'ntk' is not one of default"),
        ({"hidden_size": 50, "head_dim": None}, "50 is not a multiple .* 6, .*: give head_dim"),
        *(
            ({name: value}, f"{name} is {value}: it must be at least 1")
            for name in SIZES
            for value in (0, -3)
        ),
    ],
)
def test_a_config_that_no_model_can_have_is_refused_when_it_is_made(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(**{**SIZES, **changes})


def test_a_config_made_bad_later_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    config = made(**SIZES)
    config.num_key_value_heads = 4
    with pytest.raises(Exception, match="num_attention_heads 6 is not a multiple"):
        config.save_pretrained(tmp_path)


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(Exception, match="hidden_size"):
        made(hidden_size="48")
