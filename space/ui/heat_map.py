"""Heat map: the importance of every part of a model, and which parts a plan removes.

The darker a cell, the more important its parts; hatched is removed. Wide axes are drawn in bins; a
bin that loses half of its parts is hatched to half its height.

    heat_maps(preview.plan, preview.importance)[0].rows
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from minitron.model.importance import Importance
from minitron.model.plan import PruningPlan

WIDTH, CELL = 640.0, 15.0
_LABEL = 26.0  # the width of a row's number
_GAP = 1.5  # between cells
_BINS = 64

Scores = tuple[
    str, torch.Tensor, torch.Tensor
]  # a row's number, (parts,) scores, (parts,) 1 = kept


@dataclass(frozen=True)
class Cell:
    """Some neighbouring parts: the share of them that is kept, and how dark it is drawn."""

    x: float
    width: float
    kept: float  # height
    removed: float  # height
    opacity: float
    title: str


@dataclass(frozen=True)
class HeatRow:
    """The cells of a layer, or of the whole axis."""

    label: str
    y: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class HeatMap:
    """One axis of a model."""

    axis: str
    name: str
    note: str
    kept: str
    rows: tuple[HeatRow, ...]

    @property
    def height(self) -> float:
        """Pixels."""
        return len(self.rows) * CELL


def heat_maps(plan: PruningPlan, importance: Importance) -> list[HeatMap]:
    """All axes: heads and neurons by layer, channels, layers."""
    hidden, layers = importance.axis("hidden"), importance.axis("layers")
    return [
        _map(plan, "heads", "Query heads", "by layer", _by_layer(plan, importance, "heads")),
        _map(plan, "ffn", "MLP neurons", "by layer, in bins", _by_layer(plan, importance, "ffn")),
        _map(
            plan,
            "hidden",
            "Hidden channels",
            "in bins",
            [("", hidden, _mask(plan.hidden, len(hidden)))],
        ),
        _map(plan, "layers", "Layers", "", [("", layers, _mask(plan.layers, len(layers)))]),
    ]


def _by_layer(plan: PruningPlan, importance: Importance, axis: str) -> list[Scores]:
    scores = importance.axis(axis)  # (layers, parts)
    kept = torch.zeros(scores.shape)
    for position, layer in enumerate(plan.layers):
        kept[layer] = _mask(getattr(plan, axis)[position], scores.shape[1])
    return [(str(layer), scores[layer], kept[layer]) for layer in range(len(scores))]


def _map(plan: PruningPlan, axis: str, name: str, note: str, scores: Sequence[Scores]) -> HeatMap:
    kept = f"{plan.target.size(axis):,} of {plan.source.size(axis):,} kept"
    return HeatMap(axis, name, note, kept, tuple(_rows(scores)))


def _rows(scores: Sequence[Scores]) -> Iterator[HeatRow]:
    """Cells are as dark as their parts' mean rank within the whole axis."""
    every = torch.cat([row for _, row, _ in scores]).double()
    ranks = every.argsort(stable=True).argsort(stable=True).double() / max(1, len(every) - 1)
    by_row = ranks.split([len(row) for _, row, _ in scores])
    for index, ((label, _, kept), row) in enumerate(zip(scores, by_row, strict=True)):
        yield HeatRow(label, index * CELL, tuple(_cells(row, kept, _LABEL if label else 0.0)))


def _cells(ranks: torch.Tensor, kept: torch.Tensor, left: float) -> Iterator[Cell]:
    bins = min(_BINS, len(ranks))
    width, tall = (WIDTH - left) / bins, CELL - _GAP
    first = 0
    parts = zip(ranks.tensor_split(bins), kept.tensor_split(bins), strict=True)
    for index, (part, stays) in enumerate(parts):
        share, last = float(stays.mean()), first + len(part) - 1
        numbers = f"{first}" if first == last else f"{first}–{last}"
        fate = "kept" if share == 1 else "removed" if share == 0 else f"{share:.0%} kept"
        yield Cell(
            round(left + index * width, 1),
            round(max(width - _GAP, 0.5), 1),
            round(tall * share, 1),
            round(tall * (1 - share), 1),
            round(0.08 + 0.92 * float(part.mean()), 2),
            f"{numbers}: {fate}",
        )
        first = last + 1


def _mask(kept: Sequence[int], length: int) -> torch.Tensor:
    mask = torch.zeros(length)
    mask[list(kept)] = 1
    return mask
