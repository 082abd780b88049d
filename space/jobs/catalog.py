"""Family: which models this Space shows, under which names, and who teaches whom.

Read from YAML: MINITRON_SPACE_MODELS (the text itself or a file's name), else `models.yaml` beside
app.py, else every model of the embedded zoo. A visitor chooses by name only; a source never comes
from one.

    family = Family.read()
    family.member("tiny").source

The YAML is a list of names of the zoo, or of mappings of `name`, `source` (anything that
`minitron inspect` takes) and `teacher` (another name; the largest of the list unless given).
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from minitron.model.source import Source
from minitron.sources.opening import open_source, zoo
from minitron.space.jobs.errors import VisitorError
from minitron.verbs.inspect import Inspection, inspection_of

SETTING = "MINITRON_SPACE_MODELS"
FILE = "models.yaml"
_NAME = re.compile(r"[\w][\w .-]{0,63}")


@dataclass(frozen=True)
class Member:
    """One model of the family."""

    name: str
    source: str
    teacher: str | None = None  # another member's name; None for a teacher

    @cached_property
    def inspection(self) -> Inspection:
        """What it is, read once, without its weights."""
        return inspection_of(self.open())

    def open(self) -> Source:
        """Its files."""
        return open_source(self.source)


@dataclass(frozen=True)
class Family:
    """The models of this Space, the largest first."""

    members: tuple[Member, ...]

    @classmethod
    def read(cls, folder: Path | None = None) -> "Family":
        """As the environment, `models.yaml` in `folder`, or the zoo says. Raises VisitorError."""
        said = os.environ.get(SETTING, "").strip()
        path = Path(said) if said and "\n" not in said and len(said) < 255 else None
        if said and not (path and path.suffix in (".yaml", ".yml")):
            return cls.of(_entries(said, SETTING))
        if path is None and folder is not None and (folder / FILE).is_file():
            path = folder / FILE
        if path is None:
            return cls.of(list(zoo()))
        if not path.is_file():
            raise VisitorError(f"{SETTING} names {path}, which does not exist")
        return cls.of(_entries(path.read_text(encoding="utf-8"), str(path)))

    @classmethod
    def of(cls, entries: Iterable[str | Mapping[str, Any]]) -> "Family":
        """A family of names of the zoo, of sources, or of mappings. Raises MinitronError."""
        members = sorted(map(_member, entries), key=lambda m: -m.inspection.parameters)
        names = [member.name for member in members]
        if not names or len(set(names)) < len(names):
            raise VisitorError(f"models are {names}: name at least one, and none twice")
        for member in members:
            if member.teacher is not None and member.teacher not in names:
                raise VisitorError(
                    f"{member.name} names teacher {member.teacher}: it must be one of the models"
                )
        first = names[0]
        return cls(
            tuple(
                member if member.teacher or member.name == first else replace(member, teacher=first)
                for member in members
            )
        )

    @property
    def names(self) -> list[str]:
        """What a visitor may choose."""
        return [member.name for member in self.members]

    def member(self, name: object) -> Member:
        """The model of that name. Raises VisitorError, which names those there are."""
        for member in self.members:
            if member.name == name:
                return member
        shown = f"{name!r:.60}"
        raise VisitorError(f"there is no model {shown} here: choose {' or '.join(self.names)}")


def _entries(text: str, where: str) -> list[Any]:
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise VisitorError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(entries, str):
        entries = [name.strip() for name in entries.split(",")]
    if not isinstance(entries, list):
        raise VisitorError(f"{where} holds {entries!r:.40}: write a list of models")
    return entries


def _member(entry: str | Mapping[str, Any]) -> Member:
    if isinstance(entry, str):
        member = Member(_short(entry), entry)
    elif isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        unknown = sorted(set(entry) - {"name", "source", "teacher"})
        if unknown:
            raise VisitorError(f"a model has {unknown[0]!r}: known are name, source and teacher")
        member = Member(
            entry["name"], str(entry.get("source") or entry["name"]), entry.get("teacher")
        )
    else:
        raise VisitorError(f"a model is {entry!r:.60}: write a name, or name, source and teacher")
    if not _NAME.fullmatch(member.name):
        raise VisitorError(f"a model is called {member.name!r}: letters, digits, '.', '-' and '_'")
    return member


def _short(source: str) -> str:
    """A source's last part, without its revision."""
    return Path(source).name.partition("@")[0].partition(":")[0]
