"""A tar.gz as a plain tar in a temporary file, which lives as long as anything refers to it.

It knows what a decompressor must not do: fill the disk, or unpack what is no archive of weights.

    tar = unpack(Path("model.nemo"), Path("/tmp"))
"""

import gzip
import logging
import os
import shutil
import tarfile
import tempfile
import weakref
import zlib
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import BinaryIO

from minitron.errors import SourceError
from minitron.files.unfinished import is_file_of, is_locked

logger = logging.getLogger(__name__)

PIECE = 1 << 20
_PREFIX, _SUFFIX = "minitron-unpacked-", ".tar"
# Trained weights shrink by a half at best; a bomb by a factor of a thousand.
LARGEST_RATIO = 100
FREE_OF_RATIO = 1 << 26  # bytes
SPARE_DISK = 1 << 28  # bytes that unpacking leaves to others


class TemporaryPath(PosixPath):
    """A file that exists as long as its path does, and each tensor that is read from there."""

    # Not set by __init__: paths derived from this one must delete nothing.
    delete: "weakref.finalize[[str, int], TemporaryPath]"


def _temporary_path(folder: Path) -> TemporaryPath:
    """A new file, locked as long as it is wanted, so that one of a killed run can be told."""
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder)
    path = TemporaryPath(name)
    if not is_locked(descriptor) or not is_file_of(descriptor, path):
        os.close(descriptor)  # another run has just looked for what was left
        return _temporary_path(folder)
    path.delete = weakref.finalize(path, _unlink, name, descriptor)
    return path


def _unlink(path: str, descriptor: int) -> None:
    os.close(descriptor)
    with suppress(FileNotFoundError):
        os.unlink(path)


def _remove_left(folder: Path) -> None:
    """Remove what runs that were killed have left in a folder: files of ours that none locks."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another user's
            descriptor = os.open(path, os.O_RDWR)
            try:
                if is_locked(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def unpack(path: Path, scratch: Path) -> TemporaryPath:
    """The tar in a tar.gz, as a new file in `scratch`.

    Raises SourceError for what is damaged, is no tar, or has no room.
    """
    compressed = path.stat().st_size
    logger.info(
        "%s is compressed: unpacking it into %s, at least %d bytes", path, scratch, compressed
    )
    _remove_left(scratch)
    tar = _temporary_path(scratch)
    try:
        with tar.open("wb") as target, path.open("rb") as source:
            _check_disk(path, scratch, compressed)
            _decompress(source, target, path, scratch)
    except BaseException:
        tar.delete()
        raise
    return tar


def _decompress(source: BinaryIO, target: BinaryIO, path: Path, scratch: Path) -> None:
    written = 0
    try:
        with gzip.GzipFile(fileobj=source) as plain:
            while piece := plain.read(PIECE):
                if written == 0 and not is_tar_header(piece[: tarfile.BLOCKSIZE]):
                    raise SourceError(f"{path} is no .nemo: it is gzip, but not of a tar")
                if written // FREE_OF_RATIO != (written + len(piece)) // FREE_OF_RATIO:
                    _check_disk(path, scratch, FREE_OF_RATIO)
                written += len(piece)
                if written > FREE_OF_RATIO + LARGEST_RATIO * source.tell():
                    raise SourceError(
                        f"{path} unpacks to more than {LARGEST_RATIO} times its size: no weights "
                        "do, it is refused as a bomb"
                    )
                target.write(piece)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(f"{path} is truncated or damaged: {error}") from None
    if not written:
        raise SourceError(f"{path} is no .nemo: it is gzip of nothing")


def is_tar_header(block: bytes) -> bool:
    """Whether a file that begins with these bytes is a tar."""
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _check_disk(path: Path, scratch: Path, needed: int) -> None:
    free = shutil.disk_usage(scratch).free
    if free < needed + SPARE_DISK:
        raise SourceError(
            f"{path} is compressed and {scratch} has only {free} bytes left to unpack it: "
            "free some, or set TMPDIR"
        )
