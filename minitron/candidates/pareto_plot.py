"""Pareto plot: the candidates of a search by what they take and what they lose, as a picture.

Draws parameters, and latency or memory, against loss; the line joins candidates that no other
beats in both. Needs matplotlib, which the extra `plots` brings.

    draw_pareto(report, Path("pareto.png"))
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minitron.candidates.report import Candidate, SearchReport
from minitron.errors import MissingExtraError

Points = list[tuple[float, float]]

_INCHES = (10.0, 4.2)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_pareto(report: SearchReport, path: Path) -> None:
    """Write the picture. Raises MissingExtraError without matplotlib."""
    if not can_draw():
        raise MissingExtraError("matplotlib", "plots")
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure(figsize=_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    known = [c for c in report.candidates if _latency(c) is not None]
    _panel(left, report.candidates, [c.cost.parameters / 1e6 for c in report.candidates])
    left.set(xlabel="parameters, millions", ylabel="loss as pruned, nats a token")
    if known:
        _panel(right, known, [1000 * (_latency(c) or 0) for c in known])
        right.set(xlabel="decode step, ms")
    else:
        most = max(c.cost.memory for c in report.candidates)
        unit, size = ("GiB", 2**30) if most >= 2**30 else ("MiB", 2**20)
        _panel(right, report.candidates, [c.cost.memory / size for c in report.candidates])
        right.set(xlabel=f"memory, {unit}")
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{report.source}: {len(report.candidates)} candidates", fontsize=10)
    figure.savefig(path, dpi=150)


def pareto_front(points: Sequence[tuple[float, float]]) -> Points:
    """The points that no other one beats in both numbers, by the first; less is better."""
    front: Points = []
    for cost, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    return front


def _panel(axes: Any, candidates: Sequence[Candidate], costs: list[float]) -> None:
    """Candidates at their costs, depth by colour, the best marked."""
    losses = [candidate.loss for candidate in candidates]
    depths = [candidate.architecture.num_hidden_layers for candidate in candidates]
    front = pareto_front(list(zip(costs, losses, strict=True)))
    axes.plot(
        [x for x, _ in front],
        [y for _, y in front],
        color="0.7",
        linewidth=1,
        zorder=1,
        label="beaten by none in both",
    )
    for depth in sorted(set(depths)):
        chosen = [i for i, one in enumerate(depths) if one == depth]
        axes.scatter(
            [costs[i] for i in chosen],
            [losses[i] for i in chosen],
            s=24,
            color=_shade(depth, depths),
            zorder=2,
        )
        axes.annotate(
            f"{depth} layers",
            (costs[chosen[0]], losses[chosen[0]]),
            textcoords="offset points",
            xytext=(5, 5),
            fontsize=8,
            color=_shade(depth, depths),
        )
    retrained = [(x, c.retrained_loss) for x, c in zip(costs, candidates, strict=True)]
    again = [(x, loss) for x, loss in retrained if loss is not None]
    if again:
        axes.scatter(
            *zip(*again, strict=True), marker="x", color="0.2", label="retrained", zorder=3
        )
    chosen_at = ([costs[0]], [losses[0]])
    axes.scatter(*chosen_at, s=110, facecolors="none", edgecolors="0.1", zorder=4, label="chosen")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _shade(depth: int, depths: list[int]) -> tuple[float, float, float]:
    """Deeper is darker."""
    span = max(depths) - min(depths)
    light = 0.0 if not span else (max(depths) - depth) / span
    return (0.05 + 0.5 * light, 0.3 + 0.4 * light, 0.55 + 0.3 * light)


def _latency(candidate: Candidate) -> float | None:
    return candidate.measured_latency or candidate.cost.latency
