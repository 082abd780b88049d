"""Some bytes of a file as a file of their own, so that a member of a plain tar is read in place."""

import io
import os
from pathlib import Path

from minitron.errors import SourceError
from minitron.files.file_identity import FileIdentity
from minitron.files.partial_file import PartialPath, bring


class FileWindow(io.RawIOBase):
    """Bytes [start, start + length) of an open file. Closing it leaves that file open."""

    def __init__(self, descriptor: int, path: Path, start: int, length: int | None) -> None:
        status = os.fstat(descriptor)
        size = status.st_size
        # A stand-in is written to while it is read.
        self.identity = None if isinstance(path, PartialPath) else FileIdentity.of(status)
        length = size - start if length is None else length
        if start < 0 or length < 0 or start + length > size:
            raise SourceError(f"{path} is truncated: {start + length} bytes needed, it has {size}")
        self.descriptor, self.path, self.start, self.length = descriptor, path, start, length
        self.position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self.position = base + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        # Never more than is there: a damaged length must not become an allocation.
        left = max(self.length - self.position, 0)
        size = left if size < 0 else min(size, left)
        bring(self.path, self.start + self.position, self.start + self.position + size)
        data = os.pread(self.descriptor, size, self.start + self.position)
        self.position += len(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        line = self.read(4096 if size is None or size < 0 else size)
        end = line.find(b"\n") + 1 or len(line)
        self.position -= len(line) - end
        return line[:end]
