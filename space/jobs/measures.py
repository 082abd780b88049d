"""Measures: what is measured of a model once and then kept: importance, timings, held-out text.

Importance and text are kept on disk, under the model's name and the digest of its weights; timings
belong to this machine and process. A second request for the same measurement waits for the first.

The importance of the embedded models is in the package, made for each NAME by `minitron importance
NAME space/importance/NAME.safetensors --corpus self --samples 64 --seq-len 256`. It is used for
weights of the digest that it records, whatever the model is called here.

    Measurements(folder, semaphore).importance(entry).heads   # (layers, heads)
"""

import logging
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

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
from minitron.text.encoding import TokenIds
from minitron.text.sampling import self_corpus
from minitron.verbs.evaluate import evaluate
from minitron.verbs.importance import measure_importance

SAMPLES, SEQ_LEN = 64, 256  # sequences that the model samples, to measure importance on
HELD_OUT, HELD_OUT_SEED = 16, 1  # other sequences, to evaluate on
TRAINING_SEED = 2  # and the following, of text to train on
PACKAGED = Path(__file__).parent.parent / "importance"
_ROUNDS, _AGREEMENT = 5, 1.2  # of timing at most; how far the two fastest may be apart

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
        self._files: dict[str, Path] = {}
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
                packaged = _packaged_importance(entry)
                path = packaged or self._path(entry, "importance.safetensors")
                self._files[entry.name] = path
                self._importance[entry.name] = (
                    Importance.load(path) if packaged else self._stored_importance(entry, path)
                )
            return self._importance[entry.name]

    def importance_file(self, entry: CatalogModel) -> Path:
        """The same as a file."""
        self.importance(entry)
        return self._files[entry.name]

    def known_timings(self, entry: CatalogModel) -> Timings | None:
        """The timings, if they are measured already."""
        return self._timings.get(entry.name)

    def timings(self, entry: CatalogModel) -> Timings | None:
        """The time of a decode step on this machine, layer by layer.

        The fastest of a few rounds, as other work only ever adds time. None where no second round
        is as fast: then the machine is busy, and the next request measures again.
        """
        with self._locks[f"timings of {entry.name}"]:
            known = self.known_timings(entry)
            rounds: list[Timings] = []
            while known is None and len(rounds) < _ROUNDS:
                with self._semaphore.slot():
                    rounds.append(_measure_timings(entry, self.sequence_length(entry)))
                known = _agreed(rounds, entry.open().architecture)
            if known is not None:
                self._timings[entry.name] = known
            return known

    def held_out(self, entry: CatalogModel) -> Path:
        """Token ids that the model sampled, other ones than importance was measured on."""
        with self._locks[entry.name]:
            path = self._path(entry, "held-out.npy")
            if not path.exists():
                model = load_model(entry.open(), device=default_device())
                self._sample(model, entry, path, HELD_OUT, HELD_OUT_SEED)
            return path

    def training_text(self, entry: CatalogModel) -> TokenIds:
        """All text that was sampled to train on, (sequences, tokens)."""
        parts = sorted(self._path(entry, "training").glob("[0-9][0-9][0-9].npy"))
        return np.concatenate([np.load(part) for part in parts])

    def sample_training_text(
        self, entry: CatalogModel, sequences: int, at_once: int
    ) -> Iterator[int]:
        """Sample text to train on, a part at a time; yields the number of sequences so far."""
        folder = self._path(entry, "training")
        folder.mkdir(exist_ok=True)
        model = None
        for part in range(sequences // at_once):
            path = folder / f"{part:03}.npy"
            with self._locks[f"training text of {entry.name}"]:
                if not path.exists():
                    model = model or load_model(entry.open(), device=default_device())
                    self._sample(model, entry, path, at_once, TRAINING_SEED + part)
            yield (part + 1) * at_once

    def _sample(
        self, model: PreTrainedModel, entry: CatalogModel, path: Path, samples: int, seed: int
    ) -> None:
        length = self.sequence_length(entry)
        with self._semaphore.slot():
            drawn = self_corpus(model, seq_len=length, samples=samples, seed=seed)
        partial = path.with_name(f"{os.getpid()}.partial.npy")
        np.save(partial, drawn.sequences)
        partial.rename(path)

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

    def _stored_importance(self, entry: CatalogModel, path: Path) -> Importance:
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


def _packaged_importance(entry: CatalogModel) -> Path | None:
    """The file of the package that was measured on these weights."""
    digest = entry.open().digest
    for path in sorted(PACKAGED.glob("*.safetensors")):
        model = Importance.load(path).made_by.get("model")
        if model is not None and model["digest"] == digest:
            return path
    return None


def _agreed(rounds: list[Timings], whole: Architecture) -> Timings | None:
    """The fastest round, if the second fastest has nearly its times at all sizes."""
    if len(rounds) < 2:
        return None
    ends = (whole, _least(whole))
    first, second = sorted(rounds, key=lambda one: sum(map(one.table.predict, ends)))[:2]
    ratios = [first.tokens_per_second(end) / second.tokens_per_second(end) for end in ends]
    return first if all(1 / _AGREEMENT < ratio < _AGREEMENT for ratio in ratios) else None


def _least(whole: Architecture) -> Architecture:
    """The smallest sizes that are timed."""
    return whole.resized(
        hidden_size=max(1, whole.hidden_size // 4),
        intermediate_size=max(1, whole.intermediate_size // 4),
        num_attention_heads=whole.num_key_value_heads,
    )


def _measure_timings(entry: CatalogModel, context: int) -> Timings:
    source = entry.open()
    whole = source.architecture
    device = default_device()
    dtype = fast_dtype(dtype_named(entry.inspection.dtype), device)
    conditions = Conditions(device, dtype, batch=1, context=context)
    corners = Corners.around([whole, _least(whole)])
    return Timings(measure_table(source.config, corners, conditions), conditions)
