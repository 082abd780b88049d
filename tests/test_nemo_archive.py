"""A `.nemo` as members: found in any container, read in place, and never followed outside."""

import gc
import gzip
import io
import logging
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from minitron.conversion import unpacked_tar
from minitron.conversion.nemo_archive import open_archive
from minitron.errors import SourceError
from minitron.files.file import LocalFile
from tests.nemo_files import pack_members, tar_bytes

LONG = (
    "model_weights/" + "model.decoder.layers.self_attention.linear_qkv.layer_norm_weight" * 3 + "/0"
)
MEMBERS = {
    "model_config.yaml": b"num_layers: 4\n",
    "model_weights/.metadata": b"hidden",
    "model_weights/empty": b"",
    "model_weights/x": bytes(range(256)) * 33,
    LONG: b"long",
}


def entry(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, target
    return made


def tar_of(path: Path, entries: Iterable[tarfile.TarInfo]) -> Path:
    """A tar with these members beside a good one; those with a size are filled with zeros."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(entry("./model_config.yaml", 3), io.BytesIO(b"a:1"))
        for made in entries:
            tar.addfile(made, io.BytesIO(bytes(made.size)))
    return path


@pytest.mark.parametrize("pack", ["tar", "tar.gz", "folder"])
def test_every_container_has_the_same_members(tmp_path: Path, pack: str) -> None:
    archive = open_archive(pack_members(tmp_path / "m.nemo", MEMBERS, pack))

    assert archive.kind == pack
    assert archive.name == str(tmp_path / "m.nemo")
    assert archive.names() == tuple(sorted(MEMBERS))
    assert "model_weights/.metadata" in archive
    assert "model_weights" not in archive
    for name, data in MEMBERS.items():
        member = archive.member(name)
        assert archive.read(name, len(data)) == data
        assert member.size == len(data)
        assert member.path.read_bytes()[member.start :][: member.size] == data


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_long_names_are_read_in_both_formats(tmp_path: Path, format: int) -> None:
    path = tmp_path / "m.nemo"
    with tarfile.open(path, "w", format=format) as tar:
        made = entry(f"./{LONG}é", 3)
        made.mtime = 1.5  # which pax keeps in a header of its own
        tar.addfile(made, io.BytesIO(b"abc"))

    assert open_archive(path).read(f"{LONG}é", 3) == b"abc"


def test_a_plain_tar_is_read_in_place(tmp_path: Path) -> None:
    path = pack_members(tmp_path / "m.nemo", MEMBERS, "tar")
    archive = open_archive(path)

    assert {archive.member(name).path for name in MEMBERS} == {path}
    assert os.listdir(tmp_path) == ["m.nemo"]


def test_the_index_of_a_tar_costs_its_headers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.nemo"
    with path.open("wb") as file:
        for number in range(200):
            made = entry(f"./model_weights/{number}", 1 << 20)
            file.write(made.tobuf())
            file.seek(made.size, os.SEEK_CUR)  # a hole in the file
        file.write(bytes(1024))
    read = 0
    preadv = os.preadv

    def count_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal read
        read += sum(map(len, buffers))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", count_read)

    assert len(open_archive(path).names()) == 200
    assert 200 * 512 <= read < 200 * 600


def test_a_compressed_archive_is_unpacked_once_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pack_members(tmp_path / "m.nemo", MEMBERS, "tar.gz")
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    with caplog.at_level(logging.INFO), open_archive(path, scratch) as archive:
        (unpacked,) = scratch.iterdir()
        assert archive.member("model_weights/x").path == unpacked
        assert unpacked.read_bytes() == tar_bytes(MEMBERS)
    assert list(scratch.iterdir()) == []
    assert f"into {scratch}, at least {path.stat().st_size} bytes" in caplog.text


def test_what_was_unpacked_lives_as_long_as_a_member_of_it(tmp_path: Path) -> None:
    path = pack_members(tmp_path / "m.nemo", MEMBERS, "tar.gz")
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    member = open_archive(path, scratch).member("model_weights/x")
    gc.collect()
    assert member.path.read_bytes()[member.start :][: member.size] == MEMBERS["model_weights/x"]
    beside = member.path.with_suffix(".txt")
    beside.write_text("kept")
    del member
    gc.collect()
    assert list(scratch.iterdir()) == [beside]


def test_the_system_s_temporary_folder_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack_members(tmp_path / "m.nemo", MEMBERS, "tar.gz")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()

    with open_archive(path) as archive:
        assert archive.member("model_config.yaml").path.parent == tmp_path / "scratch"


def refused(path: Path, tmp_path: Path) -> str:
    """Why it is refused, in one line, with nothing left in the scratch folder."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    with pytest.raises(SourceError) as error:
        open_archive(path, scratch)
    assert list(scratch.iterdir()) == []
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_a_bomb_is_refused_before_it_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked_tar, "FREE_OF_RATIO", 1 << 20)
    path = tmp_path / "m.nemo"
    path.write_bytes(gzip.compress(tar_bytes({"x": bytes(1 << 24)})))

    assert "unpacks to more than 100 times its size" in refused(path, tmp_path)


def test_weights_that_compress_well_are_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    path.write_bytes(gzip.compress(tar_bytes({"x": bytes(1 << 24)})))

    assert open_archive(path).member("x").size == 1 << 24


def test_a_disk_too_small_is_reported_before_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack_members(tmp_path / "m.nemo", MEMBERS, "tar.gz")
    monkeypatch.setattr(unpacked_tar, "SPARE_DISK", 1 << 62)

    assert "bytes left to unpack it: free some, or set TMPDIR" in refused(path, tmp_path)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("pack", ["tar", "tar.gz"])
def test_a_truncated_archive_is_refused(tmp_path: Path, pack: str, kept: float) -> None:
    members = {f"model_weights/{number}": os.urandom(5000) for number in range(9)}
    path = pack_members(tmp_path / "m.nemo", members, pack)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])

    assert "truncated" in refused(path, tmp_path)


def test_a_member_that_reaches_past_the_end_is_named(tmp_path: Path) -> None:
    path = pack_members(tmp_path / "m.nemo", {"a": bytes(5000)}, "tar")
    path.write_bytes(path.read_bytes()[:4000])

    assert "is truncated: './a' ends at byte 6024, it has 4000" in refused(path, tmp_path)


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    path = pack_members(tmp_path / "m.nemo", {"a": bytes(512), "b": b""}, "tar")
    path.write_bytes(path.read_bytes()[: 3 * 512])

    assert "it has no end mark at 1536" in refused(path, tmp_path)


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    path = pack_members(tmp_path / "m.nemo", {"a": b"1", "b": b"2"}, "tar")
    data = bytearray(path.read_bytes())
    data[3 * 512] ^= 1  # the name of b: the checksum is wrong
    path.write_bytes(data)

    assert "truncated or damaged" in refused(path, tmp_path)


def test_a_size_below_zero_ends(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "m.nemo", [entry("./x")])
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")
    header = bytes(data[1024:1536])
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]
    path.write_bytes(data)

    assert "the header of './x' is out of order" in refused(path, tmp_path)


def test_a_header_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    made = entry("././@LongLink", 1 << 33, tarfile.GNUTYPE_LONGNAME)
    with path.open("wb") as file:
        file.write(made.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 34)

    assert "a header of 8589934592 bytes" in refused(path, tmp_path)


@pytest.mark.parametrize("pack", ["tar", "tar.gz"])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "model_weights/../../x"])
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str, pack: str) -> None:
    path = tar_of(tmp_path / "m.nemo", [entry(name, 3)])
    if pack == "tar.gz":
        path.write_bytes(gzip.compress(path.read_bytes()))

    assert f"a member {name!r}, which leads outside" in refused(path, tmp_path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "m.nemo", [entry("a/x"), entry("./a//x")])

    assert "holds a/x twice" in refused(path, tmp_path)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\udcffb"])
def test_a_name_that_would_garble_a_message_is_refused(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "m.nemo", [entry(name)])

    assert f"a member {name!r}, which is not a name for a file" in refused(path, tmp_path)


def test_links_and_devices_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kinds = {
        "./soft": tarfile.SYMTYPE,
        "./hard": tarfile.LNKTYPE,
        "./character": tarfile.CHRTYPE,
        "./block": tarfile.BLKTYPE,
        "./fifo": tarfile.FIFOTYPE,
    }
    entries = [entry(name, kind=kind, target="/etc/passwd") for name, kind in kinds.items()]
    path = tar_of(tmp_path / "m.nemo", entries)

    archive = open_archive(path)

    assert archive.names() == ("model_config.yaml",)
    assert all(name in caplog.text for name in kinds)
    with pytest.raises(SourceError, match="has no soft: the checkpoint is not complete"):
        archive.member("soft")


def test_links_that_leave_a_folder_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = pack_members(tmp_path / "m", MEMBERS, "folder")
    (folder / "outside").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to("../secret")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "nothing").symlink_to("missing")
    (folder / "two\nlines").write_text("s")
    (folder / "inside").symlink_to("model_config.yaml")
    os.mkfifo(folder / "fifo")

    assert open_archive(folder).names() == tuple(sorted([*MEMBERS, "inside"]))


def test_a_snapshot_in_the_hub_s_cache_is_read_through_its_links(tmp_path: Path) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123" / "nemo"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "4567").write_bytes(b"a: 1")
    (tmp_path / "secret").write_text("s")
    (snapshot / "model_config.yaml").symlink_to("../../../blobs/4567")
    (snapshot / "secret").symlink_to(tmp_path / "secret")

    archive = open_archive(snapshot)

    assert archive.names() == ("model_config.yaml",)
    assert archive.read("model_config.yaml", 9) == b"a: 1"


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "nature"),
    [
        (b"", "it is empty"),
        (zipped(), "it is a zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
        (b"\x18" + bytes(7) + b'{"__metadata__":{}}', "it is a safetensors file: name its model's"),
        (b"hello" * 200, "not a tar, it begins with b'hellohel'"),
        (bytes(10240), "not a tar, it begins with"),
        (gzip.compress(b"hello" * 200, mtime=0), "gzip, but not of a tar"),
        (gzip.compress(b"", mtime=0), "gzip of nothing"),
        (b"\x1f\x8bxxxxxxxx", "truncated or damaged"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path: Path, data: bytes, nature: str) -> None:
    path = tmp_path / "m.nemo"
    path.write_bytes(data)

    assert nature in refused(path, tmp_path)


def test_a_tar_of_folders_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    with tarfile.open(path, "w") as tar:
        tar.addfile(entry(".", kind=tarfile.DIRTYPE))

    assert "is a tar without files" in refused(path, tmp_path)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "m.nemo", tmp_path)


def test_a_member_larger_than_expected_is_not_read(tmp_path: Path) -> None:
    archive = open_archive(pack_members(tmp_path / "m.nemo", MEMBERS, "tar"))

    with pytest.raises(SourceError, match=r"model_config\.yaml has 14 bytes, at most 13"):
        archive.read("model_config.yaml", 13)


def test_a_file_that_shrank_since_is_noticed(tmp_path: Path) -> None:
    path = pack_members(tmp_path / "m.nemo", MEMBERS, "tar")
    archive = open_archive(path)
    path.write_bytes(path.read_bytes()[:1030])

    with pytest.raises(SourceError, match=r"truncated: it ends at 1030, \d+ are needed"):
        archive.read("model_weights/x", 1 << 20)


def test_what_a_killed_run_unpacked_is_removed_by_the_next_one(tmp_path: Path) -> None:
    source, scratch = tmp_path / "a.nemo", tmp_path / "scratch"
    scratch.mkdir()
    source.write_bytes(gzip.compress(tar_bytes({"model_config.yaml": b"a: 1"})))
    (scratch / "minitron-unpacked-left.tar").write_bytes(b"of a killed run")
    first = unpacked_tar.unpack(LocalFile.at(source), scratch)
    assert [path.name for path in scratch.iterdir()] == [first.path.name]
    second = unpacked_tar.unpack(LocalFile.at(source), scratch)  # the first is still wanted
    assert {path.name for path in scratch.iterdir()} == {first.path.name, second.path.name}
    first.delete()
    second.delete()
    assert not list(scratch.iterdir())
