"""Inspection states what is published of a model, from its config and headers alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import minitron
from minitron.errors import ArchitectureError, SourceError
from minitron.files.lazy_tensor import StoredTensor
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from tests.tiny import SIZES, VARIANTS, edit_config, pickled_folder, tiny_folder, tiny_model

KEYS = [
    "model_type",
    "format",
    "layout",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "parameters",
    "non_embedding_parameters",
    "bytes",
    "dtype",
    "kv_cache_bytes_per_token",
]
# config.json of nvidia/Minitron-8B-Base as it was first published.
MINITRON_8B = {
    "architectures": ["NemotronForCausalLM"],
    "bos_token_id": 2,
    "eos_token_id": 3,
    "hidden_act": "relu2",
    "hidden_size": 4096,
    "initializer_range": 0.0134,
    "intermediate_size": 16384,
    "kv_channels": 128,
    "max_position_embeddings": 4096,
    "model_type": "nemotron",
    "norm_eps": 1e-05,
    "num_attention_heads": 48,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_percent": 0.5,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.32.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
}


@pytest.fixture
def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(tensor: StoredTensor, *rows: Any) -> torch.Tensor:
        raise AssertionError(f"{tensor.file.name} was read")

    monkeypatch.setattr(StoredTensor, "read", read)


def config_only(path: Path, **config: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_json_has_the_promised_keys_in_their_order(tmp_path: Path) -> None:
    record = minitron.inspect(str(tiny_folder(tmp_path / "model"))).to_json()
    assert list(record) == KEYS
    assert json.loads(json.dumps(record)) == record


def test_the_first_config_of_minitron_8b_is_understood(tmp_path: Path) -> None:
    record = minitron.inspect(config_only(tmp_path / "8b", **MINITRON_8B)).to_json()
    assert record == {
        "model_type": "nemotron",
        "format": "hub",
        "layout": None,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 256000,
        "parameters": 8_271_699_968,
        "non_embedding_parameters": 6_174_547_968,
        "bytes": 16_543_399_936,
        "dtype": "bfloat16",
        "kv_cache_bytes_per_token": 131_072,  # 2 x 32 layers x 8 heads x 128 x 2 bytes
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("no_reads")
def test_a_folder_is_reported_without_reading_its_weights(variant: str, tmp_path: Path) -> None:
    model = tiny_model(variant, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    record = minitron.inspect(str(tmp_path / "model")).to_json()
    embeddings = 101 * 42 * (1 if model.config.tie_word_embeddings else 2)
    assert {key: record[key] for key in SIZES} == SIZES
    assert record["model_type"] == variant.split("-")[0]
    assert record["parameters"] == model.num_parameters()
    assert record["non_embedding_parameters"] == model.num_parameters() - embeddings
    assert record["bytes"] == 2 * model.num_parameters()
    assert record["dtype"] == "bfloat16"
    assert record["kv_cache_bytes_per_token"] == 2 * 4 * 2 * 8 * 2


@pytest.mark.parametrize(
    ("layout", "write"),
    [
        ("safetensors", lambda path: tiny_folder(path)),
        ("safetensors (sharded)", lambda path: tiny_folder(path, max_shard_size="40KB")),
        ("pytorch_model.bin", lambda path: pickled_folder(path)),
        ("pytorch_model.bin (sharded)", lambda path: pickled_folder(path, shards=2)),
    ],
)
@pytest.mark.usefixtures("no_reads")
def test_the_layout_is_reported(layout: str, write: Any, tmp_path: Path) -> None:
    inspection = minitron.inspect(str(write(tmp_path / "model")))
    assert inspection.layout == layout
    assert inspection.dtype == "float32"
    assert inspection.bytes == 4 * inspection.parameters


def test_of_mixed_dtypes_the_one_of_most_bytes_is_reported_and_all_are_counted(
    tmp_path: Path,
) -> None:
    path = tiny_folder(tmp_path / "model", dtype=torch.bfloat16)
    weights = {
        name: tensor.float() if "norm" in name else tensor
        for name, tensor in load_file(path / "model.safetensors").items()
    }
    save_file(weights, path / "model.safetensors")
    inspection = minitron.inspect(str(path))
    norms = 2 * 42 * (2 * 4 + 1)  # weight and bias of two norms a layer and the last
    assert inspection.dtype == "bfloat16"
    assert inspection.bytes == 2 * inspection.parameters + 2 * norms


@pytest.mark.parametrize(
    ("stated", "dtype", "width"),
    [
        ({"dtype": "float16"}, "float16", 2),
        ({"torch_dtype": "float64"}, "float64", 8),
        ({"dtype": "torch.bfloat16", "torch_dtype": "float32"}, "bfloat16", 2),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn", 1),
        ({"dtype": None}, "float32", 4),
        ({}, "float32", 4),
    ],
    ids=str,
)
def test_without_weights_the_configs_dtype_counts(
    stated: dict[str, Any], dtype: str, width: int, tmp_path: Path
) -> None:
    path = config_only(tmp_path / "model", model_type="llama", **SIZES, **stated)
    inspection = minitron.inspect(path)
    assert inspection.dtype == dtype
    assert inspection.bytes == width * inspection.parameters
    assert inspection.kv_cache_bytes_per_token == width * 2 * 4 * 2 * 8


@pytest.mark.parametrize("dtype", ["auto", "nn", "bf16", 16])
def test_a_dtype_that_is_none_is_named(dtype: Any, tmp_path: Path) -> None:
    path = config_only(tmp_path / "model", model_type="llama", **SIZES, dtype=dtype)
    with pytest.raises(ArchitectureError, match=f"config.json says dtype {dtype!r}: name one of"):
        minitron.inspect(path)


def test_tokenizer_files_are_reported(tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "model")
    for name in ("tokenizer.model", "tokenizer.json", "README.md"):
        (path / name).write_text("")
    assert minitron.inspect(str(path)).tokenizer == ["tokenizer.json", "tokenizer.model"]


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "model")
    edit_config(path, intermediate_size=67)
    with pytest.raises(
        SourceError, match=r"up_proj.weight has shape \[66, 42\], but .* \[67, 42\]"
    ):
        minitron.inspect(str(path))


def test_a_folder_that_is_here_precedes_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedded = minitron.inspect("tiny-half").parameters
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-half").mkdir()  # no model yet
    assert minitron.inspect("tiny-half").parameters == embedded
    own = tiny_folder(tmp_path / "other")
    (tmp_path / "tiny-half").rmdir()
    assert "embedded" not in caplog.text
    own.rename(tmp_path / "tiny-half")
    found = minitron.inspect("tiny-half")
    assert found.parameters == minitron.inspect(str(tmp_path / "tiny-half")).parameters
    assert found.parameters != embedded
    assert "tiny-half is the folder of that name here, not the embedded model" in caplog.text


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\0b"], ids=["long", "longer", "null"])
def test_a_name_that_no_file_can_have_is_a_mistake(name: str) -> None:
    with pytest.raises(SourceError, match="cannot look at|does not exist"):
        minitron.inspect(name)


def test_a_dtype_that_torch_does_not_have_is_a_mistake(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    edit_config(folder, dtype="float99")
    with pytest.raises(ArchitectureError, match="refuses this config: .*float99"):
        load_model(open_source(str(folder)))


def test_an_unknown_family_is_likened_to_a_known_one(tmp_path: Path) -> None:
    settings = {**SIZES, "pad_token_id": 0}
    for model_type in ("arcee", "helium"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings))
        model.save_pretrained(tmp_path / model_type)
    with pytest.raises(ArchitectureError) as refused:
        minitron.inspect(str(tmp_path / "arcee"))
    message = str(refused.value)
    assert "model_type 'arcee'; known families: nemotron, llama, " in message
    assert "CONTRIBUTING.md says how to add one" in message
    assert "its tensors are named as a llama's" in message
    assert "without model.layers.{layer}.mlp.gate_proj.weight" in message
    with pytest.raises(ArchitectureError, match="its tensors are named as a llama's$"):
        minitron.inspect(str(tmp_path / "helium"))
