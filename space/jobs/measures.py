"""Measures: what is measured of a model once and then kept: importance, timings, held-out text.

Importance and text are kept on disk, under the model's name and the digest of its weights; timings
belong to this machine and process. A second request for the same measurement waits for the first.

    Measurements(folder, semaphore).importance(entry).heads   # (layers, heads)
"""

import logging
import os
import shutil
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron.candidates.decode_step import Conditions
from minitron.candidates.latency import Corners, LatencyTable, measure_table
from minitron.errors import ImportanceError
from minitron.evaluation.loss import Evaluation
from minitron.files.dtypes import dtype_named
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.sources.loading import default_device, fast_dtype, load_model
from minitron.space.jobs.catalog import CatalogModel
from minitron.space.jobs.semaphore import FairSemaphore
from minitron.text.sampling import self_corpus
from minitron.verbs.evaluate import evaluate
from minitron.verbs.importance import measure_importance

SAMPLES, SEQ_LEN = 64, 256  # sequences that the model samples, to measure importance on
HELD_OUT, HELD_OUT_SEED = 16, 1  # other sequences, to evaluate on

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where measurements outlive the process."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("MINITRON_SPACE_CACHE") or Path(base) / "minitron" / "space")


@dataclass(frozen=True)
class Timings:
    """Seconds of a decode step at any sizes, and the conditions of the measurement."""

    table: LatencyTable
    conditions: Conditions

    def tokens_per_second(self, architecture: Architecture) -> float:
        """For one text at a time."""
        return 1 / max(self.table.predict(architecture), 1e-9)


class Measurements:
    """Each is made when first asked for."""

    def __init__(self, folder: Path, semaphore: FairSemaphore) -> None:
        self._folder, self._semaphore = folder, semaphore
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._importance: dict[str, Importance] = {}
        self._timings: dict[str, Timings] = {}
        self._evaluations: dict[str, Evaluation] = {}

    def sequence_length(self, entry: CatalogModel) -> int:
        """Tokens of a sequence to measure on, at most the model's context."""
        context = entry.open().config.get("max_position_embeddings") or SEQ_LEN
        return min(SEQ_LEN, int(context))

    def importance(self, entry: CatalogModel) -> Importance:
        """The importance of every part, on text that the model samples itself."""
        with self._locks[entry.name]:
            if entry.name not in self._importance:
                self._importance[entry.name] = self._stored_importance(entry)
            return self._importance[entry.name]

    def importance_file(self, entry: CatalogModel) -> Path:
        """The same as a file."""
        self.importance(entry)
        return self._path(entry, "importance.safetensors")

    def timings(self, entry: CatalogModel) -> Timings:
        """The time of a decode step on this machine, layer by layer."""
        with self._locks[entry.name]:
            if entry.name not in self._timings:
                with self._semaphore.slot():
                    self._timings[entry.name] = _measure_timings(entry, self.sequence_length(entry))
            return self._timings[entry.name]

    def held_out(self, entry: CatalogModel) -> Path:
        """Token ids that the model sampled, other ones than importance was measured on."""
        with self._locks[entry.name]:
            path = self._path(entry, "held-out.npy")
            if not path.exists():
                model = load_model(entry.open(), device=default_device())
                length = self.sequence_length(entry)
                with self._semaphore.slot():
                    drawn = self_corpus(model, seq_len=length, samples=HELD_OUT, seed=HELD_OUT_SEED)
                partial = path.with_name(f"{os.getpid()}.npy")
                np.save(partial, drawn.sequences)
                partial.rename(path)
            return path

    def evaluation(self, entry: CatalogModel) -> Evaluation:
        """The model's own loss on its held-out text."""
        corpus = self.held_out(entry)
        with self._locks[entry.name]:
            if entry.name not in self._evaluations:
                with self._semaphore.slot():
                    self._evaluations[entry.name] = evaluate(entry.source, corpus=str(corpus))
            return self._evaluations[entry.name]

    def _path(self, entry: CatalogModel, name: str) -> Path:
        """A file that belongs to exactly these weights."""
        folder = self._folder / f"{entry.name}-{entry.open().digest[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def _stored_importance(self, entry: CatalogModel) -> Importance:
        path = self._path(entry, "importance.safetensors")
        if path.exists():
            try:
                importance = Importance.load(path)
                importance.check_made_for(entry.open())
            except ImportanceError as error:
                logger.warning("measuring %s again: %s", entry.name, error)
                path.unlink()
            else:
                return importance
        logger.info("measuring the importance of %s", entry.name)
        own = path.with_name(f"{os.getpid()}.safetensors")
        with self._semaphore.slot():
            importance = measure_importance(
                entry.source,
                str(own),
                corpus="self",
                samples=SAMPLES,
                seq_len=self.sequence_length(entry),
            )
        shutil.move(own, path)
        return importance


def _measure_timings(entry: CatalogModel, context: int) -> Timings:
    source = entry.open()
    whole = source.architecture
    device = default_device()
    dtype = fast_dtype(dtype_named(entry.inspection.dtype), device)
    conditions = Conditions(device, dtype, batch=1, context=context)
    least = whole.resized(
        hidden_size=max(1, whole.hidden_size // 4),
        intermediate_size=max(1, whole.intermediate_size // 4),
        num_attention_heads=whole.num_key_value_heads,
    )
    corners = Corners.around([whole, least])
    return Timings(measure_table(source.config, corners, conditions), conditions)
