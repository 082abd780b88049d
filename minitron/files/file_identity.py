"""File identity: whether a file is still the one whose header was read.

A trainer or rsync may replace or rewrite a checkpoint while it is read; pieces read before and
after are of two models. Readers of headers keep the identity, and each later read compares it.

    with open_unchanged(path, identity) as descriptor:
        os.pread(descriptor, 16, 0)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from minitron.errors import SourceError


class FileIdentity(NamedTuple):
    """What changes when a file is replaced or written to; made anew at each read."""

    device: int
    inode: int
    nbytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        """That of a file by its status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def open_unchanged(
    path: Path, identity: FileIdentity | None, end: int | None = None
) -> Iterator[int]:
    """A descriptor of a file, for reading; compared before and after.

    `identity` None compares nothing; `end` is the byte behind the last one that will be read.
    Raises SourceError for a file that is gone, too short, or another one than before.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if end is not None and end > status.st_size:
            raise SourceError(f"{path} is truncated: it ends at {status.st_size}, {end} are needed")
        _compare(path, identity, status)
        yield descriptor
        if identity is not None:
            _compare(path, identity, os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _compare(path: Path, identity: FileIdentity | None, status: os.stat_result) -> None:
    if identity is not None and identity != FileIdentity.of(status):
        raise SourceError(
            f"{path} was replaced or written to while it was read: run again when nothing writes it"
        )
