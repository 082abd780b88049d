"""PruningPlan: the decision which parts of every axis are kept.

Pure and deterministic: highest scores are kept, ties break by the lower index, kept indices ascend.
Query heads are ranked inside their KV group and every group keeps equally many, so that grouped
attention stays what it was; kept layers keep their order. Knows no weights and no files.

    plan = choose_plan(importance, source, source.resized(hidden_size=192))
    plan.hidden   # (0, 1, 3, ...)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from minitron.model.family import AXIS_KEYS, PER_LAYER, PRUNABLE
from minitron.model.importance import Importance

Indices = tuple[int, ...]
_RUNS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)


@dataclass(frozen=True)
class PruningPlan:
    """Kept indices, ascending: of hidden and layers once, of the others for each kept layer."""

    source: Architecture
    target: Architecture
    layers: Indices  # (target layers,) of the source's
    hidden: Indices  # (target hidden,)
    ffn: tuple[Indices, ...]  # (target layers, target ffn)
    heads: tuple[Indices, ...]  # (target layers, target heads)
    kv_heads: tuple[Indices, ...]  # (target layers, target kv_heads)
    # Of every kept head the pruned one whose difference is added to it, itself where there is none.
    partners: tuple[Indices, ...] | None = None  # (target layers, target heads)

    def kept_indices(self, axis: str, layer: int | None) -> Indices | None:
        """The kept indices of an axis in target layer `layer`; None where all are kept."""
        if self.source.size(axis) == self.target.size(axis):
            return None
        kept: Any = getattr(self, axis)
        if axis in PER_LAYER:
            assert layer is not None
            kept = kept[layer]
        return tuple(kept)

    def then(self, later: "PruningPlan") -> "PruningPlan":
        """This plan and one of the model that it leaves, as a single plan of the first source."""
        assert later.source == self.target
        assert self.partners is None
        assert later.partners is None

        def of_layers(mine: tuple[Indices, ...], its: tuple[Indices, ...]) -> tuple[Indices, ...]:
            pairs = zip(later.layers, its, strict=True)
            return tuple(tuple(mine[layer][index] for index in kept) for layer, kept in pairs)

        return PruningPlan(
            source=self.source,
            target=later.target,
            layers=tuple(self.layers[layer] for layer in later.layers),
            hidden=tuple(self.hidden[index] for index in later.hidden),
            ffn=of_layers(self.ffn, later.ffn),
            heads=of_layers(self.heads, later.heads),
            kv_heads=of_layers(self.kv_heads, later.kv_heads),
        )

    def to_json(self) -> dict[str, Any]:
        """The kept indices as runs, such as "0-5,7", of every axis that is cut."""
        record: dict[str, Any] = {}
        for axis in axes_to_rank(self.source, self.target):
            kept = getattr(self, axis)
            record[axis] = [_runs(layer) for layer in kept] if axis in PER_LAYER else _runs(kept)
        if self.partners is not None:
            record["partners"] = [list(layer) for layer in self.partners]
        return record

    @classmethod
    def from_json(
        cls, record: Mapping[str, Any], source: Architecture, target: Architecture
    ) -> "PruningPlan":
        """Read what `to_json` wrote. Raises TargetError for a target that is no cut of `source`,
        and for indices that are not as many as the target has or not the source's."""
        cut, layers = axes_to_rank(source, target), target.num_hidden_layers

        def of_axis(axis: str, runs: Any) -> Indices:
            size, count = source.size(axis), target.size(axis)
            if axis not in cut:
                return tuple(range(size))
            try:
                return indices_of(runs, size, count)
            except ValueError as error:
                wanted = f"{count} of the indices below {size}"
                raise TargetError(f"kept.{axis} must be {wanted}") from error

        def of_layers(axis: str) -> tuple[Indices, ...]:
            rows: Any = record.get(axis)
            if not isinstance(rows, list) or len(rows) != layers:
                rows = [None] * layers
            return tuple(of_axis(axis, row) for row in rows)

        return cls(
            source=source,
            target=target,
            layers=of_axis("layers", record.get("layers")),
            hidden=of_axis("hidden", record.get("hidden")),
            **{axis: of_layers(axis) for axis in PER_LAYER},
            partners=_partners_of(record.get("partners"), source, target),
        )


def axes_to_rank(source: Architecture, target: Architecture) -> tuple[str, ...]:
    """The axes on which `target` is smaller. Raises TargetError for a target that is no cut."""
    # In groups the number of heads follows from that of KV heads; else KV heads follow from heads.
    cause = "kv_heads" if source.size("kv_heads") < source.size("heads") else "heads"
    for axis, key in sorted(AXIS_KEYS.items(), key=lambda one: one[0] != cause):
        have, want = source.size(axis), target.size(axis)
        if want > have:
            raise TargetError(f"{key} {want} is larger than the source's {have}: pruning only cuts")
        if want != have and axis not in PRUNABLE:
            raise TargetError(f"{key} cannot be pruned: leave it at {have}")
    if target.heads_per_group > source.heads_per_group:
        raise TargetError(
            f"{target.num_attention_heads} heads in {target.num_key_value_heads} KV groups are "
            f"{target.heads_per_group} a group, and the source has {source.heads_per_group}: give "
            f"--num-attention-heads {target.num_key_value_heads * source.heads_per_group} or fewer"
        )
    return tuple(axis for axis in PRUNABLE if source.size(axis) != target.size(axis))


def choose_plan(
    importance: Importance,
    source: Architecture,
    target: Architecture,
    *,
    contiguous: bool = False,
    head_residual: bool = False,
) -> PruningPlan:
    """Keep what scores highest on each axis that `target` cuts.

    `contiguous` drops neighbouring layers only, as arXiv 2408.11796 does. `head_residual` names, to
    each of the lower-ranked kept heads, the pruned head of its KV group that is folded into it
    (2407.14679, section 2.3), where a group loses any. Raises TargetError for a target that is no
    cut of `source`, ImportanceError for scores of another model or a missing axis.
    """
    ranked = axes_to_rank(source, target)
    importance.check_fits(source)
    layers = tuple(range(source.num_hidden_layers))
    if "layers" in ranked:
        dropped = source.num_hidden_layers - target.num_hidden_layers
        layers = (
            _without_block(importance, dropped)
            if contiguous
            else _highest(importance.axis("layers"), target.num_hidden_layers)
        )
    hidden = tuple(range(source.hidden_size))
    if "hidden" in ranked:
        hidden = _highest(importance.axis("hidden"), target.hidden_size)

    def in_kept_layers(axis: str) -> tuple[Indices, ...]:
        if axis not in ranked:
            return (tuple(range(source.size(axis))),) * len(layers)
        scores = _scores_of(axis, importance, source)
        return tuple(_highest(scores[layer], target.size(axis)) for layer in layers)

    kv_heads = in_kept_layers("kv_heads")
    rankings = _ranked_heads(importance, source, layers, kv_heads) if "heads" in ranked else None
    folds = head_residual and target.heads_per_group < source.heads_per_group
    return PruningPlan(
        source=source,
        target=target,
        layers=layers,
        hidden=hidden,
        ffn=in_kept_layers("ffn"),
        heads=in_kept_layers("heads") if rankings is None else _kept_heads(rankings, target),
        kv_heads=kv_heads,
        partners=_partners(rankings, target) if folds and rankings is not None else None,
    )


def _scores_of(axis: str, importance: Importance, source: Architecture) -> torch.Tensor:
    """The scores of an axis; of KV heads that nobody measured those of their one query head."""
    if axis == "kv_heads" and importance.kv_heads is None and not source.has_groups:
        return importance.axis("heads")
    return importance.axis(axis)


# Of each kept layer, of each kept KV group: its heads, the highest score first.
Rankings = tuple[tuple[Indices, ...], ...]


def _ranked_heads(
    importance: Importance, source: Architecture, layers: Indices, kv_heads: tuple[Indices, ...]
) -> Rankings:
    size, scores = source.heads_per_group, importance.axis("heads").double()

    def heads_by_score(layer: int, group: int) -> Indices:
        of_group = scores[layer, group * size : (group + 1) * size]
        order = of_group.argsort(descending=True, stable=True)
        return tuple((order + group * size).tolist())

    kept = zip(layers, kv_heads, strict=True)
    return tuple(tuple(heads_by_score(layer, group) for group in groups) for layer, groups in kept)


def _kept_heads(rankings: Rankings, target: Architecture) -> tuple[Indices, ...]:
    count = target.heads_per_group
    return tuple(
        tuple(sorted(head for ranking in groups for head in ranking[:count])) for groups in rankings
    )


def _partners(rankings: Rankings, target: Architecture) -> tuple[Indices, ...]:
    """The kept head of rank i takes in the pruned one of rank 2K - i + 1, for i in (2K - L, K].

    The paper's interval has one index too many; this one pairs L - K heads with as many.
    """
    count = target.heads_per_group

    def of_layer(groups: tuple[Indices, ...]) -> Indices:
        partner_of = {}
        for ranking in groups:
            for rank, head in enumerate(ranking[:count], start=1):
                partner = 2 * count - rank + 1
                partner_of[head] = ranking[partner - 1] if partner <= len(ranking) else head
        return tuple(partner_of[head] for head in sorted(partner_of))

    return tuple(of_layer(groups) for groups in rankings)


def _without_block(importance: Importance, dropped: int) -> Indices:
    """All layers but the run of `dropped` that scores least, by blocks where they were scored."""
    layers = importance.axis("layers")
    if importance.blocks is not None and importance.made_by.get("block_size") == dropped:
        blocks = importance.blocks
    else:
        blocks = layers.unfold(0, dropped, 1).sum(1)
    first = int(blocks.argmin())
    return tuple(layer for layer in range(len(layers)) if not first <= layer < first + dropped)


def share_kept(plan: PruningPlan, importance: Importance) -> dict[str, float]:
    """The share of the summed scores that stays, for each axis that is cut; none of zeros."""
    shares = {}
    for axis in axes_to_rank(plan.source, plan.target):
        scores = _scores_of(axis, importance, plan.source)
        kept = getattr(plan, axis)
        if axis in PER_LAYER:
            rows = list(zip(plan.layers, kept, strict=True))
            part = sum(float(scores[layer, list(row)].sum()) for layer, row in rows)
            whole = sum(float(scores[layer].sum()) for layer, _ in rows)
        else:
            part, whole = float(scores[list(kept)].sum()), float(scores.sum())
        if whole:
            shares[axis] = part / whole
    return shares


def layers_short_of_scores(plan: PruningPlan, importance: Importance) -> dict[str, int]:
    """In how many layers a kept part has score 0, for each axis that is ranked in every layer.

    Parts of equal scores are kept in their order, which is no reason.
    """
    short = {}
    for axis in axes_to_rank(plan.source, plan.target):
        if axis in PER_LAYER:
            scores = _scores_of(axis, importance, plan.source)
            found = (scores > 0).sum(1)[list(plan.layers)]
            short[axis] = int((found < plan.target.size(axis)).sum())
    return {axis: layers for axis, layers in short.items() if layers}


def measured_shares(plan: PruningPlan, importance: Importance) -> dict[str, float]:
    """`share_kept` as it is recorded and shown: empty where the scores are random numbers."""
    return {} if importance.is_random else share_kept(plan, importance)


def scores_kept(shares: Mapping[str, float]) -> float:
    """One number for what `share_kept` says of each axis, from 0 to 1: their product.

    KV heads go with their query heads and are not counted twice.
    """
    return prod(share for axis, share in shares.items() if axis != "kv_heads")


def _highest(scores: torch.Tensor, count: int) -> Indices:
    """The indices of the highest scores."""
    order = scores.double().argsort(descending=True, stable=True)[:count]
    return tuple(sorted(order.tolist()))


def indices_of(runs: Any, size: int, count: int | None = None) -> Indices:
    """Ascending indices below `size`, `count` of them, of runs such as "0-5,7".

    Raises ValueError for anything else.
    """
    if not isinstance(runs, str) or not _RUNS.fullmatch(runs):
        raise ValueError(runs)
    found: list[int] = []
    for run in runs.split(","):
        low, _, high = run.partition("-")
        first, last = int(low), int(high or low)
        if not (found[-1] if found else -1) < first <= last < size:
            raise ValueError(runs)
        found.extend(range(first, last + 1))
    if len(found) != (count or len(found)):
        raise ValueError(runs)
    return tuple(found)


def _partners_of(
    rows: Any, source: Architecture, target: Architecture
) -> tuple[Indices, ...] | None:
    """The partner of each kept head, where there are any. Raises TargetError."""
    if rows is None:
        return None
    shape = (target.num_hidden_layers, target.num_attention_heads)
    heads = range(source.num_attention_heads)
    if (
        not isinstance(rows, list)
        or not all(isinstance(row, list) for row in rows)
        or (len(rows), *{len(row) for row in rows}) != shape
        or any(type(head) is not int or head not in heads for row in rows for head in row)
    ):
        raise TargetError(f"kept.partners must be {list(shape)} heads")
    return tuple(tuple(row) for row in rows)


def _runs(indices: Indices) -> str:
    """Ascending indices as runs: (0, 1, 2, 5) is "0-2,5"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
