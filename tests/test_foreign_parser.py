"""Whatever a foreign parser raises is one error of ours, on one line that a terminal can show."""

import pytest

from minitron.errors import MAX_LENGTH, ArchitectureError, CorpusError, SourceError
from minitron.foreign_parser import foreign_parser
from minitron.sources.loading import hub_config
from tests.tiny import tiny_config


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


def test_only_the_first_line_of_a_reason_is_told() -> None:
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


def test_a_config_that_makes_transformers_fail_while_it_logs_is_one_line() -> None:
    config = {**tiny_config("llama").to_dict(), "dtype": ["x"]}
    with pytest.raises(ArchitectureError, match="config"):
        hub_config(config)
