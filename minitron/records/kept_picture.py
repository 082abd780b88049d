"""The kept picture: what of each layer a pruning kept, drawn without a display.

Knows the `kept` entry of minitron.json, which holds the axes that were cut. Dark is kept, light is
gone; dropped layers are light from side to side.

    draw_kept(Path("kept.png"), record["kept"], record["source"], record["target"])
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minitron.errors import SourceError
from minitron.model.families import AXIS_KEYS, PER_LAYER
from minitron.model.plan import indices_of

KEPT_PICTURE = "kept.png"
_COLUMNS = 128  # of a panel: neurons are shown by the share of a column that stays
_KEPT, _GONE = "#76b900", "#eceff1"
_NAMES = {"ffn": "MLP neurons", "heads": "query heads", "kv_heads": "KV heads", "hidden": "hidden"}

Share = npt.NDArray[np.float64]


def draw_kept(
    path: Path, kept: Mapping[str, Any], before: Mapping[str, int], after: Mapping[str, int]
) -> bool:
    """Draw the share of every axis that stays, and where in each layer it lies.

    False where matplotlib, which the extra `plots` brings, is not installed.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra
    from matplotlib.figure import Figure

    maps = kept_maps(kept, before)
    figure = Figure(figsize=(4 * (len(maps) + 1), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(1, len(maps) + 1, squeeze=False)[0]
    _draw_shares(places[0], before, after)
    for place, (axis, shares) in zip(places[1:], maps.items(), strict=True):
        _draw_map(place, axis, shares, before)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def kept_maps(kept: Mapping[str, Any], before: Mapping[str, int]) -> dict[str, Share]:
    """Of each axis that was cut, the share that stays: (source layers, columns) from 0 to 1.

    A hidden size is one for the network: it shows in the layers that stay. Raises SourceError for
    indices that cannot be.
    """
    layers = before["num_hidden_layers"]
    staying = _indices("layers", kept["layers"], layers) if "layers" in kept else range(layers)
    axes = [axis for axis in ("hidden", *PER_LAYER) if axis in kept]
    maps: dict[str, Share] = {}
    for axis in axes or ["layers"]:
        size = 1 if axis == "layers" else before[AXIS_KEYS[axis]]
        shares = np.zeros((layers, min(size, _COLUMNS)))
        for place, layer in enumerate(staying):
            if axis == "layers":
                shares[layer] = 1.0
                continue
            runs = kept[axis] if axis not in PER_LAYER else [*kept[axis], *[None] * layers][place]
            mask = np.zeros(size)
            mask[list(_indices(axis, runs, size))] = 1.0
            shares[layer] = [part.mean() for part in np.array_split(mask, shares.shape[1])]
        maps[axis] = shares
    return maps


def _indices(axis: str, runs: Any, size: int) -> tuple[int, ...]:
    try:
        return indices_of(runs, size)
    except ValueError as error:
        raise SourceError(
            f"minitron.json is damaged: kept.{axis} must be indices below {size}, as 0-5,7, for "
            "each layer that stays"
        ) from error


def _draw_shares(place: Any, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """How much of each size stays, as bars."""
    keys = [*(AXIS_KEYS[axis] for axis in ("layers", "hidden", *PER_LAYER)), "parameters"]
    shares = [after[key] / before[key] for key in keys]
    place.barh(keys, [1.0] * len(keys), color=_GONE)
    place.barh(keys, shares, color=_KEPT)
    for row, share in enumerate(shares):
        place.text(0.02, row, f"{share:.0%}", va="center")
    place.invert_yaxis()
    place.set_xlim(0, 1)
    place.set_xlabel("share kept")


def _draw_map(place: Any, axis: str, shares: Share, before: Mapping[str, int]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    layers = before["num_hidden_layers"]
    colours = LinearSegmentedColormap.from_list("kept", [_GONE, _KEPT])
    right = 1 if axis == "layers" else before[AXIS_KEYS[axis]]
    place.imshow(
        shares,
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=0,
        vmax=1,
        extent=(0, right, layers - 0.5, -0.5),
    )
    place.set_title(_NAMES.get(axis, axis))
    place.set_ylabel("layer")
    place.set_xlabel("" if axis == "layers" else f"index, of {right:,}")
    if axis == "layers":
        place.set_xticks([])
