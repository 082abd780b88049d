"""minitron.json is what docs/minitron-json.md says, in every folder that is written."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minitron
from minitron.errors import SourceError
from minitron.model.architecture import Architecture
from minitron.records.minitron_json import FILE, SCHEMA, outlines_of, read_provenance, sizes_of
from minitron.sources.source import open_source
from tests.tiny import SIZES, tiny_folder

DOCS = (Path(__file__).parent.parent / "docs" / "minitron-json.md").read_text()
ALWAYS, SOMETIMES = DOCS.split("\n## ")[1:3]
SIZE_KEYS = tuple(sizes_of(Architecture(model_type="nemotron", **SIZES)))


def documented(part: str) -> dict[str, str]:
    """Key to who writes it, of one table; SIZE stands for each size."""
    told = {}
    for key, commands in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", part, re.MULTILINE):
        names = SIZE_KEYS if key.endswith("SIZE") else ("",)
        told |= {key.replace("SIZE", name): commands.strip() for name in names}
    return told


def written_by(command: str, part: str) -> list[str]:
    return [key for key, who in documented(part).items() if {command, "all"} & {*who.split(", ")}]


def leaves(record: Mapping[str, Any], under: str = "") -> Iterator[str]:
    """The key of every value, those of mappings within joined by dots."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{under}{key}.")
        else:
            yield under + key


def covers(documented: str, key: str) -> bool:
    inside = documented.removesuffix("*")
    return key == documented or (inside != documented and f"{key}.".startswith(inside))


def undocumented(record: Mapping[str, Any]) -> list[str]:
    known = [key for part in (ALWAYS, SOMETIMES) for key in written_by(record["command"], part)]
    return [key for key in leaves(record) if not any(covers(one, key) for one in known)]


def missing(record: Mapping[str, Any]) -> list[str]:
    found = list(leaves(record))
    always = written_by(record["command"], ALWAYS)
    return [one for one in always if not any(covers(one, key) for key in found)]


Maker = Callable[[Path], object]
TRAIN: dict[str, Any] = {"steps": 1, "batch_size": 2}


def ids(folder: Path) -> str:
    np.save(
        folder / "ids.npy", np.random.default_rng(1).integers(SIZES["vocab_size"], size=(8, 16))
    )
    return str(folder / "ids.npy")


def prune(folder: Path) -> None:
    minitron.prune(str(folder / "source"), str(folder / "out"), hidden_size=30, corpus=ids(folder))


def prune_folded_within_a_budget(folder: Path) -> None:
    minitron.prune(
        str(folder / "source"),
        str(folder / "out"),
        ratio=0.6,
        memory="1GiB",
        head_residual=True,
        multiple_of=6,
        max_candidates=2,
        seq_len=16,
        corpus=ids(folder),
    )


def convert(folder: Path) -> None:
    minitron.convert(str(folder / "source"), str(folder / "out"), dtype="float16")


def train(folder: Path) -> None:
    source = str(folder / "source")
    minitron.train(str(folder / "out"), init=source, corpus=ids(folder), **TRAIN)


def distill_what_was_pruned(folder: Path) -> None:
    source, half = str(folder / "source"), str(folder / "half")
    minitron.prune(source, half, num_hidden_layers=3, scores="random")
    minitron.distill(half, str(folder / "out"), teacher=source, corpus=ids(folder), **TRAIN)


def evaluate_with_record(folder: Path) -> None:
    convert(folder)
    minitron.evaluate(str(folder / "out"), corpus=ids(folder), record=True)


@pytest.mark.parametrize(
    ("make", "sometimes"),
    [
        (prune, []),
        (prune_folded_within_a_budget, ["search"]),
        (convert, []),
        (train, []),
        (distill_what_was_pruned, ["source.made"]),
        (evaluate_with_record, ["results"]),
    ],
    ids=lambda made: getattr(made, "__name__", ""),
)
def test_every_key_is_documented_and_every_documented_key_is_there(
    make: Maker, sometimes: list[str], tmp_path: Path
) -> None:
    tiny_folder(tmp_path / "source")
    make(tmp_path)
    record = read_provenance(tmp_path / "out")
    assert undocumented(record) == []
    assert missing(record) == []
    for key in sometimes:
        inner: Any = record
        for part in key.split("."):
            inner = inner[part]
        assert inner
    assert record["schema"] == SCHEMA


def test_a_key_that_nobody_documented_is_found(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "source")
    convert(tmp_path)
    record = read_provenance(tmp_path / "out")
    assert undocumented({**record, "kept": {"hidden": "0-3"}}) == ["kept.hidden"]
    assert undocumented({**record, "weights": {"mass": 3}}) == ["weights.mass"]
    assert missing({key: value for key, value in record.items() if key != "weights"}) == [
        "weights.files.*",
        "weights.max_shard_size",
    ]


def test_the_example_is_what_its_command_writes(tmp_path: Path) -> None:
    [example] = re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)
    told = json.loads(example)
    minitron.prune("tiny", str(tmp_path / "out"), hidden_size=250, scores="random")
    record = read_provenance(tmp_path / "out")
    assert told.pop("recipe").items() <= record.pop("recipe").items()
    assert told.pop("versions").keys() == record.pop("versions").keys()
    shares = [one.pop("share_of_importance_kept") for one in (told, record)]
    assert shares[0] == pytest.approx(shares[1])
    assert told == record


def test_the_schema_is_the_documented_one() -> None:
    assert f"`schema` is a whole number, now {SCHEMA}." in DOCS
    assert f"| `schema` | all | {SCHEMA} |" in DOCS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "has no minitron.json: it was not made here"),
        ("{]", "minitron.json is not JSON"),
        ("3", "was not written by minitron"),
        ('{"schema": true}', "was not written by minitron"),
        (f'{{"schema": {SCHEMA + 1}}}', f"has schema {SCHEMA + 1}, and this minitron reads"),
    ],
)
def test_what_is_no_record_for_us_is_told(text: str | None, told: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(SourceError, match=told):
        read_provenance(tmp_path)
    with pytest.raises(SourceError, match=f"^me/half.*{told}"):
        read_provenance(tmp_path, "me/half")


def test_a_source_without_weights_has_no_digest(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    (source / "model.safetensors").unlink()
    minitron.train(
        str(tmp_path / "out"), init=str(source), corpus=ids(tmp_path), scratch=True, **TRAIN
    )
    assert read_provenance(tmp_path / "out")["source"]["digest"] is None


def test_the_digest_is_that_of_the_weights_in_whatever_file(tmp_path: Path) -> None:
    digests = []
    tiny_folder(tmp_path / "source", max_shard_size="40KB")
    for number, (source, dtype) in enumerate(
        [("source", None), ("out-0", "float32"), ("source", "bfloat16"), ("out-2", None)]
    ):
        out = tmp_path / f"out-{number}"
        minitron.convert(str(tmp_path / source), str(out), dtype=dtype)
        digests.append(read_provenance(out)["source"]["digest"])
    assert digests[0] == digests[1] == digests[2] != digests[3]  # the last one was rounded


@pytest.mark.parametrize("size", [0, 1, 1023, 1025, 4 << 20])
def test_an_outline_sees_every_byte_of_a_small_file(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    [before] = outlines_of(tmp_path).values()
    assert before["bytes"] == size
    for place in {0, size // 2, size - 1} if size else ():
        path.write_bytes(bytes(place) + b"\1" + bytes(size - place - 1))
        assert outlines_of(tmp_path)[path.name] != before


def test_an_outline_of_a_large_file_reads_little_of_it_but_all_over_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = 64 << 20
    with path.open("wb") as file:
        file.truncate(size)
    before = outlines_of(tmp_path)
    for start in range(0, size, size // 8):
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"\1" * (size // 4096 + 1024))
        after = outlines_of(tmp_path)
        assert after != before
        before = after


def test_open_source_of_what_was_written_has_the_recorded_sizes(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "source")
    prune(tmp_path)
    architecture = Architecture.from_config(open_source(str(tmp_path / "out")).config)
    assert read_provenance(tmp_path / "out")["target"] == sizes_of(architecture)
