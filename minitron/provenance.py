"""Provenance: `minitron.json`, what made a folder and what it was made from.

Knows the schema, version 1: `command`, its `recipe`, `source` (name, revision, sizes), `target`
(sizes), `versions`, and by command `importance`, `share_of_importance_kept`, `kept`, `training`,
`results`. No times and no path of the output, so that the same inputs give the same bytes.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from minitron.architecture import Architecture
from minitron.errors import SourceError
from minitron.families import AXIS_KEYS
from minitron.folder_writer import write_json
from minitron.source import Source

SCHEMA = 1
FILE = "minitron.json"
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
                "metadata": inherited_metadata(source),
                **sizes_of(Architecture.from_config(source.config)),
            },
            "target": sizes_of(target),
            "versions": {package: version(package) for package in _PACKAGES},
            **decided,
        },
    )


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


def read_provenance(folder: Path) -> dict[str, Any]:
    """What minitron.json says. Raises SourceError where there is none."""
    try:
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder} has no readable {FILE}: it was not made here") from error


def sizes_of(architecture: Architecture) -> dict[str, int]:
    """Sizes under the config's words, and the parameters they make."""
    sizes = {key: architecture.size(axis) for axis, key in AXIS_KEYS.items()}
    return {**sizes, "parameters": architecture.parameters}
