"""Place: where the files of a model lie, as HubFolder asks for them.

A folder of this machine is one, a repository another. Knows no format.

    LocalPlace(Path("minitron-4b")).file("config.json")
"""

from pathlib import Path
from typing import Protocol

from minitron.hub.partial_file import PartialPath
from minitron.hub.repository import Piece, model_files


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


class LocalPlace:
    """A folder on this machine."""

    revision: str | None = None

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)

    def file(self, name: str) -> Path | None:
        """The file's path, if it is there."""
        path = self.path / name
        return path if path.is_file() else None

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
