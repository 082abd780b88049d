"""A large file somewhere else, of which only the pieces that are read come to this machine.

A sparse file of the same size stands in for it; whoever reads it asks for the bytes first. Knows
nothing of where they come from. The stand-in lives as long as anything refers to its path.

    path = stand_in(size, lambda start, stop: download(start, stop))
    bring(path, 0, 512)
    path.open("rb").read(512)
"""

import os
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PosixPath

BLOCK = 1 << 16  # bytes that come together


class PartialPath(PosixPath):
    """The path of a stand-in."""

    # Not set by __init__: paths derived from this one stand for nothing.
    fetch: Callable[[int, int], bytes]
    size: int
    present: set[int]  # blocks


def stand_in(size: int, fetch: Callable[[int, int], bytes]) -> PartialPath:
    """A file of `size` bytes, empty until they are asked for; fetch(start, stop) gives them."""
    descriptor, name = tempfile.mkstemp(prefix="minitron-", suffix=".partial")
    os.truncate(descriptor, size)
    os.close(descriptor)
    path = PartialPath(name)
    path.fetch, path.size, path.present = fetch, size, set()
    weakref.finalize(path, _unlink, name)
    return path


def bring(path: Path, start: int, stop: int) -> None:
    """Make bytes [start, stop) readable, where `path` is that of a stand-in."""
    if not isinstance(path, PartialPath) or not hasattr(path, "fetch"):
        return
    blocks = range(start // BLOCK, -(-min(stop, path.size) // BLOCK))
    missing = [block for block in blocks if block not in path.present]
    if missing:
        # What lies between two missing blocks comes again: one request is quicker than two.
        first, last = missing[0] * BLOCK, min((missing[-1] + 1) * BLOCK, path.size)
        with path.open("r+b") as file:
            file.seek(first)
            file.write(path.fetch(first, last))
        path.present.update(missing)


def _unlink(name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name)
