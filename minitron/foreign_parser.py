"""The boundary around parsers that others wrote: whatever they raise becomes one MinitronError.

A damaged file makes a library raise errors of any type, and one written in Rust may raise
PanicException, which is not even an Exception. Each call that hands a user's file to such a parser
stands in this block; our own code does not.

    with foreign_parser("m/tokenizer.json", TokenizerError, "fetch it again"):
        tokenizer = Tokenizer.from_file("m/tokenizer.json")
"""

from collections.abc import Iterator
from contextlib import contextmanager

from minitron.errors import MinitronError


@contextmanager
def foreign_parser(file: str, error: type[MinitronError], remedy: str) -> Iterator[None]:
    """Raise `error` for anything that the block raises: "`file` cannot be read: why: `remedy`".

    A MinitronError passes as it is, and so does what stops the program.
    """
    try:
        yield
    except (MinitronError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as cause:  # PanicException of a Rust library is no Exception
        raise error(f"{file} cannot be read: {_reason(cause)}: {remedy}") from cause


def _reason(cause: BaseException) -> str:
    """The first line of what a parser says, or the name of its exception."""
    if isinstance(cause, MemoryError):
        return "it asks for more memory than there is"
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__
