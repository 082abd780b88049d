"""HubDestination: a model or Space on the Hub that this machine's token may write to.

Knows accounts and their rights. The token stays within huggingface_hub: nothing here reads, prints
or stores it.

    destination = find_destination("me/tiny-half", private=True)
    api.create_commit(destination.repo, ...)
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from minitron.credentials import masked_errors
from minitron.errors import OutputError
from minitron.files.hub_errors import (
    CHECK,
    HUB_ERRORS,
    HubAnswerError,
    reason,
    required_text,
)
from minitron.files.hub_retry import Result, bounded_waiting, retry

logger = logging.getLogger(__name__)

RepoType = Literal["model", "space"]

_KINDS = {"model": "a model", "dataset": "a data set", "space": "a Space"}


@dataclass(frozen=True)
class HubDestination:
    """Where to push: an id with its owner, and whether the repository exists."""

    repo: str
    exists: bool
    is_private: bool = False
    # Accounts that the token may write to, its own first; empty where the Hub does not list them.
    owners: tuple[str, ...] = ()


@dataclass(frozen=True)
class Publication:
    """The result of a push."""

    repo: str
    commit: str  # id
    url: str  # of the commit, of the pull request, or of the Space


def hub_api() -> HfApi:
    """The client of the Hub, which sends minitron's name and version."""
    return HfApi(library_name="minitron", library_version=version("minitron"))


def is_repo_id(name: str) -> bool:
    """Whether the Hub accepts it as the id of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def find_destination(
    repo: str, *, private: bool = False, create_pr: bool = False, repo_type: RepoType = "model"
) -> HubDestination:
    """Check that one can push to `repo` (owner/name, or a name in the own account).

    Changes nothing. Raises OutputError: no token, a token that only reads, an invalid name, a
    foreign owner, a repository of another type with that name, a public repository with `private`,
    no connection.
    """
    if not is_repo_id(repo):
        raise OutputError(
            f"{repo} is no name for a repository: owner/name, of letters, digits, '-', '_' and '.'"
        )
    api = hub_api()
    with one_line_hub_errors(repo):
        account = retry_or_none(api.whoami)
        owners = _owners(account)
        if "/" not in repo and not owners:
            raise OutputError(f"{repo} has no owner: name it OWNER/{repo}")
        name = repo if "/" in repo else f"{owners[0]}/{repo}"
        _check_token_writes(account, owners)
        info = _info(api, name, repo_type)
        if info is None:
            if create_pr:
                raise OutputError(f"there is no {name} to open a pull request on: check the name")
            _check_new(api, name, owners, repo_type)
            return HubDestination(name, exists=False, owners=owners)
        if private and not info.private:
            raise OutputError(f"{name} is public already: push without --private, or elsewhere")
        if not create_pr:
            retry_or_none(lambda: api.auth_check(info.id, repo_type=repo_type, write=True))
    # The Hub's spelling of the id: `repo` may differ from it in upper and lower case.
    return HubDestination(info.id, exists=True, is_private=bool(info.private), owners=owners)


def retry_or_none(ask: Callable[[], Result]) -> Result | None:
    """The Hub's answer; None where the Hub, or a mirror, does not have such a request."""
    try:
        return retry(ask)
    except HfHubHTTPError as error:
        # For a missing repository or revision the error is of a subclass.
        if type(error) is HfHubHTTPError and error.response.status_code == 404:
            return None
        raise


@contextmanager
def one_line_hub_errors(repo: str, outcome: str | None = None) -> Iterator[None]:
    """Turn all errors of the Hub and the network into an OutputError of one line."""
    with masked_errors():
        try:
            with bounded_waiting():
                yield
        except HUB_ERRORS as error:
            raise OutputError(
                f"{outcome or f'cannot push to {repo}'}: {reason(error, repo)}"
            ) from error


def list_files(api: HfApi, repo: str, **where: Any) -> list[str]:
    """The paths of a repository's files; `where` are options of list_repo_files."""
    files = retry(lambda: api.list_repo_files(repo, **where))
    return [required_text(file, "a file's name") for file in files]


def _owners(account: object) -> tuple[str, ...]:
    """The names under which an account may create repositories: its own, its organizations'."""
    if account is None:
        return ()
    if not isinstance(account, dict):
        raise HubAnswerError(f"its answer has {account!r:.40} as the token's account; {CHECK}")
    organizations = account.get("orgs") or []
    others = organizations if isinstance(organizations, list) else []
    names = [account.get("name"), *(org.get("name") for org in others if isinstance(org, dict))]
    return tuple(required_text(name, "the name of the token's account") for name in names)


def _check_token_writes(account: Any, owners: tuple[str, ...]) -> None:
    token: Any = account
    for key in ("auth", "accessToken", "role"):
        token = token.get(key) if isinstance(token, dict) else None
    if token == "read":
        raise OutputError(
            f"the token of {owners[0]} may only read: make one that may write at "
            "https://huggingface.co/settings/tokens, and log in with it"
        )


def _info(api: HfApi, repo: str, repo_type: str) -> Any:
    """The Hub's information on a repository; None if it does not exist."""
    try:
        info = retry(lambda: api.repo_info(repo, repo_type=repo_type))
    except RepositoryNotFoundError:
        return None
    if not is_repo_id(required_text(info.id, "the repository's id")):
        raise HubAnswerError(f"its answer has {info.id!r:.40} as the repository's id; {CHECK}")
    return info


def _check_new(api: HfApi, repo: str, owners: tuple[str, ...], repo_type: RepoType) -> None:
    """Refuse a foreign owner, and a name that a repository of another type has."""
    if owners and repo.partition("/")[0] not in owners:
        raise OutputError(
            f"{repo} does not exist, and {owners[0]} cannot create it: name one of "
            + ", ".join(f"{name}/..." for name in owners)
        )
    for other in sorted(_KINDS.keys() - {repo_type}):
        if _info(api, repo, other) is not None:
            wanted = _KINDS[repo_type].removeprefix("a ")
            raise OutputError(
                f"{repo} is {_KINDS[other]} already: choose another name for the {wanted}"
            )
