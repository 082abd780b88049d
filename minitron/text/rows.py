"""Rows of a file or of a Hub dataset, in order.

Knows the kinds of files, and that a Hub dataset may be too large to be read to its end.

    for row in file_rows("chats.jsonl.gz", [["messages"]]):
        ...
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minitron.errors import CorpusError, foreign_parser
from minitron.text.file_row import FileRow
from minitron.text.json_rows import json_rows
from minitron.text.parquet_rows import parquet_rows
from minitron.text.text_file import check_regular_file

KINDS = (".txt", ".jsonl", ".json", ".parquet")


def kind_of_file(name: str) -> str | None:
    """The ending that names a kind of file, without `.gz`; None for what must be a Hub dataset.

    Raises CorpusError for a file that is missing, is no regular file or is of no known kind.
    """
    ending = Path(name.removesuffix(".gz")).suffix
    if ending in KINDS or _exists(name):
        check_regular_file(name)
        if ending not in KINDS:
            raise CorpusError(
                f"{name} is of no known kind: use .txt, .jsonl, .parquet (.gz) or .npy"
            )
        return ending
    return None


def file_rows(name: str, choices: Sequence[Sequence[str]]) -> Iterator[FileRow]:
    """Every row of a .jsonl, .json or .parquet file, with at least the columns of the first of
    `choices` that it has. Raises CorpusError."""
    if kind_of_file(name) == ".parquet":
        return parquet_rows(name, choices)
    return json_rows(name)


def hub_rows(
    name: str, choices: Sequence[Sequence[str]], *, shuffle_seed: int | None = None
) -> Iterator[FileRow]:
    """Rows of `owner/name`, `owner/name:config` or `owner/name:config:split`, as they stream.

    The split is `train` unless given. With a seed, the files of the dataset come in random order.
    Raises CorpusError.
    """
    from datasets import load_dataset  # seconds to import

    repository, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    remedy = "it is no file here: name a file, or a Hub dataset as owner/name:config:split"
    with foreign_parser(name, CorpusError, remedy):
        rows: Any = load_dataset(repository, config or None, split=split or "train", streaming=True)
        present = rows.column_names or ()  # unknown before the first row for some kinds
        if wanted := next((c for c in choices if set(c) <= set(present)), None):
            rows = rows.select_columns(list(wanted))  # an image is decoded where it is not left out
        if shuffle_seed is not None:
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=1)
        for number, row in enumerate(rows, 1):
            yield FileRow(f"{name}, row {number}", row)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return False
