"""Whatever a parser or the system raises is one line: what was wrong, and what to do."""

import errno
import json
import os
from pathlib import Path

import pytest

import minitron
from minitron import cli
from minitron.errors import (
    MAX_LENGTH,
    ArchitectureError,
    CorpusError,
    OutputError,
    SourceError,
    foreign_parser,
    readable_system_errors,
)
from minitron.sources.loading import hub_config
from tests.tiny import tiny_config, tiny_folder

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


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


@pytest.mark.parametrize(
    "cause", [KeyError("k"), RecursionError("deep"), Panic("slice"), OSError()]
)
def test_whatever_is_raised_becomes_our_error_with_file_reason_and_remedy(
    cause: BaseException,
) -> None:
    with pytest.raises(SourceError) as raised, foreign_parser("a.json", SourceError, "fetch it"):
        raise cause
    reason = str(cause) or type(cause).__name__
    assert str(raised.value) == f"a.json cannot be read: {reason}: fetch it"
    assert raised.value.__cause__ is cause


@pytest.mark.parametrize("passing", [KeyboardInterrupt(), SystemExit(3), CorpusError("empty")])
def test_what_is_ours_or_stops_the_program_passes(passing: BaseException) -> None:
    with pytest.raises(type(passing)) as raised, foreign_parser("a", SourceError, "mend it"):
        raise passing
    assert raised.value is passing


def test_only_the_first_line_of_a_reason_is_reported() -> None:
    expected = pytest.raises(SourceError, match="^a cannot be read: first: mend it$")
    with expected, foreign_parser("a", SourceError, "mend it"):
        raise ValueError("\nfirst\nsecond")


def test_a_message_is_one_line_of_500_characters_that_no_terminal_obeys() -> None:
    error = SourceError("begin \x1b[31m\u202e\n" + "x" * 5000 + " end: do this")
    assert len(str(error)) == MAX_LENGTH
    assert str(error).startswith("begin \\x1b[31m\\u202e x")
    assert str(error).endswith("end: do this")


def test_of_a_long_message_both_ends_are_masked_and_shown() -> None:
    token = "hf_" + "a" * 30
    error = SourceError(f"begin {token} " + "x\n" * 1_000_000 + f" end: {token} do this")
    assert len(str(error)) == MAX_LENGTH
    assert str(error).startswith("begin *** x x")
    assert str(error).endswith("end: *** do this")


def test_a_long_message_is_cut_between_items_and_never_inside_a_number() -> None:
    items = [f"hidden_size {n:,}, num_hidden_layers {n:,}, 6.42 MiB" for n in range(1000, 1040)]
    for start in range(60):
        message = str(SourceError(f"{'x' * start} nearest: {'; '.join(items)}; give another"))
        head, _, tail = message.partition("; ... ")
        assert MAX_LENGTH - 160 <= len(message) <= MAX_LENGTH
        assert head.endswith("6.42 MiB")
        assert tail.startswith("hidden_size 1,0")
    words = str(SourceError("begin " + "word-of-13-12 " * 100 + "end"))
    assert set(words.split()) == {"begin", "word-of-13-12", "...", "end"}


def test_a_config_that_makes_transformers_fail_while_it_logs_is_one_line() -> None:
    config = {**tiny_config("llama").to_dict(), "dtype": ["x"]}
    with pytest.raises(ArchitectureError, match="config"):
        hub_config(config)
