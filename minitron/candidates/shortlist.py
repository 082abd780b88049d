"""Shortlist: the architectures of a space that a budget admits and their family accepts.

Knows parameters, memory and, where it is asked for, latency on this machine, and which engines open
what; no scores.

    shortlist(source, recipe, folder).costs   # {architecture: Cost}
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from minitron.candidates.budget import (
    TOLERANCE,
    Budget,
    Cost,
    Use,
    budget_of,
    memory_needed,
)
from minitron.candidates.decode_step import Conditions
from minitron.candidates.latency import Corners, LatencyTable, checked_device, measure_table
from minitron.candidates.report import sizes_of
from minitron.candidates.space import SPACES, Space, counted, default_space, thinned
from minitron.errors import TargetError
from minitron.files.unfinished import write_file
from minitron.model.architecture import Architecture
from minitron.model.engines import engines_closed_to
from minitron.model.families import EMBEDDING
from minitron.model.source import Source
from minitron.recipe import BudgetRecipe
from minitron.sources.loading import default_device, fast_dtype, sequence_length, takes_sizes

TABLE = "latency.json"
_NEAREST = 3  # told where nothing is within the budget

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shortlist:
    """What is to be compared, and what was left out."""

    budget: Budget
    use: Use
    conditions: Conditions | None  # of latency, where it counts
    costs: Mapping[Architecture, Cost]  # deep before shallow, many heads and wide before few
    counts: Mapping[str, int]
    left_out: str | None = None  # what engines cannot open, as a sentence
    tolerance: float = TOLERANCE  # within which of the budget they are

    def of(self, chosen: Iterable[Architecture]) -> "Shortlist":
        """The same with some of its architectures alone."""
        costs = {one: self.costs[one] for one in chosen}
        return replace(self, costs=costs, counts={**self.counts, "compared": len(costs)})


def shortlist(source: Source, recipe: BudgetRecipe, folder: Path) -> Shortlist:
    """The architectures within the budget, at most `recipe.max_candidates`.

    Timings are kept in `folder`, so that an interrupted search goes on with the same. Raises
    TargetError where nothing is within the budget, and tells what comes nearest.
    """
    every = within_budget(source, recipe, folder, tolerances=(TOLERANCE,))
    kept, budget = list(every.costs), every.budget
    chosen = thinned(
        kept,
        recipe.max_candidates,
        depth=lambda one: one.num_hidden_layers,
        miss=lambda one: budget.miss(every.costs[one]),
    )
    if len(chosen) < len(kept):
        logger.info(
            "%d candidates are within the budget: comparing %d, those nearest to it, depths in "
            "turn (--max-candidates)",
            len(kept),
            len(chosen),
        )
    return every.of(chosen)


def within_budget(
    source: Source,
    recipe: BudgetRecipe,
    folder: Path,
    *,
    tolerances: tuple[float, ...],
    at_least: int = 1,
    is_fine: bool = False,
) -> Shortlist:
    """All architectures within the first of `tolerances` that leaves `at_least` so many.

    `is_fine` looks among more MLP sizes, so that a budget is met closely. Raises TargetError where
    nothing is within the last, and tells what comes nearest.
    """
    whole = source.architecture
    budget, use = budget_of(recipe, whole), use_of(source, recipe)
    conditions = conditions_of(source, recipe, use)
    costs = {
        architecture: Cost(parameters, memory_needed(architecture, use, parameters))
        for architecture, parameters in counted(_space(recipe, whole, is_fine=is_fine), whole)
        if architecture.is_accepted
    }
    if conditions is not None:
        costs = _timed(source, budget, costs, conditions, folder)
    for tolerance in tolerances:
        within = [one for one, cost in costs.items() if budget.is_met_by(cost, tolerance)]
        taken = [one for one in within if takes_sizes(source, one)]
        kept, closed_to = _opened(taken, whole, recipe)
        if len(kept) >= at_least:
            break
    if not kept:
        raise TargetError(_nothing(source, budget, costs, len(taken), closed_to))
    counts = {
        "in_space": len(costs),
        "within_budget": len(within),
        "refused_by_family": len(within) - len(taken),
        "closed_to_engines": len(taken) - len(kept),
        "compared": len(kept),
    }
    left_out = _left_out(len(taken) - len(kept), closed_to, recipe)
    if left_out is not None:
        logger.info("%s", left_out)
    of_kept = {one: costs[one] for one in kept}
    return Shortlist(budget, use, conditions, of_kept, counts, left_out, tolerance)


def _opened(
    candidates: list[Architecture], whole: Architecture, recipe: BudgetRecipe
) -> tuple[list[Architecture], list[str]]:
    """Those that engines open, and the engines that do not open the others.

    Unless --compatible is given, all stay in the paper's spaces and where engines open none.
    """
    is_asked = recipe.compatible is True
    if recipe.compatible is False or (recipe.space != "default" and not is_asked):
        return candidates, []
    closed = {one: engines_closed_to(one, whole, strictly=is_asked) for one in candidates}
    opened = [one for one in candidates if not closed[one]]
    engines = sorted({engine for names in closed.values() for engine in names})
    return (opened if opened or is_asked else candidates), engines


def _left_out(count: int, engines: list[str], recipe: BudgetRecipe) -> str | None:
    """What is left out, or that nothing could be, in one line."""
    if not engines:
        return None
    if not count:
        return f"no size within the budget opens in {', '.join(engines)}: none is left out"
    told = "" if recipe.compatible else " (--no-compatible compares them too)"
    return f"left out {count} within the budget that {', '.join(engines)} cannot open{told}"


def use_of(source: Source, recipe: BudgetRecipe) -> Use:
    """How the model is to run."""
    context = sequence_length(source, None) if recipe.context is None else recipe.context
    return Use(recipe.batch, context, source.tensors[EMBEDDING].dtype.itemsize)


def conditions_of(source: Source, recipe: BudgetRecipe, use: Use) -> Conditions | None:
    """Where latency is measured; None where nobody asks for it. Raises TargetError."""
    if recipe.latency is None and recipe.device is None:
        return None
    device = checked_device(recipe.device or default_device())
    dtype = fast_dtype(source.tensors[EMBEDDING].dtype, device)
    return Conditions(device, dtype, use.batch, use.context)


def _space(recipe: BudgetRecipe, whole: Architecture, *, is_fine: bool) -> Space:
    if recipe.space == "default":
        return default_space(
            whole, multiple_of=recipe.multiple_of, min_layers=recipe.min_layers, is_fine=is_fine
        )
    for flag in ("multiple_of", "min_layers"):
        if getattr(recipe, flag) is not None:
            raise TargetError(
                f"--{flag.replace('_', '-')} is given, but --space {recipe.space} has its own "
                "sizes: leave one of them"
            )
    return SPACES[recipe.space]


def _timed(
    source: Source,
    budget: Budget,
    costs: Mapping[Architecture, Cost],
    conditions: Conditions,
    folder: Path,
) -> dict[Architecture, Cost]:
    """Costs with the latency of each, predicted from a table that spans what else is asked."""
    size = Budget(parameters=budget.parameters)
    spanned = [
        one for one, cost in costs.items() if budget.parameters is None or size.is_met_by(cost)
    ]
    kept = folder / TABLE
    if kept.exists():
        table = LatencyTable.from_json(json.loads(kept.read_text()))
    else:
        table = measure_table(source.config, Corners.around(spanned or [*costs]), conditions)
        write_file(kept, json.dumps(table.to_json()).encode())
    return {one: replace(cost, latency=table.predict(one)) for one, cost in costs.items()}


def _nothing(
    source: Source,
    budget: Budget,
    costs: Mapping[Architecture, Cost],
    taken: int,
    closed_to: list[str],
) -> str:
    """That nothing is within the budget, and what comes nearest."""
    if taken:
        return (
            f"none of the {taken} candidates within {budget.text()} opens in "
            f"{', '.join(closed_to)}: give another budget, or --no-compatible"
        )
    by_miss = sorted(costs, key=lambda one: budget.miss(costs[one]))
    nearest = (one for one in by_miss if takes_sizes(source, one))
    told = [
        f"{sizes_of(one)} ({costs[one].text()})"
        for one, _ in zip(nearest, range(_NEAREST), strict=False)
    ]
    return f"no candidate is within {budget.text()}; nearest: {'; '.join(told)}"
