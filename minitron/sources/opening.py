"""Opening: the source that a user names, as a folder or a file, on the Hub or in the zoo.

A name is a folder, a Hub id (`owner/name`, `owner/name@revision`), a `.nemo` file or folder, a
`.gguf` file, a file of these in a repository (`owner/name:path/file.gguf`), or a model of the
embedded zoo (`tiny`). Opening reads the config, and no weight.

    source = open_source("tiny")
"""

import logging
import re
from dataclasses import replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from huggingface_hub import is_offline_mode

from minitron.errors import OutputError, SourceError
from minitron.files.cached_file import CachedFile
from minitron.files.file import File, LocalFile
from minitron.files.hub_repository import HubRepository
from minitron.files.unfinished import check_absent
from minitron.model.source import Source
from minitron.sources.hub_folder import HubFolder

_HUB_ID = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[^:]+\.(nemo|gguf)))?"
)
_GZIP = b"\x1f\x8b"
_GGUF = b"GGUF"

logger = logging.getLogger(__name__)


def zoo() -> dict[str, Path]:
    """The embedded models: name to folder."""
    root = Path(str(resources.files("minitron") / "zoo"))
    return {path.parent.name: path.parent for path in sorted(root.glob("*/config.json"))}


def output_at(name: str) -> Path:
    """The path of an output, which must not exist yet. Raises OutputError.

    A folder called as an embedded model would be opened instead of it.
    """
    if not name:
        raise OutputError("the output's name is empty: name what to write")
    if name in zoo():
        raise OutputError(
            f"{name} is the name of an embedded model, which a folder of that name would hide: "
            f"choose another name, or write ./{name}"
        )
    out = Path(name)
    check_absent(out)
    return out


def open_source(
    name: str,
    *,
    keep_vocab_padding: bool = False,
    reads_weights: bool = True,
    low_disk: bool = False,
) -> Source:
    """Open what the user named; no weight is read. Raises SourceError.

    A NeMo checkpoint's vocabulary is cut to its tokenizer's size unless its padding is kept. One in
    a repository is downloaded, but where no weight will be read only the parts that describe it.
    With `low_disk` weights on the Hub are read there by ranges, again each time, and never stored.
    A model folder on this machine takes precedence over a model of the zoo of the same name.
    """
    if not name:  # Path("") is this folder
        raise SourceError("the model's name is empty: name a folder, or one of the zoo")
    models, path = zoo(), Path(name)
    if name in models:
        if not (path / "config.json").is_file():
            return HubFolder.embedded(models[name], name)
        logger.warning("%s is the folder of that name here, not the embedded model", name)
        return HubFolder.at(path, f"./{name}")
    if _exists(path):
        if path.is_file() and _is_gguf(path):
            return _open_gguf(LocalFile.at(path))
        if path.is_file() or _is_nemo_folder(path):
            return _open_nemo(path, keep_vocab_padding=keep_vocab_padding)
        files = sorted(path.glob("*.gguf"))
        if files and not (path / "config.json").exists():
            raise SourceError(f"{name} holds GGUF files: name one of them, as {files[0]}")
        return HubFolder.at(path)
    parsed = _HUB_ID.fullmatch(name)
    if parsed is None:
        near = get_close_matches(name, models, 1)
        hint = f": did you mean {near[0]}? Or" if near else ";"
        raise SourceError(
            f"{name} does not exist{hint} name a folder, a .nemo, a .gguf, a Hub id (owner/name) "
            f"or one of the zoo: {', '.join(models)}"
        )
    repo, revision, inner = parsed["repo"], parsed["revision"], parsed["file"]
    if inner is None:
        return HubFolder(HubRepository(repo, revision), low_disk=low_disk)
    if any(part in ("", ".", "..") for part in inner.split("/")):
        raise SourceError(f"{name} leads outside its repository: name a path within")
    if low_disk and reads_weights:
        raise SourceError(f"{name} can be had only whole: do it without --low-disk")
    file, commit = _file_on_hub(repo, revision, inner, whole=reads_weights)
    if inner.endswith(".gguf"):
        return _open_gguf(file, revision=commit)
    return _open_nemo(file, revision=commit, keep_vocab_padding=keep_vocab_padding)


def _exists(path: Path) -> bool:
    """Whether a file or folder is there. Raises SourceError for a name that no file can have."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise SourceError(f"cannot look at {str(path)[:80]!r}: {reason}") from error
    return path.is_file() or path.is_dir()


def _is_nemo_folder(path: Path) -> bool:
    """Whether it is an unpacked `.nemo`, or a NeMo 2 checkpoint."""
    if (path / "config.json").exists():
        return False
    return (path / "model_config.yaml").exists() or (path / "context").is_dir()


def _is_gguf(path: Path) -> bool:
    """Whether it is a GGUF file by its name, or by its first bytes as those that Ollama keeps."""
    file = LocalFile.at(path)
    return path.suffix == ".gguf" or file.read(0, min(len(_GGUF), file.size)) == _GGUF


def _file_on_hub(
    repo: str, revision: str | None, inner: str, *, whole: bool
) -> tuple[File, str | None]:
    """A file of a repository and its commit; by ranges where it need not be downloaded whole."""
    name = f"{repo}:{inner}"
    if not whole and not is_offline_mode():
        pinned = HubRepository(repo, revision, first=None)
        remote = pinned.remote_file(inner)
        if remote is not None and not remote.beginning.startswith(_GZIP):  # it must be unpacked
            return CachedFile(replace(remote, name=name)), pinned.revision
    repository = HubRepository(repo, revision, first=inner)
    path = repository.file(inner)
    assert path is not None, "it was there when the repository was opened"
    return LocalFile.at(path, name), repository.revision


def _open_gguf(file: File, *, revision: str | None = None) -> Source:
    """A GGUF file."""
    from minitron.conversion.gguf_source import GgufSource  # slow to import, and rarely needed

    return GgufSource(file, revision=revision)


def _open_nemo(
    place: Path | File, *, revision: str | None = None, keep_vocab_padding: bool
) -> Source:
    """A NeMo checkpoint."""
    from minitron.conversion.nemo_source import NemoSource  # slow to import, and rarely needed

    return NemoSource(place, revision=revision, keep_vocab_padding=keep_vocab_padding)
