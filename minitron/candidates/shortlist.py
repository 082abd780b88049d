"""Shortlist: the architectures of a space that are within a budget and that their family accepts.

Knows parameters, memory, latency on this machine where it is limited, and which engines load which
sizes; no scores.

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
from minitron.candidates.latency import Corners, LatencyTable, available_device, measure_table
from minitron.candidates.report import sizes_of
from minitron.candidates.space import (
    SPACES,
    Space,
    default_space,
    enumerate_space,
    nearest_per_depth,
)
from minitron.errors import TargetError
from minitron.files.unfinished import write_file
from minitron.model.architecture import Architecture
from minitron.model.engines import engines_closed_to
from minitron.model.family import EMBEDDING
from minitron.model.source import Source
from minitron.recipes.pruning import BudgetRecipe
from minitron.sources.loading import (
    default_device,
    fast_dtype,
    sequence_length,
    takes_sizes,
    warn_beyond_context,
)

TABLE = "latency.json"
_NEAREST = 3  # named where nothing is within the budget

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shortlist:
    """The candidates to compare, and what was left out."""

    budget: Budget
    use: Use
    conditions: Conditions | None  # of latency; None where it is not measured
    costs: Mapping[Architecture, Cost]  # deep before shallow, many heads and wide before few
    counts: Mapping[str, int]
    left_out: str | None = None  # what engines cannot open, as a sentence
    tolerance: float = TOLERANCE  # within which of the budget they are

    def of(self, some: Iterable[Architecture]) -> "Shortlist":
        """The same with some of its architectures alone."""
        costs = {one: self.costs[one] for one in some}
        return replace(self, costs=costs, counts={**self.counts, "compared": len(costs)})


def shortlist(source: Source, recipe: BudgetRecipe, folder: Path) -> Shortlist:
    """The architectures within the budget, at most `recipe.max_candidates`.

    Timings are stored in `folder`, so that an interrupted search resumes with the same. Raises
    TargetError, with the nearest sizes, where nothing is within the budget.
    """
    every = within_budget(source, recipe, folder, tolerances=(TOLERANCE,))
    kept, budget = list(every.costs), every.budget
    nearest = nearest_per_depth(
        kept,
        recipe.max_candidates,
        depth=lambda one: one.num_hidden_layers,
        miss=lambda one: budget.miss(every.costs[one]),
    )
    if len(nearest) < len(kept):
        logger.info(
            "%s candidates are within the budget: comparing %s, those nearest to it, depths in "
            "turn (--max-candidates)",
            f"{len(kept):,}",
            f"{len(nearest):,}",
        )
    return every.of(nearest)


def within_budget(
    source: Source,
    recipe: BudgetRecipe,
    folder: Path,
    *,
    tolerances: tuple[float, ...],
    at_least: int = 1,
    is_fine: bool = False,
) -> Shortlist:
    """All architectures within the first of `tolerances` that leaves at least `at_least` of them.

    `is_fine` enumerates more MLP sizes, so that a budget is met closely. Raises TargetError, with
    the nearest sizes, where nothing is within the last.
    """
    whole = source.architecture
    budget, use = budget_of(recipe, whole), use_of(source, recipe)
    conditions = conditions_of(source, recipe, use)
    costs = {
        architecture: Cost(parameters, memory_needed(architecture, use, parameters))
        for architecture, parameters in enumerate_space(
            _space(recipe, whole, is_fine=is_fine), whole
        )
        if architecture.is_accepted
    }
    if conditions is not None:
        costs = _with_latency(source, budget, costs, conditions, folder)
    for tolerance in tolerances:
        within = [one for one, cost in costs.items() if budget.is_met_by(cost, tolerance)]
        accepted = [one for one in within if takes_sizes(source, one)]
        kept, closed_to = _loadable(accepted, whole, recipe)
        if len(kept) >= at_least:
            break
    if not kept:
        raise TargetError(_none_within(source, budget, costs, len(accepted), closed_to))
    counts = {
        "in_space": len(costs),
        "within_budget": len(within),
        "refused_by_family": len(within) - len(accepted),
        "closed_to_engines": len(accepted) - len(kept),
        "compared": len(kept),
    }
    left_out = _left_out(len(accepted) - len(kept), closed_to, recipe)
    if left_out is not None:
        logger.info("%s", left_out)
    of_kept = {one: costs[one] for one in kept}
    return Shortlist(budget, use, conditions, of_kept, counts, left_out, tolerance)


def _loadable(
    candidates: list[Architecture], whole: Architecture, recipe: BudgetRecipe
) -> tuple[list[Architecture], list[str]]:
    """The candidates that all engines load, and the engines that do not load the others.

    Without --compatible all are kept in the paper's spaces, and where engines load none.
    """
    is_required = recipe.compatible is True
    if recipe.compatible is False or (recipe.space != "default" and not is_required):
        return candidates, []
    closed = {one: engines_closed_to(one, whole, strictly=is_required) for one in candidates}
    loadable = [one for one in candidates if not closed[one]]
    engines = sorted({engine for names in closed.values() for engine in names})
    return (loadable if loadable or is_required else candidates), engines


def _left_out(count: int, engines: list[str], recipe: BudgetRecipe) -> str | None:
    """One line about the candidates left out; None where no engine is concerned."""
    if not engines:
        return None
    if not count:
        return f"no size within the budget opens in {', '.join(engines)}: none is left out"
    option = "" if recipe.compatible else " (--no-compatible compares them too)"
    return f"left out {count} within the budget that {', '.join(engines)} cannot open{option}"


def use_of(source: Source, recipe: BudgetRecipe) -> Use:
    """Batch, context and bytes of a number, for memory and latency."""
    context = sequence_length(source, None) if recipe.context is None else recipe.context
    warn_beyond_context(source, context, "--context is")
    return Use(recipe.batch, context, source.tensors[EMBEDDING].dtype.itemsize)


def conditions_of(source: Source, recipe: BudgetRecipe, use: Use) -> Conditions | None:
    """The device and dtype of latency; None where it is not measured. Raises TargetError."""
    if recipe.latency is None and recipe.device is None:
        return None
    device = available_device(recipe.device or default_device())
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


def _with_latency(
    source: Source,
    budget: Budget,
    costs: Mapping[Architecture, Cost],
    conditions: Conditions,
    folder: Path,
) -> dict[Architecture, Cost]:
    """Costs with the latency of each, predicted from a table around those of the right size."""
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


def _none_within(
    source: Source,
    budget: Budget,
    costs: Mapping[Architecture, Cost],
    accepted: int,
    closed_to: list[str],
) -> str:
    """The message that the source itself is below the budget, or nothing is within: the nearest."""
    if accepted:
        return (
            f"none of the {accepted} candidates within {budget.text()} opens in "
            f"{', '.join(closed_to)}: give another budget, or --no-compatible"
        )
    whole = costs.get(source.architecture)
    if whole is not None and budget.is_above(whole):
        return (
            f"the source is within the budget already, {budget.text()}: it has {whole.text()}: "
            "give a smaller budget"
        )
    if budget.parameters is not None and budget.parameters > source.architecture.parameters:
        return (
            f"{source.name} has {source.architecture.parameters:,} parameters, fewer than the "
            f"budget, {budget.text()}: give a smaller --params"
        )
    by_miss = sorted(costs, key=lambda one: budget.miss(costs[one]))
    nearest = (one for one in by_miss if takes_sizes(source, one))
    sizes = [
        f"{sizes_of(one)} ({costs[one].text()})"
        for one, _ in zip(nearest, range(_NEAREST), strict=False)
    ]
    shapes = f"none of the {len(costs):,} candidates is within {budget.text()}"
    return f"{shapes}; nearest: {'; '.join(sizes)}"
