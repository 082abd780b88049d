"""Printing: what a command shows of its result, on standard output.

Whatever comes from a model or a file is made visible: a terminal would obey it.

    print_table(["", "loss"], [["teacher", "3.92"]])
    print_next(["minitron", "inspect", "tiny-half"])
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import category

from minitron.errors import visible

FIRST_WORDS = "It was the best of times,"  # a prompt for any model


def print_json(record: Mapping[str, Any]) -> None:
    """A record as one JSON object."""
    print(json.dumps(record))


def print_record(record: Mapping[str, Any]) -> None:
    """A record as aligned lines, without what is empty."""
    width = max(map(len, record))
    for key, value in record.items():
        if value not in (None, {}, []):
            print(f"{key.ljust(width)}  {visible(readable(value))}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Names on the left, numbers on the right."""
    lines = [list(map(visible, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row in lines:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def print_next(*commands: Sequence[object]) -> None:
    """The commands to run next, each on a line of its own, as a shell reads them."""
    print("\nNext:")
    for command in commands:
        print(visible(f"  {shlex.join(map(str, command))}"))


def first_use(folder: str, *, has_tokenizer: bool) -> list[str]:
    """The command that shows what a model folder can do."""
    if has_tokenizer:
        return ["minitron", "generate", folder, FIRST_WORDS]
    return ["minitron", "inspect", folder]


def readable(value: object) -> str:
    """A value for people: numbers with separators, lists with commas."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def without_controls(text: str) -> str:
    """A model's text, with escapes for all control characters but line ends and tabs."""
    return "".join(
        letter if letter in "\n\t" or category(letter) != "Cc" else visible(letter)
        for letter in text
    )
