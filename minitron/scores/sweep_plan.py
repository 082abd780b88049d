"""Sweep plan: how a corpus is run through a decoder within a budget of memory.

Knows how many bytes a layer, a token's states and a running batch take; decides whether all layers
stay in memory, and how many tokens pass each layer together. Runs nothing.

    plan_sweep(architecture, lengths, budget=6 << 30, needs=Needs(itemsize=2)).peak
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from minitron.errors import TargetError
from minitron.files.device_memory import readable_bytes
from minitron.model.architecture import Architecture
from minitron.sources.layer_stream import BLOCK_BYTES

Weights = Literal["layers", "all", "loaded"]

BATCH_TOKENS = 8192  # that run through a layer at once
_BATCHES_OF_KEPT = 16  # in a chunk where layers need not be read again: progress that is not lost
_SLACK = 160 << 20  # reductions, ids, modules still to import
_HELD_BACK = 0.06  # of what is asked for, beside it, by the allocator: 4 % were seen at 15B


@dataclass(frozen=True)
class Needs:
    """What a measurement asks of memory."""

    itemsize: int  # bytes of a number as it is computed with
    stored_itemsize: int  # as it is stored
    states_held: int = 1  # copies of a token's hidden states
    has_logits: bool = False
    has_masks: bool = False  # of sliding attention
    base: int = 0  # bytes in use before anything begins
    weights: Weights = "layers"  # what is to be brought to memory: all is the embeddings too


@dataclass(frozen=True)
class SweepPlan:
    """Whether layers stay, how many tokens a batch and a chunk of batches hold, peak in bytes."""

    keep: bool
    batch_tokens: int
    chunk_tokens: int
    peak: int

    def text(self, tokens: int) -> str:
        """What is going to happen, in one line."""
        sweeps = -(-tokens // self.chunk_tokens)
        times = "once" if sweeps == 1 else f"{sweeps} times"
        layers = "kept in memory" if self.keep else f"read one after another, {times}"
        return (
            f"measuring {tokens:,} tokens with layers {layers}: "
            f"at most {readable_bytes(self.peak)} of memory expected"
        )


def plan_sweep(
    architecture: Architecture, lengths: Sequence[int], *, budget: int, needs: Needs
) -> SweepPlan:
    """Decide for sequences of `lengths` tokens. Raises TargetError where one layer does not fit."""
    longest, total = max(lengths), sum(lengths)
    state = architecture.hidden_size * needs.itemsize * needs.states_held

    def peak(keep: bool, batch: int, chunk: int) -> int:
        return needs.base + _bytes(architecture, needs, longest, keep, batch, chunk)

    def plan(keep: bool, batch: int) -> SweepPlan:
        spare = max(0, budget - peak(keep, batch, batch)) / (1 + _HELD_BACK)
        chunk = min(total, batch + int(spare) // state)
        if keep:
            chunk = min(chunk, _BATCHES_OF_KEPT * batch)
        return SweepPlan(keep, batch, chunk, peak(keep, batch, chunk))

    halves = [max(longest, min(total, BATCH_TOKENS >> times)) for times in range(4)]
    plans = [plan(True, batch) for batch in halves]
    if needs.weights == "layers":
        plans += [plan(False, batch) for batch in (*halves, longest)]
    fitting = [some for some in plans if some.peak <= budget]
    if not fitting:
        what = "two layers" if needs.weights == "layers" else "all layers, as --corpus self asks,"
        least = min(some.peak for some in plans)
        raise TargetError(
            f"the memory budget is {readable_bytes(budget)}: {what} and a sequence of {longest} "
            f"tokens need at least {readable_bytes(least)}"
        )
    # Kept where that can be; else the fewest sweeps, each of which reads the whole model again.
    return min(fitting, key=lambda some: 0 if some.keep else -(-total // some.chunk_tokens))


def _bytes(
    architecture: Architecture, needs: Needs, longest: int, keep: bool, batch: int, chunk: int
) -> int:
    """The most that is in use at once, above the base."""
    sizes = {slot.name: prod(slot.shape) for slot in architecture.slots() if slot.layer == 0}
    layers = architecture.num_hidden_layers if keep else min(2, architecture.num_hidden_layers)
    weights = layers * sum(sizes.values()) * needs.itemsize
    if needs.itemsize != needs.stored_itemsize:
        weights += max(sizes.values()) * needs.stored_itemsize
    states = (chunk + batch) * architecture.hidden_size * needs.itemsize * needs.states_held
    if keep:
        weights += architecture.vocab_size * architecture.hidden_size * needs.itemsize
    if needs.weights == "all":
        weights = architecture.parameters * needs.itemsize
    elif needs.weights == "loaded":
        weights = 0
    block = min(BLOCK_BYTES, architecture.vocab_size * architecture.hidden_size * 4)
    logits = 6 * BLOCK_BYTES if needs.has_logits else 0
    masks = 5 * longest * longest if needs.has_masks else 0
    running = batch * _width(architecture) * needs.itemsize
    running += 2 * batch * architecture.hidden_size * 4  # norms in float32
    asked = weights + states + 2 * block + logits + masks + running
    return asked + int(_HELD_BACK * asked) + _SLACK


def _width(architecture: Architecture) -> int:
    """Numbers a token takes while it is inside a layer, at most."""
    queries = architecture.num_attention_heads * architecture.head_dim
    keys = architecture.num_key_value_heads * architecture.head_dim
    attention = 5 * queries + 4 * keys
    mlp = 3 * architecture.intermediate_size
    return 2 * architecture.hidden_size + max(attention, mlp)
