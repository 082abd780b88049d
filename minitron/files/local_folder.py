"""Place: where the files of a model lie, as HubFolder asks for them.

A folder of this machine is one, a repository another. Knows no format.

    LocalPlace(Path("minitron-4b")).file("config.json")
"""

from pathlib import Path
from typing import Protocol

from minitron.errors import SourceError
from minitron.files.hub_repository import Piece, model_files
from minitron.files.partial_file import PartialPath

_WEIGHTS = (".safetensors", ".bin")


class Place(Protocol):
    """Where files lie: a folder, or a repository that is downloaded file by file."""

    name: str
    revision: str | None

    def file(self, name: str) -> Path | None:
        """The file on this machine, fetched where needed; None where there is none."""

    def names(self) -> list[str]:
        """The names of all files at the top level, and the paths of chat templates."""

    def is_here(self, name: str) -> bool:
        """Whether the file is on this machine, or can come from nowhere else."""

    def piece(self, name: str, start: int, stop: int) -> Piece | None:
        """Some bytes of a file that is not on this machine; None where `file` will do."""

    def partial_file(self, name: str) -> PartialPath | None:
        """A stand-in for a file that is read by pieces; None where `file` will do."""

    def fetch(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of a file of which a piece has come before."""

    def remedy(self, name: str) -> str:
        """What to do where a file is missing."""


class LocalPlace:
    """A folder on this machine."""

    revision: str | None = None

    def __init__(self, path: Path, name: str | None = None, *, is_ours: bool = False) -> None:
        """`is_ours` True follows any link, as those of a package manager."""
        self.path = path
        self.name = name or str(path)
        self._is_ours = is_ours

    def file(self, name: str) -> Path | None:
        """The file's path, if it is there. Raises SourceError for a link that leads outside.

        Weights may lie elsewhere: of theirs, nothing but numbers is copied.
        """
        path = self.path / name
        if not path.is_file():
            return None
        if not self._is_ours and path.suffix not in _WEIGHTS and leads_outside(path, self.path):
            raise SourceError(
                f"{path} is a link to {path.resolve()}, outside its folder: put the file itself "
                "there, or remove the link"
            )
        return path

    def names(self) -> list[str]:
        """The folder's files, in alphabetical order."""
        return model_files(self.path)

    def is_here(self, name: str) -> bool:
        """Yes: every file is."""
        return True

    def piece(self, name: str, start: int, stop: int) -> Piece | None:
        """None: every file is here."""

    def partial_file(self, name: str) -> PartialPath | None:
        """None: every file is here."""

    def fetch(self, name: str, start: int, stop: int) -> bytes:
        """Never asked, since no piece has come."""
        raise NotImplementedError

    def remedy(self, name: str) -> str:
        """Who copied the folder can tell where the rest is."""
        return "fetch it"


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether a path below `folder`, links followed, is neither in it nor a blob of its cache."""
    return not any(path.resolve().is_relative_to(root) for root in _roots(folder.resolve()))


def _roots(folder: Path) -> tuple[Path, ...]:
    """The folder itself, and the blobs to which a snapshot in the Hub's cache is made of links."""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and (blobs := parent.parents[1] / "blobs").is_dir():
            return folder, blobs
    return (folder,)
