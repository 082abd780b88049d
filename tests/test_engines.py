"""Which engines cannot open a model is known from its sizes and switches."""

from pathlib import Path
from typing import Any

import pytest

import minitron
from minitron.architecture import Architecture
from minitron.engines import engine_notes, unsupported_engines
from minitron.families import FAMILIES
from tests.tiny import VARIANTS, tiny_config, tiny_folder

SQUARE = {"hidden_size": 48, "num_attention_heads": 6, "head_dim": 8}
NARROW = {"hidden_size": 42, "num_attention_heads": 6, "head_dim": 8}


def config_of(variant: str, **changed: Any) -> dict[str, Any]:
    """A config.json of a family at given sizes."""
    return tiny_config(variant, **changed).to_dict()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_whose_heads_fill_hidden_size_is_opened_by_every_engine(model_type: str) -> None:
    assert unsupported_engines(config_of(model_type, **SQUARE)) == {}


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


def test_the_reason_tells_the_sizes() -> None:
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_modules_named_for_lora_are_linear_layers_of_the_family(variant: str) -> None:
    """PEFT has default names for every family but Nemotron."""
    remark = FAMILIES[VARIANTS[variant][0]].engine_remarks.get("PEFT", "")
    assert bool(remark) == variant.startswith("nemotron")
    linear = {
        row.template.split(".")[-2] for row in FAMILIES["nemotron"].rows if len(row.axes) == 2
    }
    for name in linear - {"embed_tokens", "lm_head"} if remark else ():
        assert f'"{name}"' in remark
