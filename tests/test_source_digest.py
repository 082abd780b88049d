"""A digest states models apart by sizes and weights, and not by how they are stored."""

from pathlib import Path

import pytest
import torch

from minitron.sources.opening import open_source
from tests.tiny import pickled_folder, tiny_folder


def digest(folder: Path) -> str:
    return open_source(str(folder)).digest


def test_the_same_weights_have_one_digest_in_any_layout(tmp_path: Path) -> None:
    one = tiny_folder(tmp_path / "one", dtype=torch.bfloat16)
    others = (
        tiny_folder(tmp_path / "sharded", dtype=torch.bfloat16, max_shard_size="40KB"),
        pickled_folder(tmp_path / "pickled", dtype=torch.bfloat16),
    )
    assert {digest(one)} == {digest(other) for other in others}
    wider = tiny_folder(tmp_path / "wider", "llama", dtype=torch.float16)
    assert digest(wider) != digest(one)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"num_hidden_layers": 3}, {"dtype": torch.float16}], ids=str
)
def test_another_model_has_another_digest(changed: dict[str, object], tmp_path: Path) -> None:
    one = digest(tiny_folder(tmp_path / "one"))
    assert digest(tiny_folder(tmp_path / "other", **changed)) != one
