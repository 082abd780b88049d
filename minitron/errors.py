"""What can go wrong by a user's hand, as one tree.

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

The command line prints `str(error)` on one line and exits with 2. Nothing here knows how.
"""

from minitron.credentials import masked

MAX_LENGTH = 500  # characters of a message: a foreign parser's may quote the whole file
_READ = 20_000  # characters of each end of a longer text, to mask and to cut


def one_line(text: str) -> str:
    """`text` on one line of at most 500 characters, without what a terminal would obey.

    White space becomes one blank, control characters their escapes, and credentials `***`. Of a
    longer text the middle is left out: what was wrong stands at the beginning, what to do at the
    end.
    """
    if len(text) > 2 * _READ:  # a credential that is cut here is not shown
        text = f"{text[:_READ]} ... {text[-_READ:]}"
    line = visible(" ".join(masked(text).split()))
    if len(line) <= MAX_LENGTH:
        return line
    end = MAX_LENGTH // 3
    return f"{line[: MAX_LENGTH - end - 5]} ... {line[-end:]}"


def visible(text: str) -> str:
    """`text` with escapes for everything that does not show, line ends included.

    What comes from a file and is printed goes through here: a terminal would obey it.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class MinitronError(Exception):
    """A mistake that the user can mend; its text says how, on one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class SourceError(MinitronError):
    """The model cannot be read."""


class ArchitectureError(MinitronError):
    """The config is of no known family, or the family refuses its sizes."""


class TargetError(MinitronError):
    """The wished-for sizes or options do not fit this source."""


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
