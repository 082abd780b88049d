"""Kept results: the folders and zips that visitors had made, each until its time is over.

A result is removed when it is old, when newer ones are too many, some minutes after its visitor has
left, and with the process. Knows no model and no page.

    kept = KeptResults()
    folder = kept.new(visitor)   # a folder of its own
    kept.leave(visitor)
    kept.close()
"""

import atexit
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

KEEP_SECONDS, KEEP_RESULTS = 3600.0, 8
LEFT_SECONDS = 300.0  # that a result outlives its visitor: a phone that sleeps comes back


@dataclass
class _Kept:
    """Whose result it is, and when it goes (time.monotonic)."""

    visitor: str | None
    end: float


class KeptResults:
    """Folders under one temporary place, which nothing else may be in."""

    def __init__(self, seconds: float = KEEP_SECONDS, most: int = KEEP_RESULTS) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="minitron-space-")).resolve()
        self._seconds, self._most = seconds, most
        self._kept: dict[Path, _Kept] = {}  # the oldest first
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        atexit.register(self.close)

    def new(self, visitor: str | None = None) -> Path:
        """An empty folder; the oldest results go where they would be too many."""
        with self._lock:
            while len(self._kept) >= self._most:
                self._remove(next(iter(self._kept)))
            path = Path(tempfile.mkdtemp(dir=self.place))
            self._kept[path] = _Kept(visitor, time.monotonic() + self._seconds)
            self._wait_for_the_next()
        return path

    def remove(self, path: Path) -> None:
        """Remove one result; nothing where it is gone already."""
        with self._lock:
            self._remove(path)

    def leave(self, visitor: str | None, seconds: float = LEFT_SECONDS) -> None:
        """What this visitor had made goes in so many seconds."""
        if visitor is None:
            return
        with self._lock:
            for kept in self._kept.values():
                if kept.visitor == visitor:
                    kept.end = min(kept.end, time.monotonic() + seconds)
            self._wait_for_the_next()

    def close(self) -> None:
        """Remove everything, the place included."""
        with self._lock:
            self._kept.clear()
            self._wait_for_the_next()
        # Renamed first, so that a pruning which is still running adds nothing while it is removed.
        gone = self.place.with_name(f"{self.place.name}.gone")
        if self.place.exists():
            self.place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        atexit.unregister(self.close)

    def _sweep(self) -> None:
        """Remove what is over."""
        with self._lock:
            now = time.monotonic()
            for path in [path for path, kept in self._kept.items() if kept.end <= now]:
                self._remove(path)
            self._wait_for_the_next()

    def _remove(self, path: Path) -> None:
        if self._kept.pop(path, None) is not None:
            shutil.rmtree(path, ignore_errors=True)

    def _wait_for_the_next(self) -> None:
        """One timer, for the result that goes first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._kept:
            first = min(kept.end for kept in self._kept.values())
            self._timer = threading.Timer(max(0.0, first - time.monotonic()), self._sweep)
            self._timer.daemon = True
            self._timer.start()
