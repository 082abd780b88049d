"""Cached reading: a file in pieces, of which the last few are kept in memory.

A file on the Hub is read piece by piece, in several threads and side by side with others, yet each
of its bytes is requested once. Python's own readers of zips, tars and pickles read a few bytes at a
time through a `Cursor`.

    pickle = Cursor(CachedFile(hub_file))
"""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from minitron.files.file import File

BLOCK = 1 << 16  # bytes of a piece of what describes tensors: headers, pickles, directories
WINDOW = 1 << 24  # bytes of a piece of a tensor
KEPT = 1 << 27  # bytes: eight windows, of a few tensors that are read side by side
SMALL = 1 << 18  # bytes: a row or two of a larger tensor are requested alone


class PieceCache:
    """The pieces read last, of any number of files; threads that need one piece wait for it."""

    def __init__(self, piece: int | None = None) -> None:
        """`piece` is the size of each in bytes: WINDOW, as tensors are read, unless it is given."""
        self.piece = WINDOW if piece is None else piece
        self._most = max(1, KEPT // self.piece)
        self._pieces: OrderedDict[tuple[File, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: object) -> bool:
        return key in self._pieces

    def get(self, key: tuple[File, int], read: Callable[[], bytes]) -> bytes:
        """The piece of this file at this offset; `read` is called where it is not kept."""
        # The first thread reads it, outside the lock; the others wait for its future.
        with self._lock:
            kept = self._pieces.get(key)
            if kept is not None:
                self._pieces.move_to_end(key)
            else:
                coming = self._pieces[key] = Future[bytes]()
                while len(self._pieces) > self._most:
                    self._pieces.popitem(last=False)
        if kept is not None:
            return kept.result()
        try:
            coming.set_result(read())
        except BaseException as error:
            with self._lock:
                self._pieces.pop(key, None)
            coming.set_exception(error)
        return coming.result()


class CachedFile(File):
    """A file that is read in pieces, which are counted from its first byte.

    With a cache of its own the pieces are blocks, and the missing ones of a read come at once. With
    one that files share they are windows: each is read alone, since a tensor may exceed memory, and
    a read of less than SMALL bytes is not widened to a window.
    """

    def __init__(self, file: File, shared: PieceCache | None = None) -> None:
        self.file, self.name, self.size = file, file.name, file.size
        self._pieces = shared or PieceCache(BLOCK)
        self._is_shared = shared is not None

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the bytes from `start` on."""
        stop, piece = start + len(target), self._pieces.piece
        self.check_end(stop)
        if not self._is_shared and len(target) >= WINDOW:
            self.file.read_into(target, start)
            return
        if not self._is_shared:
            self._read_missing(start, stop)
        # A row by which a model is recognized must not cost a window of 16 MiB.
        is_small = self._is_shared and len(target) < SMALL < self.size
        for at in range(start - start % piece, stop, piece):
            low, high = max(start, at), min(stop, at + piece)
            part = target[low - start : high - start]
            if is_small and (self.file, at) not in self._pieces:
                self.file.read_into(part, low)
            else:
                part[:] = memoryview(self._piece(at))[low - at : high - at]  # no copy

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop)."""
        stop = self.size if stop is None else stop
        at = start - start % self._pieces.piece
        if stop <= min(at + self._pieces.piece, self.size) and (self.file, at) in self._pieces:
            return self._piece(at)[start - at : stop - at]  # quickly: pickles are read byte by byte
        return super().read(start, stop)

    def _piece(self, at: int) -> bytes:
        stop = min(at + self._pieces.piece, self.size)
        return self._pieces.get((self.file, at), lambda: self.file.read(at, stop))

    def _read_missing(self, start: int, stop: int) -> None:
        """Read from the first missing block to the last: one request is quicker than two."""
        block = self._pieces.piece
        every = range(start - start % block, stop, block)
        missing = [at for at in every if (self.file, at) not in self._pieces]
        if len(missing) > 1:
            content = self.file.read(missing[0], min(missing[-1] + block, self.size))
            for at in missing:
                own = content[at - missing[0] :][:block]
                self._pieces.get((self.file, at), lambda own=own: own)  # type: ignore[misc]


class Cursor(io.RawIOBase):
    """A file with a position. Closing it changes nothing."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.file.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self.position = base + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        # Never more than is there: a damaged length must not become an allocation.
        left = max(self.file.size - self.position, 0)
        size = left if size < 0 else min(size, left)
        self.position += size
        return self.file.read(self.position - size, self.position) if size else b""

    def readline(self, size: int | None = -1) -> bytes:
        line = self.read(4096 if size is None or size < 0 else size)
        end = line.find(b"\n") + 1 or len(line)
        self.position -= len(line) - end
        return line[:end]
