"""Files: bytes with a name and a size, read by ranges, wherever they are.

`LocalFile` is a file of this machine or a range of one; `Window` is a range of any other file.
Those of the Hub are in `hub_repository`. Knows no format.

    LocalFile.at(Path("model.safetensors")).read(0, 8)
"""

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from minitron.errors import SourceError


class File(ABC):
    """Bytes that are read by ranges. Every method raises SourceError for what cannot be read."""

    name: str  # in error messages
    size: int  # bytes

    @abstractmethod
    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the bytes from `start` on."""

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop)."""
        stop = self.size if stop is None else stop
        self.check_end(stop)
        content = bytearray(stop - start)
        self.read_into(memoryview(content), start)
        return bytes(content)

    def window(self, start: int, size: int, name: str | None = None) -> "File":
        """Bytes [start, start + size) as a file of their own."""
        self.check_window(start, size)
        return Window(self, start, size, name or self.name)

    def check_window(self, start: int, size: int) -> None:
        """Refuse a window that leaves the file."""
        assert start >= 0 <= size, (start, size)
        self.check_end(start + size)

    def check_end(self, end: int) -> None:
        """Refuse a file that is shorter than `end` bytes."""
        if end > self.size:
            raise SourceError(f"{self.name} is truncated: it ends at {self.size}, {end} are needed")


@dataclass(frozen=True)
class Window(File):
    """Bytes [start, start + size) of another file."""

    file: File
    start: int
    size: int
    name: str = field(compare=False)

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the bytes from `start` on."""
        self.check_end(start + len(target))
        self.file.read_into(target, self.start + start)

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop)."""
        stop = self.size if stop is None else stop
        self.check_end(stop)
        return self.file.read(self.start + start, self.start + stop)


class FileIdentity(NamedTuple):
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    nbytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        """The identity of a file by its status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class LocalFile(File):
    """A file of this machine, or bytes [start, start + size) of one.

    A trainer or rsync may replace or rewrite a checkpoint while it is read; pieces read before and
    after are of two models. So the file's identity is compared at every read.
    """

    path: Path
    start: int
    size: int
    name: str = field(compare=False)
    identity: FileIdentity = field(compare=False, repr=False)
    owner: object = field(default=None, compare=False, repr=False)  # deletes a temporary file

    @classmethod
    def at(cls, path: Path, name: str | None = None, *, owner: object = None) -> "LocalFile":
        """The file at a path, which errors call `name`; `owner` lives as long as any part of it."""
        name = name or str(path)
        try:
            status = path.stat()
        except OSError as error:
            raise SourceError(f"{name} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            reason = os.strerror(errno.EISDIR) if is_folder else "it is no regular file"
            raise SourceError(f"{name} cannot be read: {reason}")
        return cls(path, 0, status.st_size, name, FileIdentity.of(status), owner)

    @property
    def nbytes(self) -> int:
        """The size, by the name that tensors have for theirs."""
        return self.size

    def window(self, start: int, size: int, name: str | None = None) -> "LocalFile":
        """Bytes [start, start + size) as a file of their own."""
        self.check_window(start, size)
        return replace(self, start=self.start + start, size=size, name=name or self.name)

    @contextmanager
    def open(self) -> Iterator[int]:
        """A descriptor of the whole file; its identity is compared before and after.

        Raises SourceError for a file that is gone, too short, or another one than before.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read: {error.strerror}") from None
        try:
            self._compare(os.fstat(descriptor))
            yield descriptor
            self._compare(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the bytes from `start` on."""
        self.check_end(start + len(target))
        offset = self.start + start
        try:
            with self.open() as descriptor:
                while target:
                    done = os.preadv(descriptor, [target], offset)
                    if done == 0:
                        raise SourceError(f"{self.name} is truncated: it ends at {offset}")
                    target, offset = target[done:], offset + done
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read: {error.strerror}") from None

    def _compare(self, status: os.stat_result) -> None:
        end = self.start + self.size
        if status.st_size < end:
            raise SourceError(
                f"{self.name} is truncated: it ends at {status.st_size}, {end} are needed"
            )
        if self.identity != FileIdentity.of(status):
            raise SourceError(
                f"{self.name} was replaced or written to while it was read: run again when "
                "nothing writes it"
            )
