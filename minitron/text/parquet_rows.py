"""Rows of a .parquet file, read by a child process: a damaged file can crash or hang its reader.

The child reads only the columns that are asked for and writes one line a row; a crash or a hang
of the child is raised here as an error. The first character of a line is its kind:

| line          | content                                                  |
|---------------|----------------------------------------------------------|
| `R{columns}`  | a row, as JSON                                           |
| `E"reason"`   | why the file cannot be read; the last line               |
| `.number`     | how many rows the file has; the last line                |

    for row in parquet_rows("books.parquet", [["text"], ["prompt", "completion"]]):
        row.where, row.columns      # "books.parquet, row 1", {"text": "..."}
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from minitron.errors import CorpusError, foreign_parser
from minitron.text.text_file import check_regular_file
from minitron.text.text_row import TableRow

SECONDS_A_BATCH = 300  # after which a reader counts as hung
_BATCH_ROWS = 128
_REMEDY = "fetch or write the file again"
# sys.path is this process's: with -c the working directory is on it, and may hold a pyarrow.py.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from minitron.text.parquet_rows import write_rows; write_rows(*sys.argv[1:4])"
)


def parquet_rows(name: str, choices: Sequence[Sequence[str]]) -> Iterator[TableRow]:
    """Every row of a file, with the columns of the first of `choices` that the file has.

    Where it has none of them, one row has every column of the file as None, so that an error can
    name them. Raises CorpusError for a file that cannot be read, or crashes or hangs its reader.
    """
    check_regular_file(name)
    with _reader(name, choices) as reader:
        count = 0
        assert reader.stdout is not None
        for line in reader.stdout:
            kind, content = line[:1], line[1:]
            if kind == b"R":
                count += 1
                yield TableRow(f"{name}, row {count}", json.loads(content))
            elif kind == b"E":
                raise CorpusError(f"{name} cannot be read: {json.loads(content)}: {_REMEDY}")
            elif kind == b"." and int(content) == count:
                return
        raise CorpusError(f"{name} cannot be read: {_exit_reason(reader.wait())}: {_REMEDY}")


def write_rows(name: str, choices: str, seconds: str) -> None:
    """What the child runs: write the rows of a file to its standard output."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not stand between rows
        try:
            with foreign_parser(name, CorpusError, _REMEDY), _seekable(name) as file:
                _write(file, json.loads(choices), int(seconds), out)
        except CorpusError as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            out.write(b"E" + json.dumps(reason or type(error.__cause__).__name__).encode() + b"\n")


def _write(file: IO[bytes], choices: list[list[str]], seconds: int, out: IO[bytes]) -> None:
    from pyarrow.parquet import ParquetFile

    _raise_alarm(seconds)
    parquet = ParquetFile(file, page_checksum_verification=True)
    names = parquet.schema_arrow.names
    columns = next((c for c in choices if set(c) <= set(names)), None)
    if columns is None:
        out.write(b"R" + json.dumps(dict.fromkeys(names)).encode() + b"\n.1\n")
        return
    count = 0
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
        _raise_alarm(0)  # the parent may be slow to read
        for row in batch.to_pylist():
            out.write(b"R" + json.dumps(row, default=_as_text).encode() + b"\n")
        count += batch.num_rows
        _raise_alarm(seconds)
    _raise_alarm(0)
    if count != parquet.metadata.num_rows:
        raise CorpusError(f"it holds {count:,} rows, not {parquet.metadata.num_rows:,} as it says")
    out.write(b".%d\n" % count)


@contextmanager
def _reader(name: str, choices: Sequence[Sequence[str]]) -> Iterator["subprocess.Popen[bytes]"]:
    arguments = [name, json.dumps(choices), str(SECONDS_A_BATCH)]
    reader = subprocess.Popen(
        [sys.executable, "-c", _CHILD, *arguments, *sys.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with reader:
        try:
            yield reader
        finally:
            reader.kill()


@contextmanager
def _seekable(name: str) -> Iterator[IO[bytes]]:
    """The file, decompressed where it is .gz: parquet is read from its end."""
    if not name.endswith(".gz"):
        from pyarrow import OSFile

        with OSFile(name) as file:
            yield file
        return
    with gzip.open(name) as compressed, tempfile.TemporaryFile() as file:
        shutil.copyfileobj(compressed, file)
        file.seek(0)
        yield file


def _raise_alarm(seconds: int) -> None:
    """End this process after so many seconds, even in native code; 0 cancels."""
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)


def _exit_reason(code: int) -> str:
    if hasattr(signal, "SIGALRM") and code == -signal.SIGALRM:
        return f"its reader got no further for {SECONDS_A_BATCH} seconds"
    status = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return f"its reader crashed ({status}): the file is damaged"


def _as_text(value: Any) -> Any:
    """Bytes as text, for JSON; no other type is converted."""
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"a {type(value).__name__} is not text: {value!r:.40}")
