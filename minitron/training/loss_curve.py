"""The loss curve of a training run as a picture, drawn without a display.

draw_loss_curve(Path("loss.png"), records)
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

PICTURE = "loss.png"


def draw_loss_curve(path: Path, records: Sequence[dict[str, float]], training: str) -> bool:
    """Draw what was logged; `training` names the loss that was trained on.

    False where matplotlib, which the extra `plots` brings, is not installed.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure  # an extra

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", training, "-"), ("eval_loss", "held-out text", "o-")):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True
