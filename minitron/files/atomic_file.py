"""Files that are replaced whole or not at all, and that are on the disk when they get their name.

with atomic_file(Path("text.npy")) as partial:
    np.save(partial, ids)
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minitron.errors import OutputError

_IS_WINDOWS = os.name == "nt"
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of a file system that cannot


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a file to write to, which replaces `path` when the block ends well, else is removed.

    Raises OutputError. Its name is hidden, and ends as that of `path`.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Give a file new content, which is on the disk before the old one is lost.

    Raises OutputError.
    """
    with atomic_file(path) as partial:
        partial.write_bytes(content)
        sync(partial)
    sync_names(path.absolute().parent)


def rename_synced(file: Path, name: Path) -> None:
    """Give a finished file its name, once its content is on the disk."""
    sync(file)
    file.rename(name)
    sync_names(name.absolute().parent)


def sync(path: Path) -> None:
    """Wait until a file, or every file in a folder, is written to the disk."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    for file in files:
        _sync(file, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)
    if path.is_dir():
        sync_names(path, *(one for one in path.rglob("*") if one.is_dir()))


def sync_names(*folders: Path) -> None:
    """Wait until the names of the files in folders are on the disk; Windows does it by itself."""
    for folder in folders:
        if not _IS_WINDOWS:
            _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
