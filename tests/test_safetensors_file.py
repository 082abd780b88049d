"""Headers say where tensors are, exactly as the format's own library reads and writes them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron.errors import SourceError
from minitron.files.file import LocalFile
from minitron.files.safetensors_file import read_safetensors_header, safetensors_header

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensors() -> dict[str, torch.Tensor]:
    """One of each dtype, of shapes that all differ, a scalar and an empty one among them."""
    torch.manual_seed(0)
    drawn = {
        str(dtype): (torch.randn(3 + index, 2 + index % 3) * 3).to(dtype)
        for index, dtype in enumerate(DTYPES)
    }
    return {**drawn, "scalar": torch.tensor(1.5), "empty": torch.empty(0, 7), "é/ü": torch.ones(1)}


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with this header, given as JSON or as the bytes themselves."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def entry(**changed: Any) -> dict[str, Any]:
    """The header of a file that holds one tensor, 2 x 3 of float32."""
    return {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changed}}


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and raw(one) == raw(other)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_file(tensors(), path, {"format": "pt", "made": "by the library"})
    return path


def test_every_tensor_is_found_where_the_library_wrote_it(saved: Path) -> None:
    found = read_safetensors_header(LocalFile.at(saved))
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert found[name].shape == tuple(tensor.shape)
        assert same_bytes(found[name].read(), tensor), name


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 3), (2, None), (0, 0), (-1, None), (1, 9)])
def test_rows_are_read_as_a_slice_would_choose_them(
    saved: Path, start: int, stop: int | None
) -> None:
    found = read_safetensors_header(LocalFile.at(saved))
    for name, tensor in tensors().items():
        if tensor.dim() == 2:
            assert same_bytes(found[name].read(start, stop), tensor[start:stop]), name


def test_the_library_reads_what_our_header_precedes(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors().items()}
    path.write_bytes(safetensors_header(specs) + b"".join(map(raw, tensors().values())))
    loaded = load_file(path)
    assert loaded.keys() == tensors().keys()
    assert all(same_bytes(loaded[name], tensor) for name, tensor in tensors().items())


@pytest.mark.parametrize("length", range(1, 9))
def test_the_first_tensor_starts_on_a_multiple_of_eight(length: int) -> None:
    assert len(safetensors_header({"w" * length: (torch.float32, (2, 3))})) % 8 == 0


@pytest.mark.parametrize("missing", [1, 5, 24])
def test_a_file_cut_inside_its_tensors_says_both_sizes(tmp_path: Path, missing: int) -> None:
    path = raw_file(tmp_path / "w.safetensors", entry(), bytes(24 - missing))
    size = path.stat().st_size
    with pytest.raises(
        SourceError,
        match=rf"w.safetensors is truncated \({size} bytes of {size + missing}\): fetch",
    ):
        read_safetensors_header(LocalFile.at(path))


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "w.safetensors", entry(), bytes(24))
    found = read_safetensors_header(LocalFile.at(path))["w"]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SourceError, match="w.safetensors is truncated"):
        found.read()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x07", b"\x08\0\0\0\0\0\0\0{", b"PK\x03\x04 a zip, say", b"\xff" * 40],
    ids=str,
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"w.safetensors is truncated or no safetensors file"):
        read_safetensors_header(LocalFile.at(path))


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        [],
        "w",
        7,
        {"w": 7},
        {"w": None},
        {"w": {"dtype": "F32", "shape": [2, 3]}},
        entry(shape=7),
        entry(shape=[2, -3]),
        entry(shape=[-2, -3]),
        entry(shape=[2, 4]),
        entry(shape=[2, "3"]),
        entry(shape=[2, 3.0]),
        entry(shape=[True, 6]),
        entry(dtype=["F32"]),
        entry(data_offsets=[0]),
        entry(data_offsets=[0, 12, 24]),
        entry(data_offsets=[24, 0]),
        entry(data_offsets=[-24, 0]),
        entry(data_offsets="024"),
        entry(data_offsets=[0, float("inf")]),
        entry(data_offsets=[0, float("nan")]),
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: object) -> None:
    path = raw_file(tmp_path / "w.safetensors", header, bytes(24))
    with pytest.raises(SourceError, match=r"w.safetensors has a damaged header \(.*\): fetch it"):
        read_safetensors_header(LocalFile.at(path))


def test_a_dtype_that_torch_cannot_hold_is_named(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "w.safetensors", entry(dtype="F4"), bytes(24))
    with pytest.raises(SourceError, match="holds F4 tensors, which cannot be read here"):
        read_safetensors_header(LocalFile.at(path))


def test_a_shape_that_no_memory_could_hold_is_refused_at_once(tmp_path: Path) -> None:
    huge = 2**60
    header = entry(shape=[huge], data_offsets=[0, 4 * huge])
    with pytest.raises(SourceError, match="is truncated"):
        read_safetensors_header(
            LocalFile.at(raw_file(tmp_path / "w.safetensors", header, bytes(24)))
        )


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read: Is a directory"):
        read_safetensors_header(LocalFile.at(tmp_path))


W, V = (entry(data_offsets=[0, 24])["w"], entry(data_offsets=[24, 48])["w"])


@pytest.mark.parametrize(
    ("header", "nbytes", "says"),
    [
        ({"w": W, "v": W}, 24, "overlaps another tensor"),
        ({"w": W, "v": {**V, "data_offsets": [16, 40]}}, 40, "v overlaps another tensor"),
        ({"v": V}, 48, "v has a gap before it"),
        ({"w": W, "v": {**V, "data_offsets": [32, 56]}}, 56, "v has a gap before it"),
        ({"w": W}, 25, "1 bytes at its end belong to no tensor"),
        ({}, 3, "3 bytes at its end belong to no tensor"),
        ({"w": W, "__metadata__": {"format": 7}}, 24, "its metadata are no texts"),
        ({"w": W, "__metadata__": ["pt"]}, 24, "its metadata are no texts"),
        (
            b"{" + b",".join([json.dumps({"w": W})[1:-1].encode()] * 2) + b"}",
            24,
            "w is there twice",
        ),
        (json.dumps({"w": W}).replace("[2, 3]", '[6], "shape": [2, 3]').encode(), 24, "shape is"),
        (b" " + json.dumps({"w": W}).encode(), 24, "begins with something else"),
    ],
)
def test_what_the_formats_own_library_refuses_is_refused(
    tmp_path: Path, header: object, nbytes: int, says: str
) -> None:
    path = raw_file(tmp_path / "w.safetensors", header, bytes(nbytes))
    with pytest.raises(SourceError, match=says):
        read_safetensors_header(LocalFile.at(path))


def test_random_damage_of_a_header_never_changes_a_value_unseen(tmp_path: Path) -> None:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(6), "c": torch.tensor(1.5)}
    path = tmp_path / "w.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    data = path.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    draw = random.Random(0)
    for _ in range(1500):
        damaged = bytearray(data)
        damaged[draw.randrange(length)] = draw.choice([draw.randrange(256), *b"0123456789"])
        path.write_bytes(damaged)
        try:
            ours = {
                name: tensor.read()
                for name, tensor in read_safetensors_header(LocalFile.at(path)).items()
            }
        except SourceError:
            continue
        theirs = load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
