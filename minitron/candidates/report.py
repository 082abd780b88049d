"""Search report: the candidates of a search, ranked, and how they are shown.

Knows the order, the table and the record; measures nothing.

    print(report.to_markdown())
"""

from dataclasses import dataclass, replace
from typing import Any

from minitron.candidates.budget import Budget, Cost
from minitron.files.device_memory import readable_bytes
from minitron.model.architecture import Architecture
from minitron.model.families import AXIS_KEYS, PRUNABLE
from minitron.model.importance import Importance
from minitron.model.plan import PruningPlan, scores_kept

_LEFT_ALIGNED = 1  # columns


@dataclass(frozen=True)
class Candidate:
    """One architecture of a search, and what is known of it."""

    plan: PruningPlan
    cost: Cost  # latency as predicted
    share_kept: dict[str, float]  # of the scores of each axis that is cut
    loss: float  # nats a token, as it is pruned
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
    """What a search found: candidates, the best first, and what was asked."""

    source: str
    budget: Budget
    measured: str  # what the losses are of
    counts: dict[str, int]  # in_space, within_budget, refused_by_family, compared
    candidates: tuple[Candidate, ...]
    importance: Importance
    conditions: dict[str, Any]  # under which memory and latency hold
    left_out: str | None = None  # because engines cannot open it

    @property
    def best(self) -> Candidate:
        """The first."""
        return self.candidates[0]

    def reason(self) -> str:
        """What was chosen and why, in one line."""
        best = self.best
        cost = replace(best.cost, latency=best.measured_latency or best.cost.latency)
        told = f"chose {sizes_of(best.architecture)}: {cost.text()}, loss {best.loss:.4f}"
        if best.retrained_loss is not None:
            told += f", retrained {best.retrained_loss:.4f}"
        rest = f", the best of {len(self.candidates)} within {self.budget.text()}"
        if len(self.candidates) > 1:
            second = self.candidates[1]
            loss = second.loss if second.retrained_loss is None else second.retrained_loss
            rest += f"; next {second.name} with {loss:.4f}"
        return told + rest

    def columns(self) -> list[str]:
        """The head of the table."""
        columns = ["candidate", "layers", "hidden", "ffn", "heads", "parameters", "memory"]
        if any(candidate.cost.latency is not None for candidate in self.candidates):
            columns += ["ms predicted", "ms measured"]
        columns += ["scores kept", "loss"]
        if any(candidate.retrained_loss is not None for candidate in self.candidates):
            columns.append("retrained")
        return columns

    def rows(self) -> list[list[str]]:
        """A row a candidate."""
        columns = self.columns()
        return [
            [_cells(rank, candidate)[column] for column in columns]
            for rank, candidate in enumerate(self.candidates, 1)
        ]

    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        told = [f"{count:,} {what.replace('_', ' ')}" for what, count in self.counts.items()]
        running = ", ".join(f"{key} {value}" for key, value in self.conditions.items())
        return [
            f"{self.source}, within {self.budget.text()}.",
            f"{self.measured}",
            f"Candidates: {', '.join(told)}.",
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


def _cells(rank: int, candidate: Candidate) -> dict[str, str]:
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
        "scores kept": f"{100 * scores_kept(candidate.share_kept):.1f} %",
        "loss": f"{candidate.loss:.4f}",
        "retrained": "" if candidate.retrained_loss is None else f"{candidate.retrained_loss:.4f}",
    }


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f}"
