"""The families' table is the only place that names a family and its modules."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from minitron.candidates.decode_step import Conditions, DecodeStep
from minitron.model.architecture import Architecture
from minitron.model.decoder import Decoder
from minitron.model.families import FAMILIES
from minitron.model.family import AXIS_KEYS, EMBEDDING, FINAL_NORM, HEAD, LAYERS, Family, Norm
from minitron.model.importance import score_shapes
from minitron.model.plan import choose_plan
from minitron.scores.activation_scores import Measurement
from minitron.scores.weight_scores import magnitude_scores
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.sources.pruned import PrunedSource
from minitron.sources.streamed_loss import streamed_loss
from minitron.text.corpus import Corpus
from tests.tiny import VARIANTS, activation_scores, tiny_model

BEFORE = Measurement(neurons="before")
ROOT = Path(__file__).parents[1]
TABLE = "minitron/model/families.py"
# Words of the table that stand elsewhere, and why they may.
ALLOWED = {
    "minitron/model/family.py": dict.fromkeys(
        ("embed_tokens", "lm_head", LAYERS, FINAL_NORM), "called the same in every family"
    )
    | dict.fromkeys(("q_norm", "k_norm"), "parts of a model too"),
    "conversion/megatron_names.py": {
        "input_layernorm": "Megatron's own name of a norm",
        "post_attention_layernorm": "an earlier Megatron's name of a norm",
    },
    "conversion/distributed_writer.py": {"input_layernorm": "Megatron's own name of a norm"},
    "conversion/trtllm_checkpoint.py": {
        "input_layernorm": "TensorRT-LLM's own name of a norm",
        "lm_head": "TensorRT-LLM's own name of the output embedding",
    },
    "conversion/gguf_tokenizer.py": {
        "llama": "llama.cpp's word for a SentencePiece tokenizer",
        "qwen2": "llama.cpp's word for a rule that splits texts",
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


NEMOTRON = FAMILIES["nemotron"].layer_modules
# A family of transformers that is not in the table: an entry, and nothing else.
OTHER = Family(
    "starcoder2",
    "Starcoder2ForCausalLM",
    {**NEMOTRON, "up": "mlp.c_fc", "down": "mlp.c_proj"},
    qkv_bias="use_bias",
    o_bias="use_bias",
    mlp_bias="use_bias",
    norm=Norm("layer", has_bias=True, epsilon="norm_epsilon"),
    true_if_absent=("tie_word_embeddings", "use_bias"),
)
# One variant for each column of the table in which families differ.
COLUMNS = ("smollm3", "olmo2", "granite", "gemma2", "gemma3_text-untied", "phi3")


@pytest.mark.parametrize("variant", [OTHER.model_type, *COLUMNS])
def test_a_new_family_is_one_entry_of_the_table(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, OTHER.model_type, OTHER)  # type: ignore[arg-type]
    switches = {**dict.fromkeys(OTHER.bias_flags, False), "tie_word_embeddings": False}
    monkeypatch.setitem(VARIANTS, OTHER.model_type, (OTHER.model_type, switches))
    model, ids = tiny_model(variant), torch.randint(5, 101, (2, 9))
    model.save_pretrained(tmp_path / "model")
    source = open_source(str(tmp_path / "model"))
    whole, importance = source.architecture, magnitude_scores(source)
    built = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    tied = {HEAD} if whole.tie_word_embeddings else set()
    assert whole.shapes() == {name: built[name] for name in built.keys() - tied}
    scores = activation_scores(model, Corpus(ids.numpy(), "ids"))
    scores.check_fits(whole)
    assert {*scores.axes} == {*score_shapes(whole)}

    unpruned = PrunedSource(source, choose_plan(importance, whole, whole))
    torch.testing.assert_close(load_model(unpruned)(ids).logits, model(ids).logits)
    target = whole.resized(hidden_size=28, intermediate_size=20, num_attention_heads=4)
    target = target.resized(num_hidden_layers=3)
    pruned = PrunedSource(source, choose_plan(importance, whole, target, head_residual=True))
    windows = [ids.int().numpy()]
    nats, _ = streamed_loss(pruned, [windows[0][:, :-1]], [windows[0][:, 1:]])
    logits = load_model(pruned)(ids[:, :-1]).logits
    wanted = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    assert nats == pytest.approx(wanted.item(), rel=1e-5)
    step = DecodeStep(model, Conditions("cpu", torch.float32, batch=1, context=4))
    step.mlps()


def test_absent_flags_have_the_values_of_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "starcoder2", OTHER)  # type: ignore[arg-type]
    sizes = dict.fromkeys(AXIS_KEYS.values(), 8)
    silent = Architecture.from_config({"model_type": "starcoder2", **sizes})
    assert silent.flags == {"tie_word_embeddings", "use_bias"}
    stated = {"tie_word_embeddings": False, "use_bias": False}
    assert not Architecture.from_config({"model_type": "starcoder2", **sizes, **stated}).flags
    assert not Architecture.from_config({"model_type": "llama", **sizes}).flags


def test_fused_parts_are_pruned_and_read_as_separate_ones(
    tmp_path: Path,
) -> None:
    """A Phi-3 is a Llama whose projections are fused: both are cut to the same weights."""
    fused, apart = tiny_model("phi3", rms_norm_eps=1e-6, sliding_window=None), tiny_model("llama")
    stored = fused.state_dict()
    decoder = Decoder.of(fused)
    weights = {name: stored[name] for name in apart.state_dict().keys() & stored.keys()}
    for layer in range(decoder.architecture.num_hidden_layers):
        for part in ("q", "k", "v", "gate", "up"):
            row = decoder.architecture.family.row(part)
            rows = decoder.architecture.run_slices(row)[part]
            weights[FAMILIES["llama"].tensor(part, layer=layer)] = stored[row.name(layer)][rows]
    apart.load_state_dict(weights)
    ids = torch.randint(5, 101, (3, 7))
    text = Corpus(ids.numpy(), "ids")
    one, other = (activation_scores(model, text, BEFORE) for model in (fused, apart))
    for axis in one.axes:
        torch.testing.assert_close(one.axis(axis), other.axis(axis))
    losses = []
    for name, model in (("fused", fused), ("apart", apart)):
        model.save_pretrained(tmp_path / name)
        source = open_source(str(tmp_path / name))
        whole = source.architecture
        target = whole.resized(hidden_size=28, intermediate_size=20, num_attention_heads=4)
        plan = choose_plan(magnitude_scores(source), whole, target, head_residual=True)
        losses.append(load_model(PrunedSource(source, plan))(ids, labels=ids).loss)
    torch.testing.assert_close(*losses)


def test_fused_parts_are_behind_each_other_in_the_order_of_the_table() -> None:
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
