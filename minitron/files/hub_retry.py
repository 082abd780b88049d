"""Patience: how long a conversation with the Hub may wait, whoever waits in it.

huggingface_hub asks again where the Hub is busy, waits as long as it is told to, and sets no limit
to many of its requests. Here is the limit, for all of them:

- The Hub counts requests in windows of five minutes, so an honest wait is no longer: one that is
  longer is refused, and so are waits that add up to two windows in which nothing was answered.
- A transfer that brings less than 4 KiB in 60 seconds of waiting for it has stalled: a modem
  brings a hundred times as much.
- A request whose sender sets no limit to silence may be silent for a minute, or for two where it
  changes something.

Knows the client of huggingface_hub; acts only while a block of `bounded_waiting` runs.

    with bounded_waiting():
        HfApi().list_repo_files("nvidia/Minitron-8B-Base")
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http, parse_ratelimit_headers  # type: ignore[attr-defined]

from minitron.files.hub_errors import BUSY, CHECK, HubAnswerError, HubWaitError

logger = logging.getLogger(__name__)

LONGEST_WAIT = 300  # seconds
LEAST_BYTES, STALLED_AFTER = 4096, 60  # seconds
_SILENCE, _SILENCE_OF_CHANGES = 60, 120  # seconds
_CONNECTING = 30  # seconds
_TOLD = 2  # seconds: a shorter wait is not worth a line
_UNTHINKABLE = 10**9  # seconds, of a number with too many digits

_COMMIT = "X-Repo-Commit"
_NAME = re.compile(r"[^/\\\x00-\x20\x7f]{1,200}")

_lock = threading.Lock()


class _Conversations:
    """How many blocks run, and since when the Hub answers none of their requests."""

    def __init__(self) -> None:
        self.running = 0
        self.busy_since: float | None = None

    def check_wait(self, seconds: int, status: int) -> None:
        """Refuse a wait that is too long, or with which the Hub would be busy for too long."""
        now = time.monotonic()
        with _lock:
            is_first = self.busy_since is None
            since = self.busy_since = now if self.busy_since is None else self.busy_since
        if seconds > LONGEST_WAIT or now + seconds > since + 2 * LONGEST_WAIT:
            waited = "" if is_first else f" after {_spoken(now - since)} of waiting"
            raise HubWaitError(
                f"the Hub asks to wait {_spoken(seconds)} (HTTP {status}){waited}, and minitron "
                f"waits {_spoken(LONGEST_WAIT)} at most; try again then, it goes on with what is "
                "missing"
            )
        if seconds >= _TOLD:
            logger.warning("the Hub asks to wait %s (HTTP %d): waiting", _spoken(seconds), status)

    def heard(self) -> None:
        """The Hub has answered."""
        with _lock:
            self.busy_since = None


_CONVERSATIONS = _Conversations()


@contextmanager
def bounded_waiting() -> Iterator[None]:
    """Bound every wait for the Hub in this block. Raises HubWaitError, an OSError, within it."""
    _watch_client()
    with _lock:
        if _CONVERSATIONS.running == 0:
            _CONVERSATIONS.busy_since = None
        _CONVERSATIONS.running += 1
    try:
        yield
    finally:
        with _lock:
            _CONVERSATIONS.running -= 1


def asked_wait(response: httpx2.Response) -> int | None:
    """The seconds that an answer asks to wait, as huggingface_hub reads it; None if it does not."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    told = response.headers.get("Retry-After", "").strip()
    if not (told.isascii() and told.isdigit()):
        return None
    return int(told) if len(told) < 10 else _UNTHINKABLE


class _WatchedFactory:
    """Makes the clients that another factory makes, and watches them."""

    def __init__(self, make: Callable[[], httpx2.Client]) -> None:
        self._make = make

    def __call__(self) -> httpx2.Client:
        client = self._make()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _limit_silence],
            "response": [*hooks["response"], _check_answer],
        }
        return client


def _watch_client() -> None:
    """Have huggingface_hub make watched clients from now on, by the user's own factory if set."""
    # There is no public way to ask for it, and a proxy that the user has set is to stay.
    make: Any = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    if not isinstance(make, _WatchedFactory):
        set_client_factory(_WatchedFactory(make))


def _limit_silence(request: httpx2.Request) -> None:
    """Set the limits that the request's sender left open."""
    if not _CONVERSATIONS.running:
        return
    silence = _SILENCE if request.method in ("GET", "HEAD") else _SILENCE_OF_CHANGES
    limits = {"connect": _CONNECTING, "pool": silence, "read": silence, "write": silence}
    asked = request.extensions.get("timeout") or {}
    set_ones = {key: limit for key, limit in asked.items() if limit is not None}
    request.extensions = {**request.extensions, "timeout": {**limits, **set_ones}}


def _check_answer(response: httpx2.Response) -> None:
    """Refuse a wait that is too long, and watch how the body comes."""
    if not _CONVERSATIONS.running:
        return
    _check_names(response)
    wait = asked_wait(response)
    if response.status_code in BUSY or response.status_code >= 500:
        _CONVERSATIONS.check_wait(wait or 0, response.status_code)
    elif wait is not None and response.status_code == 408:
        _CONVERSATIONS.check_wait(wait, response.status_code)
    elif response.status_code < 400:
        _CONVERSATIONS.heard()
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _WatchedStream(response.stream)


def _check_names(response: httpx2.Response) -> None:
    """Refuse what huggingface_hub would call a file or folder of its cache, where it is no name."""
    if _COMMIT not in response.headers:
        return
    for key in (_COMMIT, "X-Linked-Etag", "ETag"):
        told = response.headers.get(key, "_").removeprefix("W/").strip('"')
        if told in (".", "..") or not _NAME.fullmatch(told):
            raise HubAnswerError(f"its answer has {told!r:.40} as {key}, which is none; {CHECK}")


class _WatchedStream(httpx2.SyncByteStream):
    """A body that must keep coming; what its reader does between the parts costs it no time."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        parts = iter(self._stream)
        came, waited, total = 0, 0.0, 0
        while True:
            begun = time.monotonic()
            part = next(parts, None)
            waited += time.monotonic() - begun
            if part is None:
                return
            came, total = came + len(part), total + len(part)
            if waited >= STALLED_AFTER:
                if came < LEAST_BYTES:
                    raise HubWaitError(
                        f"the transfer has stalled: {came:,} bytes came in {_spoken(waited)} "
                        f"({total:,} before that and with it); try again, it goes on with what "
                        "is missing"
                    )
                came, waited = 0, 0.0
            yield part

    @property
    def elapsed(self) -> Any:
        """What the connection's own has measured."""
        return getattr(self._stream, "elapsed", None)

    def close(self) -> None:
        """Close the connection's own."""
        self._stream.close()


def _spoken(seconds: float) -> str:
    """A duration as people say it."""
    if seconds >= _UNTHINKABLE:
        return "years"
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or seconds == length:
            count = round(seconds / length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{round(seconds)} s"
