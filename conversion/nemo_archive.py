"""A `.nemo` as named members, whatever holds them: a tar, a tar.gz or an unpacked folder.

It knows where the bytes of each member lie and what a `.nemo` may not hold; what the members mean
is for others. A plain tar is read in place. A tar.gz cannot be: it is unpacked once, to a temporary
tar that is deleted when the archive is closed, or nothing refers to its path any more.

    with open_archive(Path("model.nemo")) as archive:
        archive.read("model_config.yaml", limit=1 << 20)
"""

import logging
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minitron.conversion.unpacked_tar import TemporaryPath, is_tar_header, unpack
from minitron.errors import SourceError
from minitron.files.file_identity import FileIdentity, open_unchanged
from minitron.files.file_window import FileWindow
from minitron.files.inert_pickle import DAMAGE
from minitron.files.local_folder import leads_outside
from minitron.files.partial_file import bring
from minitron.files.torch_file import read_torch_object

logger = logging.getLogger(__name__)

LARGEST_HEADER = 1 << 20  # bytes; long names have some hundreds
MOST_MEMBERS = 1 << 20
BEGINNINGS = {
    b"PK\x03\x04": "a zip, as torch.save writes it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull",
    b"<": "a web page or XML",
}


@dataclass(frozen=True)
class Member:
    """The bytes of one file of the archive."""

    path: Path
    start: int
    length: int
    identity: FileIdentity | None = None  # of the file; None for a stand-in


class Archive:
    """The regular files of a checkpoint by name, relative and without "./"."""

    def __init__(
        self,
        path: Path,
        kind: str,
        members: Mapping[str, Member],
        unpacked: TemporaryPath | None = None,
    ) -> None:
        self.path = path
        self.kind = kind  # tar, tar.gz or folder
        self._members = dict(sorted(members.items()))
        self._unpacked = unpacked

    def names(self) -> tuple[str, ...]:
        """Every member, sorted."""
        return tuple(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def member(self, name: str) -> Member:
        """Where a member lies. Raises SourceError if there is none of that name."""
        if name not in self._members:
            raise SourceError(f"{self.path} has no {name}: the checkpoint is not complete")
        return self._members[name]

    def read(self, name: str, limit: int) -> bytes:
        """A small member whole. Raises SourceError if it has more bytes than the limit."""
        member = self.member(name)
        if member.length > limit:
            raise SourceError(
                f"{self.path}: {name} has {member.length} bytes, at most {limit} are expected"
            )
        try:
            bring(member.path, member.start, member.start + member.length)
            end = member.start + member.length
            with open_unchanged(member.path, member.identity, end) as descriptor:
                return os.pread(descriptor, member.length, member.start)
        except OSError as error:
            raise SourceError(f"{member.path} cannot be read: {error.strerror}") from None

    def torch_object(self, name: str, offset: int = 0, length: int | None = None) -> object:
        """What torch.save wrote into a member, or into some bytes of it, as data."""
        member = self.member(name)
        length = member.length - offset if length is None else length
        try:
            with open_unchanged(member.path, member.identity):
                return read_torch_object(member.path, member.start + offset, length)
        except SourceError as error:
            # It names the tar, which may be a temporary one.
            reason = str(error).removeprefix(str(member.path))
            raise SourceError(f"{self.path}: {name}{reason}") from None

    def close(self) -> None:
        """Delete what was unpacked; a plain tar or a folder stays as it is."""
        if self._unpacked is not None:
            self._unpacked.delete()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_archive(path: Path, scratch: Path | None = None) -> Archive:
    """The checkpoint at `path`; a compressed one is unpacked into a temporary file in `scratch`.

    `scratch` is the system's temporary folder where none is given. Raises SourceError for what is
    no `.nemo`, is truncated, unsafe to unpack, or larger than the disk.
    """
    try:
        if path.is_dir():
            return Archive(path, "folder", dict(_files(path)))
        bring(path, 0, tarfile.BLOCKSIZE)
        with path.open("rb") as file:
            beginning = file.read(tarfile.BLOCKSIZE)
        if beginning.startswith(b"\x1f\x8b"):
            return _unpacked(path, scratch or Path(tempfile.gettempdir()))
        if not is_tar_header(beginning):
            raise SourceError(f"{path} is no .nemo: it is {_nature(beginning)}")
        return Archive(path, "tar", _tar_members(path, path))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None


def _unpacked(path: Path, scratch: Path) -> Archive:
    tar = unpack(path, scratch)
    try:
        return Archive(path, "tar.gz", _tar_members(tar, path), unpacked=tar)
    except SourceError:
        tar.delete()  # at once: the error's own frames refer to it
        raise


def _tar_members(tar: Path, named: Path) -> dict[str, Member]:
    """Members of a plain tar. Only headers are read: a tar of 16 GB takes as long as its names."""
    members: dict[str, Member] = {}
    with tar.open("rb") as file:
        window = _Headers(file.fileno(), named, 0, None)
        for entry in _entries(window):
            if entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                logger.warning("%s: %r is no regular file and is left out", named, entry.name)
                continue
            name = _safe_name(entry.name, named)
            if name in members:
                raise SourceError(f"{named} holds {name} twice: it is damaged or not to be trusted")
            members[name] = Member(tar, entry.offset_data, entry.size, window.identity)
    if not members:
        raise SourceError(f"{named} is a tar without files")
    return members


class _Headers(FileWindow):
    """A tar whose headers alone are read: none may ask for more memory than a header needs."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return super().read(size)


def _entries(window: _Headers) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar, each checked to lie in the file and behind the one before."""
    path, end = window.path, 0
    try:
        with tarfile.open(fileobj=window, mode="r:") as tar:
            for count, entry in enumerate(tar):
                # A negative size would lead back to a header already read, for ever.
                if entry.offset < end or entry.size < 0 or count > MOST_MEMBERS:
                    raise ValueError(f"the header of {entry.name!r} is out of order")
                end = entry.offset_data + (entry.size if entry.isreg() else 0)
                if end > window.length and not entry.issparse():
                    raise SourceError(
                        f"{path} is truncated: {entry.name!r} ends at byte {end}, it has "
                        f"{window.length}"
                    )
                yield entry
            # tarfile takes a damaged header for the end; the true end is a block of zeros.
            window.seek(tar.offset)
    except (tarfile.TarError, EOFError, OSError, *DAMAGE) as error:
        raise SourceError(f"{path} is truncated or damaged: {error}") from None
    if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise SourceError(f"{path} is truncated or damaged: it has no end mark at {tar.offset}")


def _nature(beginning: bytes) -> str:
    """What a file that is no tar seems to be."""
    if not beginning:
        return "empty"
    known = (nature for magic, nature in BEGINNINGS.items() if beginning.startswith(magic))
    return next(known, f"no tar, it begins with {beginning[:8]!r}")


def _safe_name(name: str, archive: Path) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise SourceError(
            f"{archive} holds a member {name!r}, which leads outside: do not trust it"
        )
    if not name.isprintable():
        raise SourceError(f"{archive} holds a member {name!r}, which is no name for a file")
    return str(path)


def _files(folder: Path) -> Iterator[tuple[str, Member]]:
    """Regular files below a folder. Links lead only to where the folder's own files are."""
    for count, path in enumerate(_walk(folder)):
        if count > MOST_MEMBERS:
            raise SourceError(f"{folder} has more than {MOST_MEMBERS} files: it is no checkpoint")
        name = path.relative_to(folder).as_posix()
        if not name.isprintable():
            logger.warning("%s: %r is no name for a member and is left out", folder, name)
            continue
        if path.is_symlink() and leads_outside(path, folder):
            logger.warning("%s: the link %s leads outside and is left out", folder, name)
            continue
        try:
            status = path.stat()
        except OSError:  # a link to nothing
            continue
        if stat.S_ISREG(status.st_mode):
            yield name, Member(path, 0, status.st_size, FileIdentity.of(status))


def _walk(folder: Path) -> Iterator[Path]:
    for root, _, files in os.walk(folder):
        yield from (Path(root, name) for name in files)
