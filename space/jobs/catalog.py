"""Catalog: the models of this Space, their names, and which model is whose teacher.

Read from YAML: MINITRON_SPACE_MODELS (the text itself or the name of a file), else `models.yaml`
beside app.py, else all embedded models. Visitors choose by name only; they cannot name a source.

    catalog = Catalog.read()
    catalog.model("tiny").source

The YAML is a list of names of embedded models, or of mappings of `name`, `source` (anything that
`minitron inspect` opens) and `teacher` (another name; by default the largest model of the list).
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
from minitron.sources.loading import default_device, loaded_bytes
from minitron.sources.opening import open_source, zoo
from minitron.space.jobs.request import VisitorError
from minitron.verbs.inspect import Inspection, inspection_of

SETTING = "MINITRON_SPACE_MODELS"
FILE = "models.yaml"
_NAME = re.compile(r"[\w][\w .-]{0,63}")


@dataclass(frozen=True)
class CatalogModel:
    """One model of the Space."""

    name: str
    source: str
    teacher: str | None = None  # another model's name; None for a teacher

    @cached_property
    def inspection(self) -> Inspection:
        """Its sizes, read once, without its weights."""
        return inspection_of(self.open())

    @cached_property
    def loaded_bytes(self) -> int:
        """Memory of its weights here, known without reading them."""
        return loaded_bytes(self.open(), None, default_device())

    def open(self) -> Source:
        """Its files."""
        return open_source(self.source)


@dataclass(frozen=True)
class Catalog:
    """The models of this Space, the largest first."""

    models: tuple[CatalogModel, ...]

    @classmethod
    def read(cls, folder: Path | None = None) -> "Catalog":
        """From the environment, `models.yaml` in `folder`, or the zoo. Raises VisitorError."""
        setting = os.environ.get(SETTING, "").strip()
        is_path = setting and "\n" not in setting and len(setting) < 255
        path = Path(setting) if is_path else None
        if setting and not (path and path.suffix in (".yaml", ".yml")):
            return cls.of(_entries(setting, SETTING))
        if path is None and folder is not None and (folder / FILE).is_file():
            path = folder / FILE
        if path is None:
            return cls.of(list(zoo()))
        if not path.is_file():
            raise VisitorError(f"{SETTING} names {path}, which does not exist")
        return cls.of(_entries(path.read_text(encoding="utf-8"), str(path)))

    @classmethod
    def of(cls, entries: Iterable[str | Mapping[str, Any]]) -> "Catalog":
        """From names of the zoo, sources, or mappings. Raises MinitronError."""
        models = sorted(map(_model, entries), key=lambda m: -m.inspection.parameters)
        names = [model.name for model in models]
        if not names or len(set(names)) < len(names):
            raise VisitorError(f"models are {names}: name at least one, and none twice")
        for model in models:
            if model.teacher is not None and model.teacher not in names:
                raise VisitorError(
                    f"{model.name} names teacher {model.teacher}: it must be one of the models"
                )
        largest = names[0]
        return cls(
            tuple(
                model if model.teacher or model.name == largest else replace(model, teacher=largest)
                for model in models
            )
        )

    @property
    def names(self) -> list[str]:
        """The names that a visitor may choose."""
        return [model.name for model in self.models]

    def model(self, name: object) -> CatalogModel:
        """The model of that name. Raises VisitorError, which lists the names."""
        for model in self.models:
            if model.name == name:
                return model
        raise VisitorError(f"there is no model {name!r:.60} here: choose {' or '.join(self.names)}")


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


def _model(entry: str | Mapping[str, Any]) -> CatalogModel:
    if isinstance(entry, str):
        model = CatalogModel(_short_name(entry), entry)
    elif isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        unknown = sorted(set(entry) - {"name", "source", "teacher"})
        if unknown:
            raise VisitorError(f"a model has {unknown[0]!r}: known are name, source and teacher")
        source = str(entry.get("source") or entry["name"])
        model = CatalogModel(entry["name"], source, entry.get("teacher"))
    else:
        raise VisitorError(f"a model is {entry!r:.60}: write a name, or name, source and teacher")
    if not _NAME.fullmatch(model.name):
        raise VisitorError(f"a model is called {model.name!r}: letters, digits, '.', '-' and '_'")
    return model


def _short_name(source: str) -> str:
    """The last part of a source, without its revision."""
    return Path(source).name.partition("@")[0].partition(":")[0]
