"""The reconstruction picture: what each fit is worth along the layers, drawn without a display.

Knows the `reconstruction` entry of minitron.json. A panel for each linear of a layer has the
squared error of what it adds or returns, on held-out text, as a share of what it shall: with the
weight as it is cut, and with the one that is in the folder. The first panel has the losses.

    draw_reconstruction(Path("reconstruction.png"), record["reconstruction"], architecture)
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from minitron.model.architecture import Architecture
from minitron.records.card_texts import loss_texts
from minitron.records.kept_picture import KEPT, REMOVED

RECONSTRUCTION_PICTURE = "reconstruction.png"
_CUT = "#607d8b"  # a line: darker than the surface REMOVED
_LEAST = 1e-6  # of an axis whose scale is logarithmic
_STAGES = {"source": "source", "pruned": "as cut", "reconstructed": "reconstructed"}
_HEAD = "output embedding"


class Error(NamedTuple):
    """The relative squared errors of a linear on held-out tokens."""

    layer: int
    before: float
    after: float  # the same as before where the fit is not used


def draw_reconstruction(path: Path, done: Mapping[str, Any], architecture: Architecture) -> bool:
    """Draw errors and losses. False where matplotlib, of the extra `plots`, is not installed."""
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra
    from matplotlib.figure import Figure

    kinds = errors_of(done, architecture)
    columns = -(-len(kinds) // 2)
    # With room for the labels: a layout that measures them draws them twice.
    width, height = 2.6 * (columns + 1.4), 5.0
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    rows = {"bottom": 0.5 / height, "top": 1 - 0.3 / height}
    losses = figure.add_gridspec(1, 1, left=1.1 / width, right=4.1 / width, **rows)
    _draw_losses(figure.add_subplot(losses[0]), done["losses"])
    grid = figure.add_gridspec(
        2, columns, left=4.9 / width, right=1 - 0.15 / width, wspace=0.07, hspace=0.45, **rows
    )
    first: Any = None
    for place, (kind, errors) in enumerate(kinds.items()):
        panel = figure.add_subplot(grid[place // columns, place % columns], sharey=first)
        first = first or panel
        _draw_errors(panel, kind, errors, is_leftmost=place % columns == 0)
    if first is not None:
        first.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def errors_of(done: Mapping[str, Any], architecture: Architecture) -> dict[str, list[Error]]:
    """The errors of each kind of linear along the layers, the output embedding last."""
    found: dict[str, list[Error]] = {}
    for slot in architecture.slots():
        if slot.name in done["linears"]:
            linear = done["linears"][slot.name]
            before = linear["error_before"]
            after = linear["error_after"] if linear["used"] else before
            kind = _HEAD if slot.layer is None else slot.name.split(".")[-2]
            found.setdefault(kind, []).append(Error(slot.layer or 0, before, after))
    return found


def _draw_losses(panel: Any, losses: Mapping[str, float]) -> None:
    """Draw the three losses as bars from 0, with their numbers."""
    names, values = list(_STAGES.values()), [losses[stage] for stage in _STAGES]
    shown = loss_texts(losses)
    panel.barh(names, values, color=[REMOVED, REMOVED, KEPT])
    for row, stage in enumerate(_STAGES):
        panel.text(0.02 * max(values), row, shown[stage], va="center")
    panel.invert_yaxis()
    panel.set_title("loss on held-out text")
    panel.set_xlabel("nats a token")


def _draw_errors(panel: Any, kind: str, errors: list[Error], *, is_leftmost: bool) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    layers = [error.layer for error in errors]
    before, after = (
        [max(value, _LEAST) for value in values]
        for values in ([error.before for error in errors], [error.after for error in errors])
    )
    panel.fill_between(layers, before, after, color=REMOVED)
    panel.plot(layers, before, color=_CUT, marker="o", ms=4, mfc="white", label="before its fit")
    panel.plot(layers, after, color=KEPT, marker="o", ms=4, label="after its fit")
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())  # long labels reach into the next panel
    panel.set_title(kind)
    panel.grid(alpha=0.3)
    panel.xaxis.get_major_locator().set_params(integer=True)
    if kind == _HEAD:
        panel.set_xticks([])
    else:
        panel.set_xlabel("layer")
    if is_leftmost:
        panel.set_ylabel("relative squared error")
    else:
        panel.tick_params(which="both", labelleft=False)
