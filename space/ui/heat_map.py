"""Heat map: how much every part of a model matters, and which parts a cut takes away.

Drawn as SVG in the page's own colours: the fuller a cell, the more it matters; hatched is cut. Wide
axes are drawn in bins; a bin that loses half of its parts is hatched to half its height.

    heat_map(cut)
"""

from collections.abc import Sequence

import torch

from minitron.model.plan import PruningPlan
from minitron.space.jobs.preview import Cut
from minitron.space.ui.html import Html, tag

_WIDTH, _LABEL, _CELL = 640.0, 26.0, 15.0
_BINS = 64

Rows = Sequence[tuple[str, torch.Tensor, torch.Tensor]]  # label, scores, whether kept


def heat_map(cut: Cut) -> Html:
    """All axes: heads and neurons by layer, channels, layers."""
    importance, plan = cut.importance, cut.plan
    layers = plan.source.num_hidden_layers
    kept_layers = _mask(plan.layers, layers)

    def of_layers(axis: str) -> Rows:
        scores = importance.axis(axis)
        rows = []
        for layer in range(layers):
            kept = torch.zeros(scores.shape[1])
            if layer in plan.layers:
                kept = _mask(getattr(plan, axis)[plan.layers.index(layer)], scores.shape[1])
            rows.append((str(layer), scores[layer], kept))
        return rows

    hidden = importance.axis("hidden")
    return tag(
        "div",
        _figure("Query heads", "by layer", of_layers("heads"), plan, "heads"),
        _figure("MLP neurons", "by layer, in bins", of_layers("ffn"), plan, "ffn"),
        _figure(
            "Hidden channels",
            "in bins",
            [("", hidden, _mask(plan.hidden, len(hidden)))],
            plan,
            "hidden",
        ),
        _figure("Layers", "", [("", importance.axis("layers"), kept_layers)], plan, "layers"),
        class_="mt-maps",
    )


def legend() -> Html:
    """What the colours say."""
    return tag(
        "p",
        tag("span", class_="mt-key mt-key-high"),
        "matters most ",
        tag("span", class_="mt-key mt-key-low"),
        "least ",
        tag("span", class_="mt-key mt-key-cut"),
        "cut",
        class_="mt-legend",
        title="Importance as in arXiv 2407.14679, section 2.2: activations on text that the model "
        "sampled itself; layers by block influence. Shown by rank within each map.",
    )


def _figure(name: str, how: str, rows: Rows, plan: PruningPlan, axis: str) -> Html:
    have, want = plan.source.size(axis), plan.target.size(axis)
    told = f"{want:,} of {have:,} kept"
    height = len(rows) * _CELL
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", name),
            tag("span", f" {how}" if how else "", class_="mt-faint"),
            tag("span", told, class_="mt-right"),
        ),
        tag(
            "svg",
            _HATCH,
            *_cells(rows),
            viewBox=f"0 0 {_WIDTH:.0f} {height:.0f}",
            role="img",
            aria_label=f"{name}: {told}",
        ),
        class_="mt-map",
        data_axis=axis,
    )


def _cells(rows: Rows) -> list[Html]:
    every = torch.cat([scores for _, scores, _ in rows]).double()
    ranks = every.argsort(stable=True).argsort(stable=True).double() / max(1, len(every) - 1)
    cells, at = [], 0
    for index, (label, scores, kept) in enumerate(rows):
        mine = ranks[at : at + len(scores)]
        at += len(scores)
        top = index * _CELL
        if label:
            cells.append(tag("text", label, x=_LABEL - 8, y=top + 11, class_="mt-axis"))
        cells += _row(mine, kept, top, _LABEL if label else 0.0)
    return cells


def _row(ranks: torch.Tensor, kept: torch.Tensor, top: float, left: float) -> list[Html]:
    bins = min(_BINS, len(ranks))
    width = (_WIDTH - left) / bins
    inner, tall = max(width - 1.5, 0.5), _CELL - 1.5
    cells = []
    parts = zip(ranks.tensor_split(bins), kept.tensor_split(bins), strict=True)
    first = 0
    for index, (part, stays) in enumerate(parts):
        share = float(stays.mean())
        last = first + len(part) - 1
        x = left + index * width
        named = f"{first}" if first == last else f"{first}–{last}"
        fate = "kept" if share == 1 else "cut" if share == 0 else f"{share:.0%} kept"
        box = {"x": f"{x:.1f}", "width": f"{inner:.1f}"}
        shapes = []
        if share > 0:
            filled = f"{0.08 + 0.92 * float(part.mean()):.2f}"
            shapes.append(
                tag(
                    "rect",
                    **box,
                    y=f"{top:.1f}",
                    height=f"{tall * share:.1f}",
                    class_="mt-kept",
                    fill_opacity=filled,
                )
            )
        if share < 1:
            shapes.append(
                tag(
                    "rect",
                    **box,
                    y=f"{top + tall * share:.1f}",
                    height=f"{tall * (1 - share):.1f}",
                    class_="mt-cut",
                )
            )
        cells.append(tag("g", tag("title", f"{named}: {fate}"), *shapes))
        first = last + 1
    return cells


def _mask(kept: Sequence[int], length: int) -> torch.Tensor:
    mask = torch.zeros(length)
    mask[list(kept)] = 1
    return mask


_HATCH = tag(
    "defs",
    tag(
        "pattern",
        tag("path", d="M-1,5 L5,-1 M0,8 L8,0 M3,9 L9,3", class_="mt-hatch"),
        id="mt-hatch",
        width=4,
        height=4,
        patternUnits="userSpaceOnUse",
    ),
)
