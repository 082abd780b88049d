"""A damaged, foreign or endless file is read rightly or refused in one line."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron.errors import CorpusError
from minitron.text import parquet_rows
from minitron.text.corpus import load_ids
from minitron.text.text_file import read_lines, read_parts
from minitron.text.texts import read_texts

TEXTS = [f"Document {number}: {'some wörds 漢 ' * (number % 7 + 1)}" for number in range(40)]
MUTATIONS = 40  # of each kind; parquet fewer, since each has a process of its own


def texts_of(path: Path) -> list[str]:
    return [text.text for text in read_texts(str(path), lambda _: None)]


def write_txt(path: Path) -> None:
    path.write_text("\n".join(TEXTS))


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))


def write_gzipped(path: Path) -> None:
    write_jsonl(path)
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def write_parquet(path: Path) -> None:
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    pq.write_table(pa.table({"text": TEXTS, "messages": chats}), path, row_group_size=15)


def write_npy(path: Path) -> None:
    np.save(path, np.arange(480, dtype=np.int32).reshape(40, 12))


KINDS: dict[str, Callable[[Path], None]] = {
    "a.txt": write_txt,
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_gzipped,
    "a.parquet": write_parquet,
    "a.npy": write_npy,
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Cut off, bits turned, a part overwritten by random bytes or zeros, or a part left out."""
    kind, at = rng.randrange(6), rng.randrange(len(content))
    end = at + rng.randrange(1, 60)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 2:  # in the header or the footer
        at = rng.choice([at % 64, max(0, len(content) - 1 - at % 600)])
        return content[:at] + rng.randbytes(1) + content[at + 1 :]
    if kind == 3:
        return content[:at] + rng.randbytes(end - at) + content[end:]
    return content[:at] + (bytes(end - at) if kind == 4 else b"") + content[end:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path, rng = tmp_path / kind, random.Random(0)
    KINDS[kind](path)
    content = path.read_bytes()
    refused = 0
    for _ in range(5 if kind == "a.parquet" else MUTATIONS):
        path.write_bytes(mutated(content, rng))
        try:
            load_ids(str(path), seq_len=12) if kind == "a.npy" else texts_of(path)
        except CorpusError:
            refused += 1
    assert refused


@pytest.mark.parametrize("kind", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("It was".encode("utf-16"), "is UTF-16: save it as UTF-8 .iconv -f UTF-16 -t UTF-8"),
        ("It was".encode("utf-32"), "is UTF-32: save it as UTF-8"),
        ("It was".encode("utf-16-le"), "holds NUL at byte 1: it is not UTF-8 text, or damaged"),
        (bytes(100_000), "holds NUL at byte 0: "),
        (
            gzip.compress(b"text", mtime=0),
            "is compressed by gzip: decompress it, or add .gz to its name",
        ),
        ('{"text": "café"}'.encode("latin-1"), "at byte 13 it holds e9 22 7d .invalid contin"),
        (b"\xef\xbb\xbf" + b'{"text": "a"}\n' * 9_000 + b'{"text": "\xff', "at byte 126,013 it"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_utf_8_is_refused_with_its_place(
    kind: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / kind).write_bytes(content)
    with pytest.raises(CorpusError, match=f"{kind} .*{message}"):
        texts_of(tmp_path / kind)


def test_a_character_across_the_parts_of_a_file_is_read_whole(tmp_path: Path) -> None:
    text = "a" + "漢" * 900_000 + "\r\nend"
    (tmp_path / "a.txt").write_text(text, newline="")
    assert "".join(read_parts(str(tmp_path / "a.txt"))) == text.replace("\r\n", "\n")
    (tmp_path / "a.txt").write_bytes(text.encode()[:-3] + b"\xff")
    with pytest.raises(CorpusError, match="at byte 2,700,003 it holds ff"):
        list(read_parts(str(tmp_path / "a.txt")))


def test_a_line_longer_than_can_be_held_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.text.text_file.MAX_LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_text("{}\n" + "x" * 200)
    with pytest.raises(CorpusError, match="a.jsonl, line 2 is longer than 100 bytes: put each row"):
        list(read_lines(str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("kind", [*KINDS, "a.json"])
class TestWhatIsNoFile:
    def read(self, path: Path) -> Any:
        return load_ids(str(path), seq_len=4) if path.suffix == ".npy" else texts_of(path)

    def test_a_pipe_is_refused_and_not_waited_for(self, kind: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / kind)
        with pytest.raises(CorpusError, match=f"{kind} is a pipe or a device: write its content"):
            self.read(tmp_path / kind)

    def test_a_device_is_refused(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / kind).symlink_to("/dev/zero")
        with pytest.raises(CorpusError, match=f"{kind} is a pipe or a device"):
            self.read(tmp_path / kind)

    def test_a_folder_is_refused(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / kind).mkdir()
        with pytest.raises(CorpusError, match=f"{kind} is a folder: name a .txt"):
            self.read(tmp_path / kind)

    def test_a_link_to_nothing_does_not_exist(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / kind).symlink_to(tmp_path / "nothing")
        with pytest.raises(CorpusError, match=f"{kind} does not exist"):
            self.read(tmp_path / kind)


class TestParquet:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        write_parquet(tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (
                "os.kill(os.getpid(), 11)",
                r"its reader crashed \(SIGSEGV\): the file is",
            ),
            ("os._exit(3)", r"its reader crashed \(exit status 3\)"),
            ("signal.alarm(1); time.sleep(60)", "its reader got no further for 300 seconds"),
            ("os._exit(0)", r"its reader crashed \(exit status 0\)"),
        ],
    )
    def test_a_reader_that_crashes_or_hangs_is_one_line(
        self, code: str, message: str, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet_rows, "_CHILD", f"import os, signal, time; {code}")
        with pytest.raises(CorpusError, match=f"a.parquet cannot be read: {message}"):
            texts_of(path)

    def test_a_reader_that_hangs_inside_of_a_library_is_ended(self) -> None:
        check = (
            "from minitron.text.parquet_rows import _raise_alarm\n"
            "_raise_alarm(1)\n"
            "7 ** int(3e7)\n"  # minutes in C, where Python looks at no signal
        )
        ran = subprocess.run([sys.executable, "-c", check], check=False)
        assert ran.returncode == -signal.SIGALRM

    def test_only_the_columns_that_make_text_are_read(self, path: Path) -> None:
        table = pq.read_table(path).append_column("other", pa.array(range(40)))
        pq.write_table(table, path, compression="none", use_dictionary=False)
        content = path.read_bytes()
        numbers = np.arange(40, dtype="<i8").tobytes()
        assert content.count(numbers) == 1
        path.write_bytes(content.replace(numbers, b"\xff" * len(numbers)))
        assert texts_of(path) == TEXTS

    def test_a_page_that_its_checksum_denies_is_refused(self, path: Path) -> None:
        pq.write_table(
            pa.table({"text": TEXTS}),
            path,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
            write_statistics=False,
        )
        content = path.read_bytes()
        assert content.count(b"Document 7:") == 1
        path.write_bytes(content.replace(b"Document 7:", b"Document 8:"))
        with pytest.raises(CorpusError, match="cannot be read: .*CRC checksum"):
            texts_of(path)

    def test_text_held_as_bytes_is_text(self, tmp_path: Path) -> None:
        texts = pa.array([text.encode() for text in TEXTS], pa.binary())
        pq.write_table(pa.table({"text": texts}), tmp_path / "b.parquet")
        assert texts_of(tmp_path / "b.parquet") == TEXTS

    def test_a_gzipped_table_is_read(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "b.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
        assert texts_of(tmp_path / "b.parquet.gz") == TEXTS

    def test_columns_without_text_are_named(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "b.parquet")
        with pytest.raises(CorpusError, match="row 1 has no text: its columns are body, id: name"):
            texts_of(tmp_path / "b.parquet")


class TestNpyHeaders:
    def write_array(self, path: Path, header: str, version: bytes = b"\1\0") -> str:
        text = header.encode()
        length = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
        path.write_bytes(b"\x93NUMPY" + version + length + text + bytes(64))
        return str(path)

    @pytest.mark.parametrize(
        "shape",
        ["(4294967296, 4294967296)", "(9223372036854775807, 2)", "(100000, 100000)", "(3, 3)"],
    )
    @pytest.mark.parametrize("version", [b"\1\0", b"\2\0", b"\3\0"])
    def test_more_or_less_than_the_file_holds_is_refused(
        self, shape: str, version: bytes, tmp_path: Path
    ) -> None:
        header = "{'descr': '<i4', 'fortran_order': False, 'shape': %s, }" % shape  # noqa: UP031
        name = self.write_array(tmp_path / "a.npy", header, version)
        with pytest.raises(CorpusError, match="a.npy is damaged: its header claims .* 64 follow"):
            load_ids(name, seq_len=4)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("{'descr': '<i4', 'fortran_order': False, 'shape': (-4, -4), }", "shape is .-4, -4."),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (4, 4), }", "holds Python objects"),
            ("{'descr': '<U2000000000', 'fortran_order': False, 'shape': (4, 4), }", "a.npy "),
            ("{'descr': 'nothing', 'fortran_order': False, 'shape': (4, 4), }", "cannot be read"),
            ("(" * 5_000, "cannot be read"),
            ("[" * 9_999 + "]", "cannot be read"),
            ("{'shape': 'x'}", "cannot be read"),
        ],
        ids=lambda value: value[:40],
    )
    def test_a_header_that_means_nothing_is_refused(
        self, header: str, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(CorpusError, match=message):
            load_ids(self.write_array(tmp_path / "a.npy", header), seq_len=4)

    def test_a_header_of_four_gigabytes_is_not_allocated(self, tmp_path: Path) -> None:
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\2\0" + b"\xff" * 4 + bytes(100))
        with pytest.raises(CorpusError, match="its header claims 4,294,967,295 bytes: save an arr"):
            load_ids(str(tmp_path / "a.npy"), seq_len=4)
