"""Files of torch.save read in place: every tensor as torch reads it, and nothing that runs."""

import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron.errors import SourceError
from minitron.files.file import LocalFile
from minitron.files.inert_pickle import Global, Inert, read_pickle
from minitron.files.lazy_tensor import StoredTensor
from minitron.files.torch_file import read_torch_file, read_torch_object

DTYPES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 "
    "uint16 uint32 uint64 bool complex64 complex128"
)
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(folder: Path, value: object, zipped: bool = True) -> Path:
    path = folder / "model.bin"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def assert_same(found: object, expected: torch.Tensor) -> None:
    assert isinstance(found, StoredTensor)
    read = found.read()
    assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
    assert read.is_contiguous()
    assert raw(read) == raw(expected)
    assert found.nbytes == read.nbytes


@FORMATS
@pytest.mark.parametrize("name", DTYPES.split())
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, name: str, zipped: bool) -> None:
    bits = torch.randint(0, 256, (5 * 3 * 16,), generator=torch.manual_seed(0)).to(torch.uint8)
    dtype = getattr(torch, name)
    values = (bits % 2).bool() if dtype is torch.bool else bits.view(dtype)
    tensor = values[:15].reshape(5, 3).clone()

    assert_same(read_torch_file(LocalFile.at(saved(tmp_path, {"x": tensor}, zipped)))["x"], tensor)


BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
LAYOUTS = {
    "whole": BASE,
    "transposed": BASE.t(),
    "cut out": BASE[1:3, 2:5],
    "every other column": BASE[:, ::2],
    "expanded": BASE[:, :1].expand(4, 5),
    "one row": BASE[2:3],
    "permuted": BASE.reshape(2, 3, 4).permute(2, 0, 1),
    "scalar": BASE[3, 5],
    "without rows": BASE[:0],
    "without columns": BASE[:, :0],
}


@FORMATS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_as_torch_reads_it(tmp_path: Path, layout: str, zipped: bool) -> None:
    tensor = LAYOUTS[layout]
    found = read_torch_file(LocalFile.at(saved(tmp_path, {"x": tensor}, zipped)))["x"]

    assert_same(found, tensor)
    if tensor.dim():
        for start, stop in [(0, 1), (1, 3), (2, None), (3, 2), (0, 99), (-1, None)]:
            assert torch.equal(found.read(start, stop), tensor[start:stop])
    else:
        assert torch.equal(found.read(5, 7), tensor)


@FORMATS
def test_tensors_of_one_storage_share_its_bytes(tmp_path: Path, zipped: bool) -> None:
    tensors = {"whole": BASE, "rows": BASE[1:3], "transposed": BASE.t()}
    found = read_torch_file(LocalFile.at(saved(tmp_path, tensors, zipped)))

    for name, tensor in tensors.items():
        assert_same(found[name], tensor)
    assert found["rows"].offset == found["whole"].offset + 6 * 4
    assert found["transposed"].strides == (1, 6)
    assert found["rows"].strides is None


@FORMATS
def test_a_state_dict_of_a_module_is_read_in_its_order(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)).bfloat16()
    state = module.state_dict()
    found = read_torch_file(LocalFile.at(saved(tmp_path, state, zipped)))

    assert list(found) == list(state)
    for name, tensor in state.items():
        assert_same(found[name], tensor)


@FORMATS
def test_parameters_and_tensors_with_attributes_are_tensors(tmp_path: Path, zipped: bool) -> None:
    parameter = torch.nn.Parameter(BASE.clone())
    marked = BASE.clone()
    marked.tensor_model_parallel = True  # type: ignore[attr-defined]
    both = torch.nn.Parameter(BASE.clone())
    both.allreduce = False  # type: ignore[attr-defined]
    state = {"parameter": parameter, "marked": marked, "both": both}

    found = read_torch_file(LocalFile.at(saved(tmp_path, state, zipped)))

    for name, tensor in state.items():
        assert_same(found[name], tensor)


class Settings:
    """A class whose instances a checkpoint may carry along."""

    def __init__(self) -> None:
        self.tensor_model_parallel_size = 1


@FORMATS
def test_what_is_no_tensor_is_left_inert_and_wrappers_stay_nested(
    tmp_path: Path, zipped: bool
) -> None:
    value = {
        "state_dict": OrderedDict({"w": BASE, "w._extra_state": io.BytesIO(b"fp8 scales")}),
        "hyper_parameters": Settings(),
        "shape": torch.Size([3, 5]),
        "epoch": 3,
        "names": ("a", [1.5, None, True], {"b"}),
    }
    found = read_torch_object(LocalFile.at(saved(tmp_path, value, zipped)))

    assert isinstance(found, dict)
    assert_same(found["state_dict"]["w"], BASE)
    assert found["state_dict"]["w._extra_state"].call == Global("_io", "BytesIO")
    assert isinstance(found["hyper_parameters"], Inert)
    assert found["shape"] == (3, 5)
    assert found["epoch"] == 3
    assert found["names"] == ("a", [1.5, None, True], {"b"})


def test_entries_that_are_no_tensors_are_left_out_of_a_state_dict(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": BASE, "w._extra_state": io.BytesIO(), "b._extra_state": None})

    assert list(read_torch_file(LocalFile.at(path))) == ["w"]


@FORMATS
def test_a_bare_tensor_is_an_object_but_no_state_dict(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path, BASE, zipped)

    assert_same(read_torch_object(LocalFile.at(path)), BASE)
    with pytest.raises(SourceError, match="not a state dict"):
        read_torch_file(LocalFile.at(path))


def test_a_file_without_tensors_on_top_is_refused_by_the_names_it_has(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {"w": BASE}, "epoch": 3})

    with pytest.raises(SourceError, match="no tensor at its top level, but 'state_dict', 'epoch'"):
        read_torch_file(LocalFile.at(path))


@FORMATS
def test_a_file_inside_another_is_read_in_place(tmp_path: Path, zipped: bool) -> None:
    inner = saved(tmp_path, {"a": BASE, "b": BASE.t()}, zipped)
    outer = tmp_path / "model.nemo"
    with tarfile.open(outer, "w") as tar:
        tar.add(__file__, "./model_config.yaml")
        tar.add(inner, "./model_weights.ckpt")
        tar.add(__file__, "./tokenizer.model")
    with tarfile.open(outer) as tar:
        member = tar.getmember("./model_weights.ckpt")

    found = read_torch_file(LocalFile.at(outer).window(member.offset_data, member.size))

    assert found["a"].file.path == outer
    assert_same(found["a"], BASE)
    assert_same(found["b"], BASE.t())


@FORMATS
def test_rows_cost_no_more_than_their_own_bytes(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_torch_file(LocalFile.at(saved(tmp_path, {"x": torch.ones(1000, 7)}, zipped)))["x"]
    reads = []
    preadv = os.preadv

    def count_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reads.append(sum(map(len, buffers)))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", count_read)

    found.read(10, 13)

    assert reads == [3 * 7 * 4]


def test_reads_that_come_in_parts_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_torch_file(LocalFile.at(saved(tmp_path, {"x": BASE})))["x"]
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:10]], offset)
    )

    assert torch.equal(found.read(), BASE)


class Runs:
    """Pickles as a call."""

    def __init__(self, call: Any, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@FORMATS
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    touched = tmp_path / "touched"
    calls = {
        "system": Runs(os.system, f"touch {touched}"),
        "open": Runs(open, str(touched), "w"),
        "exec": Runs(exec, f"open({str(touched)!r}, 'w')"),
        "nested": Runs(getattr, Runs(__import__, "os"), "system"),
        "w": BASE,
    }
    found = read_torch_object(LocalFile.at(saved(tmp_path, calls, zipped)))

    assert not touched.exists()
    assert isinstance(found, dict)
    assert all(isinstance(found[name], Inert) for name in calls if name != "w")
    assert_same(found["w"], BASE)


def pickled(path: Path, program: bytes) -> Path:
    """A file of torch.save whose pickle is this program."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", bytes(64))
    return path


def test_a_module_is_not_even_imported(tmp_path: Path) -> None:
    module = tmp_path / "payload_of_a_test.py"
    module.write_text("raise SystemExit('imported')")

    found = read_torch_object(
        LocalFile.at(pickled(tmp_path / "x.bin", b"cpayload_of_a_test\nrun\n(tR."))
    )

    assert isinstance(found, Inert)
    assert found.call == Global("payload_of_a_test", "run")


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE
BOMBS = {
    "a memo of two thousand million": b"Nr\xff\xff\xff\x7f.",
    "a string of an exabyte": b"\x8e" + (1 << 60).to_bytes(8, "little") + b".",
    "text of four gigabytes": b"X\xff\xff\xff\xff.",
    "a frame of an exabyte": b"\x95" + (1 << 60).to_bytes(8, "little") + b".",
    "tuples that double": b"N" + b"2\x86" * 5000 + b".",
    "doubling tuples as a key": b"}N" + b"2\x86" * 60 + b"Ns.",
    "a deep tuple as a key": b"}N" + b"\x85" * 200_000 + b"Ns.",
    "a deep list": b"]" * 200_000 + b"a" * 199_999 + b".",
    "doubling sizes of a tensor": TENSOR + b"K\x00" + b"N" + b"2\x86" * 60 + b"K\x01\x85\x89NtR.",
    "doubling dtype": b"ctorch._utils\n_rebuild_tensor_v3\n("
    + STORAGE
    + b"K\x00)K\x01\x85\x89NN"
    + b"2\x86" * 60
    + b"tR.",
    "an expanded tensor": TENSOR + b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85\x89NtR.",
    "a tensor of no rows and endless columns": TENSOR
    + b"K\x00(K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft(K\x00K\x00K\x00t\x89NtR.",
    "a rebuilt type that rebuilds itself": b"ctorch._tensor\n_rebuild_from_type_v2\n"
    + b"2" * 3
    + b"NNN\x87R.",
    "no pickle": b"\xff\xfe",
    "nothing": b"",
    "no stop": b"N",
    "an empty stack": b".",
    "a state for a function": b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__Nsb.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_of_a_pickle_is_a_strange_value_or_refused(tmp_path: Path, bomb: str) -> None:
    path = pickled(tmp_path / "x.bin", BOMBS[bomb])

    with suppress(SourceError):
        read_torch_object(LocalFile.at(path))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (TENSOR + b"K\x00K\x11\x85K\x01\x85\x89NtR.", "too short for shape"),
        (TENSOR + b"K\x10K\x01\x85K\x01\x85\x89NtR.", "too short for shape"),
        (TENSOR + b"K\x00K\x02K\x02\x86J\xff\xff\xff\xffK\x01\x86\x89NtR.", "no reasonable number"),
        (TENSOR + b"K\x00K\x02\x85K\x02K\x01\x86\x89NtR.", "strides"),
        (STORAGE.replace(b"K\x10", b"K\x11") + b".", "has 64 bytes for 17 elements"),
        (STORAGE.replace(b"FloatStorage", b"QInt8Storage") + b".", "unknown kind, QInt8Storage"),
        (STORAGE.replace(b"\x000X", b"\x007X") + b".", "data/7"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(
    tmp_path: Path, program: bytes, reason: str
) -> None:
    with pytest.raises(SourceError, match=reason):
        read_torch_object(LocalFile.at(pickled(tmp_path / "x.bin", program)))


def rezipped(path: Path, *, method: int = zipfile.ZIP_STORED, **changed: bytes) -> Path:
    """The same archive with some records other, or compressed."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    copy = path.with_suffix(".zip")
    with zipfile.ZipFile(copy, "w", method) as archive:
        for name, data in {**records, **{f"model/{k}": v for k, v in changed.items()}}.items():
            archive.writestr(name, data)
    return copy


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = rezipped(saved(tmp_path, {"x": BASE}), method=zipfile.ZIP_DEFLATED)

    with pytest.raises(SourceError, match=r"model\.zip .* is compressed"):
        read_torch_file(LocalFile.at(path))


def test_encrypted_records_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": BASE})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)

    with pytest.raises(SourceError, match=r"model\.bin .* is encrypted"):
        read_torch_file(LocalFile.at(path))


@FORMATS
def test_big_endian_files_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path, {"x": BASE}, zipped)
    if zipped:
        path = rezipped(path, byteorder=b"big")
    else:
        data = path.read_bytes()
        at = data.index(b"little_endian") + len(b"little_endian")
        path.write_bytes(data[:at] + data[at:].replace(b"\x88", b"\x89", 1))

    with pytest.raises(SourceError, match="big-endian"):
        read_torch_file(LocalFile.at(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a file of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a file of torch.save"),
        (pickle.dumps({"x": 1}), "not a file of torch.save"),
        (b"PK\x03\x04" + bytes(99), "truncated or damaged"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(content)

    with pytest.raises(SourceError, match=rf"other\.bin .*{reason}"):
        read_torch_file(LocalFile.at(path))


def test_torchscript_and_other_zips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="TorchScript"):
        read_torch_file(
            LocalFile.at(rezipped(saved(tmp_path, {"x": BASE}), **{"constants.pkl": b"N."}))
        )
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(SourceError, match=r"other\.zip is a zip, but not of torch\.save"):
        read_torch_file(LocalFile.at(tmp_path / "other.zip"))


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.bin cannot be read: No such file"):
        read_torch_file(LocalFile.at(tmp_path / "none.bin"))
    with pytest.raises(SourceError, match="cannot be read: Is a directory"):
        read_torch_file(LocalFile.at(tmp_path))


@FORMATS
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path, {"x": BASE, "y": BASE.t().contiguous()}, zipped)
    data = path.read_bytes()

    for end in range(0, len(data) - 1, 13):
        path.write_bytes(data[:end])
        with pytest.raises(SourceError, match=r"model\.bin"):
            read_torch_file(LocalFile.at(path))


def test_a_member_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": BASE})

    with pytest.raises(SourceError, match=r"model\.bin is truncated"):
        read_torch_file(LocalFile.at(path).window(0, path.stat().st_size + 1))


def test_a_file_cut_after_it_was_opened_is_refused_when_read(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": BASE})
    found = read_torch_file(LocalFile.at(path))["x"]
    path.write_bytes(path.read_bytes()[: found.offset + 10])

    with pytest.raises(SourceError, match=r"model\.bin is truncated"):
        found.read()
    path.unlink()
    with pytest.raises(SourceError, match=r"model\.bin cannot be read"):
        found.read()


def test_memory_is_not_taken_before_the_file_is_known_to_have_it(tmp_path: Path) -> None:
    path = tmp_path / "short.bin"
    path.write_bytes(bytes(10))

    with pytest.raises(SourceError, match="truncated"):
        StoredTensor(LocalFile.at(path), torch.float32, (2**40, 2**10), 0).read()


@FORMATS
def test_damaged_bytes_are_refused_or_read_but_never_crash(tmp_path: Path, zipped: bool) -> None:
    state = {"x": BASE, "t": BASE.t(), "p": torch.nn.Parameter(BASE[0]), "e": io.BytesIO(b"x")}
    path = saved(tmp_path, state, zipped)
    data = path.read_bytes()
    draw = random.Random(0)
    refused = 0

    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 5])):
            at = draw.randrange(len(data))
            damaged[at] = draw.choice(
                [0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ 1 << draw.randrange(8)]
            )
        path.write_bytes(damaged)
        try:
            for tensor in read_torch_file(LocalFile.at(path)).values():
                assert tensor.nbytes <= 2**28
                assert tensor.read().shape == tensor.shape
        except SourceError:
            refused += 1

    assert refused > 50


def test_a_pickle_of_plain_values_is_read_as_pickle_reads_it() -> None:
    value = {
        "text": ["", "ü😀", "x" * 300],
        "numbers": (0, -1, 255, 65536, -(2**31), 2**70, 1.5, float("inf")),
        "rest": [None, True, False, b"ab", bytearray(b"cd"), {1, 2}, frozenset({"a"}), ()],
        ("a", 1): {},
    }
    shared = [1]
    value["shared"] = [shared, shared]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = read_pickle(io.BytesIO(pickle.dumps(value, protocol)), {}, "x")
        assert isinstance(found, dict)
        if protocol < 5:  # bytearrays, and once sets and bytes, are calls, and none is made
            del found["rest"]
        assert found == {key: value[key] for key in found}
        assert found["shared"][0] is found["shared"][1]


def test_the_pickle_of_an_object_is_a_record_of_its_calls() -> None:
    value = Settings()
    found = read_pickle(io.BytesIO(pickle.dumps(value)), {}, "x")

    assert isinstance(found, Inert)
    assert found.call == Global(__name__, "Settings")
    assert found.state == {"tensor_model_parallel_size": 1}


def test_the_local_header_of_a_record_says_where_its_bytes_begin(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": BASE})
    found = read_torch_file(LocalFile.at(path))["x"]
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("model/data/0")
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))

    assert found.offset == entry.header_offset + 30 + name + extra


class Marker:
    """Stands for a storage that a pickle keeps elsewhere."""


class OldPickler(pickle.Pickler):
    """Writes a storage as a view of twelve elements from the sixth, as torch 0.4 could."""

    def persistent_id(self, value: object) -> object:
        if isinstance(value, Marker):
            return ("storage", torch.FloatStorage, "0", "cpu", 24, ("1", 6, 12))
        return None


def test_a_legacy_view_of_a_storage_starts_where_the_view_does(tmp_path: Path) -> None:
    path = tmp_path / "old.bin"
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    value = {"x": Runs(torch._utils._rebuild_tensor, Marker(), 2, (2, 5), (5, 1))}
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, machine, value, ["0"]):
            OldPickler(file, 2).dump(part)
        file.write(struct.pack("<q", 24) + raw(BASE))

    assert_same(read_torch_file(LocalFile.at(path))["x"], BASE.flatten()[8:18].reshape(2, 5))
