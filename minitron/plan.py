"""PruningPlan: the decision which parts of every axis are kept.

Pure and deterministic: highest scores are kept, ties break by the lower index, kept indices ascend.
Query heads are ranked inside their KV group and every group keeps equally many, so that grouped
attention stays what it was; kept layers keep their order. Knows no weights and no files.

    plan = choose_plan(importance, source, source.resized(hidden_size=192))
    plan.hidden   # (0, 1, 3, ...)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from minitron.architecture import Architecture
from minitron.errors import TargetError
from minitron.families import AXIS_KEYS, PRUNABLE
from minitron.importance import Importance

Indices = tuple[int, ...]


@dataclass(frozen=True)
class PruningPlan:
    """Kept indices, ascending: of hidden and layers once, of ffn and heads for each kept layer."""

    source: Architecture
    target: Architecture
    layers: Indices  # (target layers,) of the source's
    hidden: Indices  # (target hidden,)
    ffn: tuple[Indices, ...]  # (target layers, target ffn)
    heads: tuple[Indices, ...]  # (target layers, target heads)

    def kept(self, axis: str, layer: int | None) -> Indices | None:
        """What is kept of an axis in target layer `layer`; None where all of it is."""
        if self.source.size(axis) == self.target.size(axis):
            return None
        per_layer = {"ffn": self.ffn, "heads": self.heads}
        if axis in per_layer:
            assert layer is not None
            return per_layer[axis][layer]
        return {"hidden": self.hidden, "layers": self.layers}[axis]

    def to_json(self) -> dict[str, Any]:
        """The kept indices as runs, such as "0-5,7", of every axis that is cut."""
        record: dict[str, Any] = {}
        for axis in PRUNABLE:
            if self.source.size(axis) == self.target.size(axis):
                continue
            kept = getattr(self, axis)
            per_layer = axis in ("ffn", "heads")
            record[axis] = [_runs(layer) for layer in kept] if per_layer else _runs(kept)
        return record


def axes_to_rank(source: Architecture, target: Architecture) -> tuple[str, ...]:
    """The axes on which `target` is smaller. Raises TargetError for a target that is no cut."""
    for axis, key in AXIS_KEYS.items():
        have, want = source.size(axis), target.size(axis)
        if want > have:
            raise TargetError(f"{key} {want} is larger than the source's {have}: pruning only cuts")
        if want != have and axis not in PRUNABLE:
            raise TargetError(f"{key} cannot be pruned: leave it at {have}")
    return tuple(axis for axis in PRUNABLE if source.size(axis) != target.size(axis))


def choose_plan(importance: Importance, source: Architecture, target: Architecture) -> PruningPlan:
    """Keep what scores highest on each axis that `target` cuts.

    Raises TargetError for a target that is no cut of `source`, ImportanceError for scores of
    another model or a missing axis.
    """
    ranked = axes_to_rank(source, target)
    importance.check_fits(source)

    def keep(axis: str, scores: Iterable[torch.Tensor], groups: int = 1) -> tuple[Indices, ...]:
        if axis not in ranked:
            return (tuple(range(source.size(axis))),) * target.num_hidden_layers
        return tuple(_highest(row, target.size(axis), groups) for row in scores)

    layers = tuple(range(source.num_hidden_layers))
    if "layers" in ranked:
        layers = _highest(importance.axis("layers"), target.num_hidden_layers)
    hidden = tuple(range(source.hidden_size))
    if "hidden" in ranked:
        hidden = _highest(importance.axis("hidden"), target.hidden_size)

    def of_kept_layers(axis: str) -> list[torch.Tensor]:
        return [importance.axis(axis)[layer] for layer in layers] if axis in ranked else []

    return PruningPlan(
        source=source,
        target=target,
        layers=layers,
        hidden=hidden,
        ffn=keep("ffn", of_kept_layers("ffn")),
        heads=keep("heads", of_kept_layers("heads"), source.num_key_value_heads),
    )


def share_kept(plan: PruningPlan, importance: Importance) -> dict[str, float]:
    """The share of the summed scores that stays, for each axis that is cut."""
    shares = {}
    for axis in axes_to_rank(plan.source, plan.target):
        scores = importance.axis(axis)
        kept = getattr(plan, axis)
        if axis in ("ffn", "heads"):
            rows = list(zip(plan.layers, kept, strict=True))
            part = sum(float(scores[layer, list(row)].sum()) for layer, row in rows)
            whole = sum(float(scores[layer].sum()) for layer, _ in rows)
        else:
            part, whole = float(scores[list(kept)].sum()), float(scores.sum())
        shares[axis] = part / whole if whole else 1.0
    return shares


def _highest(scores: torch.Tensor, count: int, groups: int = 1) -> Indices:
    """The indices of the highest scores, equally many in each of `groups` equal runs."""
    grouped = scores.double().view(groups, -1)  # (groups, members)
    order = grouped.argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    offsets = torch.arange(groups).unsqueeze(1) * grouped.shape[1]
    return tuple(sorted((order + offsets).flatten().tolist()))


def _runs(indices: Indices) -> str:
    """Ascending indices as runs: (0, 1, 2, 5) is "0-2,5"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
