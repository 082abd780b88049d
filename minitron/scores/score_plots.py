"""Score plots: an importance as a picture. Needs matplotlib, the extra `plots`.

Knows how scores are shown, not what they mean: each axis and layer sorted, layers by heads as a
map, and the share of the score that stays against the share of the parameters that stays.

    draw_scores(importance, architecture, Path("scores.png"))
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minitron.errors import MissingExtraError, TargetError
from minitron.files.unfinished import check_absent, unfinished_file
from minitron.model.architecture import Architecture
from minitron.model.family import AXIS_KEYS
from minitron.model.importance import Importance

_FORMATS = (".png", ".svg", ".pdf")
_SHOWN = ("hidden", "ffn", "heads", "layers")
_STEPS = 64  # of a curve of shares


def check_drawable(path: Path) -> None:
    """Refuse, before anything is measured, a picture that cannot be drawn.

    Raises MissingExtraError, TargetError for a format, OutputError for a place.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plots")
    if path.suffix not in _FORMATS:
        raise TargetError(f"--plot is {path}: it must end in {', '.join(_FORMATS)}")
    check_absent(path)


def draw_scores(importance: Importance, architecture: Architecture, path: Path) -> None:
    """Write a picture of all axes that were scored. Raises as `check_drawable` does."""
    check_drawable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(2, 3)
    for place, axis in zip(places.flat, _SHOWN, strict=False):
        _draw_sorted(place, axis, getattr(importance, axis))
    _draw_heads(figure, places.flat[4], importance.heads)
    _draw_shares(places.flat[5], importance, architecture)
    figure.suptitle(_title(importance))
    # Without a date, so that the same scores give the same bytes.
    no_date = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with unfinished_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=120, metadata=no_date[path.suffix])


def shares_kept(
    importance: Importance, architecture: Architecture, axis: str
) -> list[tuple[float, float]]:
    """Points (share of all parameters, share of the axis's score) as the axis is cut down.

    The lowest scores are cut first, equally many in every layer. Heads that share KV heads are cut
    equally in every KV group; others together with their own KV head.
    """
    scores = importance.axis(axis).double()
    in_groups = axis == "heads" and architecture.has_groups
    groups = architecture.num_key_value_heads if in_groups else 1
    rows = scores.reshape(-1, scores.shape[-1] // groups).sort(descending=True).values
    kept = rows.sum(0).cumsum(0) / scores.sum()
    size = architecture.size(axis)
    points = []
    for members in sorted({max(1, len(kept) * step // _STEPS) for step in range(1, _STEPS + 1)}):
        left = size * members // len(kept)
        smaller = (
            architecture.with_heads(left)
            if axis == "heads"
            else architecture.resized(**{AXIS_KEYS[axis]: left})
        )
        points.append((smaller.parameters / architecture.parameters, float(kept[members - 1])))
    return points


def _draw_sorted(place: Any, axis: str, scores: torch.Tensor | None) -> None:
    """Each layer's scores from the highest to the lowest; of an axis of the network one line."""
    place.set_title(axis)
    if scores is None:
        place.text(0.5, 0.5, "not measured", ha="center", transform=place.transAxes)
        return
    if axis == "layers":
        place.bar(range(len(scores)), scores.tolist(), color="#76b900")
        place.set_xlabel("layer")
        return
    from matplotlib import colormaps

    rows = scores.reshape(-1, scores.shape[-1]).sort(descending=True).values
    colours = colormaps["viridis"]
    for layer, row in enumerate(rows):
        place.plot(row.tolist(), color=colours(layer / max(len(rows) - 1, 1)), linewidth=1)
    place.set_xlabel("rank" if len(rows) == 1 else "rank, one line a layer (dark: first)")
    place.set_ylabel("score")
    if float(rows.max()) > 0:
        place.set_yscale("log")


def _draw_heads(figure: Any, place: Any, heads: torch.Tensor | None) -> None:
    place.set_title("layers x heads")
    if heads is None:
        return
    share = heads / heads.sum(1, keepdim=True).clamp(min=1e-30)
    picture = place.imshow(share.numpy(), aspect="auto", cmap="viridis", origin="lower")
    place.set_xlabel("head")
    place.set_ylabel("layer")
    figure.colorbar(picture, ax=place, label="share of the layer's score")


def _draw_shares(place: Any, importance: Importance, architecture: Architecture) -> None:
    place.set_title("what stays when one axis is cut")
    for axis in _SHOWN:
        if getattr(importance, axis) is not None:
            parameters, scores = zip(*shares_kept(importance, architecture, axis), strict=True)
            place.plot(parameters, scores, label=axis, marker=".", markersize=3)
    place.plot([0, 1], [0, 1], color="#9aa0a6", linestyle="--", linewidth=1)
    place.set_xlabel("share of parameters kept")
    place.set_ylabel("share of the axis's score kept")
    place.legend(loc="lower right")


def _title(importance: Importance) -> str:
    made_by = importance.made_by
    model = (made_by.get("model") or {}).get("name", "a model")
    has_text = {"tokens", "corpus"} <= made_by.keys()
    on = f" on {made_by['tokens']:,} tokens of {made_by['corpus']}" if has_text else ""
    return f"{model}: {made_by.get('scores', 'given')} scores{on}"
