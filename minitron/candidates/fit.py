"""Fit: how candidates are reconstructed to be compared, and whether they are.

Each is fitted in turn in one folder, on a few tokens, which order candidates as the whole text
does. The directions of the source's stream are found once for all of them. Ranks nothing.

    # None where candidates are compared as cut
    fit = Fit.of(source, recipe, texts, folder, candidates)
    memory = fit.memory(source, plan.target)
    with fit.candidate(source, plan, memory) as made:
        source_loss(made, held_out)
"""

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch

from minitron.candidates.texts import SearchTexts
from minitron.files.device_memory import free_memory, memory_in_use
from minitron.model.architecture import Architecture
from minitron.model.plan import PruningPlan
from minitron.model.source import Source
from minitron.options import parse_bytes
from minitron.recipes.pruning import BudgetRecipe
from minitron.reconstruction.calibration_tokens import split, widest_input
from minitron.reconstruction.finished import keep_covariance_alone
from minitron.reconstruction.memory import MemoryPlan, memory_of
from minitron.reconstruction.projection import check_turns, hidden_choice
from minitron.reconstruction.reconstruct import fitted_model, held_out_loss
from minitron.scores.calibration import calibration
from minitron.sources.layer_stream import compute_dtype
from minitron.sources.loading import default_device
from minitron.sources.processes import Processes
from minitron.sources.pruned import PrunedSource
from minitron.text.encoding import TokenIds

FITTED = "fitted"  # the folder of the candidate that is reconstructed
# For each input of the source's widest linear. Nine candidates of tiny have the order that 64 give,
# but for two neighbours (docs/family.md, "Which loss ranks candidates").
TOKENS_AN_INPUT = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """The text that candidates are fitted on, and where."""

    recipe: BudgetRecipe
    sequences: list[TokenIds]
    few: list[TokenIds]  # the first of them: what candidates are compared on
    folder: Path

    @classmethod
    def of(
        cls,
        source: Source,
        recipe: BudgetRecipe,
        texts: SearchTexts,
        folder: Path,
        candidates: Iterable[Architecture],
    ) -> "Fit | None":
        """None where `minitron prune` would not reconstruct: for the recipe or the text.

        Raises TargetError instead of the last where `recipe` asks for it by name, for a family that
        cannot be rotated where it asks for that, and where the fit of the first candidate does not
        fit into memory.
        """
        if not recipe.is_reconstructed:
            return None
        check_turns(recipe.hidden, source.architecture)
        if texts.calibration is not None:
            recipe = replace(recipe, corpus=str(texts.calibration), samples=None)
        sequences = calibration(source, recipe, default_device()).sequences
        if recipe.reconstruct is None and len(sequences) < 2:
            logger.warning("candidates are compared as cut: one sequence of text (--samples)")
            return None
        tokens = TOKENS_AN_INPUT * widest_input(source.architecture)
        ends = accumulate(map(len, sequences))
        few = sequences[: max(2, 1 + sum(end < tokens for end in ends))]
        fit = cls(recipe, sequences, few, folder / FITTED)
        fit.memory(source, next(iter(candidates)))  # refused before anything is measured
        return fit

    @property
    def tokens(self) -> int:
        """The number that a candidate is fitted on."""
        return sum(map(len, self.few))

    def _dtype(self, source: Source) -> torch.dtype:
        """What linears of a fit multiply in, as in `minitron prune`."""
        return compute_dtype(source.tensors, self._processes.device, self.recipe.compute_dtype)

    def memory(self, source: Source, target: Architecture, *, whole: bool = False) -> MemoryPlan:
        """How the fit on few tokens or the `whole` text fits into memory. Raises TargetError."""
        return memory_of(
            source,
            target,
            self.sequences if whole else self.few,
            hidden=self.recipe.hidden,
            dtype=self._dtype(source),
            processes=self._processes,
            memory_budget=self.recipe.memory_budget,
            is_logged=whole,
        )

    def has_room(self, held: int, beside: MemoryPlan) -> bool:
        """Whether so many bytes of the source can be held beside a fit."""
        if self._processes.device != "cpu":  # the fit takes the memory of another device
            return True
        budget = memory_in_use("cpu") + free_memory("cpu")
        if self.recipe.memory_budget is not None:
            budget = parse_bytes(self.recipe.memory_budget, "--memory-budget")
        return held + beside.peak <= budget

    @contextmanager
    def candidate(
        self, source: Source, plan: PruningPlan, memory: MemoryPlan, *, whole: bool = False
    ) -> Iterator[Source]:
        """The candidate as `minitron prune` would make it, of few tokens or the `whole` text.

        It is the pruned model where the fit does not help on the held-out sequences.
        """
        sequences = self.sequences if whole else self.few
        if whole:
            shutil.rmtree(self.folder, ignore_errors=True)
        keep_covariance_alone(self.folder)
        fitted, held_out = split(sequences)
        made, _, _ = fitted_model(
            source,
            plan,
            fitted,
            held_out,
            self.folder,
            how=hidden_choice(self.recipe.hidden, source.architecture, plan.target),
            dtype=self._dtype(source),
            device=self._processes.device,
            memory=memory,
        )
        yield min(
            (PrunedSource(source, plan), made),
            key=lambda one: held_out_loss(one, held_out, memory.batch_tokens, self._processes),
        )
        keep_covariance_alone(self.folder)

    @cached_property
    def _processes(self) -> Processes:
        """This process alone."""
        return Processes(device=default_device())
