"""Presets: the benchmarks of a paper or a README with their settings, in presets/*.yaml.

read_preset("minitron").tasks["hellaswag"]   # 10 examples in the prompt
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import yaml

from minitron.errors import TargetError


@dataclass(frozen=True)
class SummarySettings:
    """The settings with which articles are summarized."""

    dataset: str
    config: str
    split: str
    shuffle_seed: int
    articles: int
    suffix: str
    max_input_tokens: int
    max_new_tokens: int


@dataclass(frozen=True)
class Preset:
    """Tasks of lm-eval with their numbers of examples, or the settings of summaries."""

    tasks: Mapping[str, int] = field(default_factory=dict)
    code_tasks: Mapping[str, int] = field(default_factory=dict)  # tasks that run generated code
    summaries: SummarySettings | None = None


def preset_names() -> list[str]:
    """The names of all presets."""
    return sorted(_files())


def read_preset(name: str) -> Preset:
    """A preset by its name. Raises TargetError for one that does not exist."""
    files = _files()
    if name not in files:
        raise TargetError(f"--preset is {name}: there are {' and '.join(preset_names())}")
    settings = yaml.safe_load(files[name].read_text(encoding="utf-8"))
    summaries = settings.pop("summaries", None)
    return Preset(**settings, summaries=None if summaries is None else SummarySettings(**summaries))


def _files() -> dict[str, Path]:
    folder = Path(str(resources.files("minitron") / "evaluation" / "presets"))
    return {path.stem: path for path in folder.glob("*.yaml")}
