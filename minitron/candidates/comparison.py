"""Comparison: measures the loss of each candidate, as it is cut or reconstructed, and ranks them.

All candidates share one importance, one held-out text and the source's tensors, in memory where
they fit. Each loss is stored in a file, so that an interrupted search resumes. Does not know how
the candidates were enumerated.

    comparison = Comparison.prepare(source, recipe, folder)
    comparison.report(comparison.measure_losses()).best
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minitron.candidates.budget import TOLERANCE, Use, memory_needed
from minitron.candidates.fit import Fit
from minitron.candidates.latency import measured_step
from minitron.candidates.report import Candidate, SearchReport, candidate_name
from minitron.candidates.shortlist import Shortlist, shortlist
from minitron.candidates.texts import SearchTexts, search_texts
from minitron.errors import CorpusError
from minitron.evaluation.loss import source_loss
from minitron.files.atomic_file import atomic_file
from minitron.files.device_memory import free_memory
from minitron.files.dtypes import name_of
from minitron.files.tensor_stream import stream_tensors
from minitron.files.unfinished import check_same_inputs, partial_of, write_file
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import PruningPlan, choose_plan, measured_shares
from minitron.model.source import Source
from minitron.progress import Progress
from minitron.recipes.pruning import BudgetRecipe, SearchRecipe
from minitron.recipes.training import DistillRecipe, TrainRecipe
from minitron.reconstruction.memory import MemoryPlan
from minitron.records.folder_writer import specs_of, write_companions, write_weights
from minitron.scores.calibration import calibration
from minitron.scores.measuring import score
from minitron.sources.held import held_source, stored_bytes
from minitron.sources.loading import default_device
from minitron.sources.opening import open_source
from minitron.sources.pruned import PrunedSource
from minitron.text.corpus import HeldOut
from minitron.training.trained_folder import train_to_folder

IMPORTANCE = "importance.safetensors"
CANDIDATES, RETRAINING = "candidates", "retraining"  # folders of what is measured so far
Distill = Callable[[DistillRecipe], object]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """The candidates of a search, and what all of them share."""

    source: Source
    recipe: BudgetRecipe
    folder: Path
    shortlist: Shortlist
    texts: SearchTexts
    importance: Importance
    fit: Fit | None  # how candidates are reconstructed; None where they are compared as cut

    @classmethod
    def prepare(cls, source: Source, recipe: BudgetRecipe, folder: Path) -> "Comparison":
        """Enumerate the candidates, read the texts and measure importance."""
        candidates = shortlist(source, recipe, folder)
        named = {"text": recipe.corpus, "retraining_text": getattr(recipe, "retrain_corpus", None)}
        check_same_inputs(folder, folder, **{what: _digest(name) for what, name in named.items()})
        texts = search_texts(source, recipe, folder)
        if recipe.importance is not None:
            Importance.load(Path(recipe.importance))  # refused before anything is stored
        fit = Fit.of(source, recipe, texts, folder, candidates.costs)
        model, held_out = source.digest, texts.held_out.digest
        check_same_inputs(folder, folder, model=model, held_out_text=held_out)
        importance = kept_importance(source, recipe, texts.calibration, folder)
        check_same_inputs(folder, folder, importance=importance.digest)
        return cls(source, recipe, folder, candidates, texts, importance, fit)

    def measure_losses(self) -> list[Candidate]:
        """Every candidate with its loss, as it is cut or reconstructed, the best first."""
        pruned_from: Source | None = None
        candidates = []
        costs = self.shortlist.costs
        measured = {target: self._read_loss(target, "loss") for target in costs}
        done = sum(loss is not None for loss in measured.values())
        with Progress("compare", total=len(costs), unit="candidate", done=done) as progress:
            for target, cost in costs.items():
                plan = choose_plan(
                    self.importance,
                    self.source.architecture,
                    target,
                    contiguous=self.recipe.contiguous_layers,
                    head_residual=self.recipe.head_residual,
                )
                loss = measured[target]
                if loss is None:
                    pruned_from = pruned_from or self._source_in_memory()
                    with self._candidate(pruned_from, plan) as made:
                        loss = source_loss(made, self.texts.held_out)
                    self._write_losses(target, loss=loss)
                    progress.advance()
                shares = measured_shares(plan, self.importance)
                candidates.append(Candidate(plan, cost, shares, loss))
        return sorted(candidates, key=_rank)

    def time_best(self, candidates: list[Candidate], top: int) -> list[Candidate]:
        """Time whole decode steps of the first `top` that meet the latency; those that do not are
        ranked last."""
        if self.shortlist.conditions is None:
            return candidates
        limit = self.shortlist.budget.latency
        timed, kept = [], 0
        for candidate in candidates:
            if kept < top:
                candidate = self._time(candidate)
                measured = candidate.measured_latency
                if limit is not None and measured is not None:
                    is_over = measured > limit * (1 + TOLERANCE)
                    candidate = replace(candidate, is_over_latency=is_over)
                kept += not candidate.is_over_latency
            timed.append(candidate)
        return sorted(timed, key=_rank)

    def retrain_best(
        self, candidates: list[Candidate], recipe: SearchRecipe, distill: Distill
    ) -> list[Candidate]:
        """Retrain the first `recipe.top` and rank them by that loss, before all others."""
        ids = self._training_ids(recipe)
        count = min(recipe.top, sum(not candidate.is_over_latency for candidate in candidates))
        finalists = []
        for number, candidate in enumerate(candidates[:count], 1):
            loss = self._read_loss(candidate.architecture, "retrained_loss")
            if loss is None:
                logger.info("retrain %d of %d: %s", number, count, candidate.name)
                place = self.folder / RETRAINING / candidate.name
                with self._candidate(self.source, candidate.plan, whole=True) as made:
                    held_out = self.texts.held_out
                    loss = retrained_loss(made, ids, held_out, place, recipe, distill)
                self._write_losses(candidate.architecture, loss=candidate.loss, retrained_loss=loss)
            finalists.append(replace(candidate, retrained_loss=loss))
        return sorted([*finalists, *candidates[count:]], key=_rank)

    @contextmanager
    def _candidate(
        self, source: Source, plan: PruningPlan, *, whole: bool = False
    ) -> Iterator[Source]:
        """A candidate as it is cut, or reconstructed on a few tokens or on the `whole` text."""
        if self.fit is None:
            yield PrunedSource(source, plan)
            return
        target = plan.target
        memory = self.fit.memory(source, target, whole=True) if whole else self._memory[target]
        with self.fit.candidate(source, plan, memory, whole=whole) as made:
            yield made

    @cached_property
    def _memory(self) -> dict[Architecture, MemoryPlan]:
        """How the fit of each candidate fits into memory, decided before the first."""
        assert self.fit is not None
        return {target: self.fit.memory(self.source, target) for target in self.shortlist.costs}

    def report(self, candidates: list[Candidate]) -> SearchReport:
        """The ranked candidates, and the conditions they were measured under."""
        use, at = self.shortlist.use, self.shortlist.conditions
        conditions = {"batch": use.batch, "context": use.context}
        how, fitted_on = "as cut", ""
        if self.fit is not None:
            how = "after reconstruction"
            fitted_on = f" Reconstructed on {self.fit.tokens:,} tokens of {self.recipe.corpus}."
        measured_at = {} if at is None else {"device": at.device, "dtype": name_of(at.dtype)}
        return SearchReport(
            source=self.source.name,
            budget=self.shortlist.budget,
            measured=f"Loss {how}, in nats a token on {self.texts.description}.{fitted_on}",
            is_reconstructed=self.fit is not None,
            counts=dict(self.shortlist.counts),
            candidates=tuple(candidates),
            importance=self.importance,
            conditions={**conditions, **measured_at},
            left_out=self.shortlist.left_out,
        )

    def _time(self, candidate: Candidate) -> Candidate:
        """The candidate with its decode step measured, where it fits into memory."""
        at, use = self.shortlist.conditions, self.shortlist.use
        assert at is not None
        needed = memory_needed(
            candidate.architecture, Use(use.batch, use.context, at.dtype.itemsize)
        )
        if needed > free_memory(at.device):
            logger.info("%s is not timed whole: it does not fit into memory", candidate.name)
            return candidate
        config = self.source.config_at(candidate.architecture)
        return replace(candidate, measured_latency=measured_step(config, at))

    def _source_in_memory(self) -> Source:
        """The source with its tensors in memory, where they and a candidate fit.

        States the memory of a reconstruction, before the first.
        """
        costs, stored, free = self.shortlist.costs, stored_bytes(self.source), free_memory("cpu")
        is_held = stored + 4 * max(cost.parameters for cost in costs.values()) <= free
        if self.fit is not None:
            most = max(self._memory.values(), key=lambda memory: memory.peak)
            is_held = is_held and self.fit.has_room(stored, most)
            most = replace(most, peak=most.peak + stored * is_held)
            logger.info("each candidate: %s", most.text(self.fit.tokens))
        if not is_held:
            logger.info("%s is read again for each candidate", self.source.name)
            return self.source
        return held_source(self.source)

    def _training_ids(self, recipe: SearchRecipe) -> Path:
        """The rows to retrain on."""
        of_calibration = recipe.retrain_corpus in (None, recipe.corpus)
        if of_calibration and self.texts.calibration is not None and self.texts.is_part:
            return self.texts.calibration  # without what is held out
        name = recipe.retrain_corpus or recipe.corpus
        if name is None:
            raise CorpusError("retraining needs text: name --retrain-corpus")
        path = self.folder / RETRAINING / "text.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            rows = recipe.retrain_steps * recipe.batch_size
            text = replace(recipe, corpus=name, samples=rows, importance=None)
            with atomic_file(path) as partial:
                np.save(partial, calibration(self.source, text, default_device()).corpus.sequences)
        return path

    def _read_loss(self, target: Architecture, key: str) -> float | None:
        """A loss that an earlier run measured; None where it did not."""
        path = self.folder / CANDIDATES / f"{candidate_name(target)}.json"
        return json.loads(path.read_text()).get(key) if path.exists() else None

    def _write_losses(self, target: Architecture, **losses: float) -> None:
        path = self.folder / CANDIDATES / f"{candidate_name(target)}.json"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        write_file(path, json.dumps(losses).encode())


def reached(unfinished: Path) -> str | None:
    """Where a search continues in an earlier one's folder; None where that measured nothing."""
    if (unfinished / RETRAINING).exists():
        return "the retraining"
    if measured := len([*(unfinished / CANDIDATES).glob("*.json")]):
        return f"{measured} measured candidate{'s' if measured > 1 else ''}"
    return "the measured importance" if (unfinished / IMPORTANCE).exists() else None


def _digest(text: str | None) -> str | None:
    """sha256 of a text that is a file on this machine, so that a later run notices another text."""
    if text is None or not Path(text).is_file():
        return None
    with Path(text).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def retrained_loss(
    pruned: Source,
    ids: Path,
    held_out: HeldOut,
    folder: Path,
    recipe: SearchRecipe,
    distill: Distill,
) -> float:
    """The loss after a short training on the rows of `ids`, which resumes where it stopped."""
    initial, done = folder / "pruned", folder / "retrained"
    if not done.exists():
        shutil.rmtree(initial, ignore_errors=True)
        initial.mkdir(parents=True)
        write_weights(
            initial, specs_of(pruned.tensors), stream_tensors(pruned.tensors, pruned.name)
        )
        write_companions(initial, pruned, pruned.config)
        options: dict[str, Any] = {
            "corpus": str(ids),
            "steps": recipe.retrain_steps,
            "batch_size": recipe.batch_size,
            "learning_rate": recipe.learning_rate,
            "dtype": "float32",
            "seed": recipe.seed,
        }
        if recipe.retrain_on == "teacher":
            teacher = recipe.source
            distill(DistillRecipe(str(initial), str(done), teacher=teacher, alpha=0.0, **options))
        else:
            unfinished = None if recipe.out is None else partial_of(Path(recipe.out))
            retraining = TrainRecipe(str(done), init=str(initial), **options)
            train_to_folder(open_source(str(initial)), retraining, unfinished)
    loss = source_loss(open_source(str(done)), held_out)
    shutil.rmtree(folder)
    return loss


def kept_importance(
    source: Source, recipe: BudgetRecipe, calibration: Path | None, folder: Path
) -> Importance:
    """The importance to rank by: read from a file, or measured once and stored in `folder`.

    `calibration` holds the ids to measure on; None takes those that the recipe names.
    """
    kept = folder / IMPORTANCE
    if recipe.importance is not None:
        importance = Importance.load(Path(recipe.importance))
    elif kept.exists():
        importance = Importance.load(kept)
    elif calibration is None:
        importance = score(source, recipe)
    else:
        measured = score(source, replace(recipe, corpus=str(calibration), samples=None))
        importance = replace(measured, made_by={**measured.made_by, "corpus": recipe.corpus})
    importance.check_made_for(source)
    if not kept.exists():
        importance.save(kept)
    return importance


def _rank(candidate: Candidate) -> tuple[bool, bool, float]:
    """The sort key: retrained candidates first, by that loss; those over the latency last."""
    retrained = candidate.retrained_loss
    loss = candidate.loss if retrained is None else retrained
    return candidate.is_over_latency, retrained is None, loss
