"""Whether a large file in the Hub's cache is what the Hub has: its sha256, looked at once.

huggingface_hub calls such a file by the sha256 that the Hub tells, but of what came over HTTP, or
lay in the cache before, it compares no more than the size. What has been looked at is noted in the
Hub's folder for other libraries' caches, by size and times: a file that was written to since is
looked at again. Small files, which git holds, are taken as they are.

    verify(snapshot / "model-00001-of-00002.safetensors")
"""

import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import cached_assets_path, constants

from minitron.errors import SourceError

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_NOTES = (OSError, ValueError)  # what making or opening their folder raises


def verify(path: Path) -> None:
    """Refuse a file of the cache that is not the one it is called after; SourceError names both."""
    # One link only: the blob may itself be a link, to a store that is named otherwise.
    blob = path.parent / path.readlink() if path.is_symlink() else path
    if not _SHA256.fullmatch(blob.name):
        return
    status = blob.stat()
    state = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
    if _noted(blob.name) == state:
        return
    logger.info("looking whether %s came whole (%.1f MB)", path.name, status.st_size / 1e6)
    with blob.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(OSError):  # of a file system that cannot; what is noted shall outlive a cut
            os.fsync(file.fileno())
    if seen != blob.name:
        raise SourceError(
            f"{_name_there(path)} is damaged: its sha256 is {seen}, but on the Hub it is "
            f"{blob.name}: delete {os.path.normpath(blob)} and run again"
        )
    _note(blob.name, state)


def _name_there(path: Path) -> str:
    """A file of the cache by its repository, since its path is long and holds the sha256 too."""
    for parent in path.parents:
        repository = parent.parent.name.partition("--")[2].replace("--", "/")
        if parent.name == "snapshots" and repository:
            return f"{repository}/{'/'.join(path.relative_to(parent).parts[1:])}"
    return str(path)


def _notes() -> Path:
    return cached_assets_path("minitron", "verified", assets_dir=constants.HF_ASSETS_CACHE)


def _noted(sha256: str) -> str | None:
    with suppress(*_NO_NOTES):
        return (_notes() / sha256).read_text()
    return None


def _note(sha256: str, state: str) -> None:
    with suppress(*_NO_NOTES):  # where nothing can be noted, it is looked at every time
        (_notes() / sha256).write_text(state)
