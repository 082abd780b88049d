"""Termination: a process that is asked to end cleans up first.

Python ends at once on SIGTERM and SIGHUP, without `finally` and `atexit`: temporary folders stay.

    with exit_on_termination(), TemporaryDirectory() as folder:
        serve(folder)
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@contextmanager
def exit_on_termination() -> Iterator[None]:
    """Turn these signals into SystemExit within the block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _exit) for number in _numbers()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    for each in _numbers():
        signal.signal(each, signal.SIG_IGN)  # a second one does not interrupt the cleaning
    raise SystemExit(128 + number)


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
