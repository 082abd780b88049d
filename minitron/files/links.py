"""Links of a model folder: whether one leads outside, to a file that is no part of the model.

A folder may come from anybody. A link in it to a file of this machine would be copied beside the
weights and published. Links in a snapshot of the Hub's cache lead to the blobs of the same cache.

    leads_outside(Path("m/LICENSE"), Path("m"))
"""

from pathlib import Path


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether a path below `folder`, links followed, is neither in it nor a blob of its cache."""
    return not any(path.resolve().is_relative_to(root) for root in _roots(folder.resolve()))


def _roots(folder: Path) -> tuple[Path, ...]:
    """The folder itself, and the blobs to which a snapshot in the Hub's cache is made of links."""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and (blobs := parent.parents[1] / "blobs").is_dir():
            return folder, blobs
    return (folder,)
