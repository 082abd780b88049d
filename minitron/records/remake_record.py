"""Making: how the weights of a folder were made, as its minitron.json tells it.

Knows which commands' weights can be made again without training, and the kept indices as the plan
that they are of. A record may come from anybody: nothing of it is taken for granted, and what
cannot be is a SourceError. Opens no source.

    making = Making.of(read_record(Path("tiny-half")), "tiny-half/minitron.json")
    plan = plan_of(making, source.architecture)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minitron.errors import ArchitectureError, SourceError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.families import AXIS_KEYS
from minitron.model.plan import PruningPlan

REMADE = ("prune", "convert")
_SIZE = re.compile(r"\d+ ?[KMGT]B", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Making:
    """How a pruned or converted folder's weights were made, and what tells them from others."""

    file: str  # what errors call it
    command: str
    recipe: Mapping[str, Any]
    source: str  # at the revision that was read
    digest: str  # of the source
    target: Mapping[str, int]  # sizes
    kept: Mapping[str, Any]
    files: Mapping[str, Any]  # the outlines of what was written
    max_shard_size: str

    @classmethod
    def of(cls, record: Mapping[str, Any], file: str) -> "Making":
        """Raises SourceError for what is not on record, or not as it is written here."""

        def told(*keys: str, kind: type = str) -> Any:
            value: Any = record
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if type(value) is not kind:
                raise SourceError(
                    f"{file} has no readable {'.'.join(keys)}: it is damaged, or was written by an "
                    "earlier minitron"
                )
            return value

        command = told("command")
        if command not in REMADE:
            raise SourceError(f"{file} names the command {command!r}: it was not written here")
        name, revision = told("source", "name"), record["source"].get("revision")
        max_shard_size = told("weights", "max_shard_size")
        if not _SIZE.fullmatch(max_shard_size):
            raise SourceError(f"{file} has max_shard_size {max_shard_size!r}: it is damaged")
        return cls(
            file=file,
            command=command,
            recipe=told("recipe", kind=dict),
            source=name if revision is None else _pinned(name, str(revision)),
            digest=told("source", "digest"),
            target={key: told("target", key, kind=int) for key in AXIS_KEYS.values()},
            kept=told("kept", kind=dict) if command == "prune" else {},
            files=told("weights", "files", kind=dict),
            max_shard_size=max_shard_size,
        )


def _pinned(name: str, revision: str) -> str:
    """A Hub id at a revision; that of a `.nemo` in a repository has a path behind it."""
    repo, colon, path = name.partition(":")
    return f"{repo}@{revision}{colon}{path}"


def plan_of(making: Making, source: Architecture) -> PruningPlan:
    """The plan in the record. Raises SourceError for sizes or indices that `source` cannot have."""
    try:
        return PruningPlan.from_json(making.kept, source, source.resized(**making.target))
    except (ArchitectureError, TargetError) as error:
        raise SourceError(f"{making.file} is damaged: {error}") from error
