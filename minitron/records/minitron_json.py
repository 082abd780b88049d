"""Provenance: `minitron.json`, what made a folder and what it was made from.

Knows the schema, version 1, which docs/minitron-json.md tells key by key: command and recipe, the
source with its digest and, of a folder that was made here, its own record, the weights that were
written, and what each command found out. No times and no path of the output, so that the same
inputs give the same bytes.

    read_provenance(Path("tiny-half"))["command"]
"""

import hashlib
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import minitron.records.folder_writer as folder_writer
from minitron.errors import SourceError
from minitron.files.checked_json import read_object
from minitron.files.unfinished import replace_file
from minitron.model.architecture import Architecture
from minitron.model.digest import model_digest
from minitron.model.families import AXIS_KEYS
from minitron.model.source import Source
from minitron.records.folder_writer import json_bytes, write_json
from minitron.records.front_matter import read_front_matter
from minitron.records.record_kinds import check_record
from minitron.records.recorded_paths import named_texts
from minitron.sources.opening import zoo

logger = logging.getLogger(__name__)

SCHEMA = 1
FILE = "minitron.json"
_SAMPLES, _SAMPLE_BYTES = 4096, 1024  # of a file: enough to tell models apart, read in no time
INHERITED = ("language", "license", "license_name", "license_link")
_PACKAGES = ("minitron", "torch", "transformers", "safetensors", "tokenizers")


def write_provenance(
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
                "digest": None if source.layout is None else model_digest(source),
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
        record = read_provenance(folder)
        check_record(record, str(folder / FILE))
    except SourceError as error:
        logger.warning("%s: what it was made from is left out", error)  # the weights count
        return inherited
    return {**inherited, "made": record} if record.get("schema") == SCHEMA else inherited


def add_measured(folder: Path, **measured: Mapping[str, Any]) -> None:
    """Record what was measured of the model in `folder`: `results` of text, `benchmarks`.

    The file holds the kept indices: it is replaced at once, or left as it was with an OutputError.
    """
    replace_file(folder / FILE, json_bytes({**read_provenance(folder), **measured}))


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


def read_provenance(folder: Path, called: str | None = None) -> dict[str, Any]:
    """What the minitron.json of `folder` says, which errors call `called`.

    Raises SourceError where there is none, or none that this minitron can read.
    """
    name = called or str(folder)
    try:
        remedy = "it is damaged, or was not written by minitron; fetch it again"
        record = read_object(folder / FILE, SourceError, remedy, called=f"{name}/{FILE}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"{name} has no {FILE}: it was not made here") from error
    schema = record.get("schema", SCHEMA)
    if isinstance(schema, bool) or not isinstance(schema, int):
        raise SourceError(f"{name}/{FILE} was not written by minitron: it has no schema number")
    if schema > SCHEMA:
        raise SourceError(
            f"{name}/{FILE} has schema {schema}, and this minitron reads {SCHEMA}: "
            "pip install --upgrade minitron"
        )
    return record


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
