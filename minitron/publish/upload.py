"""Committing: files in memory or in a folder become one commit on the Hub.

A commit must not be made twice: where the Hub fails, its history shows whether it made the commit.
Warns of files that the repository's .gitignore excluded.

    commit_once(api, "me/tiny-half", [CommitOperationAdd("README.md", path)], commit_message="Add")
"""

import logging
import time
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError

from minitron.files.hub_errors import FAILING, required_text
from minitron.files.hub_retry import retry

logger = logging.getLogger(__name__)

_WAITS = (1, 2, 4)  # seconds before the commit is tried again
_OVERTAKEN = 412  # HTTP: the branch has a newer commit than the given parent
_SHOWN = 5


def commit_once(
    api: HfApi,
    repo: str,
    operations: list[Any],
    *,
    commit_message: str,
    commit_description: str,
    revision: str | None = None,
    repo_type: str = "model",
    create_pr: bool = False,
) -> CommitInfo:
    """Make the commit; where the Hub fails, retry unless the branch has a new commit.

    A pull request is requested only once: nothing would show that the first request made one.
    Raises the errors of huggingface_hub.
    """
    options: dict[str, Any] = {"revision": revision, "repo_type": repo_type}
    options |= {"commit_message": commit_message, "commit_description": commit_description}
    before = None if create_pr else _head(api, repo, repo_type, revision)
    parent: str | None = None
    for wait in (*_WAITS, None):
        try:
            made: CommitInfo = retry(
                lambda parent=parent: api.create_commit(  # type: ignore[misc]
                    repo, operations, create_pr=create_pr, parent_commit=parent, **options
                ),
                is_safe=False,
            )
            break
        except KeyboardInterrupt as error:
            error.add_note("the same command sends only what is missing")
            raise
        except HfHubHTTPError as error:
            status = error.response.status_code
            if parent is not None and status == _OVERTAKEN:
                made = _find_own_commit(api, repo, before, options, error)
                break
            if before is None or wait is None or status not in FAILING:
                raise
            logger.warning("HTTP %d from the Hub: committing again in %d s", status, wait)
            time.sleep(wait)
            parent = before  # the Hub refuses a second commit with the same parent
    required_text(made.oid, "the commit's id")
    _warn_of_ignored_files(repo, operations)
    return made


def _head(api: HfApi, repo: str, repo_type: str, revision: str | None) -> str | None:
    """The last commit of a branch; None if the Hub does not send it."""
    info: Any = retry(lambda: api.repo_info(repo, repo_type=repo_type, revision=revision))
    return info.sha if isinstance(info.sha, str) else None


def _find_own_commit(
    api: HfApi, repo: str, before: str | None, options: dict[str, Any], error: HfHubHTTPError
) -> CommitInfo:
    """The commit that the Hub made before it failed; raises `error` if it is somebody else's."""
    listed = {key: options[key] for key in ("revision", "repo_type")}
    history = retry(lambda: api.list_repo_commits(repo, **listed))
    is_ours = len(history) > 1 and history[1].commit_id == before
    if not is_ours or history[0].title != options["commit_message"]:
        raise error
    oid = required_text(history[0].commit_id, "the commit's id")
    kind = {"model": ""}.get(options["repo_type"], f"{options['repo_type']}s/")
    return CommitInfo(
        commit_url=f"{api.endpoint}/{kind}{repo}/commit/{oid}",
        commit_message=options["commit_message"],
        commit_description=options["commit_description"],
        oid=oid,
    )


def _warn_of_ignored_files(repo: str, operations: list[Any]) -> None:
    """Warn of the files that the repository's .gitignore excludes."""
    dropped = [
        operation.path_in_repo
        for operation in operations
        if getattr(operation, "_should_ignore", None)  # no public attribute
    ]
    if dropped:
        logger.warning(
            "%s ignores %d of the files, which were not pushed: %s%s; remove them from its "
            ".gitignore and push again",
            repo,
            len(dropped),
            ", ".join(dropped[:_SHOWN]),
            ", ..." if len(dropped) > _SHOWN else "",
        )
