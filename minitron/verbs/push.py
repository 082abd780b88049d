"""`minitron push`: upload a folder that loads to a model repository on the Hub, in one commit.

Everything that can be wrong with the folder is checked before anything is sent. What an interrupted
push has sent is not sent again: the Hub knows large files by their checksum. Weights of an earlier
push that the folder does not have are removed in the same commit: transformers might load them.

    push("tiny-half", "me/tiny-half", private=True)
"""

import logging
import re
import shlex
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import BadRequestError

from minitron.errors import MinitronError, OutputError, SourceError, TargetError, foreign_parser
from minitron.files.checked_json import check_kind
from minitron.files.hub_errors import required_text
from minitron.files.hub_retry import retry
from minitron.publish.destination import (
    HubDestination,
    Publication,
    find_destination,
    hub_api,
    list_files,
    one_line_hub_errors,
    retry_or_none,
)
from minitron.publish.publishable import check_publishable, check_weights
from minitron.publish.space_publishing import push_space
from minitron.publish.upload import commit_once
from minitron.recipe import verb
from minitron.recipes.publishing import PushRecipe
from minitron.records.folder_writer import json_bytes
from minitron.records.minitron_json import FILE, SIZES, read_record
from minitron.records.record_writer import public_record
from minitron.sources.opening import zoo

logger = logging.getLogger(__name__)

# The keys of minitron.json that a commit's message is made of.
_MESSAGE_KEYS = {
    "command": str,
    "source": {"name": str, **{f"{size}?": int for size in SIZES}},
    "target": {**{f"{size}?": int for size in SIZES}, "parameters": int},
}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")
# https://git-scm.com/docs/git-check-ref-format, and nothing hidden.
_REF = re.compile(r"(?!.*(\.\.|//|/\.|@\{|\.lock(/|$)|[/.]$))[^\s~^:?*\[\\/.-][^\s~^:?*\[\\]*")


@verb(PushRecipe)
def push(recipe: PushRecipe) -> Publication:
    """Upload a model folder to the Hub: safetensors, config, tokenizer and card, in one commit.

    With `space`, the Space that shows the models named. Returns where it went. Raises SourceError,
    with nothing sent, for a folder that does not load, has pickles, weights that are not finite or
    no valid model card, and for a model that a Space could not read; OutputError for what the token
    or the Hub does not allow; TargetError for options that contradict each other. Interrupted, the
    same call sends only what is missing.
    """
    if recipe.space is not None:
        return push_space(recipe)
    if recipe.folder is None or recipe.repo is None or recipe.models:
        raise TargetError(
            "push takes a folder and its repository, FOLDER OWNER/NAME; or, to upload the Space, "
            "--space OWNER/NAME and the models to show"
        )
    _check_options(recipe)
    folder = Path(recipe.folder)
    if not folder.exists():
        folder = zoo().get(recipe.folder, folder)
    files: dict[str, Path | bytes] = {**check_publishable(folder)}
    if FILE in files and (record := _public_record(folder)) is not None:
        files[FILE] = record
    message = _commit_message(folder, recipe.commit_message)
    destination = find_destination(recipe.repo, private=recipe.private, create_pr=recipe.create_pr)
    check_weights(folder)
    with one_line_hub_errors(destination.repo):
        return _upload(files, message, destination, recipe)


def command(recipe: PushRecipe) -> None:
    """What the command line runs and prints."""
    print(push(**vars(recipe)).url)


def _check_options(recipe: PushRecipe) -> None:
    """Refuse options that contradict each other, and names that git would refuse."""
    for option in ("branch", "tag"):
        name = getattr(recipe, option)
        if name is not None and not _REF.fullmatch(name):
            raise TargetError(f"--{option} {name!r} is no name that git takes: choose another")
    if recipe.create_pr and (recipe.branch or recipe.tag):
        raise TargetError(
            "--create-pr cannot be combined with --branch or --tag: it is to be merged"
        )
    if recipe.create_pr and recipe.private:
        raise TargetError(
            "--create-pr cannot be combined with --private: the repository exists already"
        )


def _upload(
    files: Mapping[str, Path | bytes],
    message: tuple[str, str],
    destination: HubDestination,
    recipe: PushRecipe,
) -> Publication:
    """Make what is missing on the Hub, send everything in one commit, tag and list it."""
    api, repo = hub_api(), destination.repo
    card = files["README.md"]
    assert isinstance(card, Path)
    _let_hub_check_card(card)
    _prepare(api, destination, recipe)
    title, description = message
    size = sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files.values())
    logger.info("%s files, %s MB, to %s: %s", f"{len(files):,}", f"{size / 1e6:,.1f}", repo, title)
    stale = _stale(api, repo, recipe.branch, files)
    if stale:
        removed = f"removed there, as the folder has no such: {', '.join(stale)}"
        logger.info("%s", removed)
        description = "\n".join(filter(None, (description, removed)))
    operations: list[Any] = [
        *(CommitOperationDelete(name) for name in stale),
        *(CommitOperationAdd(name, path) for name, path in files.items()),
    ]
    commit = commit_once(
        api,
        repo,
        operations,
        commit_message=title,
        commit_description=description,
        revision=recipe.branch,
        create_pr=recipe.create_pr,
    )
    if recipe.create_pr and commit.pr_url is None:
        logger.info("%s has all of this already: no pull request was opened", repo)
    if recipe.tag is not None:
        with one_line_hub_errors(repo, f"{repo} is pushed but not tagged {recipe.tag}"):
            retry(
                lambda: api.create_tag(repo, tag=str(recipe.tag), revision=commit.oid),
                is_safe=False,
            )
    if recipe.collection is not None:
        with one_line_hub_errors(
            repo, f"{repo} is pushed but not in the collection {recipe.collection}"
        ):
            _collect(api, recipe.collection, repo)
    where = required_text(commit.pr_url or commit.commit_url, "the commit's address")
    return Publication(repo, commit.oid, where)


def _prepare(api: HfApi, destination: HubDestination, recipe: PushRecipe) -> None:
    """Make repository and branch; refuse a tag that exists and a collection that is not there."""
    repo = destination.repo
    if recipe.collection is not None:
        _check_collection(api, recipe.collection, destination)
    if not destination.exists:
        retry(lambda: api.create_repo(repo, private=recipe.private, exist_ok=True))
    if recipe.tag is not None:
        refs = retry_or_none(lambda: api.list_repo_refs(repo))
        if refs is not None and any(ref.name == recipe.tag for ref in refs.tags):
            raise OutputError(f"{repo} has a tag {recipe.tag} already: choose another")
    if recipe.branch is not None:
        retry(lambda: api.create_branch(repo, branch=str(recipe.branch), exist_ok=True))


def _check_collection(api: HfApi, collection: str, destination: HubDestination) -> None:
    """Refuse a collection that is not there, or that only others may add to."""
    owner = destination.repo.partition("/")[0]
    if "/" in collection:
        owner = retry(lambda: api.get_collection(collection)).owner
    if destination.owners and owner not in destination.owners:
        raise OutputError(
            f"{collection} is a collection of {owner}, which {destination.owners[0]} cannot add to"
        )


def _let_hub_check_card(path: Path) -> None:
    """Refuse metadata that the Hub would refuse, before anything is sent."""
    with foreign_parser(f"{path}: its metadata", SourceError, "mend them"):
        card = ModelCard.load(path)
    try:
        retry(card.validate)
    except BadRequestError:
        raise
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: the Hub refuses its metadata ({reason}): mend it") from error


def _stale(api: HfApi, repo: str, branch: str | None, files: Mapping[str, Any]) -> list[str]:
    """Weights of an earlier push that are not among the files of this one."""
    there = list_files(api, repo, revision=branch)
    weights = [name for name in there if any(fnmatch(name, pattern) for pattern in _WEIGHTS)]
    return [name for name in weights if "/" not in name and name not in files]


def _public_record(folder: Path) -> bytes | None:
    """minitron.json without folders of this machine; None where there are none in it."""
    record = read_record(folder)
    public = public_record(record)
    if public == record:
        return None
    logger.info("%s: the folders of this machine in it stay here", FILE)
    return json_bytes(public)


def _commit_message(folder: Path, given: str | None) -> tuple[str, str]:
    """The title and the description: `given`, else what minitron.json records."""
    if not (folder / FILE).is_file():
        return given or f"Upload {folder.name}", ""
    record = read_record(folder)
    remedy = "it records too little; make the folder again, or push it without that file"
    check_kind(record, _MESSAGE_KEYS, str(folder / FILE), SourceError, remedy)
    title, sizes = _title_and_sizes(record)
    return given or title, "\n".join(sizes)


def _title_and_sizes(record: dict[str, Any]) -> tuple[str, list[str]]:
    """What the command did, in one line, and the sizes that it changed."""
    before, after = record["source"], record["target"]
    known = [key for key in SIZES if key in before and key in after]
    changed = {key: after[key] for key in known if before[key] != after[key]}
    # The path of a folder on this machine is not published.
    name = Path(before["name"]).name if Path(before["name"]).is_absolute() else before["name"]
    title = f"{record['command'].capitalize()} {name}: "
    title += f"{after['parameters']:,} parameters"
    if "parameters" in changed:
        title += f" of {before['parameters']:,}"
    return title, [f"{key} {before[key]:,} to {size:,}" for key, size in changed.items()]


def _collect(api: HfApi, collection: str, repo: str) -> None:
    """Add the model to a collection: one that is there (owner/slug), or one of that title."""
    slug = collection
    if "/" not in collection:
        owner = repo.partition("/")[0]
        made = retry(lambda: api.create_collection(collection, namespace=owner, exists_ok=True))
        slug = made.slug
    retry(lambda: api.add_collection_item(slug, repo, "model", exists_ok=True))


def check_push_to_hub(repo: str | None, *, private: bool) -> None:
    """Refuse a destination before the work whose result is to go there.

    Raises OutputError as find_destination does, TargetError for --private without a destination.
    """
    if repo is not None:
        find_destination(repo, private=private)
    elif private:
        raise TargetError("--private needs --push-to-hub: name the repository")


def push_result(out: Path, repo: str, *, private: bool) -> None:
    """Push what a command has written. Raises OutputError with the command that repeats it."""
    command = shlex.join(["minitron", "push", str(out), repo, *(["--private"] if private else [])])
    try:
        logger.info("pushed: %s", push(str(out), repo, private=private).url)
    except KeyboardInterrupt as error:
        error.__notes__ = [f"{out} is written but not pushed: {command}"]
        raise
    except MinitronError as error:
        reason = str(error).removeprefix(f"cannot push to {repo}: ")
        raise OutputError(f"{out} is written but not pushed ({reason}): {command}") from error
