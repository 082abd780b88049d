"""Space publishing: what `minitron demo` shows becomes a Space on the Hub, in one commit.

The models are named in its configuration and read by the Space itself, so they must lie where it
can read them: on the Hub, or in minitron's zoo. What an earlier push left and this one does not
have is removed in the same commit.

    push_space(PushRecipe(space="me/minitron-demo", folder="nvidia/Minitron-8B-Base"))
"""

import logging
import re
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url

from minitron.errors import OutputError, SourceError, TargetError
from minitron.files.hub_retry import retry
from minitron.model.architecture import Architecture
from minitron.publish.destination import (
    HubDestination,
    Publication,
    files_there,
    find_destination,
    hub_api,
    speaking_of,
)
from minitron.publish.space_folder import ShownModel, write_space_folder
from minitron.publish.upload import commit_once
from minitron.recipe import PushRecipe
from minitron.sources.opening import open_source

logger = logging.getLogger(__name__)

_OWN = ("minitron-*.whl", "minitron-*.dist-info/*")  # by which a Space of ours is known
_REPLACED = (
    *_OWN,
    "*.py",
    "models.yaml",
    "*.jinja",
    "results/*",
    "minitron/*",
    "modeling_nemotron/*",
)
_THERE_FROM_THE_START = (".gitattributes", "README.md")
_SPACE_ONLY = ("branch", "tag", "collection", "create_pr")
_NO_NAME = re.compile(r"[^\w .-]")


def push_space(recipe: PushRecipe) -> Publication:
    """Upload the Space with the models that the recipe names; the embedded family without any.

    Raises, with nothing sent, SourceError for a model that the Space could not read, TargetError
    for options that mean nothing here, OutputError for what the token or the Hub does not allow.
    """
    _check_options(recipe)
    models = list(_shown([recipe.folder, recipe.repo, *(recipe.models or [])]))
    destination = find_destination(str(recipe.space), private=recipe.private, repo_type="space")
    repo = destination.repo
    is_private = recipe.private or destination.is_private
    with tempfile.TemporaryDirectory(prefix="minitron-space-") as folder, speaking_of(repo):
        write_space_folder(
            Path(folder),
            models,
            wheel_url=None
            if is_private
            else lambda name: hf_hub_url(repo, name, repo_type="space", revision="main"),
        )
        return _upload(Path(folder), models, destination, recipe)


def _check_options(recipe: PushRecipe) -> None:
    for name in _SPACE_ONLY:
        if getattr(recipe, name):
            raise TargetError(f"--{name.replace('_', '-')} goes without --space")
    if "/" not in str(recipe.space):
        raise OutputError(f"--space {recipe.space} has no owner: name it OWNER/{recipe.space}")


def _shown(sources: list[str | None]) -> Iterator[ShownModel]:
    """The models, each checked to be where a Space can read it. Raises SourceError."""
    given = [source for source in sources if source is not None]
    for source in given:  # all of them before the Hub is asked
        if Path(source).exists():
            raise SourceError(
                f"{source} lies on this machine, where a Space cannot read it: minitron push "
                f"{source} OWNER/NAME, then name that"
            )
    seen: dict[str, str] = {}
    for source in given:
        name = _NO_NAME.sub("-", source.partition("@")[0].rpartition("/")[2])[:64]
        if name in seen:
            raise SourceError(f"{seen[name]} and {source} would both be called {name}: name one")
        seen[name] = source
        opened = open_source(source, reads_weights=False)
        Architecture.from_config(opened.config)
        if not opened.companions.tokenizer_names:
            raise SourceError(f"{source} has no tokenizer files: a Space needs them")
        yield ShownModel(name, source)


def _upload(
    folder: Path, models: list[ShownModel], destination: HubDestination, recipe: PushRecipe
) -> Publication:
    """Make the Space where it is missing, and send everything in one commit."""
    api, repo = hub_api(), destination.repo
    there: list[str] = []
    if destination.exists:
        there = files_there(api, repo, repo_type="space")
    _check_own(repo, there)
    _say_private(api, models)
    if not destination.exists:
        retry(
            lambda: api.create_repo(
                repo, repo_type="space", space_sdk="gradio", private=recipe.private, exist_ok=True
            )
        )
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    stale = [
        name
        for name in there
        if name not in files and any(fnmatch(name, pattern) for pattern in _REPLACED)
    ]
    title, description = _commit_message(models, recipe.commit_message)
    size = sum(path.stat().st_size for path in files.values())
    logger.info("%d files, %.1f MB, to the Space %s: %s", len(files), size / 1e6, repo, title)
    operations: list[Any] = [
        *(CommitOperationDelete(name) for name in stale),
        *(CommitOperationAdd(name, path) for name, path in files.items()),
    ]
    commit = commit_once(
        api,
        repo,
        operations,
        repo_type="space",
        commit_message=title,
        commit_description=description,
    )
    return Publication(repo, commit.oid, f"{api.endpoint}/spaces/{repo}")


def _check_own(repo: str, there: list[str]) -> None:
    """Refuse to write over a Space that shows something else."""
    is_own = any(fnmatch(name, pattern) for name in there for pattern in _OWN)
    others = [name for name in there if name not in _THERE_FROM_THE_START]
    if others and not is_own:
        raise OutputError(
            f"{repo} is another Space already, with {others[0]} in it: choose another name"
        )


def _say_private(api: HfApi, models: list[ShownModel]) -> None:
    """Tell what the Space needs for models that not everybody may read."""
    for model in models:
        repo = model.repo
        if repo is None:
            continue
        info = retry(lambda repo=repo: api.model_info(repo))  # type: ignore[misc]
        if info.private or info.gated:
            kind = "private" if info.private else "gated"
            logger.info("%s is %s: give the Space a secret HF_TOKEN that may read it", repo, kind)


def _commit_message(models: list[ShownModel], wished: str | None) -> tuple[str, str]:
    """What the Space shows, as a title, and from where."""
    names = ", ".join(model.name for model in models) or "the embedded family"
    sources = [f"{model.name}: {model.source}" for model in models]
    title = wished or f"Show {names}, with minitron {version('minitron')}"
    return title, "\n".join(sources)
