"""minitron.json: the example of its page, its schema number, its digests and outlines."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minitron
from minitron.errors import SourceError
from minitron.model.architecture import Architecture
from minitron.records.minitron_json import FILE, SCHEMA, read_record
from minitron.records.record_writer import outlines_of, sizes_of
from minitron.sources.opening import open_source
from tests.tiny import SIZES, tiny_folder

DOCS = (Path(__file__).parent.parent / "docs" / "minitron-json.md").read_text()
TRAIN: dict[str, Any] = {"steps": 1, "batch_size": 2}


def ids(folder: Path) -> str:
    np.save(
        folder / "ids.npy", np.random.default_rng(1).integers(SIZES["vocab_size"], size=(8, 16))
    )
    return str(folder / "ids.npy")


def prune(folder: Path) -> None:
    minitron.prune(str(folder / "source"), str(folder / "out"), hidden_size=30, corpus=ids(folder))


def test_the_example_is_what_its_command_writes(tmp_path: Path) -> None:
    [example] = re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)
    documented = json.loads(example)
    minitron.prune("tiny", str(tmp_path / "out"), hidden_size=250, scores="random")
    record = read_record(tmp_path / "out")
    assert documented.pop("recipe").items() <= record.pop("recipe").items()
    assert documented.pop("versions").keys() == record.pop("versions").keys()
    shares = [one.pop("share_of_importance_kept") for one in (documented, record)]
    assert shares[0] == pytest.approx(shares[1])
    assert documented == record


def test_the_schema_is_the_documented_one() -> None:
    assert f"`schema` is an integer, at present {SCHEMA}." in DOCS
    assert f"| `schema` | all | {SCHEMA} |" in DOCS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no minitron.json: the folders of prune, convert --to hub, train,"),
        ("{]", "minitron.json is not JSON"),
        ("3", "was not written by minitron"),
        ('{"schema": true}', "was not written by minitron"),
        (
            f'{{"schema": {SCHEMA + 1}}}',
            f"has schema {SCHEMA + 1}, and this version of minitron reads",
        ),
    ],
)
def test_what_is_no_record_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(SourceError, match=message):
        read_record(tmp_path)
    with pytest.raises(SourceError, match=f"^me/half.*{message}"):
        read_record(tmp_path, "me/half")


def test_a_source_without_weights_has_no_digest(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source")
    (source / "model.safetensors").unlink()
    minitron.train(
        str(tmp_path / "out"), init=str(source), corpus=ids(tmp_path), scratch=True, **TRAIN
    )
    assert read_record(tmp_path / "out")["source"]["digest"] is None


def test_the_digest_is_that_of_the_weights_in_whatever_file(tmp_path: Path) -> None:
    digests = []
    tiny_folder(tmp_path / "source", max_shard_size="40KB")
    for number, (source, dtype) in enumerate(
        [("source", None), ("out-0", "float32"), ("source", "bfloat16"), ("out-2", None)]
    ):
        out = tmp_path / f"out-{number}"
        minitron.convert(str(tmp_path / source), str(out), dtype=dtype)
        digests.append(read_record(out)["source"]["digest"])
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
    assert read_record(tmp_path / "out")["target"] == sizes_of(architecture)
