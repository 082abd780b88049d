"""Workshop: where a visitor's model is really cut, evaluated, tried and packed.

for state in pruned(...): state.note
"""

import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import environ
from pathlib import Path
from typing import Any

from minitron.errors import OutputError
from minitron.evaluation.loss import Evaluation
from minitron.sources.opening import open_source
from minitron.space.jobs.errors import VisitorError
from minitron.space.jobs.freed_memory import give_back_freed_memory
from minitron.space.jobs.measures import HELD_OUT, Measures
from minitron.space.jobs.preview import Cut, Sizes, out_name
from minitron.space.jobs.results import KeptResults
from minitron.space.jobs.semaphore import Turns
from minitron.verbs.evaluate import evaluate
from minitron.verbs.inspect import inspection_of
from minitron.verbs.prune import prune

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Result:
    """A cut model, as far as it is done."""

    cut: Cut
    sizes: Sizes
    note: str  # what is being done
    folder: Path | None = None
    archive: Path | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Before and after, of a result that is done."""
        assert self.folder is not None
        assert self.before is not None
        assert self.after is not None
        member = self.cut.member
        return {
            "before": {**member.inspection.to_json(), **_scores(self.before)},
            "after": {
                **inspection_of(open_source(str(self.folder))).to_json(),
                **_scores(self.after),
                "share_of_importance_kept": self.cut.shares,
            },
            "evaluated_on": f"{HELD_OUT} sequences that {member.name} sampled itself",
            "seconds": self.seconds,
        }


class Workshop:
    """One cut at a time."""

    def __init__(self, measures: Measures, turns: Turns) -> None:
        self._measures, self._turns = measures, turns
        self.results = KeptResults()

    def pruned(self, cut: Cut, sizes: Sizes, visitor: str | None = None) -> Iterator[Result]:
        """The steps of a cut, the last one with everything. Raises MinitronError.

        What is left of one that failed, or that nobody waits for, is removed.
        """
        place = self.results.new(visitor)
        is_done = False
        try:
            for result in self._steps(cut, sizes, place):
                is_done = result.archive is not None
                yield result
        finally:
            if not is_done:
                self.results.remove(place)
            give_back_freed_memory()

    def _steps(self, cut: Cut, sizes: Sizes, place: Path) -> Iterator[Result]:
        begun = time.perf_counter()
        member = cut.member
        folder = place / out_name(member, sizes)
        result = Result(cut, sizes, f"Cutting {member.name} …")
        yield result
        with self._turns.turn():
            prune(
                member.source,
                str(folder),
                importance=str(self._measures.importance_file(member)),
                **vars(sizes),
            )
        result = replace(result, folder=folder, note="Evaluating both on the same text …")
        yield result
        before = self._measures.evaluation(member)
        corpus = self._measures.held_out(member)
        with self._turns.turn():
            after = evaluate(str(folder), corpus=str(corpus))
        result = replace(result, before=before, after=after, note="Packing …")
        yield result
        yield replace(
            result,
            archive=_packed(folder),
            seconds=time.perf_counter() - begun,
            note="Done.",
        )

    @property
    def _place(self) -> Path:
        return self.results.place

    def place_of(self, name: str) -> Path:
        """The folder of a result of this Space. Raises VisitorError where it is gone."""
        path = Path(name)
        if self._place not in path.parents or not path.is_dir():
            raise VisitorError("this model is not here any more: prune it again")
        return path


def push_as(token: str, folder: Path, repo: str) -> str:
    """Push a result with a visitor's own token; where it went.

    `minitron push` runs in a process of its own, so that no other visitor's request can see the
    token: it is in that process's environment, never in an argument, a log or ours. Raises
    OutputError with the reason.
    """
    if not _REPO.fullmatch(repo.strip()):
        raise VisitorError(f"{repo!r:.60} is no name for a repository: write owner/name")
    ran = subprocess.run(
        [sys.executable, "-m", "minitron", "push", str(folder), repo.strip()],
        env={**environ, "HF_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or ["the push ended without a word"]
        raise OutputError(last[0].replace(token, "…").removeprefix("minitron: "))
    return ran.stdout.strip().splitlines()[-1]


def _packed(folder: Path) -> Path:
    """The folder in one file; weights do not compress, so nothing is."""
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, f"{folder.name}/{path.name}")
    return archive


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    return {key: evaluation.to_json()[key] for key in ("loss", "perplexity")}
