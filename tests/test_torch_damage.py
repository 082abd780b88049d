"""A damaged file of torch.save is refused, or read as torch.load(weights_only=True) reads it."""

import io
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from minitron.errors import SourceError
from minitron.files.file import LocalFile
from minitron.files.torch_file import read_torch_file
from tests.torch_mutations import fault_of, faults, saved_bytes


@pytest.mark.parametrize("zipped", [True, False])
def test_an_undamaged_file_is_read_as_torch_reads_it(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(saved_bytes(zipped=zipped))
    assert read_torch_file(LocalFile.at(path))
    assert fault_of(path) is None


@pytest.mark.filterwarnings("ignore")  # torch and pickletools warn of some damage
@pytest.mark.parametrize("zipped", [True, False])
def test_random_damage_never_changes_a_value_unseen(tmp_path: Path, zipped: bool) -> None:
    assert faults(250, tmp_path / "model.bin", zipped=zipped) == {}


def saved(path: Path, value: object, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_one_storage_of_two_kinds_is_refused(tmp_path: Path, zipped: bool) -> None:
    state = {"a": torch.arange(4.0), "b": torch.arange(4, dtype=torch.int32)}
    path = saved(tmp_path / "model.bin", state, zipped=zipped)
    data = path.read_bytes()
    first, second = re.findall(rb"Storage\nq.X.\0\0\0(\d+)", data)
    before, _, after = data.partition(b"IntStorage")
    path.write_bytes(before + b"IntStorage" + after.replace(second, first, 1))
    with pytest.raises(SourceError, match="has two kinds or two sizes"):
        read_torch_file(LocalFile.at(path))


def rewritten(path: Path, records: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["archive/data/0", "archive/DATA/0", "archive/Data.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        records = [(entry, archive.read(entry)) for entry in archive.namelist()]
    whole = rewritten(tmp_path / "whole.bin", records)
    assert read_torch_file(LocalFile.at(whole))["a"].read().tolist() == [0.0, 1.0, 2.0, 3.0]
    twice = rewritten(tmp_path / "twice.bin", [*records, (name, bytes(16))])
    with pytest.raises(SourceError, match=r"twice.bin is truncated or damaged: a record is there"):
        read_torch_file(LocalFile.at(twice))


@pytest.mark.parametrize(
    ("at", "value"),
    [(38, b"\x10"), (34, b"\1"), (8, b"\x20"), (20, b"\1"), (42, b"\1")],
    ids=["folder", "disk", "flags", "size", "offset"],
)
def test_a_directory_entry_that_torch_reads_otherwise_is_refused(
    tmp_path: Path, at: int, value: bytes
) -> None:
    path = saved(tmp_path / "model.bin", {"a": torch.arange(4.0)})
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\1\2", 0, data.rfind(b"archive/data/0".replace(b"archive", b"model")))
    data[entry + at : entry + at + 1] = value
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"model.bin is truncated or damaged"):
        read_torch_file(LocalFile.at(path))


@pytest.mark.parametrize("end", [b"PK\5\6", b"PK\6\6", b"PK\6\7"])
def test_ends_of_a_zip_that_disagree_are_refused(tmp_path: Path, end: bytes) -> None:
    path = saved(tmp_path / "model.bin", {"a": torch.arange(4.0)})
    data = bytearray(path.read_bytes())
    place = data.rfind(end)
    for at in {b"PK\5\6": (4, 8, 10, 20), b"PK\6\6": (16, 24, 32), b"PK\6\7": (4, 8, 16)}[end]:
        damaged = bytearray(data)
        damaged[place + at] += 1
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"model.bin is truncated or damaged"):
            read_torch_file(LocalFile.at(path))


def program(path: Path, pickle: bytes) -> Path:
    return rewritten(path, [("archive/data.pkl", pickle), ("archive/data/0", bytes(16))])


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0K\4\x85K\1\x85\x89}tR"


@pytest.mark.parametrize(
    ("pickle", "says"),
    [
        (
            b"}X\1\0\0\0a" + TENSOR + b"(" + STORAGE + b"K\0K\2\x85K\1\x85tbs.",
            "state for a Stored",
        ),
        (b"}X\1\0\0\0a" + TENSOR.replace(b"\x89}t", b"\x89t") + b"s.", "missing 1 required"),
        (b"}X\1\0\0\0a" + TENSOR.replace(b"\x89}t", b"\x89}}NtR"[:-1]) + b"s.", "argument"),
        (b"}X\1\0\0\0a" + TENSOR.replace(b"\x89}t", b"\x89}}X\1\0\0\0aNst") + b"s.", "conjugated"),
        (b"}X\1\0\0\0a" + TENSOR.replace(b"K\4t", b"K\3t") + b"s.", "has 16 bytes for 3 elements"),
        (b"}X\1\0\0\0a" + TENSOR.replace(b"cpu", b"cpv") + b"s.", "unknown device, cpv"),
        (
            b"}X\1\0\0\0a" + TENSOR.replace(b"ctorch\n", b"ctorcx\n") + b"s.",
            "Storage of torcx",
        ),
        (b"}U\1\xe9" + TENSOR + b"s.", "a text of unknown encoding"),
    ],
)
def test_a_pickle_that_torch_would_read_otherwise_is_refused(
    tmp_path: Path, pickle: bytes, says: str
) -> None:
    assert read_torch_file(
        LocalFile.at(program(tmp_path / "w.bin", b"}X\1\0\0\0a" + TENSOR + b"s."))
    )
    with pytest.raises(SourceError, match=says):
        read_torch_file(LocalFile.at(program(tmp_path / "x.bin", pickle)))


def test_a_legacy_storage_of_another_size_than_its_pickle_says_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.bin", {"a": torch.arange(4.0)}, zipped=False)
    data = path.read_bytes()
    path.write_bytes(data[:-24] + struct.pack("<q", 3) + data[-16:])
    with pytest.raises(SourceError, match="storage .* has another size"):
        read_torch_file(LocalFile.at(path))


def test_a_kind_of_tensor_that_is_not_read_here_is_named(tmp_path: Path) -> None:
    state = {"a": torch.arange(4.0), "b": torch.eye(3).to_sparse()}
    with pytest.raises(SourceError, match=r"model.bin: b is made by torch._utils._rebuild_sparse"):
        read_torch_file(LocalFile.at(saved(tmp_path / "model.bin", state)))
