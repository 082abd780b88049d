"""Retries of requests to the Hub, and how long they may wait.

huggingface_hub repeats a request while the Hub is busy, waits as long as the Hub asks, and sets no
timeout for many of its requests. The limits here hold for all of them:

- The Hub counts requests in windows of five minutes, so no reasonable wait is longer: a longer one
  is refused, and so are waits that add up to two windows in which nothing was answered.
- A transfer that receives less than 4 KiB in 60 seconds has stalled: a modem receives a hundred
  times as much.
- A request without a timeout gets one: a minute without data, or two where it changes something.
- A Hub that has answered nothing so far and cannot be connected to is not asked again: there is no
  network, or the address is wrong. Once it has answered, such a failure may pass.

Knows the client of huggingface_hub; the limits hold only inside a block of `bounded_waiting`.

    with bounded_waiting():
        retry(lambda: HfApi().list_repo_files("nvidia/Minitron-8B-Base"))
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http, parse_ratelimit_headers  # type: ignore[attr-defined]

from minitron.files.hub_errors import (
    BUSY,
    CHECK,
    FAILING,
    HubAnswerError,
    HubUnreachableError,
    HubWaitError,
    answer_errors,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LONGEST_WAIT = 300  # seconds
LEAST_BYTES, STALLED_AFTER = 4096, 60  # seconds
_WAITS = (1, 2, 4, 8)  # seconds before each retry, where the Hub does not say how long
_MOST_FAILURES = 2  # retries of a change that the Hub may have made although it failed
_READ_TIMEOUT, _CHANGE_TIMEOUT, _CONNECT_TIMEOUT = 60, 120, 30  # seconds
_LOGGED_FROM = 2  # seconds: a shorter wait is not logged
_YEARS = 10**9  # seconds, for a number with too many digits

_COMMIT = "X-Repo-Commit"
_NAME = re.compile(r"[^/\\\x00-\x20\x7f]{1,200}")

_lock = threading.Lock()


def retry(request: Callable[[], Result], *, is_safe: bool = True, is_read: bool = False) -> Result:
    """What the Hub answers; the request is repeated while the Hub says that it is too busy.

    Where the Hub fails (HTTP 500, 502, 504) it may have done what was asked: twice more at most,
    and only if `is_safe`, as of a change that is harmless when it was made already. A request that
    `is_read` changes nothing: it is also repeated where the connection breaks off.
    """
    failures = 0
    for wait in _WAITS:
        seconds: int | None = None
        try:
            with answer_errors():
                return request()
        except httpx2.TransportError:
            if not is_read:
                raise
        except HfHubHTTPError as error:
            status = error.response.status_code
            failures += status in FAILING
            is_repeated = is_read or (is_safe and failures <= _MOST_FAILURES)
            if status not in BUSY and not (is_repeated and status in FAILING):
                raise
            seconds = requested_wait(error.response)
            if seconds is None:
                logger.info("HTTP %d from the Hub: trying again in %d s", status, wait)
        time.sleep(wait if seconds is None else min(seconds, LONGEST_WAIT))
    with answer_errors():
        return request()


class _Waiting:
    """How many blocks run, since when the Hub has answered none of their requests, and whether it
    has ever answered this process."""

    def __init__(self) -> None:
        self.blocks = 0
        self.busy_since: float | None = None
        self.has_answered = False

    def check_wait(self, seconds: int, status: int) -> None:
        """Refuse a wait that is too long, or with which the Hub would be busy for too long."""
        now = time.monotonic()
        with _lock:
            is_first = self.busy_since is None
            since = self.busy_since = now if self.busy_since is None else self.busy_since
        if seconds > LONGEST_WAIT or now + seconds > since + 2 * LONGEST_WAIT:
            waited = "" if is_first else f" after {_duration(now - since)} of waiting"
            raise HubWaitError(
                f"the Hub asks to wait {_duration(seconds)} (HTTP {status}){waited}, and minitron "
                f"waits {_duration(LONGEST_WAIT)} at most; try again then, it goes on with what is "
                "missing"
            )
        if seconds >= _LOGGED_FROM:
            logger.warning("the Hub asks to wait %s (HTTP %d): waiting", _duration(seconds), status)

    def reset(self) -> None:
        """Forget the waits: the Hub has answered."""
        with _lock:
            self.busy_since = None


_WAITING = _Waiting()


@contextmanager
def bounded_waiting() -> Iterator[None]:
    """Bound every wait for the Hub in this block. Raises HubWaitError, an OSError, within it."""
    _limit_clients()
    with _lock:
        if _WAITING.blocks == 0:
            _WAITING.busy_since = None
        _WAITING.blocks += 1
    try:
        yield
    finally:
        with _lock:
            _WAITING.blocks -= 1


def requested_wait(response: httpx2.Response) -> int | None:
    """The seconds that an answer asks to wait, as huggingface_hub reads it; None if it does not."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    seconds = response.headers.get("Retry-After", "").strip()
    if not (seconds.isascii() and seconds.isdigit()):
        return None
    return int(seconds) if len(seconds) < 10 else _YEARS


class _LimitedFactory:
    """Makes the clients of another factory, with the limits added to them."""

    def __init__(self, make: Callable[[], httpx2.Client]) -> None:
        self._make = make

    def __call__(self) -> httpx2.Client:
        client = self._make()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _add_timeouts],
            "response": [*hooks["response"], _check_answer],
        }
        client.send = _checked_send(client.send)  # type: ignore[method-assign]
        return client


def _limit_clients() -> None:
    """Let huggingface_hub make limited clients from now on, by the user's own factory if set."""
    # There is no public way to ask for it, and a proxy that the user has set is to stay.
    make: Any = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    if not isinstance(make, _LimitedFactory):
        set_client_factory(_LimitedFactory(make))


def _checked_send(send: Callable[..., httpx2.Response]) -> Callable[..., httpx2.Response]:
    """A client's `send`, which raises HubUnreachableError where trying again is of no use.

    huggingface_hub repeats any failure of the network, for 23 seconds and with six warnings, but
    not an OfflineModeIsEnabled: it then reads what is in the cache.
    """

    def checked(*args: Any, **options: Any) -> httpx2.Response:
        try:
            response = send(*args, **options)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            if not _WAITING.blocks or _WAITING.has_answered:
                raise
            raise HubUnreachableError(str(error)) from error
        _WAITING.has_answered = True
        return response

    return checked


def _add_timeouts(request: httpx2.Request) -> None:
    """Set the timeouts that the request does not set."""
    if not _WAITING.blocks:
        return
    seconds = _READ_TIMEOUT if request.method in ("GET", "HEAD") else _CHANGE_TIMEOUT
    limits = {"connect": _CONNECT_TIMEOUT, "pool": seconds, "read": seconds, "write": seconds}
    given = request.extensions.get("timeout") or {}
    limits |= {key: limit for key, limit in given.items() if limit is not None}
    request.extensions = {**request.extensions, "timeout": limits}


def _check_answer(response: httpx2.Response) -> None:
    """Refuse a wait that is too long, and limit how slowly the body may arrive."""
    if not _WAITING.blocks:
        return
    _check_names(response)
    wait = requested_wait(response)
    if response.status_code in BUSY or response.status_code >= 500:
        _WAITING.check_wait(wait or 0, response.status_code)
    elif wait is not None and response.status_code == 408:
        _WAITING.check_wait(wait, response.status_code)
    elif response.status_code < 400:
        _WAITING.reset()
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _LimitedStream(response.stream)


def _check_names(response: httpx2.Response) -> None:
    """Refuse headers that huggingface_hub would use as file names in its cache, and are none."""
    if _COMMIT not in response.headers:
        return
    for key in (_COMMIT, "X-Linked-Etag", "ETag"):
        name = response.headers.get(key, "_").removeprefix("W/").strip('"')
        if name in (".", "..") or not _NAME.fullmatch(name):
            raise HubAnswerError(f"its answer has {name!r:.40} as {key}, which is none; {CHECK}")


class _LimitedStream(httpx2.SyncByteStream):
    """A body that must keep arriving; the time that its reader takes is not counted."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        parts = iter(self._stream)
        received, waited, total = 0, 0.0, 0
        while True:
            start = time.monotonic()
            part = next(parts, None)
            waited += time.monotonic() - start
            if part is None:
                return
            received, total = received + len(part), total + len(part)
            if waited >= STALLED_AFTER:
                if received < LEAST_BYTES:
                    raise HubWaitError(
                        f"the transfer has stalled: {received:,} bytes came in {_duration(waited)} "
                        f"({total:,} before that and with it); try again, it goes on with what "
                        "is missing"
                    )
                received, waited = 0, 0.0
            yield part

    @property
    def elapsed(self) -> Any:
        """As the connection has measured it."""
        return getattr(self._stream, "elapsed", None)

    def close(self) -> None:
        """Close the connection's stream."""
        self._stream.close()


def _duration(seconds: float) -> str:
    """A duration in words."""
    if seconds >= _YEARS:
        return "years"
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or seconds == length:
            count = round(seconds / length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{round(seconds)} s"
