"""Writes minitron.json: the record of what made a folder and of what it was made from.

Knows command and recipe, the source with its digest and, of a folder that minitron made, its own
record, the outlines of the written weights, and which folders of this machine may stand in a
record. Writes no time and no path of the output, so that the same inputs give the same bytes.

    write_record(folder, "convert", recipe, source, target=architecture, inherited={})
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import Any

import minitron.records.folder_writer as folder_writer
from minitron.errors import SourceError
from minitron.files.atomic_file import replace_file
from minitron.model.architecture import Architecture
from minitron.model.families import AXIS_KEYS
from minitron.model.source import Source
from minitron.records.card_page import read_front_matter
from minitron.records.folder_writer import json_bytes, write_json
from minitron.records.minitron_json import FILE, INHERITED, SCHEMA, check_record, read_record
from minitron.sources.opening import zoo

logger = logging.getLogger(__name__)

_SAMPLES, _SAMPLE_BYTES = 4096, 1024  # of a file: enough to tell models apart, read in no time
_TEXTS = ("corpus", "eval_corpus", "held_out", "retrain_corpus")  # keys
_FILES = (".gz", ".json", ".jsonl", ".npy", ".parquet", ".safetensors", ".txt")
_PLAIN_PATH = re.compile(r"/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\")  # how a path begins, and no id
_PACKAGES = ("minitron", "torch", "transformers", "safetensors", "tokenizers")


def write_record(
    folder: Path,
    command: str,
    recipe: Mapping[str, Any],
    source: Source,
    *,
    target: Architecture,
    inherited: Mapping[str, Any],
    **decided: Any,
) -> None:
    """Write minitron.json; `decided` is what the command found out, JSON-ready.

    `inherited` is what `inherited_from` read of the source before anything was written.
    """
    write_json(
        folder / FILE,
        {
            "schema": SCHEMA,
            "command": command,
            "recipe": named_texts(recipe),
            "source": {
                "name": source.name,
                "revision": source.revision,
                "digest": None if source.layout is None else source.digest,
                **sizes_of(source.architecture),
                **inherited,
            },
            "target": sizes_of(target),
            "weights": {
                "files": outlines_of(folder),
                "max_shard_size": recipe.get("max_shard_size", folder_writer.MAX_SHARD_SIZE),
            },
            "versions": {package: version(package) for package in _PACKAGES},
            **named_texts(decided),
        },
    )


def inherited_from(source: Source) -> dict[str, Any]:
    """What a derived model's minitron.json takes over from its source, JSON-ready.

    That is the `metadata` of its card, and the whole record `made` of a folder that was made here.
    Called before anything is written: raises SourceError for a README.md with damaged metadata.
    """
    inherited: dict[str, Any] = {"metadata": _metadata(source)}
    folder = Path(source.name)
    if source.name in zoo() or not (folder / FILE).is_file():
        return inherited
    try:
        record = read_record(folder)
        check_record(record, str(folder / FILE))
    except SourceError as error:
        logger.warning("%s: what it was made from is left out", error)  # the weights count
        return inherited
    return {**inherited, "made": record} if record.get("schema") == SCHEMA else inherited


def add_measured(folder: Path, **measured: Mapping[str, Any]) -> None:
    """Record what was measured of the model in `folder`: `results` of text, `benchmarks`.

    The file holds the kept indices: it is replaced at once, or left as it was with an OutputError.
    """
    replace_file(folder / FILE, json_bytes({**read_record(folder), **measured}))


def _metadata(source: Source) -> dict[str, Any]:
    """License and language, from the source's own card. Raises SourceError."""
    path = source.companions.file("README.md")
    metadata = {} if path is None else read_front_matter(path)
    return {
        key: _plain(metadata[key], key, path) for key in INHERITED if metadata.get(key) is not None
    }


def _plain(value: object, key: str, path: Path | None) -> Any:
    """A word, or a list of words; YAML reads the Norwegian `no` as false."""
    if isinstance(value, list):
        return [_plain(item, key, path) for item in value]
    if isinstance(value, dict) or value is None:
        raise SourceError(f"{path} says {key}: {value!r:.80}; it must be a word or a list of words")
    return "no" if value is False and key == "language" else value


def outlines_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each safetensors file its bytes, and the sha256 of samples that lie all over it."""
    return {path.name: _outline(path) for path in sorted(folder.glob("*.safetensors"))}


def _outline(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    step = max(_SAMPLE_BYTES, -(-size // _SAMPLES))  # a file of up to 4 MiB is taken whole
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for start in (*range(0, size, step), max(0, size - _SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return {"bytes": size, "sample": digest.hexdigest()}


def sizes_of(architecture: Architecture) -> dict[str, int]:
    """Sizes under the config's words, and the parameters they make."""
    sizes = {key: architecture.size(axis) for axis, key in AXIS_KEYS.items()}
    return {**sizes, "parameters": architecture.parameters}


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
