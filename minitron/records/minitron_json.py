"""minitron.json: the record of how a folder was made, and from what.

Knows its schema, version 1, which docs/minitron-json.md describes key by key, and reads and checks
it. A record may come from anybody, and holds the record of its source if that has one: no value of
it is used before `check_record` or `RemakeRecord.of` accepted it. `record_writer` writes it.

    record = read_record(Path("tiny-half"))
    check_record(record, "tiny-half/minitron.json")
    plan = RemakeRecord.of(record, "tiny-half/minitron.json").plan_for(source.architecture)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron.errors import ArchitectureError, SourceError, TargetError
from minitron.files.checked_json import Each, Kind, Number, check_kind, read_object
from minitron.model.architecture import Architecture
from minitron.model.family import AXIS_KEYS
from minitron.model.plan import PruningPlan

Record = Mapping[str, Any]

SCHEMA = 1
FILE = "minitron.json"
INHERITED = ("language", "license", "license_name", "license_link")  # metadata of the source's card
SIZES = (*AXIS_KEYS.values(), "parameters")
REMADE = ("prune", "convert")  # commands whose weights follow from the record and the source
TRAINED = ("train", "distill", "quickstart")
_SHARD_SIZE = re.compile(r"\d+ ?[KMGT]B", re.IGNORECASE | re.ASCII)
_REMEDY = "it is damaged: make the folder again"
_MOST_STEPS = 50  # records within a record
_MOST_LAYERS, _LARGEST_SIZE = 1 << 14, 1 << 22

_SIZES = dict.fromkeys(SIZES, int)
_WORD = (str, int, float, bool)
_TABLE = {
    "measured": str,
    "columns": [str],
    "rows": [{"name": str, "values": [(*_WORD, None)]}],
}
_ERRORS = ("alpha", "error_before", "error_after")
_SCORE = {
    "name": str,
    "metrics": Each(Number),
    "samples": int,
    "num_fewshot?": (int, None),
    "errors?": Each(Number),
    "limited?": bool,
    **{f"{key}?": (str, None) for key in ("dataset", "config", "split", "made_by")},
}
_STEP: Mapping[str, Kind] = {
    "schema?": int,
    "command": str,
    "recipe": {"corpus?": (str, None)},
    "source": {
        "name": str,
        "revision?": (str, None),
        "digest?": (str, None),
        "metadata?": Each((*_WORD, [_WORD])),
        "made?": ({}, None),
        **_SIZES,
    },
    "target": _SIZES,
    "importance?": {"tokens?": int, "corpus?": (str, None), "scores?": str},
    "share_of_importance_kept?": Each(float),
    "kept?": {
        **dict.fromkeys(("hidden?", "layers?"), str),
        **dict.fromkeys(("ffn?", "heads?", "kv_heads?"), [str]),
        "partners?": [[int]],
    },
    "reconstruction?": {
        "used": bool,
        "hidden": str,
        "dtype?": str,
        "share_of_variance_kept?": float,
        "corpus": str,
        "corpus_digest": str,
        "tokens": int,
        "losses": {"source": float, "pruned": float, "reconstructed": float},
        "linears": Each({"used": bool, **dict.fromkeys(_ERRORS, float)}),
    },
    "training?": {
        **{"epochs": float, "corpus_tokens": int, "steps": int},
        **{"tokens?": int, "held_out_seq_len?": int},
    },
    "teacher?": {"name": str, "parameters": int, "held_out_loss?": float},
    "distillation?": {"steps": int, "tokens": int},
    "results?": _TABLE,
    "benchmarks?": {**_TABLE, "scores": [_SCORE]},
}
_FITTED = {"scratch?": bool, "corpus": str, "learning_rate": float}
# The recipe keys that a card shows of a step, by the key of the record that it has then.
_RECIPES: Mapping[str, Kind] = {
    "training": _FITTED,
    "teacher": {**_FITTED, "kind": str, "temperature": float, "ce_weight": float},
}


def read_record(folder: Path, called: str | None = None) -> dict[str, Any]:
    """Read the minitron.json of `folder`; errors name the folder `called`.

    Raises SourceError where there is none, or one that this version cannot read.
    """
    name = called or str(folder)
    try:
        remedy = "it is damaged, or was not written by minitron; fetch it again"
        record = read_object(folder / FILE, SourceError, remedy, called=f"{name}/{FILE}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_record(name) from error
    schema = record.get("schema", SCHEMA)
    if isinstance(schema, bool) or not isinstance(schema, int):
        raise SourceError(f"{name}/{FILE} was not written by minitron: it has no schema number")
    if schema > SCHEMA:
        raise SourceError(
            f"{name}/{FILE} has schema {schema}, and this version of minitron reads {SCHEMA}: "
            "pip install --upgrade minitron"
        )
    return record


def no_record(name: str) -> SourceError:
    """The error for what has no minitron.json, which not everything has that minitron writes."""
    return SourceError(
        f"{name} has no {FILE}: the folders of prune, convert --to hub, train, distill and "
        "quickstart have one; other formats and the folders of search have none"
    )


def history_of(record: Record) -> list[Record]:
    """The records of all steps that led to a folder, the earliest first."""
    steps = [record]
    while (made := steps[0]["source"].get("made")) is not None:
        steps.insert(0, made)
    return steps


def record_before_training(record: Record) -> dict[str, Any] | None:
    """The record of the model that training began with; None where there is none."""
    made: Any = record
    while isinstance(made, dict) and made.get("command") in TRAINED:
        source = made.get("source")
        made = source.get("made") if isinstance(source, dict) else None
    return made if isinstance(made, dict) else None


def check_record(record: Mapping[str, Any], file: str) -> None:
    """Refuse a record with a value that cannot be; the SourceError names its key and the value."""
    step: Any = record
    for _ in range(_MOST_STEPS):
        _check_step(step, file)
        step = step["source"].get("made")
        if step is None:
            return
    raise SourceError(f"{file} holds more than {_MOST_STEPS} records within each other: {_REMEDY}")


def _check_step(step: Any, file: str) -> None:
    check_kind(step, _STEP, file, SourceError, _REMEDY)
    for key, recipe in _RECIPES.items():
        if key in step:
            check_kind(step["recipe"], recipe, f"{file}: recipe", SourceError, _REMEDY)
    for side in ("source", "target"):
        for size in SIZES:
            most = _MOST_LAYERS if size == AXIS_KEYS["layers"] else _LARGEST_SIZE
            value = step[side][size]
            if value < 1 or (value > most and size != "parameters"):
                raise SourceError(f"{file} has {side}.{size} {value}, as no model has: {_REMEDY}")


@dataclass(frozen=True)
class RemakeRecord:
    """The part of a record from which `minitron remake` builds the same weights again."""

    file: str  # the minitron.json, as errors name it
    command: str
    recipe: Mapping[str, Any]
    source: str  # at its revision
    digest: str  # of the source
    target: Mapping[str, int]  # sizes
    kept: Mapping[str, Any]
    files: Mapping[str, Any]  # outlines of the written weights
    max_shard_size: str

    @classmethod
    def of(cls, record: Record, file: str) -> "RemakeRecord":
        """Read it from a record. Raises SourceError for missing keys and values of another kind."""

        def read(*keys: str, kind: type = str) -> Any:
            value: Any = record
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if type(value) is not kind:
                raise SourceError(
                    f"{file} has no readable {'.'.join(keys)}: it is damaged, or was written by an "
                    "earlier minitron"
                )
            return value

        command = read("command")
        if command not in REMADE:
            raise SourceError(f"{file} names the command {command!r}: it was not written here")
        name, revision = read("source", "name"), record["source"].get("revision")
        max_shard_size = read("weights", "max_shard_size")
        if not _SHARD_SIZE.fullmatch(max_shard_size):
            raise SourceError(f"{file} has max_shard_size {max_shard_size!r}: it is damaged")
        return cls(
            file=file,
            command=command,
            recipe=read("recipe", kind=dict),
            source=name if revision is None else _at_revision(name, str(revision)),
            digest=read("source", "digest"),
            target={key: read("target", key, kind=int) for key in AXIS_KEYS.values()},
            kept=read("kept", kind=dict) if command == "prune" else {},
            files=read("weights", "files", kind=dict),
            max_shard_size=max_shard_size,
        )

    def plan_for(self, source: Architecture) -> PruningPlan:
        """The recorded plan. Raises SourceError for sizes or indices that `source` cannot have."""
        try:
            return PruningPlan.from_json(self.kept, source, source.resized(**self.target))
        except (ArchitectureError, TargetError) as error:
            raise SourceError(f"{self.file} is damaged: {error}") from error


def _at_revision(name: str, revision: str) -> str:
    """A Hub id with a revision; for a `.nemo` in a repository, its path follows."""
    repo, colon, path = name.partition(":")
    return f"{repo}@{revision}{colon}{path}"
