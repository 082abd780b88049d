"""Space folder: the files of a Space's repository, written on this machine.

These are minitron.space, `models.yaml` with the models to show, and minitron itself, which has no
release on the package index yet. When the Hub builds a Space, pip sees only requirements.txt: the
wheel beside it can be named only by its URL. pip cannot read the URLs of a private repository, so
there minitron is unpacked beside app.py.

The wheel is built from the files that Python imports and from the metadata of the installation, so
it works for an editable installation too, whose folders are elsewhere. Building it needs no network
and no build tool; the same files give the same bytes.

    write_space_folder(Path("demo"), [ShownModel("tiny", "tiny")], wheel_url=None)
    own_wheel().write(Path("out"))   # out/minitron-0.1.0-py3-none-any.whl
"""

import csv
import hashlib
import io
import os
import shutil
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

import yaml
from huggingface_hub import SpaceCard

from minitron.errors import SourceError

# Packages whose folders may be anywhere; in a wheel the second and third are inside the first.
_PACKAGES = ("minitron", "minitron.conversion", "minitron.space", "modeling_nemotron")
_KEPT_METADATA = ("METADATA", "entry_points.txt", "top_level.txt")
_WHEEL = "Wheel-Version: 1.0\nGenerator: minitron\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_DENSE = (".safetensors", ".png")  # that compression hardly makes smaller
_OLDEST = (1980, 1, 1, 0, 0, 0)  # date that a zip can store


@dataclass(frozen=True)
class OwnWheel:
    """The contents of a wheel: path to bytes, and its requirements."""

    version: str
    files: Mapping[str, bytes]
    requires: tuple[str, ...]  # as in METADATA, with those of extras

    @property
    def name(self) -> str:
        """The file name of the wheel."""
        return f"minitron-{self.version}-py3-none-any.whl"

    def needs(self, extra: str) -> list[str]:
        """The requirements with an extra."""
        split = [requirement.partition(";") for requirement in self.requires]
        plain = [need for need in self.requires if "extra ==" not in need]
        wanted = f'extra == "{extra}"'
        return plain + [need.strip() for need, _, marker in split if marker.strip() == wanted]

    def write(self, folder: Path) -> Path:
        """Write the wheel into a folder."""
        path = folder / self.name
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in self.files.items():
                entry = zipfile.ZipInfo(name, _OLDEST)
                shrinks = not name.endswith(_DENSE)
                entry.compress_type = zipfile.ZIP_DEFLATED if shrinks else zipfile.ZIP_STORED
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, content)
        return path


def own_wheel() -> OwnWheel:
    """The wheel of the installation. Raises SourceError for a folder that is not installed."""
    installed = _installation()
    version = installed.version
    about = f"minitron-{version}.dist-info"
    paths = {
        f"{package.replace('.', '/')}/{name}": path
        for package in _PACKAGES
        for name, path in package_files(package).items()
    }
    files = {name: path.read_bytes() for name, path in sorted(paths.items())}
    files |= {f"{about}/{name}": content for name, content in sorted(_metadata(installed))}
    files[f"{about}/WHEEL"] = _WHEEL.encode()
    files[f"{about}/RECORD"] = _record(files, f"{about}/RECORD")
    return OwnWheel(version, files, tuple(installed.requires or ()))


def package_files(package: str) -> dict[str, Path]:
    """The files of a package by relative path; follows links to folders."""
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations, package
    root = Path(spec.submodule_search_locations[0])
    return {path.relative_to(root).as_posix(): path for path in sorted(_files(root))}


def _files(root: Path) -> Iterator[Path]:
    """Every file below `root`, except hidden and compiled ones."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__" and name[0] != "."]
        yield from (Path(folder, name) for name in names if name[0] != ".")


def _installation() -> Distribution:
    """The distribution that pip installed, not the metadata of setuptools in a checkout."""
    for found in distributions(name="minitron"):
        if found.read_text("WHEEL") is not None:
            return found
    raise SourceError("minitron runs from a folder that is not installed: pip install it first")


def _metadata(installed: Distribution) -> Iterator[tuple[str, bytes]]:
    """The metadata files of a wheel, without the origin of this installation."""
    for name in _KEPT_METADATA:
        text = installed.read_text(name)
        assert text is not None, f"the installation has no {name}"
        yield name, text.encode()
    for file in installed.files or ():
        folder, *within = file.parts
        if folder.endswith(".dist-info") and within[0] == "licenses":
            yield "/".join(within), Path(str(file.locate())).read_bytes()


def _record(files: Mapping[str, bytes], own: str) -> bytes:
    """RECORD: every file with its checksum and size; its own entry has neither."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, content in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(content)))
    rows.writerow((own, "", ""))
    return text.getvalue().encode()


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
