"""What the system refuses becomes one MinitronError: a name too long, no right, a full disk.

Every verb stands in this block, on the command line and in Python. Files may name files too (an
index its shards), so that no check of the arguments alone would do.

    with readable_system_errors():
        Path("a" * 300).open()       # OutputError: aaa... : File name too long: give ...
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from minitron.errors import OutputError

_REMEDIES = {
    errno.ENAMETOOLONG: "give or write a shorter name",
    errno.EACCES: "choose another place, or change who may use it",
    errno.EPERM: "choose another place, or change who may use it",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "free some and run again",
    errno.EDQUOT: "free some and run again",
    errno.EMFILE: "raise the limit (ulimit -n) and run again",
}


@contextmanager
def readable_system_errors() -> Iterator[None]:
    """Raise OutputError for an OSError that the system gave a number, and for a NUL in a name.

    Other errors pass as they are, and so does a pipe that the reader closed: nobody is there to
    read a message.
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
