"""Results: the folders of visitors' pruned models, each kept for a limited time.

A result is removed when it is old, when newer results are too many, some minutes after its visitor
has left, and when the process ends. Knows no model and no page.

    store = ResultStore()
    folder = store.create(visitor)   # a folder of its own
    store.expire(visitor)
    store.close()
"""

import atexit
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

KEEP_SECONDS, KEEP_RESULTS = 3600.0, 8
LEFT_SECONDS = 300.0  # that a result outlives its visitor: a phone that sleeps may return


@dataclass
class _Result:
    """The visitor, and when to remove the result (time.monotonic)."""

    visitor: str | None
    end: float


class ResultStore:
    """Folders within one temporary folder, `root`, which holds nothing else."""

    def __init__(self, seconds: float = KEEP_SECONDS, most: int = KEEP_RESULTS) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="minitron-space-")).resolve()
        self._seconds, self._most = seconds, most
        self._results: dict[Path, _Result] = {}  # the oldest first
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        atexit.register(self.close)

    def create(self, visitor: str | None = None) -> Path:
        """An empty folder; the oldest results are removed where they would be too many."""
        with self._lock:
            while len(self._results) >= self._most:
                self._remove(next(iter(self._results)))
            path = Path(tempfile.mkdtemp(dir=self.root))
            self._results[path] = _Result(visitor, time.monotonic() + self._seconds)
            self._set_timer()
        return path

    def remove(self, path: Path) -> None:
        """Remove one result, if it still exists."""
        with self._lock:
            self._remove(path)

    def expire(self, visitor: str | None, seconds: float = LEFT_SECONDS) -> None:
        """Remove this visitor's results after so many seconds."""
        if visitor is None:
            return
        with self._lock:
            for result in self._results.values():
                if result.visitor == visitor:
                    result.end = min(result.end, time.monotonic() + seconds)
            self._set_timer()

    def close(self) -> None:
        """Remove all results and the folder that holds them."""
        with self._lock:
            self._results.clear()
            self._set_timer()
        # Renamed first, so that a pruning that still runs adds no file while it is removed.
        removed = self.root.with_name(f"{self.root.name}.removed")
        if self.root.exists():
            self.root.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
        atexit.unregister(self.close)

    def _remove_expired(self) -> None:
        with self._lock:
            now = time.monotonic()
            for path in [path for path, result in self._results.items() if result.end <= now]:
                self._remove(path)
            self._set_timer()

    def _remove(self, path: Path) -> None:
        if self._results.pop(path, None) is not None:
            shutil.rmtree(path, ignore_errors=True)

    def _set_timer(self) -> None:
        """One timer, for the result that expires first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._results:
            first = min(result.end for result in self._results.values())
            self._timer = threading.Timer(max(0.0, first - time.monotonic()), self._remove_expired)
            self._timer.daemon = True
            self._timer.start()
