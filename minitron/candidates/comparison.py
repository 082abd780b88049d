"""Comparison: candidates by the loss of the pruned model, with what all of them share.

One importance, one held-out text, the source's tensors in memory where they fit. What is found of
a candidate is kept in a file, so that an interrupted search goes on. Knows neither how candidates
came about nor what is made of the report.

    comparison = Comparison.begun(source, recipe, folder)
    comparison.report(comparison.compared()).best
"""

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minitron.candidates.budget import TOLERANCE, Use, memory_needed
from minitron.candidates.latency import measured_step
from minitron.candidates.report import Candidate, SearchReport, candidate_name
from minitron.candidates.shortlist import Shortlist, shortlist
from minitron.candidates.texts import SearchTexts, search_texts
from minitron.errors import CorpusError
from minitron.evaluation.loss import evaluate_text
from minitron.files.atomic_file import atomic_file
from minitron.files.device_memory import free_memory
from minitron.files.dtypes import name_of
from minitron.files.tensor_stream import stream_tensors
from minitron.files.unfinished import check_same_inputs, write_file
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import choose_plan, share_kept
from minitron.model.source import Source
from minitron.recipe import BudgetRecipe, SearchRecipe, TrainRecipe
from minitron.records.folder_writer import specs_of, write_companions, write_weights
from minitron.scores.calibration import calibration
from minitron.scores.measuring import score
from minitron.sources.held import held_source, stored_bytes
from minitron.sources.loading import default_device, load_model, loaded_bytes
from minitron.sources.opening import open_source
from minitron.sources.pruned import PrunedSource
from minitron.sources.streamed_loss import streamed_loss
from minitron.text.corpus import Corpus
from minitron.text.held_out import HeldOut
from minitron.training.trained_folder import train_to_folder

IMPORTANCE = "importance.safetensors"
CANDIDATES, RETRAINING = "candidates", "retraining"  # folders of what is found so far

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What all candidates share."""

    source: Source
    recipe: BudgetRecipe
    folder: Path
    chosen: Shortlist
    texts: SearchTexts
    importance: Importance

    @classmethod
    def begun(cls, source: Source, recipe: BudgetRecipe, folder: Path) -> "Comparison":
        """With the candidates known, the texts read and importance measured."""
        chosen = shortlist(source, recipe, folder)
        named = {"text": recipe.corpus, "retraining_text": getattr(recipe, "retrain_corpus", None)}
        check_same_inputs(folder, folder, **{what: _digest(name) for what, name in named.items()})
        texts = search_texts(source, recipe, folder)
        if recipe.importance is not None:
            Importance.load(Path(recipe.importance))  # refused before anything is kept
        model, held_out = source.digest, texts.held_out.digest
        check_same_inputs(folder, folder, model=model, held_out_text=held_out)
        importance = kept_importance(source, recipe, texts.calibration, folder)
        check_same_inputs(folder, folder, importance=importance.digest)
        return cls(source, recipe, folder, chosen, texts, importance)

    def compared(self) -> list[Candidate]:
        """Every candidate with its loss as it is pruned, the best first."""
        shared: Source | None = None
        candidates = []
        begun, measured = time.monotonic(), 0
        for number, (target, cost) in enumerate(self.chosen.costs.items(), 1):
            plan = choose_plan(
                self.importance,
                self.source.architecture,
                target,
                contiguous=self.recipe.contiguous_layers,
                head_residual=self.recipe.head_residual,
            )
            loss = self._found(target, "loss")
            if loss is None:
                shared = shared or self._shared()
                loss = zero_shot_loss(PrunedSource(shared, plan), self.texts.held_out)
                self._keep(target, loss=loss)
                measured += 1
            left = (len(self.chosen.costs) - number) * (time.monotonic() - begun) / max(1, measured)
            logger.info(
                "%d of %d: %s, loss %.4f, %.0f s left",
                number,
                len(self.chosen.costs),
                candidate_name(target),
                loss,
                left,
            )
            candidates.append(Candidate(plan, cost, share_kept(plan, self.importance), loss))
        return sorted(candidates, key=_rank)

    def timed(self, candidates: list[Candidate], top: int) -> list[Candidate]:
        """Whole decode steps of the first `top` that keep to the latency; those that do not fall
        behind all others."""
        if self.chosen.conditions is None:
            return candidates
        limit = self.chosen.budget.latency
        timed, kept = [], 0
        for candidate in candidates:
            if kept < top:
                candidate = self._timed(candidate)
                measured = candidate.measured_latency
                if limit is not None and measured is not None:
                    is_over = measured > limit * (1 + TOLERANCE)
                    candidate = replace(candidate, is_over_latency=is_over)
                kept += not candidate.is_over_latency
            timed.append(candidate)
        return sorted(timed, key=_rank)

    def retrained(self, candidates: list[Candidate], recipe: SearchRecipe) -> list[Candidate]:
        """The first ones with their loss after retraining; they stay before the others."""
        ids = self._training_ids(recipe)
        count = min(recipe.top, sum(not candidate.is_over_latency for candidate in candidates))
        finalists = []
        for number, candidate in enumerate(candidates[:count], 1):
            loss = self._found(candidate.architecture, "retrained_loss")
            if loss is None:
                logger.info("retrain %d of %d: %s", number, count, candidate.name)
                place = self.folder / RETRAINING / candidate.name
                pruned = PrunedSource(self.source, candidate.plan)
                loss = retrained_loss(pruned, ids, self.texts.held_out, place, recipe)
                self._keep(candidate.architecture, loss=candidate.loss, retrained_loss=loss)
            finalists.append(replace(candidate, retrained_loss=loss))
        return sorted([*finalists, *candidates[count:]], key=_rank)

    def report(self, candidates: list[Candidate]) -> SearchReport:
        """What was found."""
        use, at = self.chosen.use, self.chosen.conditions
        conditions = {"batch": use.batch, "context": use.context}
        measured_at = {} if at is None else {"device": at.device, "dtype": name_of(at.dtype)}
        return SearchReport(
            source=self.source.name,
            budget=self.chosen.budget,
            measured=f"Loss in nats a token on {self.texts.told}.",
            counts=dict(self.chosen.counts),
            candidates=tuple(candidates),
            importance=self.importance,
            conditions={**conditions, **measured_at},
            left_out=self.chosen.left_out,
        )

    def _timed(self, candidate: Candidate) -> Candidate:
        """With its decode step measured, where the memory suffices."""
        at, use = self.chosen.conditions, self.chosen.use
        assert at is not None
        needed = memory_needed(
            candidate.architecture, Use(use.batch, use.context, at.dtype.itemsize)
        )
        if needed > free_memory(at.device):
            logger.info("%s is not timed whole: the memory does not suffice", candidate.name)
            return candidate
        config = self.source.config_at(candidate.architecture)
        return replace(candidate, measured_latency=measured_step(config, at))

    def _shared(self) -> Source:
        """The source with its tensors in memory, where they and a candidate fit."""
        largest = max(cost.parameters for cost in self.chosen.costs.values())
        if stored_bytes(self.source) + 4 * largest > free_memory("cpu"):
            logger.info("%s is read again for each candidate", self.source.name)
            return self.source
        return held_source(self.source)

    def _training_ids(self, recipe: SearchRecipe) -> Path:
        """The rows to retrain on."""
        of_calibration = recipe.retrain_corpus in (None, recipe.corpus)
        if of_calibration and self.texts.calibration is not None:
            return self.texts.calibration  # without what is held out
        name = recipe.retrain_corpus or recipe.corpus
        if name is None:
            raise CorpusError("retraining needs text: name --retrain-corpus")
        path = self.folder / RETRAINING / "text.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            rows = recipe.retrain_steps * recipe.batch_size
            asked = replace(recipe, corpus=name, samples=rows)
            with atomic_file(path) as partial:
                np.save(partial, calibration(self.source, asked, default_device()).corpus.sequences)
        return path

    def _found(self, target: Architecture, key: str) -> float | None:
        """What an earlier run has found."""
        path = self.folder / CANDIDATES / f"{candidate_name(target)}.json"
        return json.loads(path.read_text()).get(key) if path.exists() else None

    def _keep(self, target: Architecture, **found: float) -> None:
        path = self.folder / CANDIDATES / f"{candidate_name(target)}.json"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        write_file(path, json.dumps(found).encode())


def _digest(text: str | None) -> str | None:
    """sha256 of a text that is a file here; what is measured on it is kept for a later run."""
    if text is None or not Path(text).is_file():
        return None
    with Path(text).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def zero_shot_loss(source: Source, held_out: HeldOut) -> float:
    """The loss of a model as it is, in nats a token; one that does not fit is read layer by layer.

    Raises CorpusError for ids outside its vocabulary, SourceError for weights that are not finite.
    """
    device = default_device()
    if loaded_bytes(source, None, device) > free_memory(device):
        for ids in held_out.inputs:
            Corpus(ids, "the text").check_fits(int(source.config["vocab_size"]))
        logger.info("%s is read layer by layer: it does not fit into memory", source.name)
        nats, counted = streamed_loss(source, held_out.inputs, held_out.targets, device=device)
        return nats / counted
    return evaluate_text(load_model(source, device=device), held_out).loss


def retrained_loss(
    pruned: Source, ids: Path, held_out: HeldOut, folder: Path, recipe: SearchRecipe
) -> float:
    """The loss after a short training on the rows of `ids`, which goes on where it stopped."""
    begun, done = folder / "pruned", folder / "retrained"
    if not done.exists():
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        write_weights(begun, specs_of(pruned.tensors), stream_tensors(pruned.tensors, pruned.name))
        write_companions(begun, pruned, pruned.config)
        retraining = TrainRecipe(
            str(done),
            init=str(begun),
            corpus=str(ids),
            steps=recipe.retrain_steps,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            dtype="float32",
            seed=recipe.seed,
        )
        train_to_folder(open_source(str(begun)), retraining)
    loss = zero_shot_loss(open_source(str(done)), held_out)
    shutil.rmtree(folder)
    return loss


def kept_importance(
    source: Source, recipe: BudgetRecipe, calibration: Path | None, folder: Path
) -> Importance:
    """What ranks: read from a file, or measured once and kept in `folder`.

    `calibration` holds the ids of the corpus without what is held out; None takes all of it.
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
    """Retrained ones first, by that loss; those too slow last."""
    retrained = candidate.retrained_loss
    loss = candidate.loss if retrained is None else retrained
    return candidate.is_over_latency, retrained is None, loss
