"""Rows of a file or of a Hub dataset, in order.

Each line of a .jsonl is parsed by itself, so that a column needs no single type. A .json may also
be one array of objects, or one object whose `data` is such an array; those are parsed whole.

    for row in file_rows("chats.jsonl.gz", [["messages"]]):
        row.where, row.columns      # "chats.jsonl.gz, line 1", {"messages": [...]}
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minitron.errors import CorpusError, foreign_parser
from minitron.files.hub_retry import bounded_waiting
from minitron.text.parquet_rows import parquet_rows
from minitron.text.text_file import check_regular_file, read_lines, read_parts
from minitron.text.text_row import TableRow

KINDS = (".txt", ".jsonl", ".json", ".parquet")
_REMEDY = "correct or remove it"


def kind_of_file(name: str) -> str | None:
    """The suffix of a known kind of file, without `.gz`; None where it must be a Hub dataset.

    Raises CorpusError for a file that is missing, is not a regular file or is of no known kind.
    """
    if not name:
        raise CorpusError("--corpus is empty: name a file, or a Hub dataset as owner/name")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix in KINDS or _exists(name):
        check_regular_file(name)
        if suffix not in KINDS:
            raise CorpusError(
                f"{name} is of an unknown kind: use .txt, .jsonl, .parquet (.gz) or .npy"
            )
        return suffix
    return None


def file_rows(name: str, choices: Sequence[Sequence[str]]) -> Iterator[TableRow]:
    """Every row of a .jsonl, .json or .parquet file, with at least the columns of the first of
    `choices` that it has. Raises CorpusError."""
    return parquet_rows(name, choices) if kind_of_file(name) == ".parquet" else _json_rows(name)


def hub_rows(
    name: str, choices: Sequence[Sequence[str]], *, shuffle_seed: int | None = None
) -> Iterator[TableRow]:
    """Rows of `owner/name`, `owner/name:config` or `owner/name:config:split`, streamed.

    The split is `train` unless given. With a seed, the files of the dataset come in random order.
    Raises CorpusError.
    """
    from datasets import load_dataset  # seconds to import

    repository, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    remedy = "it is not a file here: name a file, or a Hub dataset as owner/name:config:split"
    with foreign_parser(name, CorpusError, remedy), bounded_waiting():
        rows: Any = load_dataset(repository, config or None, split=split or "train", streaming=True)
        present = rows.column_names or ()  # unknown before the first row for some kinds
        if wanted := next((c for c in choices if set(c) <= set(present)), None):
            rows = rows.select_columns(list(wanted))  # a column of images would be decoded
        if shuffle_seed is not None:
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=1)
        for number, row in enumerate(rows, 1):
            yield TableRow(f"{name}, row {number}", row)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return False


def _json_rows(name: str) -> Iterator[TableRow]:
    """Every object of the file, in order. Raises CorpusError that names the line."""
    is_first = True
    for number, line in read_lines(name):
        if line.isspace():
            continue
        if is_first and _is_whole_document(name, line):
            yield from _document_rows(name)
            return
        is_first = False
        where = f"{name}, line {number}"
        yield _json_row(_parse_json(line, where), where)


def _is_whole_document(name: str, line: str) -> bool:
    """Whether the first line begins a value of several lines, or holds all rows as `data`."""
    start = line.lstrip()
    if start.startswith("["):
        return True
    if not start.startswith("{") or not name.removesuffix(".gz").endswith(".json"):
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return True  # an object on several lines
    return _is_table(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("data"), list) and "text" not in value


def _document_rows(name: str) -> Iterator[TableRow]:
    with foreign_parser(name, CorpusError, "write one JSON object a line, as .jsonl"):
        value = _parse_json("".join(read_parts(name)), name)
    rows = value["data"] if _is_table(value) else value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, 1):
        yield _json_row(row, f"{name}, row {number}")


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        position = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise CorpusError(f"{where} is not JSON: {error.msg} ({position}): {_REMEDY}") from error
    except ValueError:  # Python refuses whole numbers of more than 4,300 digits
        with foreign_parser(where, CorpusError, _REMEDY):
            return json.loads(text, parse_int=float)
    except RecursionError as error:
        raise CorpusError(f"{where} is nested too deeply: {_REMEDY}") from error


def _json_row(value: Any, where: str) -> TableRow:
    if not isinstance(value, dict):
        raise CorpusError(
            f"{where} is {json.dumps(value):.40}, no object: each row must be an object such as "
            '{"text": "..."}'
        )
    return TableRow(where, value)
