"""Space publishing: what `minitron demo` shows becomes a Space on the Hub, in one commit.

The Space itself reads the models that its configuration names, so they must be on the Hub or in
minitron's zoo. Files of an earlier push that this one does not have are removed in the same commit.

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
    find_destination,
    hub_api,
    list_files,
    one_line_hub_errors,
)
from minitron.publish.space_folder import ShownModel, write_space_folder
from minitron.publish.upload import commit_once
from minitron.recipes.publishing import PushRecipe
from minitron.sources.opening import open_source

logger = logging.getLogger(__name__)

_OWN = ("minitron-*.whl", "minitron-*.dist-info/*")  # which identify a Space that minitron made
_REPLACED = (
    *_OWN,
    "*.py",
    "models.yaml",
    "*.jinja",
    "results/*",
    "minitron/*",
    "modeling_nemotron/*",
)
_INITIAL_FILES = (".gitattributes", "README.md")
_SPACE_ONLY = ("branch", "tag", "collection", "create_pr")
_NOT_IN_NAMES = re.compile(r"[^\w .-]")


def push_space(recipe: PushRecipe) -> Publication:
    """Upload a Space with the models of the recipe; without any, with the embedded family.

    Raises, with nothing sent, SourceError for a model that the Space could not read, TargetError
    for options that a Space does not have, OutputError for what token or Hub do not allow.
    """
    _check_options(recipe)
    models = list(_check_models([recipe.folder, recipe.repo, *(recipe.models or [])]))
    destination = find_destination(str(recipe.space), private=recipe.private, repo_type="space")
    repo = destination.repo
    is_private = recipe.private or destination.is_private
    with tempfile.TemporaryDirectory(prefix="minitron-space-") as folder, one_line_hub_errors(repo):
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
            raise TargetError(
                f"--{name.replace('_', '-')} has no effect with --space: leave it out"
            )
    if "/" not in str(recipe.space):
        raise OutputError(f"--space {recipe.space} has no owner: name it OWNER/{recipe.space}")


def _check_models(sources: list[str | None]) -> Iterator[ShownModel]:
    """The models to show. Raises SourceError for one that a Space cannot read."""
    given = [source for source in sources if source is not None]
    for source in given:  # all, before the first request to the Hub
        if Path(source).exists():
            raise SourceError(
                f"{source} is on this machine, where a Space cannot read it: minitron push "
                f"{source} OWNER/NAME, then name that"
            )
    seen: dict[str, str] = {}
    for source in given:
        name = _NOT_IN_NAMES.sub("-", source.partition("@")[0].rpartition("/")[2])[:64]
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
    """Create the Space if it does not exist, and send everything in one commit."""
    api, repo = hub_api(), destination.repo
    existing: list[str] = []
    if destination.exists:
        existing = list_files(api, repo, repo_type="space")
    _check_own(repo, existing)
    _log_private_models(api, models)
    if not destination.exists:
        retry(
            lambda: api.create_repo(
                repo, repo_type="space", space_sdk="gradio", private=recipe.private, exist_ok=True
            )
        )
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    stale = [
        name
        for name in existing
        if name not in files and any(fnmatch(name, pattern) for pattern in _REPLACED)
    ]
    title, description = _commit_message(models, recipe.commit_message)
    size = sum(path.stat().st_size for path in files.values())
    logger.info(
        "%s files, %s MB, to the Space %s: %s", f"{len(files):,}", f"{size / 1e6:,.1f}", repo, title
    )
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


def _check_own(repo: str, existing: list[str]) -> None:
    """Refuse to write over a Space that shows something else."""
    is_own = any(fnmatch(name, pattern) for name in existing for pattern in _OWN)
    others = [name for name in existing if name not in _INITIAL_FILES]
    if others and not is_own:
        raise OutputError(
            f"{repo} is another Space already, with {others[0]} in it: choose another name"
        )


def _log_private_models(api: HfApi, models: list[ShownModel]) -> None:
    """Log what the Space needs for models that are private or gated."""
    for model in models:
        repo = model.repo
        if repo is None:
            continue
        info = retry(lambda repo=repo: api.model_info(repo))  # type: ignore[misc]
        if info.private or info.gated:
            kind = "private" if info.private else "gated"
            logger.info("%s is %s: give the Space a secret HF_TOKEN that may read it", repo, kind)


def _commit_message(models: list[ShownModel], wished: str | None) -> tuple[str, str]:
    """The commit's title, with what the Space shows, and its text, with the sources."""
    names = ", ".join(model.name for model in models) or "the embedded family"
    sources = [f"{model.name}: {model.source}" for model in models]
    title = wished or f"Show {names}, with minitron {version('minitron')}"
    return title, "\n".join(sources)
