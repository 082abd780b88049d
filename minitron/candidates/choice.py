"""Choice: the sizes that `minitron prune` cuts to within a budget, and why.

A small search: of the candidates nearest to the budget those that keep most of their scores are
compared on a little text, as `search` compares candidates. Without text the scores decide, and
without measured scores both widths are scaled by one factor. Prunes nothing.

    choose_target(source, PruneRecipe("tiny", "half", ratio=0.5, corpus="self")).target
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minitron.candidates.budget import TOLERANCE, Budget, budget_of
from minitron.candidates.comparison import Comparison, kept_importance
from minitron.candidates.fit import Fit
from minitron.candidates.report import SearchReport, sizes_of
from minitron.candidates.shortlist import Shortlist, within_budget
from minitron.candidates.space import nearest_per_depth, scale_widths
from minitron.candidates.texts import SearchTexts, TooShortError, search_texts
from minitron.errors import CorpusError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.engines import engines_closed_to
from minitron.model.importance import Importance
from minitron.model.plan import axes_to_rank, choose_plan, scores_kept, share_kept
from minitron.model.source import Source
from minitron.recipes.pruning import BudgetRecipe
from minitron.scores.measuring import check_corpus_named
from minitron.sources.loading import takes_sizes

_TOLERANCES = (0.01, 0.02, TOLERANCE)  # the first that leaves enough shapes to compare
_SCORED = 128  # candidates whose kept scores are computed
_RULE = "those that keep most of their scores, with several sets of axes cut (--max-candidates)"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The sizes to cut to, and why."""

    target: Architecture
    reason: str
    importance: Importance | None = None  # that the comparison used; None where none was needed
    record: dict[str, Any] | None = None  # reason and comparison, without plans


def choose_target(source: Source, recipe: BudgetRecipe) -> Choice:
    """The sizes that `minitron prune` cuts to where a budget is given and no sizes.

    Compares `recipe.max_candidates` candidates on `recipe.eval_tokens` tokens of text, if any is
    named. Raises as `search` does.
    """
    whole = source.architecture
    budget = budget_of(recipe, whole)
    has_text = recipe.corpus is not None or recipe.held_out is not None
    if recipe.importance is None and not has_text:
        check_corpus_named(recipe)
        return _by_one_factor(source, whole, budget, recipe)
    with TemporaryDirectory() as name:
        folder, least = Path(name), recipe.max_candidates
        shapes = within_budget(
            source, recipe, folder, tolerances=_TOLERANCES, at_least=least, is_fine=True
        )
        texts, why = _texts(source, recipe, folder)
        calibration = None if texts is None else texts.calibration
        fit = None
        if texts is not None:
            fit = Fit.of(source, recipe, texts, folder, shapes.costs)
        importance = kept_importance(source, recipe, calibration, folder)
        kept = _scores_of(whole, shapes, importance, recipe)
        if texts is None:
            return _by_scores(whole, shapes, importance, kept, why)
        few = shapes.of(_best_scored(whole, kept, recipe.max_candidates))
        shown = shapes_text(len(few.costs), len(kept), is_random=importance.is_random)
        logger.info("comparing %s", shown)
        comparison = Comparison(source, recipe, folder, few, texts, importance, fit)
        report = comparison.report(comparison.time_best(comparison.measure_losses(), top=1))
    return _by_loss(whole, few, report)


def shapes_text(count: int, total: int, *, is_random: bool) -> str:
    """How many shapes are compared, and by which rule where that is not all of them."""
    if count == total:
        return f"all {total:,} shapes"
    rule = "those that random scores rank first (--max-candidates)" if is_random else _RULE
    return f"{count:,} of {total:,} shapes: {rule}"


def _texts(source: Source, recipe: BudgetRecipe, folder: Path) -> tuple[SearchTexts | None, str]:
    """The text to compare candidates on; else None, and the reason."""
    if recipe.corpus is None and recipe.held_out is None:
        return None, "no text is named to compare them on (--held-out)"
    if getattr(recipe, "low_disk", False):
        return None, "with --low-disk every comparison would read the weights again"
    try:
        return search_texts(source, recipe, folder), ""
    except TooShortError:
        return None, f"{recipe.corpus} is too short to hold out a part of it"


def _best_scored(
    whole: Architecture, kept: Mapping[Architecture, float], count: int
) -> list[Architecture]:
    """Those that keep most of their scores, at most a third of them cutting the same axes.

    Scores of different axes are not comparable: the order between two candidates that cut the same
    axes is more reliable than that between two that cut different ones.
    """
    ranked = sorted(kept, key=lambda one: -kept[one])
    most, seen = -(-count // 3), Counter[tuple[str, ...]]()
    first: list[Architecture] = []
    others: list[Architecture] = []
    for one in ranked:
        cut = axes_to_rank(whole, one)
        seen[cut] += 1
        (first if seen[cut] <= most else others).append(one)
    return [*first, *others][:count]


def _scores_of(
    whole: Architecture, shapes: Shortlist, importance: Importance, recipe: BudgetRecipe
) -> Mapping[Architecture, float]:
    """The share of its scores that each candidate keeps; only the nearest to the budget of many."""
    near = nearest_per_depth(
        list(shapes.costs),
        _SCORED,
        depth=lambda one: one.num_hidden_layers,
        miss=lambda one: shapes.budget.miss(shapes.costs[one]),
    )

    def share(target: Architecture) -> float:  # a plan of a large model is large: one at a time
        plan = choose_plan(importance, whole, target, contiguous=recipe.contiguous_layers)
        return scores_kept(share_kept(plan, importance))

    return {one: share(one) for one in near}


def _by_loss(whole: Architecture, few: Shortlist, report: SearchReport) -> Choice:
    """The candidate with the lowest loss."""
    best, others = report.best, report.candidates[1:]
    reason = (
        f"chose {sizes_of(best.architecture)}: {_share(best.architecture, whole)}, "
        f"loss {best.loss:.4f} {report.state}, the lowest of {len(report.candidates)} shapes "
        f"within {few.tolerance:.0%} of the budget"
    )
    if others:
        reason += f"; next {others[0].name} with {others[0].loss:.4f}"
    record = {"reason": reason, **report.to_json()}
    for candidate in record["candidates"]:
        del candidate["kept"]
    return Choice(best.architecture, reason, report.importance, record)


def _by_scores(
    whole: Architecture,
    shapes: Shortlist,
    importance: Importance,
    kept: Mapping[Architecture, float],
    why: str,
) -> Choice:
    """The candidate that keeps most of its scores."""
    best = max(kept, key=lambda one: kept[one])
    share = "" if importance.is_random else f", {kept[best]:.1%},"
    kind = "random " if importance.is_random else ""
    reason = (
        f"chose {sizes_of(best)}: {_share(best, whole)}; of {len(kept):,} shapes within "
        f"{shapes.tolerance:.0%} of the budget it keeps most of its {kind}scores{share} and {why}"
    )
    record = {"reason": reason, "budget": shapes.budget.to_json(), "counts": dict(shapes.counts)}
    return Choice(best, reason, importance, record)


def _by_one_factor(
    source: Source, whole: Architecture, budget: Budget, recipe: BudgetRecipe
) -> Choice:
    """Both widths scaled by one factor (arXiv 2408.11796, section 4)."""
    if budget.parameters is None or (budget.memory, budget.latency) != (None, None):
        raise CorpusError(
            "candidates within --memory or --latency are compared on text: name --corpus or "
            "--held-out"
        )
    if budget.parameters > whole.parameters:
        raise TargetError(
            f"--params is {recipe.params}, and {source.name} has {whole.parameters:,}: pruning "
            "only cuts"
        )
    target = scale_widths(
        whole,
        budget.parameters / whole.parameters,
        recipe.multiple_of,
        accepts=lambda one: takes_sizes(source, one),
    )
    reason = (
        f"chose {sizes_of(target)}: {_share(target, whole)}, hidden_size and intermediate_size by "
        "one factor, since no text is named to compare shapes on (--corpus)"
    )
    closed = engines_closed_to(target, whole, strictly=True)
    if recipe.compatible and closed:
        raise TargetError(f"{reason}; {', '.join(sorted(closed))} cannot open that (--compatible)")
    return Choice(target, reason, record={"reason": reason, "budget": budget.to_json()})


def _share(target: Architecture, whole: Architecture) -> str:
    return f"{target.parameters / whole.parameters:.1%} of the parameters"
