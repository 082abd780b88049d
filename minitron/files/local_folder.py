"""LocalFolder: a model folder on this machine, as HubFolder asks for its files.

A folder may come from anybody. A link in it to another file of this machine would be copied beside
the weights and published, so links that lead outside the folder are refused. Links in a snapshot of
the Hub's cache lead to the blobs of the same cache. Knows no format.

    LocalFolder(Path("minitron-4b")).file("config.json")
"""

from pathlib import Path

from minitron.errors import SourceError
from minitron.files.hub_repository import model_files

_WEIGHTS = (".safetensors", ".bin")


class LocalFolder:
    """A folder on this machine."""

    revision: str | None = None

    def __init__(self, path: Path, name: str | None = None, *, is_ours: bool = False) -> None:
        """`is_ours` True follows any link, since a package manager may have made it."""
        self.path = path
        self.name = name or str(path)
        self._is_ours = is_ours

    def file(self, name: str) -> Path | None:
        """The file's path, if it is there. Raises SourceError for a link that leads outside.

        Weights may be elsewhere: only their numbers are copied.
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

    def is_local(self, name: str) -> bool:
        """Whether the file is on this machine: always."""
        return True

    def remote_file(self, name: str) -> None:
        """None: every file is on this machine."""

    def remedy(self, name: str) -> str:
        """What to do about a missing file: whoever copied the folder knows where it is."""
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
