"""Which engines cannot open a model is known from its sizes and switches."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import minitron
from minitron.model.architecture import Architecture
from minitron.model.engines import engine_notes, load_notes, unsupported_engines
from minitron.model.families import FAMILIES
from tests.tiny import SIZES, VARIANTS, tiny_config, tiny_folder

SQUARE = {"hidden_size": 48, "num_attention_heads": 6, "head_dim": 8}
NARROW = {"hidden_size": 42, "num_attention_heads": 6, "head_dim": 8}


def config_of(variant: str, **changed: Any) -> dict[str, Any]:
    """A config.json of a family at given sizes."""
    return tiny_config(variant, **changed).to_dict()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_whose_heads_fill_hidden_size_is_opened_by_every_engine(model_type: str) -> None:
    sizes = {**SIZES, **SQUARE, "query_pre_attn_scalar": 8}
    config = CONFIG_MAPPING[model_type](**sizes, pad_token_id=0, tie_word_embeddings=False)
    assert unsupported_engines(config.to_dict()) == {}


@pytest.mark.parametrize(
    ("variant", "changed", "engines"),
    [
        ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}, []),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, ["llama.cpp"]),
        ("gemma2", {"query_pre_attn_scalar": 8}, []),
        ("gemma2", {"query_pre_attn_scalar": 8, "num_hidden_layers": 46}, ["llama.cpp"]),
        ("gemma2", {"query_pre_attn_scalar": 7, "num_hidden_layers": 46}, []),
        ("gemma2", {"query_pre_attn_scalar": 7}, ["llama.cpp"]),
        (
            "gemma2",
            {"query_pre_attn_scalar": 8, "layer_types": 2 * ["full_attention"] * 2},
            ["llama.cpp"],
        ),
        ("gemma3_text", {"query_pre_attn_scalar": 8, "sliding_window_pattern": 6}, []),
        ("gemma3_text", {"query_pre_attn_scalar": 8}, ["llama.cpp"]),
        (
            "gemma3_text",
            {"query_pre_attn_scalar": 8, "layer_types": 4 * ["full_attention"]},
            ["llama.cpp", "mlx-lm"],
        ),
    ],
    ids=str,
)
def test_what_an_engine_takes_for_granted_of_layers_and_attention(
    variant: str, changed: dict[str, Any], engines: list[str]
) -> None:
    sizes = {"hidden_size": 42, "num_attention_heads": 6, "head_dim": 8}
    config = config_of(variant, **sizes, **changed)
    notes = load_notes(config)
    assert notes[-1].startswith("Whether vLLM, SGLang and TensorRT-LLM can run a")
    assert list(unsupported_engines(config)) == engines
    assert all(" computes another model: its code for" in note for note in notes[:-1])


@pytest.mark.parametrize(
    ("variant", "engines"),
    {
        "nemotron": ["llama.cpp"],
        "nemotron-biased": ["llama.cpp"],
        "llama": [],
        "llama-biased-tied": [],
        "mistral": [],
        "qwen2": ["llama.cpp", "mlx-lm", "vLLM"],
        "qwen3": [],
    }.items(),
)
def test_a_head_dim_of_its_own_is_beyond_these_engines(variant: str, engines: list[str]) -> None:
    assert list(unsupported_engines(config_of(variant, **NARROW))) == engines


@pytest.mark.parametrize(
    ("variant", "engines"),
    {
        "nemotron-tied": ["llama.cpp"],
        "llama-biased-tied": [],
        "qwen3-biased-tied": ["llama.cpp", "mlx-lm", "vLLM"],
    }.items(),
)
def test_a_switch_that_an_engine_lacks_is_beyond_it(variant: str, engines: list[str]) -> None:
    assert list(unsupported_engines(config_of(variant, **SQUARE))) == engines


def test_heads_that_leave_a_rest_of_hidden_size_open_where_head_dim_is_rounded_down() -> None:
    sizes = {"hidden_size": 50, "num_attention_heads": 6, "head_dim": 8}
    assert list(unsupported_engines(config_of("qwen2", **sizes))) == ["llama.cpp"]


def test_the_reason_names_the_sizes() -> None:
    config = config_of("qwen2", **NARROW)
    reasons = unsupported_engines(config)
    assert "42 x 42" in reasons["llama.cpp"]
    assert "6 x 8" in reasons["llama.cpp"]
    assert "hidden_size / num_attention_heads, 7, but it is 8" in reasons["vLLM"]
    assert reasons == unsupported_engines(Architecture.from_config(config))
    assert len(engine_notes(config)) == 3


def test_pruning_names_the_engines_that_do_not_load_the_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_folder(tmp_path / "source", "qwen2", **SQUARE)
    out = minitron.prune(
        str(folder), str(tmp_path / "out"), hidden_size=42, corpus="random", samples=2, seq_len=8
    )
    card = (tmp_path / "out" / "README.md").read_text()
    for engine in unsupported_engines(out.config):
        note = f"{engine} does not load this model: its code for qwen2 "
        assert note in caplog.text
        assert note in card


def test_a_nemotron_that_llama_cpp_loads_gets_the_blank_that_it_would_add() -> None:
    notes = " ".join(engine_notes(config_of("nemotron", **SQUARE)))
    assert "add_space_prefix=bool:false" in notes
    assert "does not load" not in notes
    assert "add_space_prefix" not in " ".join(engine_notes(config_of("nemotron", **NARROW)))


SCALED = {"rope_scaling": {"type": "linear", "factor": 2.0}}


@pytest.mark.parametrize(
    ("variant", "rotary", "engines"),
    [
        ("nemotron", SCALED, {"transformers 4": "computes another model"}),
        (
            "nemotron",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}},
            {
                "llama.cpp": "computes another model",
                "mlx-lm": "does not load this model",
                "transformers 4": "computes another model",
            },
        ),
        ("llama", SCALED, {}),
    ],
    ids=str,
)
def test_a_rotary_scaling_that_an_engine_lacks_is_beyond_it(
    variant: str, rotary: dict[str, Any], engines: dict[str, str]
) -> None:
    config = config_of(variant, **SQUARE)
    del config["rope_parameters"]
    notes = load_notes({**config, **rotary})
    kind = next(iter(rotary.values())).get("rope_type", "linear")
    assert [note.partition(": ")[0] for note in notes] == [f"{e} {w}" for e, w in engines.items()]
    assert all(f"but it is {kind}." in note for note in notes)


def test_the_page_of_the_engines_lists_every_limit() -> None:
    page = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()
    listed = re.findall(r"^\| (\w+) \| ([\w. -]+) \| (.+): (does not load|computes)", page, re.M)
    words = {"square": "heads x", "derived": "head_dim", "tie_word_embeddings": "a tied"}
    limits = [(name, limit) for name, family in FAMILIES.items() for limit in family.engine_limits]
    assert len(listed) == len(limits)
    for (name, limit), (family, engine, what, how) in zip(limits, listed, strict=True):
        assert (family, engine, how == "computes") == (name, limit.engine, limit.loads)
        *kinds, last = limit.rope_types or ("",)
        rotary = f"rotary scaling other than {', '.join(kinds)}{' and ' if kinds else ''}{last}"
        assert what.startswith(words.get(limit.what, rotary if limit.rope_types else limit.what))
    for family in FAMILIES.values():
        for tool, remark in family.engine_remarks.items():
            assert tool in page
            assert all(code in page for code in re.findall("`(.+?)`", remark))


@pytest.mark.parametrize("variant", VARIANTS)
def test_modules_named_for_lora_are_linear_layers_of_the_family(variant: str) -> None:
    """PEFT has default names for every family but Nemotron."""
    remark = FAMILIES[VARIANTS[variant][0]].engine_remarks.get("PEFT", "")
    assert bool(remark) == variant.startswith("nemotron")
    rows = FAMILIES["nemotron"].rows
    linear = {row.template.split(".")[-2] for row in rows if len(row.dimensions) == 2}
    for name in linear - {"embed_tokens", "lm_head"} if remark else ():
        assert f'"{name}"' in remark
