"""Recorded paths: what of this machine's folders stands in minitron.json, here and on the Hub.

Knows how a path looks, and which ids of the Hub look like one. Does not know the record's schema.

    public_record({"recipe": {"corpus": "/me/a.txt"}})   # {"recipe": {"corpus": "a.txt"}}
"""

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

_TEXTS = ("corpus", "eval_corpus", "held_out", "retrain_corpus")  # keys
_FILES = (".gz", ".json", ".jsonl", ".npy", ".parquet", ".safetensors", ".txt")
_PLAIN_PATH = re.compile(r"/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\")  # how a path begins, and no id


def public_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without folders of this machine, which are nobody else's business.

    Of every path the last part is left; ids of the Hub and names of the zoo stay.
    """
    return {key: _without_folders(value) for key, value in record.items()}


def named_texts(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with each text that is a file of this machine by the file's name alone.

    Nobody reads the text again from there; a source keeps its path, by which it is remade.
    """
    named = dict(record)
    for key, value in record.items():
        if isinstance(value, dict):
            named[key] = named_texts(value)
        elif key in _TEXTS and isinstance(value, str) and (_is_path(value) or _is_here(value)):
            named[key] = PureWindowsPath(value).name or value
    return named


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if not isinstance(value, str) or not _is_path(value):
        return value
    return PureWindowsPath(value).name or "/"  # takes both kinds of slashes


def _is_path(value: str) -> bool:
    """Whether a text of a record is a path with folders, and not an id of the Hub."""
    if _PLAIN_PATH.match(value):
        return True
    has_folders = "/" in value and ":" not in value  # which an address and a file of the Hub have
    return has_folders and (value.endswith(_FILES) or _is_here(value))


def _is_here(value: str) -> bool:
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long, or not a path at all
        return False
