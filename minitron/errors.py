"""Errors that the user can correct, as one tree.

```
MinitronError                 one line: what was wrong, the value seen, what to do
├── SourceError               a model that cannot be read: missing, damaged, not finite
├── ArchitectureError         a config that no known family holds, or sizes it refuses
├── TargetError               sizes or options that this source cannot be brought to
├── CorpusError               text that is missing, unreadable, empty or too short
├── ImportanceError           scores that are unreadable or belong to another model
├── TokenizerError            a tokenizer that is missing or cannot be rebuilt exactly
├── OutputError               a place that exists already or cannot be written
└── MissingExtraError         an optional dependency, named with the extra that brings it
```

The command line prints `str(error)` on one line and exits with 2. Two blocks turn what others
raise into these: `foreign_parser` around a parser of another library that reads a user's file, and
`readable_system_errors` around a verb.

    with foreign_parser("m/tokenizer.json", TokenizerError, "fetch it again"):
        tokenizer = Tokenizer.from_file("m/tokenizer.json")
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from minitron.credentials import mask

MAX_LENGTH = 500  # characters of a message: a foreign parser's may quote the whole file
_SEPARATORS = ("; ", ", ", " ")  # where a longer one is cut, the first of these within reach
_REACH = 80  # characters
_READ = 20_000  # characters of each end of a longer text, to mask and to cut
# What to do about an error of the system, by its number.
_REMEDIES = {
    errno.ENAMETOOLONG: "give or write a shorter name",
    errno.EACCES: "choose another place, or change who may use it",
    errno.EPERM: "choose another place, or change who may use it",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "free some and run again",
    errno.EDQUOT: "free some and run again",
    errno.EMFILE: "raise the limit (ulimit -n) and run again",
}


def one_line(text: str) -> str:
    """`text` on one line of at most 500 characters, without what a terminal would obey.

    White space becomes one blank, control characters their escapes, and credentials `***`. Of a
    longer text the middle is left out, from one item or word to another: what was wrong stands at
    the beginning, what to do at the end.
    """
    if len(text) > 2 * _READ:  # a credential that is cut here is not shown
        text = f"{text[:_READ]} ... {text[-_READ:]}"
    line = visible(" ".join(mask(text).split()))
    if len(line) <= MAX_LENGTH:
        return line
    end = MAX_LENGTH // 3
    return f"{_beginning(line, MAX_LENGTH - end - 5)} ... {_ending(line, end)}"


def _beginning(line: str, length: int) -> str:
    """At most so many first characters, up to the end of an item or a word if one is near."""
    head = line[: length + 1]
    for mark in _SEPARATORS:
        place = head.rfind(mark, length - _REACH)
        if place >= 0:
            return head[: place + len(mark)].rstrip()
    return head[:length]


def _ending(line: str, length: int) -> str:
    """At most so many last characters, from the start of an item or a word if one is near."""
    tail = line[-length - 1 :]
    for mark in _SEPARATORS:
        place = tail.find(mark, 0, _REACH)
        if place >= 0:
            return tail[place + len(mark) :]
    return tail[1:]


def visible(text: str) -> str:
    """`text` with escapes for everything that does not show, line ends included.

    Applied to everything from a file that is printed: a terminal would obey it.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class MinitronError(Exception):
    """A mistake that the user can correct; its text says how, on one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class SourceError(MinitronError):
    """The model cannot be read."""


class ArchitectureError(MinitronError):
    """The config is of no known family, or the family refuses its sizes."""


class TargetError(MinitronError):
    """The given sizes or options do not fit this source."""


class CorpusError(MinitronError):
    """The text is missing, unreadable, empty or too short."""


class ImportanceError(MinitronError):
    """The importance file is unreadable or was measured on another model."""


class TokenizerError(MinitronError):
    """The tokenizer is missing or cannot be rebuilt exactly."""


class OutputError(MinitronError):
    """The output exists already or cannot be written."""


class MissingExtraError(MinitronError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'minitron[{extra}]'")


@contextmanager
def foreign_parser(file: str, error: type[MinitronError], remedy: str) -> Iterator[None]:
    """Raise `error` for anything that the block raises: "`file` cannot be read: why: `remedy`".

    A damaged file makes a library raise errors of any type. A MinitronError passes as it is, and
    so does what stops the program.
    """
    try:
        yield
    except (MinitronError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as cause:  # PanicException of a library in Rust is no Exception
        raise error(f"{file} cannot be read: {_reason(cause)}: {remedy}") from cause


def _reason(cause: BaseException) -> str:
    """The first line of a parser's message, or the name of its exception."""
    if isinstance(cause, MemoryError):
        return "it asks for more memory than there is"
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


@contextmanager
def readable_system_errors() -> Iterator[None]:
    """Raise OutputError for an OSError that the system gave a number, and for a NUL in a name.

    Around every verb: a file may name other files (an index its shards), so that a check of the
    arguments alone would not do. Other errors pass as they are, and so does a pipe that the reader
    closed: nobody is there to read a message.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        name = "" if error.filename is None else f"{str(error.filename):.200}: "
        remedy = _REMEDIES.get(error.errno, "see to it and run again")
        raise OutputError(f"{name}{error.strerror}: {remedy}") from error
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        raise OutputError("a file's name holds NUL: give or write it without") from error
