"""Whether a large file in the Hub's cache is the Hub's: its sha256, computed once.

huggingface_hub names such a file by the sha256 that the Hub sends, but compares only the size of
what was downloaded over HTTP or was in the cache before. A verified file is recorded in the Hub's
folder for other libraries' caches, by size and times: one that was written to since is verified
again. Small files, which git stores, are not verified.

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
_NO_RECORDS = (OSError, ValueError)  # raised where their folder cannot be made or opened


def verify(path: Path) -> None:
    """Refuse a file of the cache whose sha256 is not its name; SourceError has both."""
    # One link only: the blob may itself be a link, to a store with other names.
    blob = path.parent / path.readlink() if path.is_symlink() else path
    if not _SHA256.fullmatch(blob.name):
        return
    status = blob.stat()
    state = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
    if _recorded_state(blob.name) == state:
        return
    logger.info("verifying %s (%.1f MB)", path.name, status.st_size / 1e6)
    with blob.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(OSError):  # of a file system that cannot
            os.fsync(file.fileno())
    if seen != blob.name:
        raise SourceError(
            f"{_name_in_repository(path)} is damaged: its sha256 is {seen}, but on the Hub it is "
            f"{blob.name}: delete {os.path.normpath(blob)} and run again"
        )
    _record(blob.name, state)


def _name_in_repository(path: Path) -> str:
    """A file of the cache by its repository, since its path is long and repeats the sha256."""
    for parent in path.parents:
        repository = parent.parent.name.partition("--")[2].replace("--", "/")
        if parent.name == "snapshots" and repository:
            return f"{repository}/{'/'.join(path.relative_to(parent).parts[1:])}"
    return str(path)


def _records() -> Path:
    return cached_assets_path("minitron", "verified", assets_dir=constants.HF_ASSETS_CACHE)


def _recorded_state(sha256: str) -> str | None:
    with suppress(*_NO_RECORDS):
        return (_records() / sha256).read_text()
    return None


def _record(sha256: str, state: str) -> None:
    with suppress(*_NO_RECORDS):  # without a record, the file is verified every time
        (_records() / sha256).write_text(state)
