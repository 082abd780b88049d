"""A held source is the source itself, read once."""

from pathlib import Path

import torch

from minitron.model.architecture import Architecture
from minitron.model.plan import choose_plan
from minitron.scores.weight_scores import random_scores
from minitron.sources.held import held_source, stored_bytes
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.sources.pruned import PrunedSource
from tests.tiny import SIZES, tiny_folder

WHOLE = Architecture("nemotron", **SIZES)
TARGET = WHOLE.resized(
    hidden_size=36, intermediate_size=50, num_attention_heads=4, num_hidden_layers=3
)


def test_a_cut_of_it_is_the_same_as_of_the_file(tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "source", dtype=torch.bfloat16)))
    plan = choose_plan(random_scores(WHOLE, 0), WHOLE, TARGET)
    wanted = PrunedSource(source, plan).tensors
    found = PrunedSource(held_source(source), plan).tensors
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].read(), tensor.read()), name
        assert torch.equal(found[name].read(1, 3), tensor.read(1, 3)), name


def test_it_needs_its_files_no_more(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "source")
    held = held_source(open_source(str(folder)))
    (folder / "model.safetensors").unlink()
    assert load_model(held).num_parameters() == WHOLE.parameters


def test_training_a_model_of_it_changes_nothing_in_it(tmp_path: Path) -> None:
    held = held_source(open_source(str(tiny_folder(tmp_path / "source"))))
    before = held.tensors["model.norm.weight"].read()
    with torch.no_grad():
        load_model(held).model.norm.weight.add_(1.0)
    assert torch.equal(held.tensors["model.norm.weight"].read(), before)


def test_its_bytes_are_those_of_the_stored_tensors(tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "source", dtype=torch.bfloat16)))
    assert stored_bytes(source) == 2 * WHOLE.parameters
