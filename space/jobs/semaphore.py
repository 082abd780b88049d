"""Semaphore: which request computes next, when visitors are more than processor cores.

One slot is held for one decoding step or one measurement. Slots are given in the order of asking,
so that the texts of twenty visitors on two cores all grow, and no more threads compute than can.

    with semaphore.slot():
        model(...)
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minitron.surroundings import cores


class FairSemaphore:
    """First come, first served, for `slots` at once. threading.Semaphore keeps no order."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for a slot and hold it."""
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _acquire(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def _release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # that thread holds the slot now
            else:
                self._free += 1


def compute_semaphore() -> FairSemaphore:
    """One slot per core, each of one thread; on a GPU one slot, as the device works in order."""
    if torch.cuda.is_available():
        return FairSemaphore(1)
    torch.set_num_threads(1)
    return FairSemaphore(cores())
