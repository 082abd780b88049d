"""Records: what benchmarks/ has measured, as it lies in its result files.

A file that is not there was not run. It knows no names of tables: who asks does.

    Records().runs("t14/pruned-distill").loss   # the mean over the seeds, nats a token
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = (
    Path(__file__).parent.parent / "results",  # as installed
    Path(__file__).parent.parent.parent / "benchmarks" / "results",  # in the repository
)


@dataclass(frozen=True)
class Run:
    """A model that was retrained and evaluated."""

    file: str  # under benchmarks/results/family
    loss: float  # nats a token
    before: float | None  # the same before retraining; None of random weights
    tokens: int
    parameters: int
    seconds: float

    @property
    def seed(self) -> str:
        """As its file says."""
        return Path(self.file).stem.rpartition("-")[2]


@dataclass(frozen=True)
class Runs:
    """The same run by several seeds, or none."""

    all: tuple[Run, ...]

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def loss(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(run.loss for run in self.all)

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over the seeds; None of one."""
        return statistics.stdev(run.loss for run in self.all) if len(self.all) > 1 else None


@dataclass(frozen=True)
class Records:
    """Result files, each in the first of the folders that holds it."""

    folders: tuple[Path, ...] = RESULTS

    def result(self, name: str) -> dict[str, Any]:
        """What NAME.json holds; empty where there is none."""
        for folder in self.folders:
            path = folder / f"{name}.json"
            if path.is_file():
                return dict(json.loads(path.read_text(encoding="utf-8")))
        return {}

    def runs(self, name: str) -> Runs:
        """Those of TABLE/NAME, by seed."""
        return Runs(self._family(f"{name}-[0-9].json"))

    def curve(self, kind: str) -> list[Run]:
        """One run on ever more tokens."""
        return sorted(self._family(f"curve/{kind}-*.json"), key=lambda run: run.tokens)

    def _family(self, pattern: str) -> tuple[Run, ...]:
        for folder in self.folders:
            place = folder / "family"
            if paths := sorted(place.glob(pattern)):
                return tuple(_run(path, place) for path in paths)
        return ()


def _run(path: Path, place: Path) -> Run:
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    keys = ("loss", "before", "tokens", "parameters", "seconds")
    return Run(path.relative_to(place).as_posix(), *(found[key] for key in keys))
