"""A tar.gz as a plain tar in a temporary file, which is deleted when nothing refers to it.

Refuses to fill the disk, and to unpack what is not an archive of weights.

    tar = unpack(LocalFile.at(Path("model.nemo")), Path("/tmp"))
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
from pathlib import Path
from typing import BinaryIO

from minitron.errors import SourceError
from minitron.files.file import LocalFile
from minitron.files.unfinished import has_name, try_lock

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20  # decompressed at once
_PREFIX, _SUFFIX = "minitron-unpacked-", ".tar"
# Trained weights compress to a half at best, a decompression bomb to a thousandth.
LARGEST_RATIO = 100
FREE_OF_RATIO = 1 << 26  # bytes that may be written before the ratio is checked
SPARE_DISK = 1 << 28  # bytes of the disk that unpacking leaves free


class TemporaryFile:
    """A new file that is deleted with this object, and locked until then.

    A file of a killed run has no lock, which is how `_remove_leftovers` recognizes it.
    """

    def __init__(self, folder: Path) -> None:
        while True:
            descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder)
            self.path = Path(name)
            if try_lock(descriptor) and has_name(descriptor, self.path):
                break
            os.close(descriptor)  # another run has just removed it as a leftover
        self.delete = weakref.finalize(self, _unlink, name, descriptor)


def _unlink(path: str, descriptor: int) -> None:
    os.close(descriptor)
    with suppress(FileNotFoundError):
        os.unlink(path)


def _remove_leftovers(folder: Path) -> None:
    """Remove the files of killed runs from a folder: those that no process locks."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another user's
            descriptor = os.open(path, os.O_RDWR)
            try:
                if try_lock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def unpack(file: LocalFile, scratch: Path) -> TemporaryFile:
    """The tar in a tar.gz, as a new file in `scratch`.

    Raises SourceError for what is damaged, is not a tar, or has no room.
    """
    logger.info(
        "%s is compressed: unpacking it into %s, at least %s bytes",
        file.name,
        scratch,
        f"{file.size:,}",
    )
    _remove_leftovers(scratch)
    tar = TemporaryFile(scratch)
    try:
        with tar.path.open("wb") as target, file.path.open("rb") as source:
            _check_disk(file.name, scratch, file.size)
            _decompress(source, target, file.name, scratch)
    except BaseException:
        tar.delete()
        raise
    return tar


def _decompress(source: BinaryIO, target: BinaryIO, name: str, scratch: Path) -> None:
    written = 0
    try:
        with gzip.GzipFile(fileobj=source) as plain:
            while block := plain.read(_BLOCK_BYTES):
                if written == 0 and not is_tar_header(block[: tarfile.BLOCKSIZE]):
                    raise SourceError(f"{name} is not a .nemo: it is gzip, but not of a tar")
                if written // FREE_OF_RATIO != (written + len(block)) // FREE_OF_RATIO:
                    _check_disk(name, scratch, FREE_OF_RATIO)
                written += len(block)
                if written > FREE_OF_RATIO + LARGEST_RATIO * source.tell():
                    raise SourceError(
                        f"{name} unpacks to more than {LARGEST_RATIO} times its size: no weights "
                        "do, it is refused as a bomb"
                    )
                target.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(f"{name} is truncated or damaged: {error}") from None
    if not written:
        raise SourceError(f"{name} is not a .nemo: it is gzip of nothing")


def is_tar_header(block: bytes) -> bool:
    """Whether a file that begins with these bytes is a tar."""
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _check_disk(name: str, scratch: Path, needed: int) -> None:
    free = shutil.disk_usage(scratch).free
    if free < needed + SPARE_DISK:
        raise SourceError(
            f"{name} is compressed and {scratch} has only {free} bytes left to unpack it: "
            "free some, or set TMPDIR"
        )
