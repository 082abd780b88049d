"""Decision: which parts of a model are kept, by importance that is measured, or read from a file.

In one step or in several. The processes of a run measure together; what the first has decided is
kept in a file, which an interrupted run reads instead of measuring again.

    decide(source, choice, recipe, text).plan
    kept_decision(folder, source, choice, recipe, text).plan
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron.candidates.choice import Choice
from minitron.files.atomic_file import replace_file
from minitron.model.architecture import Architecture
from minitron.model.family import AXIS_KEYS, PRUNABLE
from minitron.model.importance import Importance
from minitron.model.plan import (
    PruningPlan,
    axes_to_rank,
    choose_plan,
    layers_short_of_scores,
    measured_shares,
)
from minitron.model.source import Source
from minitron.model.target_sizes import between
from minitron.recipe import record_of
from minitron.recipes.pruning import PruneRecipe
from minitron.reconstruction.projection import hidden_choice
from minitron.scores.calibration import Calibration
from minitron.scores.measuring import check_corpus_named, score
from minitron.sources.processes import Processes, is_first_process
from minitron.sources.pruned import PrunedSource

DECISION = "decision.json"  # in an unfinished folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What is kept, and the importance that it rests on: in steps, that of the last one."""

    plan: PruningPlan
    importance: dict[str, Any]  # its record, with its digest
    shares: dict[str, float]  # of the importance, kept by axis

    @classmethod
    def of(cls, plan: PruningPlan, importance: Importance, shares: dict[str, float]) -> "Decision":
        """What a plan and the importance that it rests on make."""
        return cls(plan, {**importance.made_by, "digest": importance.digest}, shares)


def kept_decision(
    folder: Path, source: Source, choice: Choice, recipe: PruneRecipe, text: Calibration | None
) -> Decision:
    """The decision that an interrupted run, or the first process, has left in `folder`."""
    file, processes = folder / DECISION, Processes.of_run()
    is_known = file.exists()
    processes.wait()  # until all know
    if not is_known:
        decision = decide(source, choice, recipe, text)
        if processes.is_first:
            found = {**vars(decision), "plan": decision.plan.to_json()}
            if choice.record is not None:  # a budget led to it
                found["choice"] = {
                    "of": _inputs_of(source, recipe),
                    "sizes": {AXIS_KEYS[axis]: choice.target.size(axis) for axis in PRUNABLE},
                    "record": choice.record,
                }
            replace_file(file, json.dumps(found).encode())
        processes.wait()  # for the file
    found = json.loads(file.read_text())
    found.pop("choice", None)
    found["plan"] = PruningPlan.from_json(found["plan"], source.architecture, choice.target)
    return Decision(**found)


def kept_choice(folder: Path, source: Source, recipe: PruneRecipe) -> Choice | None:
    """The sizes that an interrupted run of the same recipe and model has chosen within a budget,
    where it has decided; None where there is none in `folder`."""
    file = folder / DECISION
    found = json.loads(file.read_text()).get("choice") if file.exists() else None
    if found is None or found["of"] != _inputs_of(source, recipe):
        return None
    target = source.architecture.resized(**found["sizes"])
    return Choice(target, found["record"]["reason"], record=found["record"])


def _inputs_of(source: Source, recipe: PruneRecipe) -> dict[str, Any]:
    return {"model": source.digest, "recipe": record_of(recipe)}


def decide(
    source: Source, choice: Choice, recipe: PruneRecipe, text: Calibration | None
) -> Decision:
    """Measure and choose, in one step or in several.

    `text` is what the smaller model is fitted on, if it is; it is loaded where it is needed again.
    """
    if recipe.steps > 1:
        decision = _decide_in_steps(source, choice.target, recipe)
    else:
        decision = _decide_at_once(source, choice, recipe, text)
    turns = turns_stream(source, choice, recipe, text)
    _log_kept(decision.plan, decision.shares, turns=turns)
    return decision


def turns_stream(
    source: Source, choice: Choice, recipe: PruneRecipe, text: Calibration | None
) -> bool:
    """Whether a fit on `text` keeps directions of the residual stream, and no channels."""
    how = hidden_choice(recipe.hidden, source.architecture, choice.target)
    return text is not None and how == "rotate"


def _decide_at_once(
    source: Source, choice: Choice, recipe: PruneRecipe, text: Calibration | None
) -> Decision:
    importance = choice.importance or _importance(source, choice.target, recipe, text)
    plan = choose_plan(
        importance,
        source.architecture,
        choice.target,
        contiguous=recipe.contiguous_layers,
        head_residual=recipe.head_residual,
    )
    if recipe.head_residual and plan.partners is None:
        logger.info("--head-residual folds nothing: no KV group loses a part of its query heads")
    _warn_without_scores(plan, importance)
    return Decision.of(plan, importance, measured_shares(plan, importance))


def _decide_in_steps(source: Source, target: Architecture, recipe: PruneRecipe) -> Decision:
    """Each step measures the model that the step before it made (2407.14679, table 12)."""
    decision: Decision | None = None
    for step in range(1, recipe.steps + 1):
        pruned = source if decision is None else PrunedSource(source, decision.plan)
        before, share = pruned.architecture, step / recipe.steps
        after = target if share == 1 else between(source.architecture, target, share, before)
        importance = _importance(pruned, after, recipe)
        plan = choose_plan(importance, before, after, contiguous=recipe.contiguous_layers)
        _warn_without_scores(plan, importance)
        shares = measured_shares(plan, importance)
        plan = plan if decision is None else decision.plan.then(plan)
        decision = Decision.of(plan, importance, shares)
        logger.info("step %d of %d: %s parameters", step, recipe.steps, f"{after.parameters:,}")
    assert decision is not None
    return decision


def _importance(
    source: Source, target: Architecture, recipe: PruneRecipe, text: Calibration | None = None
) -> Importance:
    """The importance to rank by: read from a file, measured, or empty where nothing is cut."""
    if recipe.importance is not None:
        importance = Importance.load(Path(recipe.importance))
        importance.check_made_for(source)
        return importance
    if not axes_to_rank(source.architecture, target):
        return Importance(made_by={"scores": "none needed"})
    check_corpus_named(recipe)
    return score(source, recipe, text, Processes.of_run())


def _warn_without_scores(plan: PruningPlan, importance: Importance) -> None:
    """Log where the scores do not decide what is kept."""
    if not is_first_process():
        return
    for axis, layers in layers_short_of_scores(plan, importance).items():
        logger.warning(
            "in %d of %d layers fewer %s have a score above 0 than are kept: the first of those "
            "with score 0 are kept too (give more text)",
            *(layers, len(plan.layers), axis),
        )


def _log_kept(plan: PruningPlan, shares: Mapping[str, float], *, turns: bool) -> None:
    """Log what is kept of every axis that is cut, and of the parameters.

    `turns`: of the hidden size directions are kept, and no channels.
    """
    if not is_first_process():
        return
    for axis in axes_to_rank(plan.source, plan.target):
        kept, whole = plan.target.size(axis), plan.source.size(axis)
        share = f", {100 * shares[axis]:.1f} % of score" if axis in shares else ""
        if axis == "hidden" and turns:
            axis, share = "hidden as directions", ""
        logger.info("kept %s of %s %s%s", f"{kept:,}", f"{whole:,}", axis, share)
    kept, whole = plan.target.parameters, plan.source.parameters
    logger.info("kept %s of %s parameters, %.1f %%", f"{kept:,}", f"{whole:,}", 100 * kept / whole)
