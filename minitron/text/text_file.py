"""A text file as lines or parts of UTF-8, read in order at bounded memory.

Opens only regular files, plain or `.gz`, and shows progress where reading takes long. Errors about
text that is not UTF-8 name the byte offset. Knows no rows and no JSON.

    for number, line in read_lines("books.jsonl.gz"):
        ...
"""

import codecs
import gzip
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from minitron.errors import CorpusError, foreign_parser
from minitron.progress import Progress

MAX_LINE_BYTES = 2**30  # a line is held whole
_BUFFER_BYTES = 2**16
_PART_BYTES = 2**20
_REMEDY = "fetch or write the file again"
_BYTE_ORDER_MARKS = {
    "UTF-32": (
        codecs.BOM_UTF32_LE,
        codecs.BOM_UTF32_BE,
    ),  # begins with UTF-16's: first
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def check_regular_file(name: str) -> None:
    """Refuse a folder, and a pipe or device, which may never end. Raises CorpusError."""
    try:
        mode = Path(name).stat().st_mode
    except FileNotFoundError as error:
        raise CorpusError(f"{name} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CorpusError(f"{name} cannot be opened: {error}: name a file that you can read") from (
            error
        )
    if stat.S_ISDIR(mode):
        raise CorpusError(f"{name} is a folder: name a .txt, .jsonl, .parquet or .npy file")
    if not stat.S_ISREG(mode):
        raise CorpusError(f"{name} is a pipe or a device: write its content to a file first")


def read_lines(name: str) -> Iterator[tuple[int, str]]:
    """Each line with its number, counted from 1; blank lines too. Raises CorpusError."""
    with foreign_parser(name, CorpusError, _REMEDY), _open_text(name) as (file, start):
        offset, number = start, 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) >= MAX_LINE_BYTES:
                raise CorpusError(
                    f"{name}, line {number} is longer than {MAX_LINE_BYTES:,} bytes: put each row "
                    "on a line of its own"
                )
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise _utf8_error(name, offset + error.start, error) from error
            offset += len(line)


def read_parts(name: str) -> Iterator[str]:
    """The text of a file in parts of about a million characters, with `\\n` at line ends.

    Raises CorpusError, also for a NUL: text has none, damaged and binary files do.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    with foreign_parser(name, CorpusError, _REMEDY), _open_text(name) as (file, offset):
        is_last = False
        while not is_last:
            content = file.read(_PART_BYTES)
            is_last = not content
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(content, final=is_last)
            except UnicodeDecodeError as error:
                raise _utf8_error(name, offset - pending + error.start, error) from error
            if "\0" in text:
                before = len(text[: text.index("\0")].encode())
                raise _nul_error(name, offset - pending + before)
            offset += len(content)
            yield newlines.decode(text, final=is_last)


@contextmanager
def _open_text(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """The decompressed file, placed after its byte order mark, and the length of the mark."""
    check_regular_file(name)
    size = Path(name).stat().st_size
    with (
        Progress(f"read {Path(name).name}", total=size, unit="byte") as progress,
        Path(name).open("rb", buffering=0) as raw,
        io.BufferedReader(cast(io.FileIO, _CountedFile(raw, progress)), _BUFFER_BYTES) as stored,
    ):
        file: io.BufferedReader[Any] = stored
        if name.endswith(".gz"):
            content = gzip.GzipFile(fileobj=stored)
            file = io.BufferedReader(cast(io.FileIO, content), _BUFFER_BYTES)
        head = file.peek(_BUFFER_BYTES)
        _check_head(name, head)
        mark = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        file.read(mark)
        yield file, mark


class _CountedFile(io.RawIOBase):
    """A raw file that counts each read as progress."""

    def __init__(self, raw: io.FileIO, progress: Progress) -> None:
        self._raw, self._progress = raw, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int | None:  # type: ignore[override]
        count = self._raw.readinto(buffer)
        self._progress.advance(count or 0)
        return count


def _check_head(name: str, head: bytes) -> None:
    """Refuse what the first bytes show not to be UTF-8 text."""
    for encoding, marks in _BYTE_ORDER_MARKS.items():
        if head.startswith(marks):
            raise CorpusError(
                f"{name} is {encoding}: save it as UTF-8 (iconv -f {encoding} -t UTF-8)"
            )
    if head.startswith(b"\x1f\x8b"):
        again = " once more" if name.endswith(".gz") else ""
        raise CorpusError(
            f"{name} is compressed by gzip{again}: decompress it, or add .gz to its name"
        )
    if b"\0" in head:
        raise _nul_error(name, head.index(b"\0"))


def _nul_error(name: str, offset: int) -> CorpusError:
    return CorpusError(
        f"{name} holds NUL at byte {offset:,}: it is not UTF-8 text, or damaged: {_REMEDY}"
    )


def _utf8_error(name: str, offset: int, error: UnicodeDecodeError) -> CorpusError:
    seen = error.object[error.start : error.start + 4].hex(" ")
    return CorpusError(
        f"{name} is not UTF-8 text: at byte {offset:,} it holds {seen} ({error.reason}): save it "
        "as UTF-8"
    )
