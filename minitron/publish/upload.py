"""Committing: files that are in memory or in a folder become one commit on the Hub.

Knows that a commit must not happen twice: where the Hub fails, the history says whether it did
what was asked. Says which files the Hub's own list of ignored ones has dropped.

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
_OVERTAKEN = 412  # HTTP: the branch is not where the commit was to be added
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
    """Make the commit; where the Hub fails, again, unless it has made it or one came between.

    A pull request is asked for once: a second one could not be told from the first. Raises what
    huggingface_hub raises.
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
        except HfHubHTTPError as error:
            status = error.response.status_code
            if parent is not None and status == _OVERTAKEN:
                made = _made_meanwhile(api, repo, before, options, error)
                break
            if before is None or wait is None or status not in FAILING:
                raise
            logger.warning("HTTP %d from the Hub: committing again in %d s", status, wait)
            time.sleep(wait)
            parent = before  # so that it is not made twice
    required_text(made.oid, "the commit's id")
    _say_dropped(repo, operations)
    return made


def _head(api: HfApi, repo: str, repo_type: str, revision: str | None) -> str | None:
    """The last commit of a branch; None where the Hub does not tell."""
    info: Any = retry(lambda: api.repo_info(repo, repo_type=repo_type, revision=revision))
    return info.sha if isinstance(info.sha, str) else None


def _made_meanwhile(
    api: HfApi, repo: str, before: str | None, options: dict[str, Any], error: HfHubHTTPError
) -> CommitInfo:
    """The commit that the Hub made though it failed to say so; raises `error` for another's."""
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


def _say_dropped(repo: str, operations: list[Any]) -> None:
    """Name the files that the repository's .gitignore keeps out, as huggingface_hub was told."""
    dropped = [
        operation.path_in_repo
        for operation in operations
        if getattr(operation, "_should_ignore", None)  # told in no public way
    ]
    if dropped:
        logger.warning(
            "%s ignores %d of the files, which are not there now: %s%s; remove them from its "
            ".gitignore and push again",
            repo,
            len(dropped),
            ", ".join(dropped[:_SHOWN]),
            ", ..." if len(dropped) > _SHOWN else "",
        )
