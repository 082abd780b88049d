"""What the system refuses is one line that says what to do, at every door."""

import errno
import json
import os
from pathlib import Path

import pytest

import minitron
from minitron import cli
from minitron.errors import OutputError
from minitron.system_errors import readable_system_errors
from tests.tiny import tiny_folder

LONG = "a" * 300
CUT = ["--hidden-size", "160", "--scores", "random"]


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", LONG],
        ["prune", "tiny", LONG, *CUT],
        ["prune", "tiny", "out", "--hidden-size", "160", "--importance", LONG],
        ["prune", "tiny", "out", "--recipe", LONG],
        ["convert", "tiny", f"{LONG}.nemo", "--to", "nemo"],
        ["importance", "tiny", LONG, "--scores", "magnitude"],
        ["search", "tiny", LONG, "--ratio", "0.5", "--corpus", "self"],
        ["teacher-cache", "tiny", LONG, "--corpus", "self"],
        ["train", LONG, "--init", "tiny", "--corpus", "self"],
        ["distill", "tiny-half", "out", "--teacher-cache", LONG, "--corpus", "self"],
        ["card", LONG],
        ["push", LONG, "me/model"],
        ["push", "--space", "me/space", LONG],
        ["remake", "tiny-half", LONG],
        ["evaluate", "tiny", "--tasks", LONG],
    ],
    ids=lambda command: " ".join(word[:12] for word in command),
)
def test_a_name_longer_than_the_system_takes_is_refused_in_one_line(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minitron: ")
    assert len(line) <= 510
    assert not list(tmp_path.iterdir())


def test_an_index_that_names_a_shard_by_too_long_a_name_is_refused(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "source", "llama", max_shard_size="20KB")
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = f"{LONG}.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(OutputError, match="File name too long: give or write a shorter name"):
        minitron.prune(str(source), str(tmp_path / "out"), hidden_size=36, scores="random")
    assert not (tmp_path / "out").exists()


def test_a_name_with_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds NUL"):
        minitron.prune("tiny", str(tmp_path / "a\0b"), hidden_size=160, scores="random")


def test_errors_without_a_number_and_closed_pipes_pass() -> None:
    for error in (
        OSError("a library's own"),
        BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
    ):
        with pytest.raises(type(error)) as raised, readable_system_errors():
            raise error
        assert raised.value is error
