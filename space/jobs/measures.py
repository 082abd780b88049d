"""Measures: what is measured of a member once and then known: importance, timings, held-out text.

Importance and text are kept on disk, under the member's name, and made again where they are not of
its weights; timings belong to this machine and process. Who comes while one is being made waits
for it.

    Measures(folder, turns).importance(member).heads   # (layers, heads)
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
from minitron.space.jobs.catalog import Member
from minitron.space.jobs.semaphore import Turns
from minitron.text.sampling import self_corpus
from minitron.verbs.evaluate import evaluate
from minitron.verbs.importance import measure_importance

SAMPLES, SEQ_LEN = 64, 256  # sequences the model samples itself, to measure importance on
HELD_OUT, HELD_OUT_SEED = 16, 1  # others, to evaluate on

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where measures outlive the process."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("MINITRON_SPACE_CACHE") or Path(base) / "minitron" / "space")


@dataclass(frozen=True)
class Timings:
    """Seconds of a decode step at any sizes, and what they were taken with."""

    table: LatencyTable
    conditions: Conditions

    def tokens_per_second(self, architecture: Architecture) -> float:
        """Of one text at a time."""
        return 1 / max(self.table.predict(architecture), 1e-9)


class Measures:
    """Made when first asked for."""

    def __init__(self, folder: Path, turns: Turns) -> None:
        self._folder, self._turns = folder, turns
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._importance: dict[str, Importance] = {}
        self._timings: dict[str, Timings] = {}
        self._evaluations: dict[str, Evaluation] = {}

    def sequence_length(self, member: Member) -> int:
        """Tokens of a sequence to measure on."""
        context = member.open().config.get("max_position_embeddings") or SEQ_LEN
        return min(SEQ_LEN, int(context))

    def importance(self, member: Member) -> Importance:
        """How much every part matters, on text that the model samples itself."""
        with self._locks[member.name]:
            if member.name not in self._importance:
                self._importance[member.name] = self._stored_importance(member)
            return self._importance[member.name]

    def importance_file(self, member: Member) -> Path:
        """The same as a file."""
        self.importance(member)
        return self._path(member, "importance.safetensors")

    def timings(self, member: Member) -> Timings:
        """Decode steps on this machine, layer by layer."""
        with self._locks[member.name]:
            if member.name not in self._timings:
                with self._turns.turn():
                    self._timings[member.name] = _timed(member, self.sequence_length(member))
            return self._timings[member.name]

    def held_out(self, member: Member) -> Path:
        """Token ids that the member sampled and importance was not measured on."""
        with self._locks[member.name]:
            path = self._path(member, "held-out.npy")
            if not path.exists():
                model = load_model(member.open(), device=default_device())
                length = self.sequence_length(member)
                with self._turns.turn():
                    drawn = self_corpus(model, seq_len=length, samples=HELD_OUT, seed=HELD_OUT_SEED)
                partial = path.with_name(f"{os.getpid()}.npy")
                np.save(partial, drawn.sequences)
                partial.rename(path)
            return path

    def evaluation(self, member: Member) -> Evaluation:
        """The member's own loss on it."""
        corpus = self.held_out(member)
        with self._locks[member.name]:
            if member.name not in self._evaluations:
                with self._turns.turn():
                    self._evaluations[member.name] = evaluate(member.source, corpus=str(corpus))
            return self._evaluations[member.name]

    def _path(self, member: Member, name: str) -> Path:
        """A place for what belongs to exactly these weights."""
        folder = self._folder / f"{member.name}-{member.open().digest[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def _stored_importance(self, member: Member) -> Importance:
        path = self._path(member, "importance.safetensors")
        if path.exists():
            try:
                importance = Importance.load(path)
                importance.check_made_for(member.open())
            except ImportanceError as error:
                logger.warning("measuring %s again: %s", member.name, error)
                path.unlink()
            else:
                return importance
        logger.info("measuring the importance of %s", member.name)
        own = path.with_name(f"{os.getpid()}.safetensors")
        with self._turns.turn():
            importance = measure_importance(
                member.source,
                str(own),
                corpus="self",
                samples=SAMPLES,
                seq_len=self.sequence_length(member),
            )
        shutil.move(own, path)
        return importance


def _timed(member: Member, context: int) -> Timings:
    source = member.open()
    whole = source.architecture
    device = default_device()
    dtype = fast_dtype(dtype_named(member.inspection.dtype), device)
    conditions = Conditions(device, dtype, batch=1, context=context)
    least = whole.resized(
        hidden_size=max(1, whole.hidden_size // 4),
        intermediate_size=max(1, whole.intermediate_size // 4),
        num_attention_heads=whole.num_key_value_heads,
    )
    corners = Corners.around([whole, least])
    return Timings(measure_table(source.config, corners, conditions), conditions)
