"""The kept picture: which parts of each layer a pruning kept, drawn without a display.

Knows the `kept` entry of minitron.json, which holds the pruned axes. Dark parts are kept, light
parts removed; a dropped layer is light in its whole width.

    draw_kept(Path("kept.png"), record["kept"], record["source"], record["target"])
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minitron.errors import SourceError
from minitron.model.family import AXIS_KEYS, PER_LAYER
from minitron.model.plan import indices_of

KEPT_PICTURE = "kept.png"
_COLUMNS = 128  # of a panel; a column is shaded by the share of its neurons that is kept
KEPT, REMOVED = "#76b900", "#eceff1"
_NAMES = {
    "ffn": "MLP neurons",
    "heads": "query heads",
    "kv_heads": "KV heads",
    "hidden": "hidden channels",
}

Share = npt.NDArray[np.float64]


def draw_kept(
    path: Path, kept: Mapping[str, Any], before: Mapping[str, int], after: Mapping[str, int]
) -> bool:
    """Draw the kept share of every axis, and where in each layer it is.

    False where matplotlib, of the extra `plots`, is not installed.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra
    from matplotlib.figure import Figure

    maps = kept_maps(kept, before)
    figure = Figure(figsize=(4 * (len(maps) + 1), 3.6))
    FigureCanvasAgg(figure)
    first, *others = _panels(figure, len(maps) + 1)
    _draw_shares(first, before, after)
    for panel, (axis, shares) in zip(others, maps.items(), strict=True):
        _draw_map(panel, axis, shares, before)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def _panels(figure: Any, count: int) -> list[Any]:
    """Panels side by side, with room for their labels.

    A layout that measures the labels draws them all twice: half of the time of a picture.
    """
    width, height = figure.get_size_inches()
    left, right, bottom, top, gap = 1.75, 0.15, 0.55, 0.35, 0.65  # inches
    each = (width - left - right - gap * (count - 1)) / count
    room = {"left": left / width, "right": 1 - right / width, "wspace": gap / each}
    room |= {"bottom": bottom / height, "top": 1 - top / height}
    return list(figure.subplots(1, count, squeeze=False, gridspec_kw=room)[0])


def kept_maps(kept: Mapping[str, Any], before: Mapping[str, int]) -> dict[str, Share]:
    """The kept share of each pruned axis: (source layers, columns) from 0 to 1.

    The hidden size is one for the whole network: its map has a single row. Raises SourceError for
    invalid indices.
    """
    layers = before["num_hidden_layers"]
    kept_layers = _indices("layers", kept["layers"], layers) if "layers" in kept else range(layers)
    axes = [axis for axis in ("hidden", *PER_LAYER) if axis in kept]
    maps: dict[str, Share] = {}
    for axis in axes or ["layers"]:
        size = 1 if axis == "layers" else before[AXIS_KEYS[axis]]
        if axis == "hidden":
            maps[axis] = _shares(axis, kept[axis], size)[np.newaxis]
            continue
        shares = np.zeros((layers, min(size, _COLUMNS)))
        for place, layer in enumerate(kept_layers):
            if axis == "layers":
                shares[layer] = 1.0
            else:
                runs = [*kept[axis], *[None] * layers][place]
                shares[layer] = _shares(axis, runs, size)
        maps[axis] = shares
    return maps


def _shares(axis: str, runs: Any, size: int) -> Share:
    """The kept share of each column of a row."""
    mask = np.zeros(size)
    mask[list(_indices(axis, runs, size))] = 1.0
    return np.array([part.mean() for part in np.array_split(mask, min(size, _COLUMNS))])


def _indices(axis: str, runs: Any, size: int) -> tuple[int, ...]:
    try:
        return indices_of(runs, size)
    except ValueError as error:
        raise SourceError(
            f"minitron.json is damaged: kept.{axis} must be indices below {size}, as 0-5,7, for "
            "each layer that stays"
        ) from error


def _draw_shares(panel: Any, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Draw the kept share of each size as bars."""
    keys = [*(AXIS_KEYS[axis] for axis in ("layers", "hidden", *PER_LAYER)), "parameters"]
    shares = [after[key] / before[key] for key in keys]
    panel.barh(keys, [1.0] * len(keys), color=REMOVED)
    panel.barh(keys, shares, color=KEPT)
    for row, share in enumerate(shares):
        panel.text(0.02, row, f"{share:.0%}", va="center")
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.set_xlabel("share kept")


def _draw_map(panel: Any, axis: str, shares: Share, before: Mapping[str, int]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    rows = len(shares)  # the source's layers, or one for the whole network
    colours = LinearSegmentedColormap.from_list("kept", [REMOVED, KEPT])
    right = 1 if axis == "layers" else before[AXIS_KEYS[axis]]
    panel.imshow(
        shares,
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=0,
        vmax=1,
        extent=(0, right, rows - 0.5, -0.5),
    )
    panel.set_title(_NAMES.get(axis, axis))
    if axis == "hidden":
        panel.set_yticks([])
        panel.set_ylabel("all layers")
    else:
        panel.set_ylabel("layer")
    panel.set_xlabel("" if axis == "layers" else f"index, of {right:,}")
    if axis == "layers":
        panel.set_xticks([])
