"""Rows of a .jsonl or .json file: each line parsed by itself, so that no column needs one type.

A file may also be one array of objects, or one object whose `data` is such an array; those are
parsed whole. Knows no column names but `data`.

    for row in json_rows("chats.jsonl.gz"):
        row.where, row.columns      # "chats.jsonl.gz, line 1", {"text": "..."}
"""

import json
from collections.abc import Iterator
from typing import Any

from minitron.errors import CorpusError, foreign_parser
from minitron.text.file_row import FileRow
from minitron.text.text_file import read_lines, read_parts

_REMEDY = "mend or remove it"


def json_rows(name: str) -> Iterator[FileRow]:
    """Every object of the file, in order. Raises CorpusError that names the line."""
    is_first = True
    for number, line in read_lines(name):
        if line.isspace():
            continue
        if is_first and _is_whole_document(name, line):
            yield from _rows_of_document(name)
            return
        is_first = False
        where = f"{name}, line {number}"
        yield FileRow(where, _object(_parsed(line, where), where))


def _is_whole_document(name: str, line: str) -> bool:
    """Whether a line opens a value that goes on behind it, or holds all rows as `data`."""
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


def _rows_of_document(name: str) -> Iterator[FileRow]:
    with foreign_parser(name, CorpusError, "write one JSON object a line, as .jsonl"):
        value = _parsed("".join(read_parts(name)), name)
    rows = value["data"] if _is_table(value) else value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, 1):
        where = f"{name}, row {number}"
        yield FileRow(where, _object(row, where))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise CorpusError(f"{where} is no JSON: {error.msg} ({place}): {_REMEDY}") from error
    except ValueError:  # Python refuses whole numbers of more than 4,300 digits
        with foreign_parser(where, CorpusError, _REMEDY):
            return json.loads(text, parse_int=float)
    except RecursionError as error:
        raise CorpusError(f"{where} is nested too deeply: {_REMEDY}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorpusError(
            f"{where} is {json.dumps(value):.40}, no object: each row must be an object such as "
            '{"text": "..."}'
        )
    return value
