"""A row of a file or a Hub dataset, before it is known what of it is text.

FileRow("books.jsonl, line 3", {"text": "It was the best of times"})
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FileRow:
    """The columns of one row, and where it stands, for a message about it."""

    where: str
    columns: dict[str, Any]
