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
from minitron.model.families import AXIS_KEYS, PER_LAYER
from minitron.model.plan import Indices, PruningPlan, axes_to_rank

REMADE = ("prune", "convert")
_RUNS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)
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


def plan_of(making: Making, whole: Architecture) -> PruningPlan:
    """The plan that the record tells of. Raises SourceError for indices that cannot be."""
    kept = making.kept
    try:
        target = whole.resized(**making.target)
        cut = axes_to_rank(whole, target)
    except (ArchitectureError, TargetError) as error:
        raise SourceError(f"{making.file} is damaged: {error}") from error

    def of_axis(axis: str, runs: Any) -> Indices:
        size, count = whole.size(axis), target.size(axis)
        if axis not in cut:
            return tuple(range(size))
        try:
            return indices_of(runs, size, count)
        except ValueError as error:
            raise SourceError(
                f"{making.file} is damaged: kept.{axis} must be {count} of the indices below {size}"
            ) from error

    def of_layers(axis: str) -> tuple[Indices, ...]:
        layers, runs = target.num_hidden_layers, kept.get(axis)
        told = runs if isinstance(runs, list) and len(runs) == layers else [None] * layers
        return tuple(of_axis(axis, layer) for layer in told)

    return PruningPlan(
        source=whole,
        target=target,
        layers=of_axis("layers", kept.get("layers")),
        hidden=of_axis("hidden", kept.get("hidden")),
        **{axis: of_layers(axis) for axis in PER_LAYER},
        partners=_partners(making, whole, target),
    )


def indices_of(runs: Any, size: int, count: int | None = None) -> Indices:
    """Ascending indices below `size`, `count` of them, of runs such as "0-5,7".

    Raises ValueError for anything else.
    """
    if not isinstance(runs, str) or not _RUNS.fullmatch(runs):
        raise ValueError(runs)
    found: list[int] = []
    for run in runs.split(","):
        low, _, high = run.partition("-")
        first, last = int(low), int(high or low)
        if not (found[-1] if found else -1) < first <= last < size:
            raise ValueError(runs)
        found.extend(range(first, last + 1))
    if len(found) != (count or len(found)):
        raise ValueError(runs)
    return tuple(found)


def _partners(
    making: Making, whole: Architecture, target: Architecture
) -> tuple[Indices, ...] | None:
    """The head that is folded into each kept one, where the record tells of any."""
    partners = making.kept.get("partners")
    if partners is None:
        return None
    heads = range(whole.num_attention_heads)
    shape = (target.num_hidden_layers, target.num_attention_heads)
    is_list = isinstance(partners, list) and all(isinstance(layer, list) for layer in partners)
    if (
        not is_list
        or (len(partners), *{len(layer) for layer in partners}) != shape
        or any(type(head) is not int or head not in heads for layer in partners for head in layer)
    ):
        raise SourceError(f"{making.file} is damaged: kept.partners must be {list(shape)} heads")
    return tuple(tuple(layer) for layer in partners)
