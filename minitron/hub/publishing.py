"""Publishing: a folder that loads becomes a model repository on the Hub, in one commit.

Everything that can be wrong with the folder is found before anything is sent. What an interrupted
push has sent is not sent again: the Hub knows large files by their checksum. Weights of an earlier
push that the folder does not have are removed in the same commit, as transformers might take them.

    push("tiny-half", "me/tiny-half", private=True)
"""

import logging
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import BadRequestError

from minitron.architecture import Architecture
from minitron.errors import MinitronError, OutputError, SourceError, TargetError
from minitron.hub.destination import (
    HubDestination,
    Publication,
    find_destination,
    hub_api,
    is_repo_id,
    patiently,
    speaking_of,
)
from minitron.hub.folder import HubFolder
from minitron.hub.space_publishing import push_space
from minitron.provenance import FILE, read_provenance
from minitron.recipe import PushRecipe, verb
from minitron.source import complete_tensors, hub_config, load_tokenizer, zoo

logger = logging.getLogger(__name__)

_PICKLED = (".bin", ".ckpt", ".joblib", ".nemo", ".pickle", ".pkl", ".pt", ".pth")
_HIDDEN_BUT_MEANT = (".eval_results", ".gitattributes")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")


@verb(PushRecipe)
def push(recipe: PushRecipe) -> Publication:
    """Upload a model folder to the Hub: safetensors, config, tokenizer and card, in one commit.

    With `space`, the Space that shows the models named. Returns where it went. Raises SourceError,
    with nothing sent, for a folder that does not load, has pickles or no valid model card, and for
    a model that a Space could not read; OutputError for what the token or the Hub does not allow;
    TargetError for options that contradict each other. Interrupted, the same call sends only what
    is missing.
    """
    if recipe.space is not None:
        return push_space(recipe)
    if recipe.folder is None or recipe.repo is None or recipe.models:
        raise TargetError(
            "push takes a folder and its repository, FOLDER OWNER/NAME; or, to upload the Space, "
            "--space OWNER/NAME and the models to show"
        )
    _check_options(recipe)
    folder = zoo().get(recipe.folder) or Path(recipe.folder)
    files = check_publishable(folder)
    destination = find_destination(recipe.repo, private=recipe.private, create_pr=recipe.create_pr)
    with speaking_of(destination.repo):
        return _upload(files, folder, destination, recipe)


def check_publishable(folder: Path) -> dict[str, Path]:
    """The files to push, by their path in the repository.

    Raises SourceError for a folder that does not load, has pickles or no valid model card.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder: minitron convert writes one that can be pushed")
    files = dict(_files(folder))
    pickled = [name for name, path in files.items() if _is_pickled(path)]
    if pickled:
        raise SourceError(
            f"{folder} has {pickled[0]}, a pickle, which can run code where it is loaded: remove "
            f"it, or write the model as safetensors with minitron convert {folder} OUT"
        )
    _check_loads(folder)
    _check_card(folder)
    return files


def _check_options(recipe: PushRecipe) -> None:
    """Refuse options that contradict each other."""
    if recipe.create_pr and (recipe.branch or recipe.tag):
        raise TargetError("--create-pr goes with neither --branch nor --tag: it is to be merged")
    if recipe.create_pr and recipe.private:
        raise TargetError("--create-pr goes without --private: the repository is there already")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file that is not hidden, by its path in the repository."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        shown = [part for part in parts if not part.startswith(".") or part in _HIDDEN_BUT_MEANT]
        if path.is_file() and len(shown) == len(parts):
            yield "/".join(parts), path


def _is_pickled(path: Path) -> bool:
    """By its name or, whatever it is called, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(256)
    is_zipped = start.startswith(b"PK\3\4") and b"data.pkl" in start
    return path.suffix in _PICKLED or is_zipped or start[:2] in (b"\x80\2", b"\x80\3", b"\x80\4")


def _check_loads(folder: Path) -> None:
    """Refuse what from_pretrained would: headers and tokenizer are read, weights are not."""
    source = HubFolder.at(folder)
    architecture = Architecture.from_config(source.config)
    hub_config(source.config)
    complete_tensors(source, architecture)
    load_tokenizer(source)


def _check_card(folder: Path) -> None:
    """Refuse a folder without a model card, or with one that the Hub could not place."""
    path = folder / "README.md"
    if not path.is_file():
        raise SourceError(f"{folder} has no README.md: write a model card, metadata at its top")
    try:
        data = ModelCard.load(path).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path} has damaged metadata ({reason}): mend it") from error
    if not data:
        raise SourceError(f"{path} has no metadata: begin it with license and base_model")
    bases = data.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases:
        if not is_repo_id(base):
            raise SourceError(f"{path} names base_model {base!r}: write its id, owner/name")


def _upload(
    files: dict[str, Path], folder: Path, destination: HubDestination, recipe: PushRecipe
) -> Publication:
    """Make what is missing on the Hub, send everything in one commit, tag and list it."""
    api, repo = hub_api(), destination.repo
    _let_hub_check_card(files["README.md"])
    _prepare(api, destination, recipe)
    title, description = _commit_message(folder, recipe.commit_message)
    size = sum(path.stat().st_size for path in files.values())
    logger.info("%d files, %.1f MB, to %s: %s", len(files), size / 1e6, repo, title)
    operations: list[Any] = [
        *(CommitOperationDelete(name) for name in _stale(api, repo, recipe.branch, files)),
        *(CommitOperationAdd(name, path) for name, path in files.items()),
    ]
    commit = patiently(
        lambda: api.create_commit(
            repo,
            operations,
            commit_message=title,
            commit_description=description,
            revision=recipe.branch,
            create_pr=recipe.create_pr,
        )
    )
    if recipe.tag is not None:
        patiently(lambda: api.create_tag(repo, tag=str(recipe.tag), revision=commit.oid))
    if recipe.collection is not None:
        _collect(api, recipe.collection, repo)
    return Publication(repo, commit.oid, commit.pr_url or commit.commit_url)


def _prepare(api: HfApi, destination: HubDestination, recipe: PushRecipe) -> None:
    """Make repository and branch; refuse a tag that is taken and a collection that is not there."""
    repo = destination.repo
    if recipe.collection is not None and "/" in recipe.collection:
        patiently(lambda: api.get_collection(str(recipe.collection)))
    if not destination.exists:
        patiently(lambda: api.create_repo(repo, private=recipe.private, exist_ok=True))
    if recipe.tag is not None:
        refs = patiently(lambda: api.list_repo_refs(repo))
        if any(ref.name == recipe.tag for ref in refs.tags):
            raise OutputError(f"{repo} has a tag {recipe.tag} already: choose another")
    if recipe.branch is not None:
        patiently(lambda: api.create_branch(repo, branch=str(recipe.branch), exist_ok=True))


def _let_hub_check_card(path: Path) -> None:
    """Refuse metadata that the Hub would refuse, before anything is sent."""
    try:
        patiently(ModelCard.load(path).validate)
    except BadRequestError:
        raise
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: the Hub refuses its metadata ({reason}): mend it") from error


def _stale(api: HfApi, repo: str, branch: str | None, files: dict[str, Path]) -> list[str]:
    """Weights of an earlier push that are not among the files of this one."""
    there = patiently(lambda: api.list_repo_files(repo, revision=branch))
    weights = [name for name in there if any(fnmatch(name, pattern) for pattern in _WEIGHTS)]
    return [name for name in weights if "/" not in name and name not in files]


def _commit_message(folder: Path, wished: str | None) -> tuple[str, str]:
    """What was done to get here, as minitron.json tells it: a title and the sizes that changed."""
    if not (folder / FILE).is_file():
        return wished or f"Upload {folder.name}", ""
    record = read_provenance(folder)
    before, after = record["source"], record["target"]
    changed = {key: size for key, size in after.items() if before.get(key) != size}
    # A folder of this machine is nobody else's business.
    name = Path(before["name"]).name if Path(before["name"]).is_absolute() else before["name"]
    title = f"{record['command'].capitalize()} {name}: "
    title += f"{after['parameters']:,} parameters"
    if "parameters" in changed:
        title += f" of {before['parameters']:,}"
    sizes = [f"{key} {before[key]:,} to {size:,}" for key, size in changed.items()]
    return wished or title, "\n".join(sizes)


def _collect(api: HfApi, collection: str, repo: str) -> None:
    """Add the model to a collection: one that is there (owner/slug), or one of that title."""
    slug = collection
    if "/" not in collection:
        owner = repo.partition("/")[0]
        made = patiently(lambda: api.create_collection(collection, namespace=owner, exists_ok=True))
        slug = made.slug
    patiently(lambda: api.add_collection_item(slug, repo, "model", exists_ok=True))


def check_push_to_hub(repo: str | None, *, private: bool) -> None:
    """Refuse a destination before the work whose result is to go there.

    Raises OutputError as find_destination does, TargetError for --private without a destination.
    """
    if repo is not None:
        find_destination(repo, private=private)
    elif private:
        raise TargetError("--private goes with --push-to-hub: name the repository")


def push_result(out: Path, repo: str, *, private: bool) -> None:
    """Push what a command has written. Raises OutputError that tells how to do it again."""
    try:
        logger.info("pushed: %s", push(str(out), repo, private=private).url)
    except MinitronError as error:
        reason = str(error).removeprefix(f"cannot push to {repo}: ")
        raise OutputError(
            f"{out} is written but not pushed ({reason}): minitron push {out} {repo}"
        ) from error
