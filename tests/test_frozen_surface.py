"""What users build on stays: keys of minitron.json, public functions, commands, recipes.

tests/frozen/ holds each as JSON. To change one on purpose, write the files again and read their
diff:

    python -m tests.test_frozen_surface
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import unified_diff
from pathlib import Path
from tempfile import TemporaryDirectory
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import yaml

import minitron
from minitron import cli
from tests.nemo_files import megatron_tensors, nemo_settings, write_nemo_file
from tests.task_folders import write_lines, write_quiz
from tests.tiny import SIZES, tiny_folder

TESTS = Path(__file__).parent
FROZEN = TESTS / "frozen"
DOCS = (TESTS.parent / "docs" / "minitron-json.md").read_text()
Sections = dict[str, dict[str, Any]]  # name of a record, function, command or recipe -> entries

TOKENIZER = TESTS / "fixtures/nemo/nemo2_mc0123_tp2_bf16/model/context/nemotron_tiny.model"
CARD = """---
language: [en, de]
license: other
license_name: some-license
license_link: https://example.org/license
---
"""
ONE_STEP: dict[str, Any] = {"steps": 1, "batch_size": 2, "trainer": {"adam_beta1": 0.8}}
QUICKSTART = {"CALIBRATION": 2, "TRAINING": 2, "HELD_OUT": 1, "SEQ_LEN": 8}  # smaller than its own


def write_inputs(folder: Path) -> None:
    """A model with a card, a .nemo file, token ids, benchmarks and articles."""
    tiny_folder(folder / "source")
    (folder / "source" / "README.md").write_text(CARD)
    ids = np.random.default_rng(1).integers(SIZES["vocab_size"], size=(8, 16))
    np.save(folder / "ids.npy", ids)
    settings = nemo_settings(tokenizer={"library": "sentencepiece", "model": "nemo:a.model"})
    tensors = megatron_tensors(settings, vocab_size=304)
    files = {"a.model": TOKENIZER.read_bytes()}
    write_nemo_file(folder / "source.nemo", tensors, settings, files=files)
    write_quiz(folder / "tasks")
    news = {"article": "It was the best of times. " * 3, "highlights": "The best of times."}
    write_lines(folder / "news.jsonl", [news])


def prune_runs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each kind of pruning: its name, and the folder that it wrote."""
    ids, importance = str(folder / "ids.npy"), str(folder / "importance.safetensors")
    source = str(folder / "source")
    minitron.importance(source, importance, corpus=ids)
    widths = {"hidden_size": 30, "intermediate_size": 48, "num_hidden_layers": 3}
    half = {"ratio": 0.6, "multiple_of": 6}
    compared = {"memory": "1GiB", "seq_len": 16, "max_candidates": 2}
    kinds: dict[str, dict[str, Any]] = {
        "by paper scores": {**widths, "num_attention_heads": 4, "corpus": ids},
        "with folded heads": {"num_attention_heads": 4, "corpus": ids, "head_residual": True},
        "by modelopt scores": {"num_key_value_heads": 1, "scores": "modelopt", "corpus": ids},
        "by magnitude": {**widths, "num_key_value_heads": 1, "scores": "magnitude"},
        "by random scores": {"hidden_size": 30, "scores": "random"},
        "by an importance file": {"hidden_size": 30, "importance": importance},
        "with a reconstruction": {"hidden_size": 30, "corpus": ids, "reconstruct": "auto"},
        "of nothing": {"hidden_size": 42},
        "in blocks": {"num_hidden_layers": 2, "layer_scores": "loss", "block_size": 2}
        | {"contiguous_layers": True, "corpus": ids},
        "within a budget, compared on text": {**half, **compared, "corpus": ids, "device": "cpu"},
        "within a budget, compared by scores": {**half, "importance": importance},
        "within a budget, by one factor": {**half, "multiple_of": 2, "scores": "magnitude"},
    }
    for kind, options in kinds.items():
        out = folder / f"prune {kind}"
        minitron.prune(source, str(out), **options)
        yield out.name, out


def other_runs(folder: Path) -> Iterator[tuple[str, Path]]:
    """The same of the other commands that write a minitron.json."""
    source, ids, smaller = (
        str(folder / name) for name in ("source", "ids.npy", "prune by paper scores")
    )
    outs = [folder / name for name in ("hub", "nemo", "again", "trained", "distilled", "quick")]
    hub, nemo, again, trained, distilled, quick = map(str, outs)
    minitron.convert(source, hub)
    yield "convert a Hub folder", outs[0]
    minitron.convert(f"{source}.nemo", nemo)
    yield "convert a .nemo", outs[1]
    minitron.convert(smaller, again, dtype="float16")
    yield "convert what was pruned", outs[2]
    minitron.train(trained, init=source, corpus=ids, eval_corpus=ids, **ONE_STEP)
    yield "train", outs[3]
    texts = {"corpus": ids, "eval_corpus": ids}
    minitron.distill(smaller, distilled, teacher=source, **texts, **ONE_STEP)
    yield "distill what was pruned", outs[4]
    minitron.evaluate(distilled, corpus=ids, record=True)
    yield "distill, then evaluate text", outs[4]
    with pytest.MonkeyPatch.context() as patch:
        for name, count in QUICKSTART.items():
            patch.setattr(sys.modules[minitron.quickstart.__module__], name, count)
        minitron.quickstart(quick)
    yield "quickstart", outs[5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        minitron.evaluate(
            quick,
            tasks="quiz",
            include_path=str(folder / "tasks"),
            preset="cnn_dailymail",
            articles=str(folder / "news.jsonl"),
            limit=2,
            record=True,
        )
    yield "quickstart, then evaluate benchmarks", outs[5]


class CopyOf(str):
    """Stands for a part of a record that equals what it names."""


KINDS = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
    dict: "empty object",
    list: "empty list",
}


def kinds_of(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, kind) of every value within, [] for each element of a list, * for a file's name."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from kinds_of(inner, f"{key}.{'*' if '.' in name else name}".removeprefix("."))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from kinds_of(inner, f"{key}[]")
    else:
        yield key, f"copy of {value}" if isinstance(value, CopyOf) else KINDS[type(value)]


def schema_of(folder: Path) -> dict[str, str]:
    """Key to kind of the minitron.json in a folder."""
    record = json.loads((folder / "minitron.json").read_text())
    source, search = record["source"], record.get("search", {})
    if "made" in source:
        made = json.loads(Path(source["name"], "minitron.json").read_text())
        if source["made"] == made:
            source["made"] = CopyOf("the source's minitron.json")
    if "importance" in search and search["importance"] == record["importance"]:
        search["importance"] = CopyOf("importance")
    found: dict[str, set[str]] = {}
    for key, kind in kinds_of(record):
        found.setdefault(key, set()).add(kind)
    return {key: " or ".join(sorted(found[key])) for key in sorted(found)}


def records() -> Sections:
    """The schema of minitron.json, by the command that wrote it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        return {
            what: schema_of(out) for run in (prune_runs, other_runs) for what, out in run(folder)
        }


def type_name(annotation: Any) -> str:
    """A type as it is written, without modules."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " | ".join(map(type_name, inner))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, inner))}]"
    return "None" if annotation in (None, type(None)) else str(annotation.__name__)


def option_text(annotation: Any, default: Any) -> str:
    given = "" if default is inspect.Parameter.empty else f" = {default!r}"
    return f"{type_name(annotation)}{given}"


def position_text(index: int | None) -> str:
    return "" if index is None else f"argument {index + 1}: "


def functions() -> Sections:
    """Parameters of every public name, and what can be read from what it returns."""
    found: Sections = {}
    for name in minitron.__all__:
        signature = inspect.signature(getattr(minitron, name))
        found[name] = {
            one.name: position_text(None if one.kind is one.KEYWORD_ONLY else index)
            + option_text(one.annotation, one.default)
            for index, one in enumerate(signature.parameters.values())
        }
        result = signature.return_annotation
        if is_dataclass(result):
            found[name]["return"] = [field.name for field in fields(result)]
        elif not result or not result.__module__.startswith("minitron"):
            found[name]["return"] = type_name(result)
    return found


def commands() -> Sections:
    """Flags of every command."""
    app = cli.app
    found: Sections = {"minitron": dict.fromkeys((*app.help_flags, *app.version_flags), "")}
    for command in app:
        if not command.startswith("-"):
            found[command] = {
                " ".join(one.names): position_text(one.index)
                + option_text(one.hint, one.field_info.default)
                for one in app[command].assemble_argument_collection()
            }
    return found


def recipes() -> Sections:
    """Keys and values of every published recipe."""
    folder = Path(minitron.__file__).parent / "recipes"
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))}


RECORDS = "minitron_json"
SURFACE = {
    RECORDS: records,
    "functions": functions,
    "commands": commands,
    "recipes": recipes,
}


def command_of(section: str) -> str:
    return section.split()[0].rstrip(",")


def factor_out(sections: Sections) -> Sections:
    """Records with the entries that all, and all of one command, share in sections of their own."""
    short: Sections = {}
    for every in ("record", *dict.fromkeys(map(command_of, sections))):
        alike = [
            set(one.items())
            for name, one in sections.items()
            if every in ("record", command_of(name))
        ]
        shared = set.intersection(*alike) - short.get("every record", {}).items()
        short[f"every {every}"] = dict(sorted(shared))
    for name, one in sections.items():
        shared = short["every record"].items() | short[f"every {command_of(name)}"].items()
        short[name] = dict(sorted(one.items() - shared))
    return short


def read_frozen(name: str) -> Sections:
    """A file's sections, of records with all their entries."""
    sections: Sections = json.loads((FROZEN / f"{name}.json").read_text())
    return {
        section: {
            **sections.get("every record", {}),
            **sections.get(f"every {command_of(section)}", {}),
            **own,
        }
        for section, own in sections.items()
        if not section.startswith("every ")
    }


def write_frozen() -> None:
    FROZEN.mkdir(exist_ok=True)
    for name, find in SURFACE.items():
        found = factor_out(find()) if name == RECORDS else find()
        (FROZEN / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def difference(before: Sections, now: Sections) -> str:
    """A line for each entry that is gone (-) or new (+); empty where nothing changed."""
    old, new = (
        [
            f"{section}: {key}: {value}"
            for section, one in side.items()
            for key, value in [("", ""), *sorted(one.items())]
        ]
        for side in (before, now)
    )
    return "\n".join(unified_diff(old, new, "frozen", "now", n=0, lineterm=""))


@pytest.mark.parametrize("name", SURFACE)
def test_what_users_build_on_is_as_it_was(name: str) -> None:
    if name == RECORDS:
        pytest.importorskip("lm_eval")
        pytest.importorskip("rouge_score")
    changed = difference(read_frozen(name), SURFACE[name]())
    if changed:
        advice = "Where it changes on purpose: python -m tests.test_frozen_surface"
        pytest.fail(f"{changed}\n{advice}", pytrace=False)


def test_a_change_is_shown_as_a_line_with_its_place() -> None:
    before = {"train": {"schema": "integer", "a.b": "string"}, "convert": {}}
    now = {"train": {"schema": "integer", "a.b": "null"}}
    lines = [line for line in difference(before, now).split("\n") if line[:1] in "+-"]
    assert lines[2:] == ["-train: a.b: string", "+train: a.b: null", "-convert: : "]
    assert difference(before, before) == ""


def test_the_short_form_of_records_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {
        "prune a": {"schema": "integer", "seed": "integer", "x": "null"},
        "prune b": {"schema": "integer", "seed": "integer", "x": "string"},
        "train": {"schema": "integer", "seed": "null"},
    }
    (tmp_path / "minitron_json.json").write_text(json.dumps(factor_out(sections)))
    monkeypatch.setattr(sys.modules[__name__], "FROZEN", tmp_path)
    assert read_frozen(RECORDS) == sections


@pytest.mark.parametrize("name", SURFACE)
def test_no_internal_module_is_frozen(name: str) -> None:
    text = (FROZEN / f"{name}.json").read_text()
    assert {*re.findall(r"\bminitron\.\w+", text)} <= {"minitron.json"}


def rows_of_page(heading: str) -> list[tuple[str, list[str]]]:
    """(key, commands that write it) of each row of one table of docs/minitron-json.md."""
    _, _, table = DOCS.partition(f"\n## {heading}\n")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", table.partition("\n## ")[0], re.MULTILINE)
    return [(key, commands.strip().split(", ")) for key, commands in rows]


def pattern(key: str) -> str:
    """What a documented key stands for."""
    names = {
        "SIZE": (*SIZES, "parameters"),
        "AXIS": ("hidden", "ffn", "heads", "kv_heads", "layers"),
    }
    text = re.escape(key).replace(r"\*", r"[^.]+")
    for word, values in names.items():
        text = text.replace(word, f"(?:{'|'.join(values)})")
    return text


def faults_of_page(sections: Sections) -> list[str]:
    """Keys of records that docs/minitron-json.md does not name, and keys that it has too many."""
    always, sometimes = rows_of_page("Required keys"), rows_of_page("Optional keys")
    unused = [(key, command) for key, commands in [*always, *sometimes] for command in commands]
    faults = []
    for section, record in sections.items():
        writers = {command_of(section), "all"}
        rows = [key for key, commands in [*always, *sometimes] if writers.intersection(commands)]
        for key in record:
            names = {row for row in rows if re.fullmatch(pattern(row), key)}
            faults += [] if names else [f"{section}: {key} is not named"]
            unused = [row for row in unused if row[0] not in names or row[1] not in writers]
        for row in (key for key in rows if key in dict(always)):
            held = re.compile(rf"{pattern(row)}(?![^.\[])")  # the key, or one in its object
            if not any(map(held.match, record)):
                faults.append(f"{section}: {row} is missing")
            unused = [one for one in unused if one[0] != row or one[1] not in writers]
    return [*faults, *(f"{command}: {key} is never there" for key, command in unused)]


def test_the_page_names_every_key_of_minitron_json_and_no_other() -> None:
    assert faults_of_page(read_frozen(RECORDS)) == []


def test_a_key_that_the_page_does_not_name_is_found() -> None:
    sections = read_frozen(RECORDS)
    convert = sections["convert a Hub folder"]
    convert |= {"kept.hidden": "string", "weights.mass": "integer"}
    del convert["weights.files.*.bytes"]
    for record in sections.values():
        record.pop("search.reason", None)
    assert faults_of_page(sections) == [
        "convert a Hub folder: kept.hidden is not named",
        "convert a Hub folder: weights.mass is not named",
        "convert a Hub folder: weights.files.*.bytes is missing",
        "prune: search.reason is never there",
    ]


if __name__ == "__main__":
    write_frozen()
