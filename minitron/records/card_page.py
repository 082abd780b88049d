"""A README.md of the Hub: its block of metadata, and a model card as a value with its template.

Knows Markdown, YAML front matter and its limits (`plain_yaml`), and whether a README.md is
unchanged since minitron wrote it: a comment at its end holds the digests of its text and metadata.
Knows no model and no record.

    render_page(Card(name="tiny-half", summary="...", ...), {"license": "mit"})
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined, Template

from minitron.errors import SourceError, foreign_parser
from minitron.files.plain_yaml import LARGEST_TEXT, read_yaml

_SIZE_ROWS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "parameters",
)
_BLOCK = re.compile(r"\s*---[ \t]*\n(.*?)\n?^---[ \t]*$", re.DOTALL | re.MULTILINE)
_LARGEST = 2 * LARGEST_TEXT  # characters that are searched for the block
_PAGE = re.compile(r"\A---\n(?P<metadata>.*?)\n---\n(?P<body>.*)\Z", re.DOTALL)
_SEAL = re.compile(r"\n<!-- minitron card (?P<text>[0-9a-f]{16}) (?P<data>[0-9a-f]{16}) -->\s*\Z")


@dataclass(frozen=True)
class Table:
    """Names in the first column, numbers in the others."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """A table of numbers, and how they were measured."""

    measured: str
    table: Table


@dataclass(frozen=True)
class Card:
    """Everything that a card can show; empty sections are left out."""

    name: str
    summary: str
    sizes: Table
    code: str
    limits: tuple[str, ...]
    facts: tuple[str, ...] = ()
    sizes_notes: tuple[str, ...] = ()
    kept_picture: str | None = None
    kept_note: str | None = None
    training: tuple[str, ...] = ()
    reconstruction_picture: str | None = None
    reconstruction_note: str | None = None
    loss_picture: str | None = None
    results: tuple[Result, ...] = ()
    use_note: str | None = None
    prompt_format: str | None = None
    engines: tuple[str, ...] = ()
    again: str = ""
    commands: tuple[str, ...] = ()
    record: str | None = None


@dataclass(frozen=True)
class Page:
    """An existing README.md."""

    metadata: dict[str, Any]
    text_is_unchanged: bool  # since minitron wrote it
    metadata_is_unchanged: bool


def render_page(card: Card, metadata: Mapping[str, Any]) -> str:
    """The whole README.md: metadata, text, and the comment with their digests."""
    with foreign_parser("the metadata of the card", SourceError, "mend those in README.md"):
        block = ModelCardData(**metadata).to_yaml().strip()
    body = _template().render(card=card).strip()
    # Parsed again, since the digest is of what a reader gets: floats as YAML writes them.
    parsed = parse_front_matter(f"---\n{block}\n---", "the card")
    seal = f"<!-- minitron card {_digest(body)} {_digest(_canonical(parsed))} -->"
    return f"---\n{block}\n---\n\n{body}\n\n{seal}\n"


def read_page(path: Path) -> Page:
    """Read a README.md and whether it was changed since minitron wrote it.

    One without metadata, or with damaged metadata, counts as changed.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    found = _PAGE.match(text)
    try:
        metadata = parse_front_matter(text, str(path))
    except SourceError:
        return Page({}, False, False)
    seal = _SEAL.search(found["body"]) if found is not None else None
    if found is None or seal is None:
        return Page(metadata, False, False)
    body = found["body"][: seal.start()].strip()
    return Page(
        metadata, _digest(body) == seal["text"], _digest(_canonical(metadata)) == seal["data"]
    )


def read_front_matter(path: Path) -> dict[str, Any]:
    """The metadata of a README.md, empty if it has none. Raises SourceError."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_LARGEST)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    return parse_front_matter(text, str(path))


def parse_front_matter(text: str, where: str) -> dict[str, Any]:
    """The metadata at the top of a README's text. Raises SourceError, which names `where`."""
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


def sizes_table(
    name: str, after: Mapping[str, int], before: tuple[str, Mapping[str, int]] | None = None
) -> Table:
    """Sizes and parameters; for a pruned model beside those of its source."""
    if before is None:
        return Table(("", "size"), tuple((key, f"{after[key]:,}") for key in _SIZE_ROWS))
    whole = before[1]
    rows = (
        (key, f"{whole[key]:,}", f"{after[key]:,}", f"{after[key] / whole[key]:.0%}")
        for key in _SIZE_ROWS
    )
    return Table(("", before[0], name, "kept"), tuple(rows))


@cache
def _template() -> Template:
    text = (resources.files("minitron") / "records" / "card.md.jinja").read_text(encoding="utf-8")
    # Markdown, not HTML: nothing to escape.
    return Environment(undefined=StrictUndefined, autoescape=False).from_string(text)


def _canonical(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
