"""Why the Hub did not do what was asked, as a line that says what to do.

Knows what huggingface_hub raises. Addresses are left out: the Hub's storage signs its own, and such
a signature is as good as a token while it lasts.

    reason(error, "nvidia/Minitron-8B-Base")
"""

import httpx2
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

# What a call to huggingface_hub raises where the Hub, the net or an argument is at fault.
HUB_ERRORS = (httpx2.HTTPError, OSError, RuntimeError, ValueError)
BUSY = (429, 503)  # the Hub has not begun what was asked

_AGAIN = "try again, it goes on with what is missing"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def reason(error: BaseException, repo: str) -> str:
    """Why the Hub did not do it, and what to do."""
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token; {_LOG_IN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, httpx2.HTTPError):
        cause = cause.__cause__
    if isinstance(cause, HfHubHTTPError):
        return _refusal(cause, repo)
    if cause is not None:
        return f"the Hub cannot be reached or broke off; {_AGAIN}"
    return _first_line(str(error)) or type(error).__name__


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
    told = error.server_message or error.response.headers.get("X-Error-Message")
    return f"the Hub says: {_first_line(told)}" if told else f"the Hub answers HTTP {status}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
