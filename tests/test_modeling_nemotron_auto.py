"""Our classes stand behind the Auto classes when asked to, and only then."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import modeling_nemotron
from tests.nemotron_models import OURS, SIZES, TRANSFORMERS, build, tokens

AUTO_CLASSES: dict[str, Any] = {
    "Model": AutoModel,
    "ForCausalLM": AutoModelForCausalLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(OURS).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _left_as_found() -> Iterator[None]:
    yield
    modeling_nemotron.unregister()


def registries() -> list[dict[Any, Any]]:
    mappings = [CONFIG_MAPPING, *(auto._model_mapping for auto in AUTO_CLASSES.values())]
    return [dict(mapping._extra_content) for mapping in mappings]


def assert_they_answer_with(library: Any, folder: Path) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is library.NemotronConfig
    for head, auto_class in AUTO_CLASSES.items():
        model_class = getattr(library, f"Nemotron{head}")
        assert type(auto_class.from_pretrained(folder)) is model_class
        assert type(auto_class.from_config(library.NemotronConfig(**SIZES))) is model_class


def test_registered_classes_answer_until_they_are_unregistered(folder: Path) -> None:
    assert_they_answer_with(TRANSFORMERS, folder)
    modeling_nemotron.register()
    assert_they_answer_with(OURS, folder)
    modeling_nemotron.unregister()
    assert_they_answer_with(TRANSFORMERS, folder)


def test_registering_and_unregistering_twice_is_doing_it_once() -> None:
    before = registries()
    modeling_nemotron.unregister()
    assert registries() == before
    modeling_nemotron.register()
    once = registries()
    assert once != before
    modeling_nemotron.register()
    assert registries() == once
    modeling_nemotron.unregister()
    modeling_nemotron.unregister()
    assert registries() == before


def test_unregistering_gives_back_what_someone_else_had_registered() -> None:
    class Elsewhere(PretrainedConfig):
        model_type = "nemotron"

    AutoConfig.register("nemotron", Elsewhere, exist_ok=True)
    try:
        modeling_nemotron.register()
        assert CONFIG_MAPPING["nemotron"] is OURS.NemotronConfig
        modeling_nemotron.unregister()
        assert CONFIG_MAPPING["nemotron"] is Elsewhere
    finally:
        del CONFIG_MAPPING._extra_content["nemotron"]


def test_a_heads_backbone_is_ours_whether_or_not_we_are_registered() -> None:
    for head in AUTO_CLASSES:
        backbone = build(OURS, head).base_model
        assert type(backbone) is OURS.NemotronModel


@torch.no_grad()
def test_a_config_of_transformers_makes_a_working_model_of_ours(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is TRANSFORMERS.NemotronConfig
    model = OURS.NemotronForCausalLM.from_pretrained(folder, config=config)
    assert torch.equal(model(**tokens()).logits, build(OURS)(**tokens()).logits)


def test_importing_registers_nothing_and_needs_no_trust(folder: Path) -> None:
    program = f"""
import modeling_nemotron
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=False)
assert type(model).__module__.startswith("transformers."), type(model)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=300)


@pytest.mark.parametrize("name", ["modeling_nemotron", "configuration_nemotron"])
def test_a_file_of_the_model_can_travel_to_the_hub_with_its_configuration_only(name: str) -> None:
    source = Path(modeling_nemotron.__file__).with_name(f"{name}.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert (node.level, node.module) == (1, "configuration_nemotron")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            for package in (str(module).split(".")[0] for module in names):
                assert package in {"torch", "transformers", *sys.stdlib_module_names}
