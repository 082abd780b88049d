"""Writes minitron.json: the record of how a folder was made, and from what.

Knows which of this machine's paths may be in a record. Writes no time and no path of the output:
the same inputs give the same bytes.

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
from minitron.model.family import AXIS_KEYS
from minitron.model.source import Source
from minitron.records.card_page import read_front_matter
from minitron.records.folder_writer import json_bytes, write_json
from minitron.records.minitron_json import FILE, INHERITED, SCHEMA, check_record, read_record
from minitron.sources.opening import zoo

logger = logging.getLogger(__name__)

_SAMPLES, _SAMPLE_BYTES = 4096, 1024  # of a file: enough to distinguish models, and fast to read
_TEXTS = ("corpus", "eval_corpus", "held_out", "retrain_corpus")  # keys of a record
_FILES = (".gz", ".json", ".jsonl", ".npy", ".parquet", ".safetensors", ".txt")
_PLAIN_PATH = re.compile(r"/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\")  # starts a path, never a Hub id
_PACKAGES = ("minitron", "torch", "transformers", "safetensors", "tokenizers")


def write_record(
    folder: Path,
    command: str,
    recipe: Mapping[str, Any],
    source: Source,
    *,
    target: Architecture,
    inherited: Mapping[str, Any],
    **results: Any,
) -> None:
    """Write minitron.json; `results` are the command's own entries, ready for JSON.

    `inherited` comes from `inherited_from(source)`, called before anything was written.
    """
    write_json(
        folder / FILE,
        {
            "schema": SCHEMA,
            "command": command,
            "recipe": name_texts(recipe),
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
            "versions": versions(),
            **name_texts(results),
        },
    )


def versions() -> dict[str, str]:
    """The versions of the packages that may change what is written."""
    return {package: version(package) for package in _PACKAGES}


def inherited_from(source: Source) -> dict[str, Any]:
    """The entries of minitron.json that a derived model inherits from its source.

    These are the `metadata` of its card and, as `made`, its own record if minitron made it. Call it
    before anything is written: it raises SourceError for a README.md with damaged metadata.
    """
    inherited: dict[str, Any] = {"metadata": _metadata(source)}
    folder = Path(source.name)
    if source.name in zoo() or not (folder / FILE).is_file():
        return inherited
    try:
        record = read_record(folder)
        check_record(record, str(folder / FILE))
    except SourceError as error:
        # Only the history is lost: the weights are read all the same.
        logger.warning("%s: the new record leaves out how the source was made", error)
        return inherited
    return {**inherited, "made": record} if record.get("schema") == SCHEMA else inherited


def add_measurements(folder: Path, **measured: Mapping[str, Any]) -> None:
    """Add measurements of the model to its record: `results` on text, `benchmarks`.

    The file holds the kept indices, so it is replaced atomically, or left as it was with an
    OutputError.
    """
    replace_file(folder / FILE, json_bytes({**read_record(folder), **measured}))


def _metadata(source: Source) -> dict[str, Any]:
    """License and language in the metadata of the source's card. Raises SourceError."""
    path = source.companions.file("README.md")
    metadata = {} if path is None else read_front_matter(path)
    return {
        key: _words(metadata[key], key, path) for key in INHERITED if metadata.get(key) is not None
    }


def _words(value: object, key: str, path: Path | None) -> Any:
    """A word, or a list of words; YAML reads `no`, the language code of Norwegian, as false."""
    if isinstance(value, list):
        return [_words(item, key, path) for item in value]
    if isinstance(value, dict) or value is None:
        raise SourceError(f"{path} has {key} {value!r:.80}: it must be a word or a list of words")
    return "no" if value is False and key == "language" else value


def outlines_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The size of each safetensors file, and the sha256 of samples spread evenly over it."""
    return {path.name: _outline(path) for path in sorted(folder.glob("*.safetensors"))}


def hold_every_byte(outlines: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the samples of these files are all their bytes."""
    return all(outline["bytes"] <= _SAMPLES * _SAMPLE_BYTES for outline in outlines.values())


def _outline(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    step = max(_SAMPLE_BYTES, -(-size // _SAMPLES))  # a file of up to 4 MiB is read whole
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for start in (*range(0, size, step), max(0, size - _SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return {"bytes": size, "sample": digest.hexdigest()}


def sizes_of(architecture: Architecture) -> dict[str, int]:
    """Sizes by their names in config.json, and the number of parameters."""
    sizes = {key: architecture.size(axis) for axis, key in AXIS_KEYS.items()}
    return {**sizes, "parameters": architecture.parameters}


def public_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record for the Hub: of each path on this machine only its last part.

    Hub ids and names of the zoo stay.
    """
    return {key: _without_folders(value) for key, value in record.items()}


def name_texts(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with only the name of each file that is a text.

    Nothing reads these files again; the source keeps its path, which `minitron remake` opens.
    """
    named = dict(record)
    for key, value in record.items():
        if isinstance(value, dict):
            named[key] = name_texts(value)
        elif key in _TEXTS and isinstance(value, str) and (_is_path(value) or _exists(value)):
            named[key] = PureWindowsPath(value).name or value
    return named


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if not isinstance(value, str) or not _is_path(value):
        return value
    return PureWindowsPath(value).name or "/"  # of paths with / and with \\


def _is_path(value: str) -> bool:
    """Whether a value is a path with folders, not a Hub id."""
    if _PLAIN_PATH.match(value):
        return True
    # URLs and files in a repository have a colon.
    has_folders = "/" in value and ":" not in value
    return has_folders and (value.endswith(_FILES) or _exists(value))


def _exists(value: str) -> bool:
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False
