"""The families' table is the only place that names a family and its modules."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minitron.model.architecture import Architecture
from minitron.model.decoder import Decoder
from minitron.model.families import EMBEDDING, FAMILIES, FINAL_NORM, HEAD, LAYERS
from tests.tiny import VARIANTS, tiny_model

ROOT = Path(__file__).parents[1]
TABLE = "minitron/model/families.py"
# Words of the table that stand elsewhere, and why they may.
ALLOWED = {
    "conversion/megatron_names.py": {
        "input_layernorm": "Megatron's own name of a norm",
        "post_attention_layernorm": "an earlier Megatron's name of a norm",
    },
    "conversion/distributed_writer.py": {"input_layernorm": "Megatron's own name of a norm"},
    "conversion/trtllm_checkpoint.py": {
        "input_layernorm": "TensorRT-LLM's own name of a norm",
        "lm_head": "TensorRT-LLM's own name of the output embedding",
    },
}


def names_of_the_table() -> set[str]:
    """Model types, and modules by the last part of their path."""
    paths = {path for family in FAMILIES.values() for path in family.layer_modules.values()}
    weights = {name.removesuffix(".weight") for name in (EMBEDDING, HEAD)}
    modules = {path.rpartition(".")[2] for path in paths | weights}
    return {*FAMILIES, *modules, "self_attn", LAYERS, FINAL_NORM}


def words_of(file: Path) -> Iterator[str]:
    """Every attribute and every string of a module, without its docstrings."""
    tree = ast.parse(file.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)


@pytest.mark.parametrize("folder", ["minitron", "conversion", "space"])
def test_no_module_but_the_table_names_a_family_or_its_modules(folder: str) -> None:
    names = names_of_the_table()
    modules = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names - {*FAMILIES}))})(?!\w)")
    for file in sorted((ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if path == TABLE:
            continue
        found = {word for word in words_of(file) if word in FAMILIES}
        found |= {match for word in words_of(file) for match in modules.findall(word)}
        assert found <= ALLOWED.get(path, {}).keys(), path


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_finds_the_modules_of_every_family(variant: str) -> None:
    model = tiny_model(variant)
    decoder = Decoder.of(model)
    family = decoder.architecture.family
    stored = model.state_dict()
    for part in family.layer_modules:
        module = decoder.part(2, part)
        assert torch.equal(module.get_parameter("weight"), stored[family.tensor(part, layer=2)])
    assert decoder.part(2, "mlp").get_submodule("down_proj") is decoder.part(2, "down")
    assert torch.equal(decoder.norm.get_parameter("weight"), stored[f"{FINAL_NORM}.weight"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_norms_of_a_family_are_of_the_kind_that_the_table_says(variant: str) -> None:
    decoder = Decoder.of(tiny_model(variant))
    norm = decoder.architecture.family.norm
    states = torch.randn(1, 3, decoder.architecture.hidden_size)
    moved = torch.allclose(decoder.norm(states), decoder.norm(states + 2), atol=1e-4)
    assert moved == (norm.kind == "layer")
    torch.nn.init.zeros_(decoder.norm.get_parameter("weight"))
    bias = dict(decoder.norm.named_parameters()).get("bias")
    assert (bias is not None) == norm.has_bias
    gained = decoder.norm(states) if bias is None else decoder.norm(states) - bias
    assert bool(gained.abs().max() > 0.1) == norm.is_zero_centered


def test_fused_parts_lie_behind_each_other_in_the_order_of_the_table() -> None:
    qkv, mlp = "self_attn.qkv_proj", "mlp.gate_up_proj"
    modules = {
        **FAMILIES["llama"].layer_modules,
        **dict.fromkeys("qkv", qkv),
        "gate": mlp,
        "up": mlp,
    }
    family = replace(FAMILIES["llama"], layer_modules=modules)
    assert family.tensor("k", layer=1) == "model.layers.1.self_attn.qkv_proj.weight"
    sizes = Architecture("llama", 42, 66, 4, 6, 2, 8, 101)
    assert sizes.run_slices(family.row("v")) == {
        "q": slice(0, 48),
        "k": slice(48, 64),
        "v": slice(64, 80),
    }
    assert [*sizes.run_slices(family.row("up"))] == ["gate", "up"]
    assert family.row("up").dimensions == ((("ffn",), ("ffn",)), (("hidden",),))
