"""minitron.json: the record of what made a folder and of what it was made from.

Knows its schema, version 1, which docs/minitron-json.md describes key by key, and reads and checks
it. A record may come from anybody and may hold the records of what it was made from: no value of it
is used before `check_record` accepted it. `record_writer` writes it; `remake_record` reads what
`minitron remake` needs of it.

    record = read_record(Path("tiny-half"))
    check_record(record, "tiny-half/minitron.json")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron.errors import SourceError
from minitron.files.checked_json import Each, Kind, Number, check_kind, read_object
from minitron.model.families import AXIS_KEYS

Record = Mapping[str, Any]

SCHEMA = 1
FILE = "minitron.json"
INHERITED = ("language", "license", "license_name", "license_link")  # metadata of the source's card
SIZES = (*AXIS_KEYS.values(), "parameters")
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
    "training?": {"epochs": float, "corpus_tokens": int, "steps": int, "tokens?": int},
    "teacher?": {"name": str, "parameters": int},
    "results?": _TABLE,
    "benchmarks?": {**_TABLE, "scores": [_SCORE]},
}
_FITTED = {"scratch?": bool, "corpus": str, "learning_rate": float}
# What the sentence on a step says of its recipe, by the key that brings the sentence.
_RECIPES: Mapping[str, Kind] = {
    "training": _FITTED,
    "teacher": {**_FITTED, "kind": str, "temperature": float, "ce_weight": float},
}


def read_record(folder: Path, called: str | None = None) -> dict[str, Any]:
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


def history_of(record: Record) -> list[Record]:
    """The records that led here, the first one first."""
    steps = [record]
    while (made := steps[0]["source"].get("made")) is not None:
        steps.insert(0, made)
    return steps


def check_record(record: Mapping[str, Any], file: str) -> None:
    """Refuse a record with a value that a card cannot show; SourceError names key and value."""
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
                raise SourceError(f"{file} says {side}.{size}: {value}; no model has it: {_REMEDY}")
