"""The table of tensors is what transformers builds, and it counts what was published."""

import math
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minitron.errors import ArchitectureError
from minitron.model.architecture import Architecture
from minitron.model.config_json import resized_config
from minitron.model.families import FAMILIES as TABLE
from minitron.sources.loading import hub_config
from modeling_nemotron import NemotronConfig
from tests.tiny import FAMILIES, SIZES, VARIANTS, tiny_config, tiny_model

WORDS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)


def sizes_of(family: str, *sizes: int, **flags: Any) -> dict[str, Any]:
    """A config.json of these sizes, in the order of WORDS."""
    return {"model_type": family, **dict(zip(WORDS, sizes, strict=True)), **flags}


# model: family, sizes in the order of WORDS, all parameters, those that embed no token
PUBLISHED: dict[str, tuple[str, tuple[int, ...], int, int]] = {
    "Nemotron-4 15B": (
        "nemotron",
        (32, 6144, 48, 8, 128, 24576, 256000),
        15_628_775_424,
        12_483_047_424,
    ),
    "Nemotron-3 8B": (
        "nemotron",
        (32, 4096, 32, 32, 128, 16384, 256000),
        8_540_135_424,
        6_442_983_424,
    ),
    "Minitron-8B": (
        "nemotron",
        (32, 4096, 48, 8, 128, 16384, 256000),
        8_271_699_968,
        6_174_547_968,
    ),
    "Minitron-4B": ("nemotron", (32, 3072, 24, 8, 128, 9216, 256000), 4_190_509_056, 2_617_645_056),
    "Nemotron-4 340B": (
        "nemotron",
        (96, 18432, 96, 8, 192, 73728, 256000),
        341_029_195_776,
        331_592_011_776,
    ),
    "Llama-3.1-8B": ("llama", (32, 4096, 32, 8, 128, 14336, 128256), 8_030_261_248, 6_979_588_096),
    "Llama-3.1-Minitron-4B-Width": (
        "llama",
        (32, 3072, 32, 8, 128, 9216, 128256),
        4_512_746_496,
        3_724_741_632,
    ),
    "Llama-3.1-Minitron-4B-Depth": (
        "llama",
        (16, 4096, 32, 8, 128, 14336, 128256),
        4_540_469_248,
        3_489_796_096,
    ),
    "MN-Minitron-8B": (
        "mistral",
        (40, 4096, 32, 8, 128, 11520, 131072),
        8_414_105_600,
        7_340_363_776,
    ),
}


# The sizes of published models, as their config.json has them, and what else changes a count.
CONFIGS: dict[str, dict[str, Any]] = {
    "SmolLM3-3B": sizes_of("smollm3", 36, 2048, 16, 4, 128, 11008, 128256),
    "Seed-OSS-36B": sizes_of("seed_oss", 64, 5120, 80, 8, 128, 27648, 155136),
    "OLMo-2-0425-1B": sizes_of("olmo2", 16, 2048, 16, 16, 128, 8192, 100352),
    "OLMo-2-1124-7B": sizes_of("olmo2", 32, 4096, 32, 32, 128, 11008, 100352),
    "OLMo-2-1124-13B": sizes_of("olmo2", 40, 5120, 40, 40, 128, 13824, 100352),
    "granite-3.1-2b": sizes_of(
        "granite", 40, 2048, 32, 8, 64, 8192, 49155, tie_word_embeddings=True
    ),
    "granite-3.1-8b": sizes_of(
        "granite", 40, 4096, 32, 8, 128, 12800, 49155, tie_word_embeddings=True
    ),
    "gemma-2-2b": sizes_of("gemma2", 26, 2304, 8, 4, 256, 9216, 256000),
    "gemma-2-9b": sizes_of("gemma2", 42, 3584, 16, 8, 256, 14336, 256000),
    "gemma-2-27b": sizes_of("gemma2", 46, 4608, 32, 16, 128, 36864, 256000),
    "gemma-3-270m": sizes_of("gemma3_text", 18, 640, 4, 1, 256, 2048, 262144),
    "gemma-3-1b": sizes_of("gemma3_text", 26, 1152, 4, 1, 256, 6912, 262144),
    "gemma-3-4b, its text part": sizes_of("gemma3_text", 34, 2560, 8, 4, 256, 10240, 262208),
    "Phi-3-mini": sizes_of("phi3", 32, 3072, 32, 32, 96, 8192, 32064),
    "Phi-3-medium": sizes_of("phi3", 40, 5120, 40, 10, 128, 17920, 32064),
    "Phi-4-mini": sizes_of("phi3", 32, 3072, 24, 8, 128, 8192, 200064, tie_word_embeddings=True),
}


def config_of(family: str, **changed: Any) -> dict[str, Any]:
    """A config.json of the tiny sizes; a size given as None is null, `...` leaves it out."""
    config = {"model_type": family, **SIZES, **changed}
    return {key: value for key, value in config.items() if value is not ...}


def built_shapes(family: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model that transformers, or our own class, builds of a config."""
    config_class = NemotronConfig if family == "nemotron" else CONFIG_MAPPING[family]
    with torch.device("meta"):
        # The pad tokens of some families are no rows of a tiny embedding.
        settings = {"pad_token_id": 0, **config}
        model = AutoModelForCausalLM.from_config(config_class.from_dict(settings))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_those_published(model: str) -> None:
    family, sizes, parameters, non_embedding = PUBLISHED[model]
    config = {"model_type": family, **dict(zip(WORDS, sizes, strict=True))}
    architecture = Architecture.from_config(config)
    assert architecture.parameters == parameters
    assert architecture.non_embedding_parameters == non_embedding


@pytest.mark.parametrize("model", CONFIGS)
def test_parameters_are_those_that_transformers_builds(model: str) -> None:
    config = CONFIGS[model]
    shapes = built_shapes(config["model_type"], config)
    architecture = Architecture.from_config(config)
    if architecture.tie_word_embeddings:
        del shapes["lm_head.weight"]
    assert architecture.shapes() == shapes
    assert architecture.parameters == sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_are_those_of_transformers(variant: str) -> None:
    model = tiny_model(variant)
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = bool(model.config.tie_word_embeddings)
    if tied:
        del built["lm_head.weight"]
    architecture = Architecture.from_config(model.config.to_dict())
    assert architecture.shapes() == built
    assert architecture.parameters == model.num_parameters()
    assert architecture.tie_word_embeddings == tied


def test_tensors_come_in_the_order_in_which_they_run() -> None:
    names = list(Architecture.from_config(config_of("qwen3", num_hidden_layers=11)).shapes())
    assert names[0] == "model.embed_tokens.weight"
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers)
    assert set(layers) == set(range(11))


def test_the_cache_keeps_a_key_and_a_value_of_each_kv_head_and_layer() -> None:
    kept = Architecture.from_config(config_of("llama")).kv_cache_elements_per_token
    assert kept == 2 * 4 * 2 * 8  # keys and values, layers, KV heads, head_dim


@pytest.mark.parametrize("stated", ["absent", "null"])
@pytest.mark.parametrize("key", ["num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_config_means_what_it_means_to_the_family(
    family: str, key: str, stated: str
) -> None:
    sizes = {
        "hidden_size": 256,
        "num_attention_heads": 32,
        key: ... if stated == "absent" else None,
    }
    config = config_of(family, **sizes)
    architecture = Architecture.from_config(config)
    try:
        built = built_shapes(family, config)
    except (StrictDataclassError, TypeError):  # some of transformers' classes take no null
        assert stated == "null"
        return
    if architecture.tie_word_embeddings:
        del built["lm_head.weight"]
    assert architecture.shapes() == built


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("kv_channels", "head_dim", 18),
        ("rope_percent", "partial_rotary_factor", 0.25),
        ("rope_percentage", "partial_rotary_factor", 0.75),
    ],
)
class TestOldKeys:
    def test_they_mean_what_todays_key_says(self, old: str, new: str, value: float) -> None:
        config = config_of("nemotron", **{"head_dim": ..., old: value})
        architecture = Architecture.from_config(config)
        assert architecture.head_dim == (value if new == "head_dim" else 42 // 6)
        written = resized_config(config, architecture, (0, 1, 2, 3))
        assert written[new] == value
        assert old not in written
        assert getattr(AutoConfig.for_model(**written), new, written[new]) == value

    def test_where_both_say_the_same_it_holds(self, old: str, new: str, value: float) -> None:
        config = config_of("nemotron", **{old: value, new: value})
        written = resized_config(config, Architecture.from_config(config), (0, 1, 2, 3))
        assert written[new] == value

    def test_where_they_disagree_both_values_are_named(
        self, old: str, new: str, value: float
    ) -> None:
        config = config_of("nemotron", **{old: value, new: value + 2})
        with pytest.raises(
            ArchitectureError, match=rf"says {new} {value + 2}, but {old} {value}: keep"
        ):
            Architecture.from_config(config)

    def test_other_families_know_none(self, old: str, new: str, value: float) -> None:
        config = config_of("llama", **{old: value})
        assert Architecture.from_config(config) == Architecture.from_config(config_of("llama"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; known families: nemotron, llama, mistral, "),
        ({"model_type": ...}, "model_type None; known families"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\]; known families"),
        ({"hidden_size": ...}, "no hidden_size: add it"),
        ({"vocab_size": None, "num_hidden_layers": ...}, "no num_hidden_layers, vocab_size: add"),
        ({"hidden_size": "42"}, "hidden_size: '42'; it must be a whole number"),
        ({"intermediate_size": 66.0}, "intermediate_size: 66.0; it must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers: True; it must be a whole number"),
        ({"num_hidden_layers": [1, 2]}, r"num_hidden_layers: \[1, 2\]; it must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0: it must be at least 1"),
        ({"num_attention_heads": -6}, "num_attention_heads is -6: it must be at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0: it must be at least 1"),
        ({"num_key_value_heads": -2}, "num_key_value_heads is -2: it must be at least 1"),
        ({"head_dim": 0}, "head_dim is 0: it must be at least 1"),
        ({"head_dim": ..., "hidden_size": 5}, "head_dim is 0: it must be at least 1"),
        ({"intermediate_size": 0}, "intermediate_size is 0: it must be at least 1"),
        ({"vocab_size": -101}, "vocab_size is -101: it must be at least 1"),
        (
            {"num_key_value_heads": 4},
            "num_attention_heads is 6: it must be a multiple of num_key_value_heads, 4",
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            r"quantization_config \(bitsandbytes\): start from the unquantized model",
        ),
    ],
    ids=str,
)
def test_a_config_that_holds_no_model_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_config(config_of("nemotron", **changed))


@pytest.mark.parametrize("size", [0, -4])
def test_sizes_below_one_are_refused_when_resizing(size: int) -> None:
    architecture = Architecture.from_config(config_of("llama"))
    with pytest.raises(ArchitectureError, match=f"hidden_size is {size}: it must be at least 1"):
        architecture.resized(hidden_size=size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resized_config_is_that_of_a_model_of_those_sizes(variant: str) -> None:
    config = tiny_config(variant).to_dict()
    target = Architecture.from_config(config).resized(
        hidden_size=36, intermediate_size=50, num_attention_heads=4, num_hidden_layers=3
    )
    written = resized_config(config, target, (0, 2, 3))
    assert Architecture.from_config(written) == target
    shapes = built_shapes(target.model_type, written)
    if target.tie_word_embeddings:
        del shapes["lm_head.weight"]
    assert shapes == target.shapes()
    assert written["architectures"] == [target.family.architecture]
    lists = target.family.layer_lists
    unchanged = config.keys() - {*SIZES, *lists, "architectures", "rope_parameters"}
    assert {key: written[key] for key in unchanged} == {key: config[key] for key in unchanged}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_only_another_class_would_need_is_left_out(family: str) -> None:
    config = config_of(family, auto_map={"AutoModelForCausalLM": "theirs.Model"}, head_dim=...)
    config["architectures"] = ["TheirModel"]
    architecture = Architecture.from_config(config)
    written = resized_config(config, architecture, (0, 1, 2, 3))
    assert "auto_map" not in written
    assert written["architectures"] == [TABLE[family].architecture]
    assert written["head_dim"] == architecture.head_dim
    assert written["num_key_value_heads"] == 2


LISTED = [variant for variant, (family, _) in VARIANTS.items() if TABLE[family].layer_lists]


@pytest.mark.parametrize("variant", LISTED)
def test_lists_with_an_entry_for_each_layer_are_cut_with_the_layers(variant: str) -> None:
    config, kept = tiny_config(variant), (0, 1, 3)
    lists = TABLE[config.model_type].layer_lists
    stated = config.to_dict()
    silent = {key: value for key, value in stated.items() if key not in lists}
    for given in (stated, silent):
        target = Architecture.from_config(given).resized(num_hidden_layers=3)
        written = resized_config(given, target, kept)
        for key in lists:
            assert written[key] == [getattr(config, key)[layer] for layer in kept], key


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
class TestLayerTypes:
    kept = (0, 1, 3)
    full, sliding = "full_attention", "sliding_attention"

    def written(self, family: str, **changed: Any) -> list[str]:
        config = config_of(family, **changed)
        target = Architecture.from_config(config).resized(num_hidden_layers=3)
        kinds = resized_config(config, target, self.kept)["layer_types"]
        assert isinstance(kinds, list)
        return kinds

    def test_a_list_is_cut_to_the_kept_layers(self, family: str) -> None:
        kinds = [self.sliding, self.full, self.full, self.sliding]
        assert self.written(family, layer_types=kinds) == [self.sliding, self.full, self.sliding]

    @pytest.mark.parametrize(
        "window",
        [
            {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            {"use_sliding_window": True, "max_window_layers": 3},
            {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1},
            {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 1},
            {"use_sliding_window": True, "sliding_window": 5},
            {},
        ],
        ids=str,
    )
    def test_without_a_list_it_is_derived_as_transformers_does(
        self, family: str, window: dict[str, Any]
    ) -> None:
        derived = CONFIG_MAPPING[family].from_dict(config_of(family, **window)).layer_types
        assert self.written(family, **window) == [derived[layer] for layer in self.kept]

    @pytest.mark.parametrize("kinds", [["full_attention"] * 3, ["full_attention"] * 5, "full", []])
    def test_a_list_of_another_length_is_refused(self, family: str, kinds: Any) -> None:
        with pytest.raises(ArchitectureError, match="layer_types .* for each of 4 layers"):
            self.written(family, layer_types=kinds)


@pytest.mark.parametrize(
    ("stated", "theta", "factor", "kind"),
    [
        ({}, 10000.0, 0.5, "default"),
        ({"rope_theta": 500.0, "partial_rotary_factor": 0.25}, 500.0, 0.25, "default"),
        (
            {"rope_parameters": {"rope_theta": 700.0, "partial_rotary_factor": 0.75}},
            700.0,
            0.75,
            "default",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_percent": 1.0},
            10000.0,
            1.0,
            "linear",
        ),
    ],
    ids=str,
)
def test_nemotrons_rotary_settings_are_written_in_both_forms(
    stated: dict[str, Any], theta: float, factor: float, kind: str
) -> None:
    config = config_of("nemotron", **stated)
    written = resized_config(config, Architecture.from_config(config), (0, 1, 2, 3))
    assert (written["rope_theta"], written["partial_rotary_factor"]) == (theta, factor)
    nested = written["rope_parameters"]
    assert (nested["rope_theta"], nested["partial_rotary_factor"]) == (theta, factor)
    assert nested["rope_type"] == kind
    assert "type" not in nested
    ours = NemotronConfig.from_dict(written)
    assert (ours.rope_theta, ours.partial_rotary_factor) == (theta, factor)


@pytest.mark.parametrize("key", ["rope_theta", "partial_rotary_factor"])
def test_rotary_settings_that_disagree_are_both_named(key: str) -> None:
    config = config_of("nemotron", rope_parameters={key: 0.25}, **{key: 0.75})
    with pytest.raises(ArchitectureError, match=rf"says {key} 0.75, but 0.25 in its rope_param"):
        resized_config(config, Architecture.from_config(config), (0, 1, 2, 3))


def test_a_null_rotary_setting_is_an_absent_one() -> None:
    config = config_of("nemotron", rope_parameters={"rope_theta": None}, rope_theta=None)
    written = resized_config(config, Architecture.from_config(config), (0, 1, 2, 3))
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 10000.0


def test_settings_that_are_no_sizes_are_carried_on() -> None:
    config = config_of("llama", rope_theta=123.0, my_own_key={"a": [1]}, rms_norm_eps=0.5)
    written = resized_config(config, Architecture.from_config(config), (0, 1, 2, 3))
    assert written["rope_theta"] == 123.0
    assert written["my_own_key"] == {"a": [1]}
    assert written["rms_norm_eps"] == 0.5
    assert "layer_types" not in written


@pytest.mark.parametrize("key", [*SIZES])
def test_a_size_that_no_model_has_is_refused_before_anything_is_listed(key: str) -> None:
    sizes = {**SIZES, "num_key_value_heads": 1, key: 300_000_000}
    with pytest.raises(ArchitectureError, match=rf"{key} is 300000000: no model has more than \d+"):
        Architecture.from_config({"model_type": "qwen2", **sizes})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_activation_that_nobody_knows_is_named(family: str) -> None:
    key = TABLE[family].activation
    with pytest.raises(ArchitectureError, match=rf"{key} 'silly': .*not an activation"):
        hub_config(config_of(family, **{key: "silly"}))
