"""HubDestination: a model or Space on the Hub that this machine's token may write to.

Knows accounts, rights, and that a busy Hub is to be asked again. The token is huggingface_hub's
affair: it is never read, shown or kept here. Does not know what is written.

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

_CALLED = {"model": "a model", "dataset": "a data set", "space": "a Space"}


@dataclass(frozen=True)
class HubDestination:
    """Where to push: an id with its owner, and whether something is there already."""

    repo: str
    exists: bool
    is_private: bool = False  # already
    owners: tuple[str, ...] = ()  # that the token writes for, its own first; none where not told


@dataclass(frozen=True)
class Publication:
    """What a push has made."""

    repo: str
    commit: str  # its id
    url: str  # of the commit, of the pull request, or of the Space


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
    repo: str, *, private: bool = False, create_pr: bool = False, repo_type: RepoType = "model"
) -> HubDestination:
    """Check that `repo` (owner/name, or a name of one's own) can be pushed to; changes nothing.

    Raises OutputError: no token, one that only reads, an invalid name, an owner that is another,
    another kind of thing of that name, a public repository that is to be private, no connection.
    """
    if not is_repo_id(repo):
        raise OutputError(
            f"{repo} is no name for a repository: owner/name, of letters, digits, '-', '_' and '.'"
        )
    api = hub_api()
    with speaking_of(repo):
        account = if_told(api.whoami)
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
            if_told(lambda: api.auth_check(info.id, repo_type=repo_type, write=True))
    # Its own id, as the one asked for may be in another case.
    return HubDestination(info.id, exists=True, is_private=bool(info.private), owners=owners)


def if_told(ask: Callable[[], Result]) -> Result | None:
    """What the Hub answers; None of one, such as a mirror, that does not know the question."""
    try:
        return retry(ask)
    except HfHubHTTPError as error:
        # Those of a thing that is missing are of its subclasses.
        if type(error) is HfHubHTTPError and error.response.status_code == 404:
            return None
        raise


@contextmanager
def speaking_of(repo: str, outcome: str | None = None) -> Iterator[None]:
    """Turn whatever goes wrong between us and the Hub into an OutputError of one line."""
    with masked_errors():
        try:
            with bounded_waiting():
                yield
        except HUB_ERRORS as error:
            raise OutputError(
                f"{outcome or f'cannot push to {repo}'}: {reason(error, repo)}"
            ) from error


def files_there(api: HfApi, repo: str, **where: Any) -> list[str]:
    """The files of a repository, by their paths; `where` as list_repo_files takes it."""
    files = retry(lambda: api.list_repo_files(repo, **where))
    return [required_text(file, "a file's name") for file in files]


def _owners(account: object) -> tuple[str, ...]:
    """Whose repositories an account may make: its own, and those of its organizations."""
    if account is None:
        return ()
    if not isinstance(account, dict):
        raise HubAnswerError(f"it says {account!r:.40} of the token's account; {CHECK}")
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
    """What the Hub says of a repository; None where there is no such."""
    try:
        info = retry(lambda: api.repo_info(repo, repo_type=repo_type))
    except RepositoryNotFoundError:
        return None
    if not is_repo_id(required_text(info.id, "the repository's id")):
        raise HubAnswerError(f"its answer has {info.id!r:.40} as the repository's id; {CHECK}")
    return info


def _check_new(api: HfApi, repo: str, owners: tuple[str, ...], repo_type: RepoType) -> None:
    """Refuse an owner that the account is not, and a name that another kind of thing has."""
    if owners and repo.partition("/")[0] not in owners:
        raise OutputError(
            f"{repo} is not there, and {owners[0]} cannot make it: name one of "
            + ", ".join(f"{name}/..." for name in owners)
        )
    for other in sorted(_CALLED.keys() - {repo_type}):
        if _info(api, repo, other) is not None:
            wanted = _CALLED[repo_type].removeprefix("a ")
            raise OutputError(
                f"{repo} is {_CALLED[other]} already: choose another name for the {wanted}"
            )
