"""The card's page: what a model card shows, as a value, and the one template that lays it out.

Knows Markdown, the Hub's metadata block, and whether a README.md is as it was written here: a
comment at its end carries the digests of its text and of its metadata. Knows no model, no record.

    rendered(Card(name="tiny-half", summary="...", ...), {"license": "mit"})
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

SIZES = (
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
_LARGEST = 2 * LARGEST_TEXT  # characters that are looked at
_PAGE = re.compile(r"\A---\n(?P<metadata>.*?)\n---\n(?P<body>.*)\Z", re.DOTALL)
_SEAL = re.compile(r"\n<!-- minitron card (?P<text>[0-9a-f]{16}) (?P<data>[0-9a-f]{16}) -->\s*\Z")


@dataclass(frozen=True)
class Table:
    """Names in the first column, numbers in the others."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """Numbers, and what was measured how."""

    measured: str
    table: Table


@dataclass(frozen=True)
class Card:
    """Everything that a card can show; what is empty is left out."""

    name: str
    summary: str
    sizes: Table
    code: str
    limits: tuple[str, ...]
    facts: tuple[str, ...] = ()
    sizes_notes: tuple[str, ...] = ()
    kept_picture: str | None = None
    training: tuple[str, ...] = ()
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
    """A README.md as it was found."""

    metadata: dict[str, Any]
    text_is_ours: bool  # nobody has changed it since it was written here
    metadata_is_ours: bool


def rendered(card: Card, metadata: Mapping[str, Any]) -> str:
    """The whole README.md: metadata, text and seal."""
    # Floats as YAML writes them, keys as ModelCardData orders them: what a reader gets back.
    with foreign_parser("the metadata of the card", SourceError, "mend those in README.md"):
        block = ModelCardData(**metadata).to_yaml().strip()
    body = _template().render(card=card).strip()
    told = parse_front_matter(f"---\n{block}\n---", "the card")
    seal = f"<!-- minitron card {_digest(body)} {_digest(_canonical(told))} -->"
    return f"---\n{block}\n---\n\n{body}\n\n{seal}\n"


def read_page(path: Path) -> Page:
    """A README.md, and whether it was changed by hand since it was written here.

    One without metadata, or with damaged metadata, was.
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


def sizes_table(
    name: str, after: Mapping[str, int], before: tuple[str, Mapping[str, int]] | None = None
) -> Table:
    """Sizes and parameters; beside those of the model that it was cut from, where it was cut."""
    if before is None:
        return Table(("", "size"), tuple((key, f"{after[key]:,}") for key in SIZES))
    whole = before[1]
    rows = (
        (key, f"{whole[key]:,}", f"{after[key]:,}", f"{after[key] / whole[key]:.0%}")
        for key in SIZES
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
