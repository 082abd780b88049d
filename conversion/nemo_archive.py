"""The members of a `.nemo` as files: of a tar, a tar.gz or an unpacked folder.

Knows the position of each member and what a `.nemo` may not contain, not what the members mean. A
plain tar is read in place. A tar.gz is unpacked once, to a temporary tar, which is deleted when the
archive is closed or nothing refers to it and its members any more.

    with open_archive(Path("model.nemo")) as archive:
        archive.read("model_config.yaml", limit=1 << 20)
"""

import logging
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from minitron.conversion.unpacked_tar import TemporaryFile, is_tar_header, unpack
from minitron.errors import SourceError
from minitron.files.cached_file import Cursor
from minitron.files.file import File, LocalFile
from minitron.files.inert_pickle import DAMAGE
from minitron.files.model_files import leads_outside

logger = logging.getLogger(__name__)

_LARGEST_HEADER = 1 << 20  # bytes; long names have some hundreds
MOST_MEMBERS = 1 << 20
_KNOWN_FORMATS = {
    b"PK\x03\x04": "a zip, as torch.save writes it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull",
    b"<": "a web page or XML",
}


class Archive:
    """The regular files of a checkpoint by name, relative and without "./"."""

    def __init__(
        self,
        name: str,
        kind: str,
        members: Mapping[str, File],
        unpacked: TemporaryFile | None = None,
    ) -> None:
        self.name = name  # in error messages
        self.kind = kind  # tar, tar.gz or folder
        self._members = dict(sorted(members.items()))
        self._unpacked = unpacked

    def names(self) -> tuple[str, ...]:
        """Every member, sorted."""
        return tuple(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def member(self, name: str) -> File:
        """A member as a file. Raises SourceError if there is none of that name."""
        if name not in self._members:
            raise SourceError(f"{self.name} has no {name}: the checkpoint is not complete")
        return self._members[name]

    def read(self, name: str, limit: int) -> bytes:
        """A small member whole. Raises SourceError if it has more bytes than the limit."""
        member = self.member(name)
        if member.size > limit:
            raise SourceError(
                f"{self.name}: {name} has {member.size} bytes, at most {limit} are expected"
            )
        return member.read()

    def close(self) -> None:
        """Delete the unpacked tar; a plain tar or a folder stays as it is."""
        if self._unpacked is not None:
            self._unpacked.delete()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_archive(path: Path | File, scratch: Path | None = None) -> Archive:
    """The checkpoint in a folder or file; a compressed one is unpacked to a file in `scratch`.

    `scratch` is the system's temporary folder where none is given. Raises SourceError for what is
    no `.nemo`, is truncated, unsafe to unpack, or larger than the disk.
    """
    if isinstance(path, Path) and path.is_dir():
        return Archive(str(path), "folder", dict(_files(path)))
    file = LocalFile.at(path) if isinstance(path, Path) else path
    beginning = file.read(0, min(tarfile.BLOCKSIZE, file.size))
    if beginning.startswith(b"\x1f\x8b") and isinstance(file, LocalFile):
        return _open_compressed(file, scratch or Path(tempfile.gettempdir()))
    if not is_tar_header(beginning):
        raise SourceError(f"{file.name} is not a .nemo: it is {_describe_format(beginning)}")
    return Archive(file.name, "tar", _tar_members(file))


def _open_compressed(file: LocalFile, scratch: Path) -> Archive:
    try:
        tar = unpack(file, scratch)
    except OSError as error:
        raise SourceError(f"{file.name} cannot be read: {error.strerror or error}") from None
    try:
        members = _tar_members(LocalFile.at(tar.path, file.name, owner=tar))
        return Archive(file.name, "tar.gz", members, tar)
    except SourceError:
        tar.delete()  # at once: the error's own frames refer to it
        raise


def _tar_members(tar: File) -> dict[str, File]:
    """Members of a plain tar. Only headers are read: the time depends on their number alone."""
    members: dict[str, File] = {}
    for entry in _entries(_Headers(tar)):
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse():
            logger.warning("%s: %r is not a regular file and is left out", tar.name, entry.name)
            continue
        name = _safe_name(entry.name, tar.name)
        if name in members:
            raise SourceError(f"{tar.name} holds {name} twice: it is damaged or not to be trusted")
        members[name] = tar.window(entry.offset_data, entry.size, f"{tar.name}: {name}")
    if not members:
        raise SourceError(f"{tar.name} is a tar without files")
    return members


class _Headers(Cursor):
    """A tar of which only headers are read: none may claim more memory than a header needs."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return super().read(size)


def _entries(headers: _Headers) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar, each checked to be in the file and after the one before."""
    name, size, end = headers.file.name, headers.file.size, 0
    try:
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            for count, entry in enumerate(tar):
                # With a negative size tarfile would read the same header again, for ever.
                if entry.offset < end or entry.size < 0 or count > MOST_MEMBERS:
                    raise ValueError(f"the header of {entry.name!r} is out of order")
                end = entry.offset_data + (entry.size if entry.isreg() else 0)
                if end > size and not entry.issparse():
                    raise SourceError(
                        f"{name} is truncated: {entry.name!r} ends at byte {end}, it has {size}"
                    )
                yield entry
            # tarfile stops at a damaged header as if it were the end; the end is a block of zeros.
            headers.seek(tar.offset)
    except (tarfile.TarError, EOFError, OSError, *DAMAGE) as error:
        raise SourceError(f"{name} is truncated or damaged: {error}") from None
    if headers.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise SourceError(f"{name} is truncated or damaged: it has no end mark at {tar.offset}")


def _describe_format(beginning: bytes) -> str:
    """What a file that is not a tar appears to be."""
    if not beginning:
        return "empty"
    if beginning[8:10] in (b'{"', b"{}"):
        return "a safetensors file: name its model's folder (scores of importance: --importance)"
    known = (kind for magic, kind in _KNOWN_FORMATS.items() if beginning.startswith(magic))
    return next(known, f"not a tar, it begins with {beginning[:8]!r}")


def _safe_name(name: str, archive: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise SourceError(
            f"{archive} holds a member {name!r}, which leads outside: do not trust it"
        )
    if not name.isprintable():
        raise SourceError(f"{archive} holds a member {name!r}, which is not a name for a file")
    return str(path)


def _files(folder: Path) -> Iterator[tuple[str, LocalFile]]:
    """Regular files below a folder. Links out of the folder are left out."""
    for count, path in enumerate(_walk(folder)):
        if count > MOST_MEMBERS:
            raise SourceError(
                f"{folder} has more than {MOST_MEMBERS} files: it is not a checkpoint"
            )
        name = path.relative_to(folder).as_posix()
        if not name.isprintable():
            logger.warning("%s: %r is not a name for a member and is left out", folder, name)
            continue
        if path.is_symlink() and leads_outside(path, folder):
            logger.warning("%s: the link %s leads outside and is left out", folder, name)
            continue
        if os.path.isfile(path):  # else a pipe, or a link to nothing
            yield name, LocalFile.at(path, f"{folder}: {name}")


def _walk(folder: Path) -> Iterator[Path]:
    for root, _, files in os.walk(folder):
        yield from (Path(root, name) for name in files)
