"""Space folder: the files of a Space's repository, written on this machine.

These are minitron.space, `models.yaml` with the models to show, and minitron itself, which has no
release on the package index yet. When the Hub builds a Space, pip sees only requirements.txt: the
wheel beside it can be named only by its URL. pip cannot read the URLs of a private repository, so
there minitron is unpacked beside app.py.

    write_space_folder(Path("demo"), [ShownModel("tiny", "tiny")], wheel_url=None)
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from huggingface_hub import SpaceCard

from minitron.publish.own_wheel import OwnWheel, own_wheel, package_files

MODELS = "models.yaml"  # where minitron.space.jobs.catalog looks
_EXTRA = "space"


@dataclass(frozen=True)
class ShownModel:
    """A model that the Space shows."""

    name: str  # in the list from which visitors choose
    source: str  # a Hub id or a name of the zoo

    @property
    def repo(self) -> str | None:
        """The repository; None for a model of the zoo."""
        return self.source.partition("@")[0].partition(":")[0] if "/" in self.source else None


def write_space_folder(
    out: Path, models: Sequence[ShownModel], *, wheel_url: Callable[[str], str] | None
) -> None:
    """Write the files of a Space that shows `models`; without any, the embedded family.

    `wheel_url` returns the URL from which pip can load the wheel of a file name; without it,
    minitron is unpacked. Raises SourceError where minitron is not installed.
    """
    wheel = own_wheel()
    for name, path in package_files("minitron.space").items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    if models:
        listed = yaml.safe_dump([asdict(model) for model in models], sort_keys=False)
        (out / MODELS).write_text(listed, encoding="utf-8")
        _name_models(out / "README.md", models)
    if wheel_url is None:
        _unpack(wheel, out)
        required = wheel.needs(_EXTRA)
    else:
        digest = hashlib.sha256(wheel.write(out).read_bytes()).hexdigest()
        # With the checksum: a Space installs again only when requirements.txt changes.
        required = [f"minitron[{_EXTRA}] @ {wheel_url(wheel.name)}#sha256={digest}"]
    (out / "requirements.txt").write_text("\n".join([*required, ""]), encoding="utf-8")


def _name_models(readme: Path, models: Sequence[ShownModel]) -> None:
    """Link the models' repositories in the metadata of the Space."""
    card = SpaceCard.load(readme)
    card.data.models = [model.repo for model in models if model.repo is not None]
    if not card.data.models:
        del card.data.models
    card.save(readme)


def _unpack(wheel: OwnWheel, out: Path) -> None:
    for name, content in wheel.files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
