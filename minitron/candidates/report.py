"""Search report: the candidates of a search, ranked, as a table, a record and a plot.

Measures nothing. The plot needs matplotlib, which the extra `plots` installs.

    print(report.to_markdown())
    draw_pareto(report, Path("pareto.png"))
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minitron.candidates.budget import Budget, Cost
from minitron.errors import MissingExtraError
from minitron.files.device_memory import readable_bytes
from minitron.model.architecture import Architecture
from minitron.model.family import AXIS_KEYS, PRUNABLE
from minitron.model.importance import Importance
from minitron.model.plan import PruningPlan, scores_kept

Points = list[tuple[float, float]]

_LEFT_ALIGNED = 1  # columns
_INCHES = (10.0, 4.2)


@dataclass(frozen=True)
class Candidate:
    """One architecture of a search, and what was measured of it."""

    plan: PruningPlan
    cost: Cost  # latency as predicted
    share_kept: dict[str, float]  # of the scores of each axis that is cut
    loss: float  # nats a token, as it is cut or reconstructed
    measured_latency: float | None = None  # of a finalist, seconds a decode step
    is_over_latency: bool = False  # as measured
    retrained_loss: float | None = None  # of a finalist

    @property
    def architecture(self) -> Architecture:
        """Its sizes."""
        return self.plan.target

    @property
    def name(self) -> str:
        """Its sizes, as part of a file name."""
        return candidate_name(self.architecture)

    def to_json(self) -> dict[str, Any]:
        """Sizes, counts, losses and the plan."""
        sizes = {AXIS_KEYS[axis]: self.architecture.size(axis) for axis in PRUNABLE}
        return {
            **sizes,
            "parameters": self.cost.parameters,
            "non_embedding_parameters": self.architecture.non_embedding_parameters,
            "memory_bytes": self.cost.memory,
            "latency_seconds": self.cost.latency,
            "measured_latency_seconds": self.measured_latency,
            "is_over_latency": self.is_over_latency,
            "share_of_importance_kept": self.share_kept,
            "loss": self.loss,
            "retrained_loss": self.retrained_loss,
            "kept": self.plan.to_json(),
        }


@dataclass(frozen=True)
class SearchReport:
    """The candidates of a search, the best first, and the budget."""

    source: str
    budget: Budget
    measured: str  # what the losses were measured on
    counts: dict[str, int]  # in_space, within_budget, refused_by_family, compared
    candidates: tuple[Candidate, ...]
    is_reconstructed: bool  # whether candidates were, before their loss was measured
    importance: Importance
    conditions: dict[str, Any]  # under which memory and latency hold
    left_out: str | None = None  # because engines cannot open it

    @property
    def best(self) -> Candidate:
        """The first."""
        return self.candidates[0]

    @property
    def state(self) -> str:
        """What was made of the candidates before their loss was measured, in words."""
        return "reconstructed" if self.is_reconstructed else "as cut"

    def reason(self) -> str:
        """The sizes that were chosen and why, in one line."""
        best = self.best
        cost = replace(best.cost, latency=best.measured_latency or best.cost.latency)
        line = f"chose {sizes_of(best.architecture)}: {cost.text()}, "
        line += f"loss {best.loss:.4f} {self.state}"
        if best.retrained_loss is not None:
            line += f", retrained {best.retrained_loss:.4f}"
        line += f", the best of {len(self.candidates)} within {self.budget.text()}"
        if len(self.candidates) > 1:
            second = self.candidates[1]
            loss = second.loss if second.retrained_loss is None else second.retrained_loss
            line += f"; next {second.name} with {loss:.4f}"
        return line

    def columns(self) -> list[str]:
        """The head of the table."""
        columns = ["candidate", "layers", "hidden", "ffn", "heads", "parameters", "memory"]
        if any(candidate.cost.latency is not None for candidate in self.candidates):
            columns += ["ms predicted", "ms measured"]
        columns += ["scores kept", f"loss {self.state}"]
        if any(candidate.retrained_loss is not None for candidate in self.candidates):
            columns.append("retrained")
        return columns

    def rows(self) -> list[list[str]]:
        """A row a candidate."""
        columns = self.columns()
        return [
            [_cells(rank, candidate, self.state)[column] for column in columns]
            for rank, candidate in enumerate(self.candidates, 1)
        ]

    def notes(self) -> list[str]:
        """The conditions of the table, as sentences."""
        counts = [f"{count:,} {what.replace('_', ' ')}" for what, count in self.counts.items()]
        running = ", ".join(f"{key} {value}" for key, value in self.conditions.items())
        return [
            f"{self.source}, within {self.budget.text()}.",
            f"{self.measured}",
            f"Candidates: {', '.join(counts)}.",
            *([] if self.left_out is None else [f"{self.left_out[0].upper()}{self.left_out[1:]}."]),
            f"Memory is weights, KV cache and activations; it and latency hold for {running}.",
        ]

    def to_markdown(self) -> str:
        """search.md."""
        columns = self.columns()
        rule = ["---" if i < _LEFT_ALIGNED else "---:" for i in range(len(columns))]
        lines = [f"| {' | '.join(cells)} |" for cells in (columns, rule, *self.rows())]
        reason = self.reason()
        notes = "\n\n".join([f"{reason[0].upper()}{reason[1:]}.", *self.notes()])
        return f"# Search of {self.source}\n\n{notes}\n\n" + "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """search.json: a plan and all sizes and counts for each candidate."""
        ranked = enumerate(self.candidates, 1)
        return {
            "source": self.source,
            "budget": self.budget.to_json(),
            "measured": self.measured,
            "candidates_are": self.state,
            "conditions": self.conditions,
            "counts": self.counts,
            "left_out": self.left_out,
            "importance": {**self.importance.made_by, "digest": self.importance.digest},
            "candidates": [{"rank": rank, **candidate.to_json()} for rank, candidate in ranked],
        }


def candidate_name(architecture: Architecture) -> str:
    """Sizes as a name: 32x3072-ffn9216-heads24."""
    return (
        f"{architecture.num_hidden_layers}x{architecture.hidden_size}"
        f"-ffn{architecture.intermediate_size}-heads{architecture.num_attention_heads}"
    )


def sizes_of(architecture: Architecture) -> str:
    """Sizes in the config's words."""
    return ", ".join(f"{AXIS_KEYS[axis]} {architecture.size(axis)}" for axis in PRUNABLE)


def _cells(rank: int, candidate: Candidate, state: str) -> dict[str, str]:
    architecture = candidate.architecture
    over = " (over)" if candidate.is_over_latency else ""
    return {
        "candidate": f"{rank}",
        "layers": f"{architecture.num_hidden_layers}",
        "hidden": f"{architecture.hidden_size}",
        "ffn": f"{architecture.intermediate_size}",
        "heads": f"{architecture.num_attention_heads}",
        "parameters": f"{candidate.cost.parameters:,}",
        "memory": readable_bytes(candidate.cost.memory),
        "ms predicted": _milliseconds(candidate.cost.latency),
        "ms measured": _milliseconds(candidate.measured_latency) + over,
        "scores kept": _scores_kept(candidate),
        f"loss {state}": f"{candidate.loss:.4f}",
        "retrained": "" if candidate.retrained_loss is None else f"{candidate.retrained_loss:.4f}",
    }


def _scores_kept(candidate: Candidate) -> str:
    """Empty where no share is known, as of random scores."""
    is_cut = candidate.plan.source != candidate.plan.target
    if is_cut and not candidate.share_kept:
        return ""
    return f"{100 * scores_kept(candidate.share_kept):.1f} %"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f}"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_pareto(report: SearchReport, path: Path) -> None:
    """Plot loss against parameters, and against latency or memory, with the Pareto front.

    Raises MissingExtraError without matplotlib.
    """
    if not can_draw():
        raise MissingExtraError("matplotlib", "plots")
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure(figsize=_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    known = [c for c in report.candidates if _latency(c) is not None]
    _panel(left, report.candidates, [c.cost.parameters / 1e6 for c in report.candidates])
    left.set(xlabel="parameters, millions", ylabel=f"loss {report.state}, nats a token")
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
        these = [i for i, one in enumerate(depths) if one == depth]
        axes.scatter(
            [costs[i] for i in these],
            [losses[i] for i in these],
            s=24,
            color=_shade(depth, depths),
            zorder=2,
        )
        axes.annotate(
            f"{depth} layers",
            (costs[these[0]], losses[these[0]]),
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
