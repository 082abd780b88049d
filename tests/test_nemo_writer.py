"""A written `.nemo`, read by others: tarfile, torch's own checkpoint reader, numpy."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from minitron.conversion import nemo_writer, torch_zip
from minitron.conversion.distributed_writer import DistFormat, PlannedFile
from minitron.conversion.megatron_names import megatron_tensors
from minitron.conversion.nemo_writer import write_nemo, write_nemo2
from minitron.errors import SourceError, TargetError
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import LazyTensor, StoredTensor
from minitron.files.torch_file import read_torch_object
from tests.test_megatron_names import Held, Unreadable, architecture_of, hub_model
from tests.tiny import SIZES

# dcp.load says so where no process group was asked for.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

LAYERS = SIZES["num_hidden_layers"]
SETTINGS = {"num_layers": LAYERS, "precision": "bf16", "tokenizer": {"library": "sentencepiece"}}
FORMATS = pytest.mark.parametrize("dist_format", ["torch_dist", "zarr"])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
STATEFUL = (
    "mlp.linear_fc1",
    "mlp.linear_fc2",
    "self_attention.core_attention",
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
)
FUSED = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "input_layernorm.bias": "self_attention.linear_qkv.layer_norm_bias",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "pre_mlp_layernorm.bias": "mlp.linear_fc1.layer_norm_bias",
}


def model(
    variant: str = "grouped", dtype: torch.dtype = torch.bfloat16, kind: type[Held] = Held
) -> dict[str, LazyTensor]:
    """A tiny model under Megatron's names."""
    architecture = architecture_of(variant)
    hub = {name: kind(tensor.to(dtype)) for name, tensor in hub_model(architecture).items()}
    return megatron_tensors(hub, architecture, padded_vocab_size=128)


def stacked(tensors: Mapping[str, LazyTensor], prefix: str) -> dict[str, torch.Tensor]:
    """What the checkpoint should hold: layers stacked, norms under their fused names."""
    expected: dict[str, torch.Tensor] = {}
    for name in tensors:
        if not name.startswith("decoder.layers."):
            expected[prefix + name] = tensors[name].read()
        elif name.startswith("decoder.layers.0."):
            rest = name.removeprefix("decoder.layers.0.")
            layers = [tensors[f"decoder.layers.{layer}.{rest}"].read() for layer in range(LAYERS)]
            expected[f"{prefix}decoder.layers.{FUSED.get(rest, rest)}"] = torch.stack(layers)
    return expected


def write(
    folder: Path, tensors: Mapping[str, LazyTensor], dist_format: DistFormat = "torch_dist"
) -> Path:
    tokenizer = folder / "spm ü.model"
    tokenizer.write_bytes(b"pieces")
    path = folder / "tiny.nemo"
    write_nemo(
        path,
        SETTINGS,
        tensors,
        tokenizer_model=tokenizer,
        dist_format=dist_format,
        progress=lambda nbytes: None,
    )
    return path


def unpacked(archive: Path) -> Path:
    folder = archive.with_suffix(".unpacked")
    with tarfile.open(archive, "r:") as tar:
        tar.extractall(folder, filter="data")
    return folder


def read_zarr(folder: Path) -> torch.Tensor:
    """A zarr array as its own format describes it; bfloat16 by its bits."""
    about = json.loads((folder / ".zarray").read_text())
    assert (about["zarr_format"], about["order"], about["compressor"]) == (2, "C", None)
    assert (about["filters"], about["fill_value"]) == (None, None)
    is_bfloat16 = about["dtype"] == "bfloat16"
    whole = np.zeros(about["shape"], "<i2" if is_bfloat16 else about["dtype"])
    grid = [-(-n // chunk) for n, chunk in zip(about["shape"], about["chunks"], strict=True)]
    for place in np.ndindex(*grid):
        raw = np.fromfile(folder / ".".join(map(str, place)), whole.dtype)
        starts = [at * chunk for at, chunk in zip(place, about["chunks"], strict=True)]
        slices = zip(starts, about["chunks"], strict=True)
        whole[tuple(slice(start, start + n) for start, n in slices)] = raw.reshape(about["chunks"])
    files = {path.name for path in folder.iterdir()} - {".zarray"}
    assert files == {".".join(map(str, place)) for place in np.ndindex(*grid)}
    read = torch.from_numpy(whole)
    return read.view(torch.bfloat16) if is_bfloat16 else read


def read_by_torch(weights: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What torch's own reader fills tensors of the expected shapes with."""
    found = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    dcp.load(found, storage_reader=dcp.FileSystemReader(weights), no_dist=True)
    return found


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@DTYPES
@pytest.mark.parametrize("variant", ["grouped", "tied, biased"])
def test_torch_reads_every_tensor_of_a_torch_dist_checkpoint(
    tmp_path: Path, variant: str, dtype: torch.dtype
) -> None:
    tensors = model(variant, dtype)
    expected = stacked(tensors, "model.")
    weights = unpacked(write(tmp_path, tensors)) / "model_weights"

    assert_same(read_by_torch(weights, expected), expected)


def test_a_torch_dist_checkpoint_holds_these_entries_and_no_others(tmp_path: Path) -> None:
    tensors = model()
    weights = unpacked(write(tmp_path, tensors)) / "model_weights"
    about = json.loads((weights / "metadata.json").read_text())
    dcp_to_torch_save(weights, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    states = {
        f"model.decoder.layers.{module}._extra_state/shard_{layer}_{LAYERS}"
        for module in STATEFUL
        for layer in range(LAYERS)
    } | {"model.decoder.final_layernorm._extra_state/shard_0_1"}

    assert about == {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    assert torch.load(weights / "common.pt", weights_only=True) == {}
    assert {name for name in whole if "_extra_state" in name} == states
    assert all(whole.pop(name) == [None] for name in states)
    assert_same(whole, stacked(tensors, "model."))


def test_layers_are_chunks_and_the_items_fill_their_file(tmp_path: Path) -> None:
    weights = unpacked(write(tmp_path, model())) / "model_weights"
    metadata = dcp.FileSystemReader(weights).read_metadata()
    key = "model.decoder.layers.mlp.linear_fc2.weight"
    chunks = metadata.state_dict_metadata[key].chunks

    assert [tuple(chunk.offsets) for chunk in chunks] == [(n, 0, 0) for n in range(LAYERS)]
    assert {tuple(chunk.sizes) for chunk in chunks} == {(1, 42, 66)}
    places = sorted((info.offset, info.length) for info in metadata.storage_data.values())
    end = 0
    for offset, length in places:
        assert offset == end
        end += length
    assert end == (weights / "__0_0.distcp").stat().st_size


def test_the_items_are_located_inside_their_file_by_our_own_reader(tmp_path: Path) -> None:
    tensors = model()
    expected = stacked(tensors, "model.")
    weights = unpacked(write(tmp_path, tensors)) / "model_weights"
    metadata = dcp.FileSystemReader(weights).read_metadata()
    data = LocalFile.at(weights / "__0_0.distcp")
    for index, info in metadata.storage_data.items():
        value = read_torch_object(data.window(info.offset, info.length))
        if "_extra_state" in index.fqn:
            assert value == [None]
            continue
        assert isinstance(value, StoredTensor)
        layer = index.offset[0] if ".layers." in index.fqn else slice(None)
        assert torch.equal(
            value.read().reshape(expected[index.fqn][layer].shape), expected[index.fqn][layer]
        ), index


def test_large_tensors_become_several_chunks_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.conversion.distributed_writer.LARGEST", 1000)
    tensors = model()
    expected = stacked(tensors, "model.")
    weights = unpacked(write(tmp_path, tensors)) / "model_weights"
    metadata = dcp.FileSystemReader(weights).read_metadata()
    chunks = metadata.state_dict_metadata["model.decoder.layers.mlp.linear_fc1.weight"].chunks

    assert {tuple(chunk.sizes) for chunk in chunks} == {(1, 11, 42)}
    assert len(chunks) == LAYERS * 6
    assert_same(read_by_torch(weights, expected), expected)


def test_the_pickles_name_nothing_but_torch(tmp_path: Path) -> None:
    metadata = unpacked(write(tmp_path, model())) / "model_weights" / ".metadata"
    named = set()

    class Noting(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            named.add(module.partition(".")[0])
            return super().find_class(module, name)

    with metadata.open("rb") as file:
        Noting(file).load()
    assert named == {"torch"}


@DTYPES
def test_numpy_reads_every_chunk_of_a_zarr_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = model("biased", dtype)
    weights = unpacked(write(tmp_path, tensors, "zarr")) / "model_weights"
    found = {path.parent.name: read_zarr(path.parent) for path in weights.glob("*/.zarray")}

    assert_same(found, stacked(tensors, "model."))
    assert json.loads((weights / "metadata.json").read_text())["sharded_backend"] == "zarr"
    assert torch.load(weights / "common.pt", weights_only=True) == {}


def test_a_zarr_checkpoint_says_bfloat16_as_megatron_does(tmp_path: Path) -> None:
    weights = unpacked(write(tmp_path, model(), "zarr")) / "model_weights"
    about = weights / "model.decoder.layers.mlp.linear_fc1.weight" / ".zarray"

    assert '"dtype": "bfloat16"' in about.read_text()
    assert json.loads(about.read_text())["chunks"] == [1, 66, 42]


def test_a_zarr_checkpoint_has_an_empty_state_for_each_module(tmp_path: Path) -> None:
    weights = unpacked(write(tmp_path, model(), "zarr")) / "model_weights"
    states = {str(path.relative_to(weights)) for path in weights.glob("*._extra_state/*")}

    assert states == {"model.decoder.final_layernorm._extra_state/shard_0_1.pt"} | {
        f"model.decoder.layers.{module}._extra_state/shard_{layer}_{LAYERS}.pt"
        for module in STATEFUL
        for layer in range(LAYERS)
    }
    assert all(torch.load(weights / state, weights_only=True) is None for state in states)


@FORMATS
def test_the_archive_is_a_plain_tar_of_one_folder(tmp_path: Path, dist_format: DistFormat) -> None:
    path = write(tmp_path, model(), dist_format)
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]

    assert names[0] == "."
    assert all(name == "." or name.startswith("./") for name in names)
    assert len(set(names)) == len(names)
    folders = {member.name for member in members if member.isdir()}
    assert {name.rpartition("/")[0] or "." for name in names if name != "."} == folders
    assert all(member.isdir() or member.isfile() for member in members)
    # Readers place a folder before what it holds.
    assert all(names.index(n.rpartition("/")[0] or ".") <= names.index(n) for n in names)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert path.stat().st_size % tarfile.RECORDSIZE == 0


def test_the_shells_tar_reads_the_archive_too(tmp_path: Path) -> None:
    path = write(tmp_path, model(), "zarr")
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
    norm = "./model_weights/model.decoder.layers.self_attention.linear_qkv.layer_norm_weight/0.0"

    assert listed.stdout.splitlines()[0] == "./"
    assert norm in listed.stdout.splitlines()


def test_a_member_may_be_larger_than_a_plain_tar_can_say() -> None:
    header = nemo_writer._header("./model_weights/__0_0.distcp", PlannedFile("", 31 * 2**30, print))
    with tarfile.open(fileobj=io.BytesIO(header), mode="r:") as tar:
        member = tar.next()

    assert member is not None
    assert (member.name, member.size) == ("./model_weights/__0_0.distcp", 31 * 2**30)
    assert len(header) % tarfile.BLOCKSIZE == 0


def test_the_settings_point_at_the_tokenizer(tmp_path: Path) -> None:
    folder = unpacked(write(tmp_path, model()))
    settings = yaml.safe_load((folder / "model_config.yaml").read_text())
    digest = hashlib.sha256(b"pieces").hexdigest()[:32]

    assert settings["tokenizer"].pop("model") == f"nemo:{digest}_spm ü.model"
    assert settings == SETTINGS
    assert list(settings) == list(SETTINGS)
    assert (folder / f"{digest}_spm ü.model").read_bytes() == b"pieces"
    assert SETTINGS["tokenizer"] == {"library": "sentencepiece"}


def test_a_model_without_a_tokenizer_keeps_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"
    write_nemo(
        path,
        SETTINGS,
        model(),
        tokenizer_model=None,
        dist_format="torch_dist",
        progress=lambda nbytes: None,
    )
    folder = unpacked(path)

    assert yaml.safe_load((folder / "model_config.yaml").read_text()) == SETTINGS
    assert sorted(path.name for path in folder.iterdir()) == ["model_config.yaml", "model_weights"]


@FORMATS
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, dist_format: DistFormat) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, model(), dist_format)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())

    assert len(digests) == 1


@FORMATS
def test_progress_hears_every_byte_of_the_tensors(tmp_path: Path, dist_format: DistFormat) -> None:
    tensors = model()
    heard: list[int] = []
    write_nemo(
        tmp_path / "x.nemo",
        SETTINGS,
        tensors,
        tokenizer_model=None,
        dist_format=dist_format,
        progress=heard.append,
    )
    assert sum(heard) == sum(tensor.nbytes for tensor in tensors.values())


@FORMATS
def test_what_cannot_be_written_is_refused_before_it_is_read(
    tmp_path: Path, dist_format: DistFormat
) -> None:
    name = "decoder.layers.2.mlp.linear_fc1.weight"
    for dtype, message in ((torch.float64, "is float64"), (torch.float32, "other dtypes")):
        tensors = model(kind=Unreadable)
        tensors[name] = Unreadable(torch.zeros(tensors[name].shape, dtype=dtype))
        with pytest.raises(TargetError, match=message):
            write(tmp_path, tensors, dist_format)
        assert not (tmp_path / "tiny.nemo").exists()


@FORMATS
def test_a_damaged_source_is_refused(tmp_path: Path, dist_format: DistFormat) -> None:
    class Damaged(Held):
        def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
            raise SourceError("w.bin is truncated")

    tensors = model()
    name = "decoder.layers.2.mlp.linear_fc1.weight"
    tensors[name] = Damaged(tensors[name].read())
    with pytest.raises(SourceError, match="truncated"):
        write(tmp_path, tensors, dist_format)


def test_a_folder_of_nemo_2_holds_the_same_tensors(tmp_path: Path) -> None:
    tensors = model()
    tokenizer = tmp_path / "spm.model"
    tokenizer.write_bytes(b"pieces")
    out = tmp_path / "out"
    out.mkdir()
    write_nemo2(
        out,
        {"config": {"num_layers": 4}},
        tensors,
        tokenizer_model=tokenizer,
        progress=lambda nbytes: None,
    )
    expected = stacked(tensors, "module.")

    assert_same(read_by_torch(out / "weights", expected), expected)
    assert yaml.safe_load((out / "context" / "model.yaml").read_text()) == {
        "config": {"num_layers": 4},
        "tokenizer": {"model_path": "spm.model"},
    }
    assert (out / "context" / "spm.model").read_bytes() == b"pieces"


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 3), (2, 1, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_a_streamed_zip_is_what_torch_loads(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    path = tmp_path / "x"
    with path.open("wb") as file:
        torch_zip.write_zip(file, dtype, shape, [raw[:3], raw[3:]])
    found = torch.load(path, weights_only=True)

    assert path.stat().st_size == torch_zip.zip_nbytes(dtype, shape)
    assert (found.dtype, found.shape, found.stride()) == (dtype, tensor.shape, tensor.stride())
    assert torch.equal(found, tensor)


def test_a_streamed_zip_can_be_inside_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    raw = bytes(tensor.view(-1).view(torch.uint8).numpy())
    with path.open("wb") as file:
        file.write(b"before")
        torch_zip.write_zip(file, torch.float32, (2, 3), [raw])
        file.write(b"after")
    inside = path.read_bytes()[6:-5]
    (tmp_path / "inside").write_bytes(inside)

    assert torch.equal(torch.load(tmp_path / "inside", weights_only=True), tensor)


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from minitron.conversion.megatron_names import megatron_tensors
from minitron.conversion.nemo_writer import write_nemo
from minitron.files.lazy_tensor import Zeros
from minitron.model.architecture import Architecture

config = {"model_type": "nemotron", "hidden_size": 1024, "intermediate_size": 4096,
          "num_hidden_layers": 4, "num_attention_heads": 12, "num_key_value_heads": 4,
          "head_dim": 64, "vocab_size": 60000}
architecture = Architecture.from_config(config)
hub = {name: Zeros(torch.float32, shape) for name, shape in architecture.shapes().items()}
tensors = megatron_tensors(hub, architecture, padded_vocab_size=60032)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def write(name, kept):
    write_nemo(Path(name), {}, kept, tokenizer_model=None, dist_format=sys.argv[1],
               progress=lambda nbytes: None)

write("small.nemo", {"output_layer.weight": Zeros(torch.float32, (1000, 1024))})
before = peak()
write("large.nemo", tensors)
total = sum(t.nbytes for t in tensors.values())
assert total > 500_000_000, total
assert peak() - before < 40_000_000, (peak() - before, total)
"""


@FORMATS
def test_writing_holds_pieces_and_never_a_tensor(tmp_path: Path, dist_format: DistFormat) -> None:
    subprocess.run([sys.executable, "-c", MEMORY, dist_format], cwd=tmp_path, check=True)
