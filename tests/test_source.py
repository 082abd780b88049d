"""What every source has in common, and that one in memory or pruned has it from another."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron.files.lazy_tensor import LazyTensor
from minitron.model.architecture import Architecture
from minitron.model.plan import choose_plan
from minitron.scores.weight_scores import random_scores
from minitron.sources.held import held_source, stored_bytes
from minitron.sources.loading import load_model, load_tokenizer, takes_sizes
from minitron.sources.opening import open_source
from minitron.sources.pruned import PrunedSource
from tests.tiny import SIZES, tiny_folder

WHOLE = Architecture("nemotron", **SIZES)
TARGET = WHOLE.resized(
    hidden_size=36, intermediate_size=50, num_attention_heads=4, num_hidden_layers=3
)


def test_a_cut_of_a_held_source_is_the_same_as_of_the_file(tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "source", dtype=torch.bfloat16)))
    plan = choose_plan(random_scores(WHOLE, 0), WHOLE, TARGET)
    wanted = PrunedSource(source, plan).tensors
    found = PrunedSource(held_source(source), plan).tensors
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].read(), tensor.read()), name
        assert torch.equal(found[name].read(1, 3), tensor.read(1, 3)), name


def test_a_held_source_needs_its_files_no_more(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "source")
    held = held_source(open_source(str(folder)))
    (folder / "model.safetensors").unlink()
    assert load_model(held).num_parameters() == WHOLE.parameters


def test_training_a_model_of_a_held_source_changes_nothing_in_it(tmp_path: Path) -> None:
    held = held_source(open_source(str(tiny_folder(tmp_path / "source"))))
    before = held.tensors["model.norm.weight"].read()
    with torch.no_grad():
        load_model(held).model.norm.weight.add_(1.0)
    assert torch.equal(held.tensors["model.norm.weight"].read(), before)


def test_the_bytes_to_hold_are_those_of_the_stored_tensors(tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "source", dtype=torch.bfloat16)))
    assert stored_bytes(source) == 2 * WHOLE.parameters


def test_weights_are_checked_once_and_a_tied_output_embedding_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "source", "llama", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    source = open_source(str(folder))
    reads: list[str] = []
    for name, tensor in source.tensors.items():
        read = tensor.read
        counted = partial(lambda name, read, *rows: reads.append(name) or read(*rows), name, read)
        monkeypatch.setitem(source.tensors, name, SimpleNamespace(**vars_of(tensor), read=counted))
    source.check_weights()
    assert source.weights is source.weights
    assert sorted(reads) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert list(source.weights) == list(source.architecture.shapes())


def vars_of(tensor: LazyTensor) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "shape": tensor.shape}


def test_its_config_at_its_own_sizes_is_that_of_the_same_model(tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "source")))
    config = source.config_at(source.architecture)
    assert Architecture.from_config(config) == source.architecture == WHOLE
    assert takes_sizes(source, TARGET)


def test_held_and_pruned_sources_have_the_files_beside_the_weights() -> None:
    source = open_source("tiny")
    plan = choose_plan(
        random_scores(source.architecture, 0),
        source.architecture,
        source.architecture.resized(num_hidden_layers=3),
    )
    held = held_source(source)
    pruned = PrunedSource(held, plan)
    assert held.companions is pruned.companions is source.companions
    assert (held.layout, pruned.layout) == (source.layout, "pruned")
    assert pruned.architecture == plan.target
    assert load_tokenizer(pruned).vocab_size == load_tokenizer(source).vocab_size
