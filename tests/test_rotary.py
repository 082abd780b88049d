"""Rotary settings mean the same in the form that transformers 5 reads and in the flat one."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron.errors import ArchitectureError
from minitron.model.architecture import Architecture
from minitron.model.config_json import resized_config
from minitron.model.families import FAMILIES as TABLE
from minitron.model.rotary import KEYS, REQUIRED, lengthened_context
from minitron.sources.loading import hub_config
from tests.tiny import FAMILIES, tiny_config

# Of each kind, with whole numbers where people write them; head_dim is 8, half of it in Nemotron.
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2},
    "dynamic": {"factor": 4},
    "yarn": {"factor": 4, "original_max_position_embeddings": 16, "beta_fast": 16},
    "llama3": {
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 32,
    },
    "longrope": {"original_max_position_embeddings": 16},
}
FLAT = ("rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings")


def scaling_of(kind: str, family: str) -> dict[str, Any]:
    """A scaling of this kind that fits the family's heads."""
    pairs = 2 if family == "nemotron" else 4
    lists = {"short_factor": [1.0 + i / 8 for i in range(pairs)], "long_factor": [2.0] * pairs}
    return {**SCALINGS[kind], **(lists if kind == "longrope" else {})}


def stated(form: str, family: str, kind: str) -> dict[str, Any]:
    """Rotary settings as a config.json of some age has them."""
    scaling, theta = scaling_of(kind, family), 5000
    nested: dict[str, Any] = {"rope_type": kind, "rope_theta": theta, **scaling}
    if TABLE[family].rotary.sliding_theta is not None:
        sliding = {"rope_type": "default", "rope_theta": 700.0}
        nested = {"full_attention": nested, "sliding_attention": sliding}
    nested = {"rope_parameters": nested}
    flat: dict[str, Any] = {"rope_theta": theta}
    if TABLE[family].rotary.sliding_theta is not None:
        flat["rope_local_base_freq"] = 700.0
    if kind != "default":
        flat["rope_scaling"] = {"rope_type": kind, **scaling}
    old = {**flat, "rope_scaling": {"type": kind, **scaling} if kind != "default" else None}
    trained = scaling.get("original_max_position_embeddings")
    # A class with a trained length of its own reads another beside the settings alone.
    beside = {"original_max_position_embeddings": trained} if TABLE[family].rotary.original else {}
    forms = {"nested": nested, "flat": flat, "old": old, "both": {**nested, **flat}}
    return {**forms[form], **(beside if trained else {})}


def config_of(family: str, **rotary: Any) -> dict[str, Any]:
    """A config.json with these rotary settings and no others."""
    config = tiny_config(family, hidden_size=48).to_dict()
    return {**{key: config[key] for key in config if key not in KEYS}, **rotary}


def written(config: dict[str, Any]) -> dict[str, Any]:
    """As every command writes it."""
    return resized_config(config, Architecture.from_config(config), (0, 1, 2, 3))


def angles(config: dict[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines that transformers' own class takes for a sequence of that length."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hub_config(config))
    rotary = type(model.model.rotary_emb)(model.config)
    places = torch.zeros(1), torch.arange(length)[None]
    if TABLE[model.config.model_type].rotary.sliding_theta is None:
        cosines, sines = rotary(*places)
        return cosines, sines
    of_kinds = [rotary(*places, kind) for kind in ("full_attention", "sliding_attention")]
    cosines, sines = (torch.stack(tables) for tables in zip(*of_kinds, strict=True))
    return cosines, sines


PLAIN = (
    "smollm3",
    "seed_oss",
    "granite",
    "gemma2",
)  # their rotary settings are Llama's, but for theta
FORMS = [
    (family, kind, form)
    for family in FAMILIES
    for kind in (("linear",) if family in PLAIN else TABLE[family].rotary.kinds or REQUIRED)
    for form in ("nested", "flat", "old", "both")
    if form != "old" or TABLE[family].rotary.sliding_theta is None
]


@pytest.mark.parametrize(("family", "kind", "form"), FORMS)
def test_either_form_of_what_is_written_turns_heads_as_the_source_does(
    family: str, kind: str, form: str
) -> None:
    source = config_of(family, **stated(form, family, kind))
    config = written(source)
    scaling = config.get("rope_scaling", {})
    assert "rope_theta" not in scaling
    # Some classes of transformers 4 take these keys and no others.
    of_old = {"olmo2": ("type", "factor"), "phi3": ("type", "short_factor", "long_factor")}
    is_brief = (family, kind) in (("olmo2", "linear"), ("olmo2", "dynamic"), ("phi3", "longrope"))
    assert not is_brief or tuple(scaling) == of_old[family]
    assert scaling.get("rope_type") == (None if kind == "default" or is_brief else kind)
    has_type = family == "nemotron" and kind != "default"  # mlx-lm reads no other name there
    assert scaling.get("type") == (kind if has_type or is_brief else None)
    assert all(type(value) is not int or "original" in key for key, value in scaling.items())
    stays = FLAT[-1] if TABLE[family].rotary.original else None
    nested = {key: value for key, value in config.items() if key not in FLAT or key == stays}
    flat = {key: value for key, value in config.items() if key != "rope_parameters"}
    for length in (7, 80):  # within the context of 64 and beyond it
        expected = angles(source, length)
        for form_read in (nested, flat, config):
            assert torch.equal(torch.stack(expected), torch.stack(angles(form_read, length)))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_silent_config_means_is_written_out(family: str) -> None:
    config = written(config_of(family))
    partial = TABLE[family].rotary.partial
    nested = config["rope_parameters"]
    nested = nested.get("full_attention", nested)
    assert config["rope_theta"] == nested["rope_theta"] == TABLE[family].rotary.theta
    assert config.get("partial_rotary_factor") == partial
    assert nested.get("partial_rotary_factor") == partial
    assert "rope_scaling" not in config
    silent = hub_config(config_of(family)).rope_parameters
    is_flat = "full_attention" not in silent
    assert ({"rope_type": "default"} if is_flat else {}) | silent == config["rope_parameters"]


@pytest.mark.parametrize("kind", REQUIRED)
def test_what_was_written_is_written_again_as_it_is(kind: str) -> None:
    once = written(config_of("llama", **stated("nested", "llama", kind)))
    assert written(once) == once


@pytest.mark.parametrize(
    ("rotary", "message"),
    [
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, "rope_theta 5.0, but 6.0 in"),
        (
            {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}},
            "rope_type 'linear' in its rope_scaling, but 'yarn'",
        ),
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 3.0},
            },
            "factor 2.0 in its rope_scaling, but 3.0 in its rope_parameters: keep the right one",
        ),
        ({"rope_scaling": {"rope_theta": 5.0}, "rope_theta": 6.0}, "rope_theta 6.0, but 5.0 in"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_type 'linear' without factor: add it"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type 'spiral': it must be one of"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, r"rope_type \['linear'\]: it must be"),
        ({"rope_scaling": {"factor": 2.0}}, "factor 2.0 without rope_type: add it"),
        ({"rope_scaling": "linear"}, "rope_scaling 'linear': it must be a JSON object"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor '2': it must be a num"),
        ({"rope_theta": True}, "rope_theta True: it must be a number above 0"),
        ({"rope_theta": math.inf}, "rope_theta inf: it must be a number above 0 and finite"),
        ({"partial_rotary_factor": 0.5}, "0.5, but a llama rotates whole heads: remove it"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {}}},
            r"rope_parameters for each kind of layer \(full_attention, sliding_attention\)",
        ),
        ({"rope_parameters": {"full_attention": None}}, "for each kind of layer"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "max_position_embeddings": ...},
            "max_position_embeddings None: rope_type 'yarn' needs a whole number",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}},
            r"short_factor \[1\]: it must be a list of 4 numbers",
        ),
    ],
    ids=str,
)
def test_settings_that_readers_take_for_different_ones_are_refused(
    rotary: dict[str, Any], message: str
) -> None:
    config = {k: v for k, v in config_of("llama", **rotary).items() if v is not ...}
    with pytest.raises(ArchitectureError, match=message):
        written(config)


def test_a_whole_head_is_no_partial_one() -> None:
    config = written(config_of("qwen3", partial_rotary_factor=1.0))
    assert "partial_rotary_factor" not in config


def test_longrope_scales_attention_alike_where_factor_is_not_the_ratio_of_lengths() -> None:
    """transformers 4 takes the ratio, 5 the factor, and both an attention_factor that is stated."""
    scaling = {**scaling_of("longrope", "llama"), "rope_type": "longrope", "factor": 2.0}
    config = written(config_of("llama", rope_scaling=scaling))
    assert config["original_max_position_embeddings"] == 16
    expected = math.sqrt(1 + math.log(2) / math.log(16))
    assert config["rope_scaling"]["attention_factor"] == pytest.approx(expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["flat", "nested"])
def test_opening_a_model_leaves_the_sources_config_as_it_is(family: str, form: str) -> None:
    """transformers writes rope_theta into the rope_scaling that it is given."""
    kinds = TABLE[family].rotary.kinds or ("linear",)
    config = config_of(family, **stated(form, family, kinds[-1]))
    before = deepcopy(config)
    hub_config(config)
    written(config)
    assert config == before


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"type": "linear", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_the_context_is_as_long_as_the_scaling_makes_it(scaling: Any, context: int) -> None:
    assert lengthened_context({"rope_scaling": scaling}, 64) == context
