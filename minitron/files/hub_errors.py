"""Errors of the Hub, each as one line that says what to do.

Knows the exceptions of huggingface_hub. Addresses are left out: those of the Hub's storage are
signed, and such a signature is as good as a token while it is valid.

    reason(error, "nvidia/Minitron-8B-Base")
"""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)


class HubWaitError(OSError):
    """The Hub asks for a longer wait than is accepted, or sends almost nothing."""


class HubUnreachableError(OfflineModeIsEnabled):
    """No connection to the Hub can be made, and none was made before."""


class HubAnswerError(ValueError):
    """The answer of the Hub, or of what answers in its place, does not follow its interface."""


# What huggingface_hub raises where the Hub, the network or an argument is at fault.
HUB_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError)
BUSY = (429, 503)  # HTTP: the Hub has not started the request
FAILING = (500, 502, 504)  # HTTP: the Hub may have done what was requested

# What huggingface_hub raises when it parses an answer whose JSON has other types than it expects,
# or lacks a key.
_MISREAD = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NameError,
    TypeError,
)

# OS errors of a cache that is full, read-only or no folder.
_FULL = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC)
_NO_PLACE = (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EPERM)
_DISK = frozenset((*_FULL, *_NO_PLACE, errno.EROFS))
_AGAIN = "try again, it goes on with what is missing"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
CHECK = "check HF_ENDPOINT and the proxy, or try again later"


@contextmanager
def answer_errors() -> Iterator[None]:
    """Raise HubAnswerError where one call of huggingface_hub, and no code of ours, misreads."""
    try:
        yield
    except _MISREAD as error:
        raise HubAnswerError(
            f"its answer is not what the Hub's interface says ({type(error).__name__}: "
            f"{_first_line(str(error))[:100]}); {CHECK}"
        ) from error


def required_text(value: object, what: str) -> str:
    """`value`, which an answer must have as text without control characters."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise HubAnswerError(f"its answer has {value!r:.40} as {what}, which is no name; {CHECK}")
    return value


def reason(error: BaseException, repo: str) -> str:
    """Why the request failed, and what to do."""
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token; {_LOG_IN}"
    if isinstance(error, HubUnreachableError):
        return "the Hub cannot be reached; check the connection, HF_ENDPOINT and the proxy"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    for cause in _causes(error):
        if isinstance(cause, HubWaitError | HubAnswerError):
            return str(cause)
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, repo)
        if isinstance(cause, httpx2.HTTPError | httpx2.InvalidURL):
            return _connection_error(cause)
        if isinstance(cause, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            return f"its answer is no JSON, as a proxy's or a login page's would be; {CHECK}"
        if isinstance(cause, _MISREAD):
            return f"its answer is not what the Hub's interface says; {CHECK}"
    text = _first_line(str(error)).rstrip(".:; ")[:200] or type(error).__name__
    return f"{text}; {_remedy(error)}"


def _remedy(error: BaseException) -> str:
    """What to do about an error that is neither of the Hub nor of the connection."""
    if isinstance(error, HFValidationError):
        return "check the name"
    if any(isinstance(cause, OSError) and cause.errno in _DISK for cause in _causes(error)):
        return "make room on the disk, or set HF_HOME to a folder where files can be written"
    return CHECK


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _connection_error(error: Exception) -> str:
    """Why a request failed that has no answer."""
    if isinstance(error, httpx2.TooManyRedirects | httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return f"it sends from address to address without end, or to none; {CHECK}"
    if isinstance(error, httpx2.DecodingError):
        return f"its answer is compressed and damaged; {_AGAIN}"
    if isinstance(error, httpx2.TimeoutException):
        return f"the Hub cannot be reached, or sent nothing for too long; {_AGAIN}"
    return f"the Hub cannot be reached or broke off; {_AGAIN}"


def _refusal(error: HfHubHTTPError, repo: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub refuses the token; {_LOG_IN}"
    if status == 403:
        return f"the token may not do that to {repo}; use one that may"
    if status == 412:
        return f"{repo} has changed meanwhile; {_AGAIN}"
    if status in BUSY:
        return f"the Hub is too busy (HTTP {status}); wait, and {_AGAIN}"
    if status >= 500:
        return f"the Hub fails (HTTP {status}); {_AGAIN}"
    if isinstance(error, RevisionNotFoundError):
        return "the revision is not there; check it"
    text = error.server_message or error.response.headers.get("X-Error-Message")
    return f"the Hub says: {_first_line(text)}" if text else f"the Hub answers HTTP {status}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
