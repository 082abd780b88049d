"""Progress: how much of a long piece of work is done, by one rule for all of them.

In a terminal or a notebook a bar, once the work has taken a second; a bar within another one
disappears at its end. Elsewhere, as in a log file, one line at most every 30 seconds, so none for
work that ends sooner. Both have the same facts: what, how much of how much, rate, time left.
Does not know what is counted.

    with Progress("sample", total=65_536, unit="token") as progress:
        progress.advance(256)
"""

import logging
import sys
import time
from shutil import get_terminal_size
from typing import Any

from tqdm.auto import tqdm

from minitron.errors import visible

INTERVAL = 30.0  # seconds between two lines of a log
_DELAY = 1.0  # seconds before a bar is drawn
_IS_NOTEBOOK = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)

logger = logging.getLogger(__name__)


class Progress:
    """Work of `total` units, of which `done` are done; shows nothing where not `is_shown`.

    Not locked: threads that share one call `advance` in turn.
    """

    def __init__(
        self, what: str, *, total: float, unit: str, done: float = 0, is_shown: bool = True
    ) -> None:
        self._what, self._unit = visible(what), unit
        self._begun_with, self._done, self._total = done, done, total
        self._notes: dict[str, str] = {}
        self._bar: tqdm[Any] | None = None
        self._next = float("inf")
        if is_shown and _is_watched():
            self._bar = _bar(self._what, total=total, unit=unit, done=done)
        elif is_shown:
            self._start = time.monotonic()
            self._next = self._start + INTERVAL

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, count: float = 1) -> None:
        """Count so many units as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif (now := time.monotonic()) >= self._next:
            self._next = now + INTERVAL
            logger.info("%s", self._line(now - self._start))

    def note(self, **notes: str) -> None:
        """Show a few words beside what is done, such as the last loss."""
        self._notes |= notes
        if self._bar is not None:
            self._bar.set_postfix(self._notes, refresh=False)

    def close(self) -> None:
        """End the line of the bar, so that what is printed next starts on its own."""
        if self._bar is not None:
            self._bar.close()
        self._next = float("inf")

    def _line(self, seconds: float) -> str:
        """What a log says after so many seconds."""
        rate = (self._done - self._begun_with) / seconds
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        facts = [
            f"{self._what}: {self._done:,.0f} of {self._total:,.0f} {self._unit}s{share}",
            f"{rate:,.{0 if rate >= 10 else 2}f} {self._unit}s a second",
            f"{tqdm.format_interval((self._total - self._done) / rate)} left" if rate else "",
            *(f"{key} {note}" for key, note in self._notes.items()),
        ]
        return ", ".join(filter(None, facts))


def _is_watched() -> bool:
    """Whether a person sees a bar that moves."""
    return _IS_NOTEBOOK or (sys.stderr is not None and sys.stderr.isatty())


def _bar(what: str, *, total: float, unit: str, done: float) -> "tqdm[Any]":
    """A bar of tqdm, which disappears at its end where it is within another one."""
    return tqdm(
        desc=what,
        total=total,
        initial=done,
        unit="B" if unit == "byte" else unit,
        unit_scale=True,
        delay=_DELAY,
        leave=None,
        # Where a terminal does not say its size, tqdm would take 0 lines and draw nothing.
        nrows=get_terminal_size().lines,
    )
