"""Pruning: a visitor's model is pruned, evaluated and packed.

for result in Pruner(measurements, semaphore).run(preview, sizes): print(result.note)
"""

import re
import shutil
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
from minitron.files.device_memory import readable_bytes
from minitron.records.minitron_json import read_record
from minitron.records.model_card import write_card
from minitron.records.record_writer import add_measurements
from minitron.sources.opening import open_source
from minitron.space.jobs.catalog import CatalogModel
from minitron.space.jobs.measures import HELD_OUT, SAMPLES, Measurements
from minitron.space.jobs.preview import Preview, Sizes
from minitron.space.jobs.process import release_freed_memory
from minitron.space.jobs.request import VisitorError
from minitron.space.jobs.results import ResultStore
from minitron.space.jobs.semaphore import FairSemaphore
from minitron.verbs.evaluate import evaluate
from minitron.verbs.inspect import inspection_of
from minitron.verbs.prune import prune

_COPIES = 3  # of the weights: the folder, its archive, and as much for others
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class PruningResult:
    """A pruned model, as far as it is done."""

    preview: Preview
    sizes: Sizes
    note: str  # the step that runs now
    folder: Path | None = None
    archive: Path | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Before and after, for a result that is done."""
        assert self.folder is not None
        assert self.before is not None
        assert self.after is not None
        entry = self.preview.entry
        return {
            "before": {**entry.inspection.to_json(), **_scores(self.before)},
            "after": {
                **inspection_of(open_source(str(self.folder))).to_json(),
                **_scores(self.after),
                "share_of_importance_kept": self.preview.shares,
            },
            "evaluated_on": _evaluated_on(entry),
            "seconds": self.seconds,
        }


class Pruner:
    """Prunes models into folders of its result store."""

    def __init__(self, measurements: Measurements, semaphore: FairSemaphore) -> None:
        self._measurements, self._semaphore = measurements, semaphore
        self.results = ResultStore()
        self._originals: dict[Path, CatalogModel] = {}

    def run(
        self, preview: Preview, sizes: Sizes, visitor: str | None = None
    ) -> Iterator[PruningResult]:
        """The steps of a pruning, the last one with everything. Raises MinitronError.

        The files of one that fails, or whose caller stops iterating, are removed.
        """
        folder = self.results.create(visitor)
        is_done = False
        try:
            for result in self._steps(preview, sizes, folder):
                is_done = result.archive is not None
                yield result
        finally:
            if not is_done:
                self.results.remove(folder)
            release_freed_memory()

    def _steps(self, preview: Preview, sizes: Sizes, parent: Path) -> Iterator[PruningResult]:
        started = time.perf_counter()
        entry = preview.entry
        folder = parent / sizes.folder_name(entry)
        result = PruningResult(preview, sizes, f"Pruning {entry.name} …")
        yield result
        importance = str(self._measurements.importance_file(entry))
        with self._semaphore.slot():
            prune(entry.source, str(folder), importance=importance, **vars(sizes))
        self._originals = {path: of for path, of in self._originals.items() if path.is_dir()}
        self._originals[folder] = entry
        result = replace(result, folder=folder, note="Evaluating both models on the same text …")
        yield result
        before = self._measurements.evaluation(entry)
        corpus = str(self._measurements.held_out(entry))
        with self._semaphore.slot():
            after = evaluate(str(folder), corpus=corpus)
        self._record(entry, folder, before, after)
        result = replace(result, before=before, after=after, note="Packing …")
        yield result
        archive, seconds = _pack(folder), time.perf_counter() - started
        yield replace(result, archive=archive, seconds=seconds, note="Done.")

    def _record(
        self, entry: CatalogModel, folder: Path, before: Evaluation, after: Evaluation
    ) -> None:
        """Record the evaluation, and the command that the page shows.

        That measures the importance, which is a file of this machine here.
        """
        length = self._measurements.sequence_length(entry)
        measuring = {"importance": None, "corpus": "self", "samples": SAMPLES, "seq_len": length}
        measuring["reconstruct"] = "none"  # with a corpus it is done unless a command says so
        rows = [
            {"name": name, "values": [f"{one.loss:.4f}", f"{one.perplexity:.2f}"]}
            for name, one in ((entry.name, before), (folder.name, after))
        ]
        results = {
            "measured": f"On {_evaluated_on(entry)}, of at most {length} tokens.",
            "columns": ["loss (nats a token)", "perplexity"],
            "rows": rows,
        }
        recipe = {**read_record(folder)["recipe"], **measuring}
        add_measurements(folder, results=results, recipe=recipe)
        write_card(folder)

    def original(self, folder: Path) -> CatalogModel:
        """The model that a result was pruned from. Raises VisitorError for any other folder."""
        if folder not in self._originals:
            raise VisitorError("this is no pruned model: prune one first")
        return self._originals[folder]

    def check_room(self, preview: Preview) -> None:
        """Refuse a result that the disk cannot hold with its archive. Raises VisitorError."""
        needed = _COPIES * preview.to_json()["bytes"]
        free = shutil.disk_usage(self.results.root).free
        if needed > free:
            raise VisitorError(
                f"this Space has {readable_bytes(free)} left on its disk, and this model needs "
                f"{readable_bytes(needed)}: choose smaller sizes, or use the command below"
            )

    def check_folder(self, name: str) -> Path:
        """The folder of a result. Raises VisitorError for any other, or a removed one."""
        path = Path(name)
        if self.results.root not in path.parents or not path.is_dir():
            raise VisitorError("this model is not here any more: prune it again")
        return path


def push_with_token(token: str, folder: Path, repo: str) -> str:
    """Push a result with the visitor's own token; returns its address.

    `minitron push` runs in a process of its own, so that no other visitor's request can see the
    token: it is in that process's environment, never in an argument, a log or our environment.
    Raises OutputError with the reason.
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
        last = ran.stderr.strip().splitlines()[-1:] or ["the push ended without a message"]
        raise OutputError(last[0].replace(token, "…").removeprefix("minitron: "))
    return ran.stdout.strip().splitlines()[-1]


def _pack(folder: Path) -> Path:
    """The folder as one zip; uncompressed, as weights do not compress."""
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, f"{folder.name}/{path.name}")
    return archive


def _evaluated_on(entry: CatalogModel) -> str:
    return f"{HELD_OUT} sequences that {entry.name} sampled itself"


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    return {key: evaluation.to_json()[key] for key in ("loss", "perplexity")}
