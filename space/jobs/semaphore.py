"""Turns: who computes next, when more visitors ask than there are cores.

One turn is one decoding step or one measurement. Turns are given in the order they were asked for,
so that twenty visitors on two cores all see their text grow, and no more threads compute than can.

    with turns.turn():
        model(...)
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minitron.surroundings import cores


class Turns:
    """First come, first served, for `slots` at once."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and hold it."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    def _begin(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def _end(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # the slot goes from hand to hand
            else:
                self._free += 1


def turns_of_this_machine() -> Turns:
    """A turn a core, each of one thread; on a GPU one at a time, in the device's own order."""
    if torch.cuda.is_available():
        return Turns(1)
    torch.set_num_threads(1)
    return Turns(cores())
