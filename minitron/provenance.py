"""Provenance: `minitron.json`, what made a folder and what it was made from.

Knows the schema, version 1, which docs/minitron-json.md tells key by key: command and recipe, the
source with its digest and, of a folder that was made here, its own record, the weights that were
written, and what each command found out. No times and no path of the output, so that the same
inputs give the same bytes.

    read_provenance(Path("tiny-half"))["command"]
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

import minitron.folder_writer as folder_writer
from minitron.architecture import Architecture
from minitron.errors import SourceError
from minitron.families import AXIS_KEYS
from minitron.folder_writer import write_json
from minitron.source import Source, zoo
from minitron.tensors.model_digest import model_digest

SCHEMA = 1
FILE = "minitron.json"
_SAMPLES, _SAMPLE_BYTES = 4096, 1024  # of a file: enough to tell models apart, read in no time
_INHERITED = ("language", "license", "license_name", "license_link")
_PACKAGES = ("minitron", "torch", "transformers", "safetensors", "tokenizers")


def write_provenance(
    folder: Path,
    command: str,
    recipe: Mapping[str, Any],
    source: Source,
    *,
    target: Architecture,
    **decided: Any,
) -> None:
    """Write minitron.json; `decided` is what the command found out, JSON-ready."""
    write_json(
        folder / FILE,
        {
            "schema": SCHEMA,
            "command": command,
            "recipe": recipe,
            "source": {
                "name": source.name,
                "revision": source.revision,
                "digest": None if source.layout is None else model_digest(source),
                "metadata": inherited_metadata(source),
                **sizes_of(Architecture.from_config(source.config)),
                **_made(source),
            },
            "target": sizes_of(target),
            "weights": {
                "files": outlines_of(folder),
                "max_shard_size": recipe.get("max_shard_size", folder_writer.MAX_SHARD_SIZE),
            },
            "versions": {package: version(package) for package in _PACKAGES},
            **decided,
        },
    )


def _made(source: Source) -> dict[str, Any]:
    """The record of a source that is a folder made here: how it came to be, for the card."""
    if source.name in zoo() or not (Path(source.name) / FILE).is_file():
        return {}
    try:
        record = read_provenance(Path(source.name))
    except SourceError:
        return {}  # the weights are what counts
    return {"made": record} if record.get("schema") == SCHEMA else {}


def add_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Record what was measured of the model in `folder`: measured, columns, rows."""
    write_json(folder / FILE, {**read_provenance(folder), "results": dict(results)})


def inherited_metadata(source: Source) -> dict[str, Any]:
    """What a derived model's card takes over from the source's own: license and language."""
    path = source.file("README.md")
    if path is None:
        return {}
    try:
        data = ModelCard.load(path).data.to_dict()
    except ValueError as error:
        raise SourceError(f"{path} has damaged metadata ({error}): mend or remove it") from error
    return {key: data[key] for key in _INHERITED if key in data}


def read_provenance(folder: Path, called: str | None = None) -> dict[str, Any]:
    """What the minitron.json of `folder` says, which errors call `called`.

    Raises SourceError where there is none, or none that this minitron can read.
    """
    name = called or str(folder)
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate cannot be written again
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"{name} has no {FILE}: it was not made here") from error
    except OSError as error:
        raise SourceError(f"{name}/{FILE} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name}/{FILE} is not JSON ({error}): fetch it again") from error
    schema = record.get("schema", SCHEMA) if isinstance(record, dict) else None
    if isinstance(schema, bool) or not isinstance(schema, int):
        raise SourceError(f"{name}/{FILE} was not written by minitron: it has no schema number")
    if schema > SCHEMA:
        raise SourceError(
            f"{name}/{FILE} has schema {schema}, and this minitron reads {SCHEMA}: "
            "pip install --upgrade minitron"
        )
    return dict(record)


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
