"""Front matter: the block of YAML at the top of a README.md, as plain values.

Knows where the block ends and its limits, which are those of `plain_yaml`; not what the keys mean.

    read_front_matter(Path("README.md"))   # {"license": "mit", "language": ["en"]}
"""

import re
from pathlib import Path
from typing import Any

from minitron.errors import SourceError
from minitron.files.plain_yaml import LARGEST_TEXT, read_yaml

_BLOCK = re.compile(r"\s*---[ \t]*\n(.*?)\n?^---[ \t]*$", re.DOTALL | re.MULTILINE)
_LARGEST = 2 * LARGEST_TEXT  # characters that are looked at


def read_front_matter(path: Path) -> dict[str, Any]:
    """The metadata of a README.md, empty where there are none. Raises SourceError."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_LARGEST)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    return parse_front_matter(text, str(path))


def parse_front_matter(text: str, where: str) -> dict[str, Any]:
    """The metadata at the top of a README's text. Raises SourceError, naming `where`."""
    found = _BLOCK.match(text.removeprefix("\ufeff"))
    if found is None:
        return {}
    try:
        metadata = read_yaml(found[1], "its block of metadata")
    except SourceError as error:
        raise SourceError(f"{where} has damaged metadata ({error}): mend or remove it") from error
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise SourceError(f"{where} has damaged metadata (no mapping of keys): mend or remove it")
    return metadata
