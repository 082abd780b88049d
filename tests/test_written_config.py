"""What the commands write beside the weights is read alike by both generations of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

import minitron
from tests.tiny import edit_config, tiny_folder


def written_by(command: str, source: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The config.json of what a command makes of a source."""
    if command == "prune":
        corpus = {"corpus": "random", "samples": 2, "seq_len": 8}
        minitron.prune(str(source), str(out), num_hidden_layers=3, **corpus, **options)
    else:
        minitron.convert(str(source), str(out), **options)
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


@pytest.mark.parametrize(
    ("command", "stated", "options", "dtype"),
    [
        ("prune", {"torch_dtype": "bfloat16"}, {}, "bfloat16"),
        ("prune", {"dtype": "bfloat16"}, {}, "bfloat16"),
        ("prune", {"dtype": "float16", "torch_dtype": "float32"}, {}, "float16"),  # as it is read
        ("prune", {"torch_dtype": None}, {}, None),
        ("convert", {"dtype": "bfloat16", "torch_dtype": "float16"}, {}, "float32"),  # the weights'
        ("convert", {"torch_dtype": "float32"}, {"dtype": "bfloat16"}, "bfloat16"),
    ],
    ids=str,
)
def test_both_names_of_the_dtype_say_one(
    tmp_path: Path, command: str, stated: dict[str, Any], options: dict[str, Any], dtype: str | None
) -> None:
    source = tiny_folder(tmp_path / "source", "llama", hidden_size=48)
    edit_config(source, remove=("dtype",), **stated)
    config = written_by(command, source, tmp_path / "out", **options)
    assert config.get("dtype") == config.get("torch_dtype") == dtype
