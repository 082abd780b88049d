"""HubDestination: a model repository on the Hub that this machine's token may write to.

Knows accounts, rights, and the Hub's many ways of saying no, each of which becomes one line that
says what to do. The token is huggingface_hub's affair: it is never read, shown or kept here. Does
not know what is written.

    destination = find_destination("me/tiny-half", private=True)
    api.create_commit(destination.repo, ...)
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from minitron.errors import OutputError

Result = TypeVar("Result")

_BUSY = (429, 503)  # the Hub has not begun what was asked
_WAITS = (1, 2, 4, 8)  # seconds, where it does not say how long
_LONGEST_WAIT = 300
_AGAIN = "run the same command again, it sends only what is missing"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class HubDestination:
    """Where to push: an id with its owner, and whether something is there already."""

    repo: str
    exists: bool


def hub_api() -> HfApi:
    """The Hub's own client, which says who is asking."""
    return HfApi(library_name="minitron", library_version=version("minitron"))


def is_repo_id(name: str) -> bool:
    """Whether the Hub would take it for a repository's id."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def find_destination(
    repo: str, *, private: bool = False, create_pr: bool = False
) -> HubDestination:
    """Check that `repo` (owner/name, or a name of one's own) can be pushed to; changes nothing.

    Raises OutputError: no token, one that only reads, an invalid name, an owner that is another,
    a Space or data set of that name, a public repository that is to be private, no connection.
    """
    if not is_repo_id(repo):
        raise OutputError(
            f"{repo} is no name for a repository: owner/name, of letters, digits, '-', '_' and '.'"
        )
    api = hub_api()
    with speaking_of(repo):
        account = patiently(api.whoami)
        name = repo if "/" in repo else f"{account['name']}/{repo}"
        _check_token_writes(account)
        there = _visibility(api, name)
        if there is None:
            if create_pr:
                raise OutputError(f"there is no {name} to open a pull request on: check the name")
            _check_new(api, name, account)
            return HubDestination(name, exists=False)
        if private and there == "public":
            raise OutputError(f"{name} is public already: push without --private, or elsewhere")
        if not create_pr:
            patiently(lambda: api.auth_check(name, write=True))
    return HubDestination(name, exists=True)


def patiently(ask: Callable[[], Result]) -> Result:
    """What the Hub answers, asked again as long as it says that it is too busy."""
    for wait in _WAITS:
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code not in _BUSY:
                raise
            told = error.response.headers.get("Retry-After", "")
            time.sleep(min(int(told) if told.isdigit() else wait, _LONGEST_WAIT))
    return ask()


@contextmanager
def speaking_of(repo: str) -> Iterator[None]:
    """Turn whatever goes wrong between us and the Hub into an OutputError of one line."""
    try:
        yield
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"cannot push to {repo}: {_reason(error, repo)}") from error


def _check_token_writes(account: dict[str, Any]) -> None:
    token = account.get("auth", {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise OutputError(
            f"the token of {account['name']} may only read: make one that may write at "
            "https://huggingface.co/settings/tokens, and log in with it"
        )


def _visibility(api: HfApi, repo: str, repo_type: str = "model") -> str | None:
    """ "private" or "public"; None where there is no such repository."""
    try:
        info = patiently(lambda: api.repo_info(repo, repo_type=repo_type))
    except RepositoryNotFoundError:
        return None
    return "private" if info.private else "public"


def _check_new(api: HfApi, repo: str, account: dict[str, Any]) -> None:
    """Refuse an owner that the account is not, and a name that another kind of thing has."""
    owner = repo.partition("/")[0]
    owners = [account["name"], *(org["name"] for org in account.get("orgs", []))]
    if owner not in owners:
        raise OutputError(
            f"{repo} is not there, and {account['name']} cannot make it: name one of "
            + ", ".join(f"{name}/..." for name in owners)
        )
    for repo_type, called in (("space", "a Space"), ("dataset", "a data set")):
        if _visibility(api, repo, repo_type) is not None:
            raise OutputError(f"{repo} is {called} already: choose another name for the model")


def _reason(error: BaseException, repo: str) -> str:
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
        return f"the token may not write to {repo}; use one that may"
    if status in _BUSY:
        return f"the Hub is too busy (HTTP {status}); wait, and {_AGAIN}"
    if status >= 500:
        return f"the Hub fails (HTTP {status}); {_AGAIN}"
    if isinstance(error, RevisionNotFoundError):
        return "the revision is not there; check it"
    told = error.server_message or error.response.headers.get("X-Error-Message") or str(error)
    return f"the Hub says: {_first_line(told)}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
