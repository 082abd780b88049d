"""Budget: limits of parameters, memory and latency, and the cost of a model.

Parses sizes such as 4B and 20ms, and computes memory from an architecture. Parameters are a target;
memory and latency are limits, and without parameters the tightest limit is the target. Everything
is met within 5 %, as in the paper (arXiv 2407.14679, 2.3).

    Budget(parameters=parse_parameters("4B")).is_met_by(Cost(4_190_509_056, memory=9 << 30))
"""

import re
from dataclasses import dataclass

from minitron.errors import TargetError
from minitron.files.device_memory import readable_bytes
from minitron.model.architecture import Architecture
from minitron.options import parse_bytes
from minitron.recipes.pruning import BudgetRecipe

TOLERANCE = 0.05
RUNNING_TOKENS = 8192  # that an engine runs through a layer at once, of a prompt

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_NUMBER = re.compile(r"\s*(\d+(?:[.,_]\d+)*)\s*([a-zµ]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Use:
    """How a model is to run: sequences at once, tokens of each, bytes of a number."""

    batch: int = 1
    context: int = 4096
    itemsize: int = 2


@dataclass(frozen=True)
class Cost:
    """The cost of a model: parameters, bytes of memory, and seconds a decode step if known."""

    parameters: int
    memory: int
    latency: float | None = None

    def text(self) -> str:
        """As text, with units."""
        text = f"{self.parameters:,} parameters, {readable_bytes(self.memory)}"
        return text if self.latency is None else f"{text}, {1000 * self.latency:.3g} ms"


@dataclass(frozen=True)
class Budget:
    """The target and the limits of a model; None where there is no limit."""

    parameters: int | None = None
    memory: int | None = None  # bytes
    latency: float | None = None  # seconds a decode step

    def miss(self, cost: Cost) -> float:
        """The relative distance of a model from the budget: the largest of all its parts."""
        limits = [(self.memory, cost.memory), (self.latency, cost.latency)]
        over = [(value or 0) / limit - 1 for limit, value in limits if limit is not None]
        if self.parameters is None:
            return abs(max(over))
        return max([abs(cost.parameters / self.parameters - 1), *over])

    def is_met_by(self, cost: Cost, tolerance: float = TOLERANCE) -> bool:
        """Whether a model is within 5 % of it, or another tolerance."""
        return self.miss(cost) <= tolerance + 1e-12  # what is exactly 5 % off is within

    def is_above(self, cost: Cost) -> bool:
        """Whether a model keeps to all limits, and no number of parameters is asked for."""
        limits = [(self.memory, cost.memory), (self.latency, cost.latency)]
        given = [(value or 0) <= limit for limit, value in limits if limit is not None]
        return self.parameters is None and all(given)

    def text(self) -> str:
        """As text, with units and tolerance."""
        parts = []
        if self.parameters is not None:
            parts.append(f"{self.parameters:,} parameters")
        if self.memory is not None:
            parts.append(readable_bytes(self.memory))
        if self.latency is not None:
            parts.append(f"{1000 * self.latency:g} ms a token")
        return f"{', '.join(parts)} ± {100 * TOLERANCE:.0f} %"

    def to_json(self) -> dict[str, float | None]:
        """With units in the keys, and the tolerance."""
        return {
            "parameters": self.parameters,
            "memory_bytes": self.memory,
            "latency_seconds": self.latency,
            "tolerance": TOLERANCE,
        }


def budget_of(recipe: BudgetRecipe, source: Architecture) -> Budget:
    """The budget of a recipe for a smaller `source`. Raises TargetError."""
    if not recipe.has_budget:
        raise TargetError("no budget is given: name --params, --ratio, --memory or --latency")
    parameters = None
    if recipe.params is not None:
        parameters = parse_parameters(str(recipe.params))
    if recipe.ratio is not None:
        parameters = round(recipe.ratio * source.parameters)
    return Budget(
        parameters=parameters,
        memory=None if recipe.memory is None else _above_zero(recipe.memory),
        latency=None if recipe.latency is None else parse_seconds(recipe.latency),
    )


def memory_needed(architecture: Architecture, use: Use, parameters: int | None = None) -> int:
    """Bytes to run a model: weights + KV cache + activations.

    weights      parameters x itemsize
    KV cache     batch x context x 2 x layers x kv_heads x head_dim x itemsize
    activations  tokens x (4 hidden + max(4 heads head_dim + 4 kv_heads head_dim, 3 ffn)) x itemsize
                 + batch x vocab x 4, the logits of the last position in float32

    with tokens = min(batch x context, 8192), as engines run long prompts in pieces. Activations are
    those of one layer as transformers computes it: the stream and its norm, and what attention or
    the MLP hold at once. `parameters` saves counting them again. What an engine, CUDA and the
    allocator's gaps take comes on top.
    """
    counted = architecture.parameters if parameters is None else parameters
    cached = use.batch * use.context * architecture.kv_cache_elements_per_token
    tokens = min(use.batch * use.context, RUNNING_TOKENS)
    running = tokens * architecture.layer_activations
    logits = use.batch * architecture.vocab_size * 4
    return (counted + cached + running) * use.itemsize + logits


def parse_parameters(text: str) -> int:
    """Read "4B", "500M", "8.27B" or a plain number. Raises TargetError."""
    number, unit = _parts(text)
    if number == 0 and unit in _COUNTS:
        raise TargetError(f"--params is {text!r}: it must be above 0")
    if number is None or unit not in _COUNTS or not number:
        raise TargetError(f"--params is {text!r}: write a number such as 4B, 500M or 4190509056")
    return round(number * _COUNTS[unit])


def parse_seconds(text: str) -> float:
    """Read "20ms", "0.02s" or "800us". Raises TargetError."""
    number, unit = _parts(text)
    if number is None or unit not in _SECONDS or not number:
        raise TargetError(f"--latency is {text!r}: write a time such as 20ms or 0.02s")
    return number * _SECONDS[unit]


def _above_zero(memory: str) -> int:
    size = parse_bytes(memory, "--memory")
    if not size:
        raise TargetError(f"--memory is {memory!r}: it must be above 0")
    return size


def _parts(text: str) -> tuple[float | None, str]:
    """A number and its unit in lower case; None where there is no number."""
    parsed = _NUMBER.fullmatch(text)
    if parsed is None:
        return None, ""
    try:
        return float(parsed[1].replace(",", "").replace("_", "")), parsed[2].lower()
    except ValueError:  # two points
        return None, ""
