"""`minitron convert` between Hub folders: copies, dtypes, shards, pickles, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import minitron
from minitron.errors import OutputError, SourceError, TargetError
from minitron.sources.opening import zoo

from .tiny import FAMILIES, edit_config, tiny_folder, tiny_model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def pickled(folder: Path) -> Path:
    """The same folder with its weights as transformers 4 pickled them."""
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pickle_becomes_the_safetensors_it_was(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path / "source", family)
    before = weights(folder)
    out = minitron.convert(str(pickled(folder)), str(tmp_path / "out"))
    after = weights(out)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, tiny_model(family)(ids).logits, atol=1e-5)


def test_a_zoo_model_is_copied_out_whole(tmp_path: Path) -> None:
    out = minitron.convert("tiny", str(tmp_path / "out"))
    assert (out / "model.safetensors").stat().st_size == (
        zoo()["tiny"] / "model.safetensors"
    ).stat().st_size
    before, after = weights(zoo()["tiny"]), weights(out)
    assert all(torch.equal(before[name], after[name]) for name in before)
    text = "It was the best of times"
    ids = AutoTokenizer.from_pretrained(out)(text).input_ids
    assert ids == AutoTokenizer.from_pretrained(zoo()["tiny"])(text).input_ids
    record = json.loads((out / "minitron.json").read_text())
    assert (record["command"], record["source"]["name"]) == ("convert", "tiny")
    assert "Converted from `tiny`" in (out / "README.md").read_text()


def test_another_dtype_is_the_one_that_torch_casts_to(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "source")
    out = minitron.convert(str(folder), str(tmp_path / "out"), dtype="bfloat16")
    before, after = weights(folder), weights(out)
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards_hold_what_one_file_held(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "source")
    out = minitron.convert(str(folder), str(tmp_path / "out"), max_shard_size="40KB")
    assert len(list(out.glob("model-*.safetensors"))) > 2
    again = minitron.convert(str(out), str(tmp_path / "again"))
    assert (again / "model.safetensors").read_bytes() == (
        minitron.convert(str(folder), str(tmp_path / "direct")) / "model.safetensors"
    ).read_bytes()


def test_old_config_keys_become_todays(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    config["kv_channels"] = config.pop("head_dim")
    config["rope_percent"] = 0.5
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config))
    out = minitron.convert(str(folder), str(tmp_path / "out"))
    modern = json.loads((out / "config.json").read_text())
    assert (modern["head_dim"], modern["partial_rotary_factor"]) == (8, 0.5)
    assert modern["rope_parameters"]["partial_rotary_factor"] == 0.5
    assert not {"kv_channels", "rope_percent", "auto_map"} & modern.keys()


def test_a_model_that_llama_cpp_cannot_load_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_folder(tmp_path / "source")  # heads * head_dim is not hidden_size
    out = minitron.convert(str(folder), str(tmp_path / "out"))
    note = "llama.cpp does not load this model: its code for nemotron fixes q_proj"
    assert note in caplog.text
    assert note in (out / "README.md").read_text()
    assert "dimension_count" not in (out / "README.md").read_text()


def test_nan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "source")
    damaged = weights(folder)
    damaged["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    save_file(damaged, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        minitron.convert(str(folder), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    out = minitron.convert(str(folder), str(tmp_path / "out"), check=False)
    assert weights(out)["model.layers.1.mlp.up_proj.weight"][3, 2].isnan()


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({"tp": 2}, "--tp is for --to trtllm, not hub"),
        ({"to": "nemo", "pp": 2}, "--pp is for --to trtllm, not nemo"),
        ({"to": "trtllm", "dist_format": "zarr"}, "--dist-format is for --to nemo, not trtllm"),
        ({"to": "trtllm", "tp": 0}, "--tp is 0: it must be at least 1"),
        ({"to": "onnx", "max_shard_size": "1GB"}, "--max-shard-size is for --to hub, not onnx"),
        ({"max_shard_size": "many"}, "--max-shard-size is 'many'"),
    ],
)
def test_options_of_another_target_are_refused(
    tmp_path: Path, options: dict[str, object], output: str
) -> None:
    with pytest.raises(TargetError, match=output):
        minitron.convert("tiny", str(tmp_path / "out"), **options)
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        minitron.convert("tiny", str(tmp_path / "out"))


def test_onnx_brings_all_that_a_runtime_needs(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    folder = tiny_folder(tmp_path / "source", "qwen2", num_hidden_layers=1, hidden_size=48)
    edit_config(folder, remove=("head_dim",))  # as published; transformers' class has none then
    out = minitron.convert(str(folder), str(tmp_path / "out"), to="onnx")
    assert {"config.json", "generation_config.json", "model.onnx"} <= {
        p.name for p in out.iterdir()
    }
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    assert {"input_ids", "past_key_values.0.key"} <= {node.name for node in session.get_inputs()}


def test_onnx_is_float32(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="--dtype bfloat16 is not for --to onnx"):
        minitron.convert("tiny", str(tmp_path / "out"), to="onnx", dtype="bfloat16")
