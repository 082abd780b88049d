"""Arrays of Megatron's zarr backend: any grid of chunks, and a name for whatever is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron.conversion.distributed_reader import zarr_tensors
from minitron.conversion.nemo_archive import open_archive
from minitron.errors import SourceError
from minitron.files.lazy_tensor import LazyTensor
from tests.nemo_files import element_bytes, pack_members

NAME = "model.output_layer.weight"
TENSOR = torch.randn(5, 7, generator=torch.manual_seed(0))
DTYPES = {"bfloat16": torch.bfloat16, "<f2": torch.float16, "<f4": torch.float32}


def members(tensor: torch.Tensor, chunks: list[int], **changed: Any) -> dict[str, bytes]:
    """An array as zarr writes it: chunks at the edge are full, here of ones beyond it."""
    described = {
        "zarr_format": 2,
        "order": "C",
        "compressor": None,
        "filters": None,
        "fill_value": None,
        "dtype": "<f4",
        "shape": list(tensor.shape),
        "chunks": chunks,
        **changed,
    }
    counts = [-(-size // step) for size, step in zip(tensor.shape, chunks, strict=True)]
    padded = torch.ones([n * step for n, step in zip(counts, chunks, strict=True)])
    padded = padded.to(tensor.dtype)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    files = {f"w/{NAME}/.zarray": json.dumps(described).encode()}
    separator = changed.get("dimension_separator") or "."
    for index in torch.cartesian_prod(*map(torch.arange, counts)).reshape(-1, len(counts)).tolist():
        box = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, chunks, strict=True))
        files[f"w/{NAME}/{separator.join(map(str, index))}"] = element_bytes(padded[box])
    return files


def whole(tmp_path: Path, files: dict[str, bytes]) -> LazyTensor:
    archive = open_archive(pack_members(tmp_path / "m.nemo", files, "tar"))
    return zarr_tensors(archive, "w")[NAME].whole()


@pytest.mark.parametrize(
    "chunks", [[5, 7], [1, 7], [2, 7], [5, 1], [5, 3], [2, 3], [3, 4], [8, 9], [1, 1]], ids=str
)
def test_every_grid_of_chunks_is_one_tensor(tmp_path: Path, chunks: list[int]) -> None:
    found = whole(tmp_path, members(TENSOR, chunks))

    assert found.shape == (5, 7)
    assert torch.equal(found.read(), TENSOR)
    assert torch.equal(found.read(1, 4), TENSOR[1:4])


@pytest.mark.parametrize("chunks", [[7], [2], [9]], ids=str)
def test_a_vector_may_be_in_chunks(tmp_path: Path, chunks: list[int]) -> None:
    assert torch.equal(whole(tmp_path, members(TENSOR[0], chunks)).read(), TENSOR[0])


@pytest.mark.parametrize("chunks", [[1, 5, 7], [2, 5, 7], [3, 2, 4], [9, 5, 7]], ids=str)
def test_stacked_layers_are_cut_apart(tmp_path: Path, chunks: list[int]) -> None:
    stacked = torch.randn(3, 5, 7, generator=torch.manual_seed(1))
    archive = open_archive(pack_members(tmp_path / "m", members(stacked, chunks), "folder"))

    layers = zarr_tensors(archive, "w")[NAME].layers()

    assert [layer.shape for layer in layers] == [(5, 7)] * 3
    for layer, expected in zip(layers, stacked, strict=True):
        assert torch.equal(layer.read(), expected)
        assert torch.equal(layer.read(2, 4), expected[2:4])


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_read(tmp_path: Path, name: str) -> None:
    tensor = TENSOR.to(DTYPES[name])

    assert torch.equal(whole(tmp_path, members(tensor, [2, 3], dtype=name)).read(), tensor)


@pytest.mark.parametrize("name", ["<V2", "|V2"])
def test_two_untyped_bytes_are_bfloat16(tmp_path: Path, name: str) -> None:
    tensor = TENSOR.bfloat16()

    assert torch.equal(whole(tmp_path, members(tensor, [2, 3], dtype=name)).read(), tensor)


def test_chunks_may_be_in_folders(tmp_path: Path) -> None:
    files = members(TENSOR, [2, 3], dimension_separator="/")

    assert torch.equal(whole(tmp_path, files).read(), TENSOR)


def test_rows_that_are_behind_each_other_are_known_by_ranges(tmp_path: Path) -> None:
    found = whole(tmp_path, members(TENSOR, [2, 7]))
    ranges = found.ranges(1, 5)

    assert ranges is not None
    data = [range_.path.read_bytes()[range_.start :][: range_.size] for range_ in ranges]
    assert b"".join(data) == element_bytes(TENSOR[1:5])
    assert whole(tmp_path, members(TENSOR, [2, 3])).ranges() is None


def test_what_is_no_weight_is_not_looked_at(tmp_path: Path) -> None:
    files = members(TENSOR, [2, 3])
    files["w/optimizer.state.exp_avg.model.output_layer.weight/.zarray"] = b"damaged"
    files["w/model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_4.pt"] = b"never read"
    files["elsewhere/model.x/.zarray"] = b"damaged"
    archive = open_archive(pack_members(tmp_path / "m.nemo", files, "tar"))

    assert list(zarr_tensors(archive, "w")) == [NAME]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"zarr_format": 3}, "zarr_format 3, not 2"),
        ({"order": "F"}, "order 'F', not 'C'"),
        ({"compressor": {"id": "blosc"}}, r"compressor \{'id': 'blosc'\}, not None"),
        ({"filters": [{"id": "delta"}]}, "filters .*delta"),
        ({"dtype": ">f4"}, "dtype '>f4'"),
        ({"dtype": "<i8"}, "dtype '<i8'"),
        ({"dimension_separator": "-"}, "dimension_separator '-'"),
        ({"shape": [5]}, r"shape \(5,\), chunks \(2, 3\)"),
        ({"shape": [5, 0]}, r"its shape is not a list of sizes: \[5, 0\]"),
        ({"shape": [5, -7]}, "its shape is not a list of sizes"),
        ({"shape": [2**70, 7]}, "its shape is not a list of sizes"),
        ({"shape": [2**40, 7]}, "chunks: most are missing"),
        ({"shape": [6, 10]}, r"chunk 0\.3 is missing"),
        ({"chunks": [2, 2]}, r"chunk 0\.0 has 24 bytes, 16 are expected"),
        ({"chunks": [0, 3]}, "its chunks is not a list of sizes"),
        ({"chunks": "all"}, "its chunks is not a list of sizes: 'all'"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    files = members(TENSOR, [2, 3])
    described = {**json.loads(files[f"w/{NAME}/.zarray"]), **changed}
    files[f"w/{NAME}/.zarray"] = json.dumps(described).encode()

    with pytest.raises(SourceError, match=message) as error:
        whole(tmp_path, files)
    assert NAME in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 50000])
def test_a_damaged_description_is_refused(tmp_path: Path, data: bytes) -> None:
    files = {**members(TENSOR, [2, 3]), f"w/{NAME}/.zarray": data}

    with pytest.raises(SourceError, match=rf"{NAME}.*\.zarray"):
        whole(tmp_path, files)


def test_a_missing_chunk_is_named(tmp_path: Path) -> None:
    files = members(TENSOR, [2, 3])
    del files[f"w/{NAME}/1.2"]

    with pytest.raises(SourceError, match=rf"{NAME}, chunk 1\.2 is missing"):
        whole(tmp_path, files)


def test_a_truncated_chunk_is_named(tmp_path: Path) -> None:
    files = members(TENSOR, [2, 3])
    files[f"w/{NAME}/1.2"] = files[f"w/{NAME}/1.2"][:-1]

    with pytest.raises(SourceError, match=rf"{NAME}, chunk 1\.2 has 23 bytes, 24 are expected"):
        whole(tmp_path, files)
