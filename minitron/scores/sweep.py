"""Sweep: a corpus run through a decoder within a memory budget, chunk by chunk.

A plan decides whether all layers stay in memory, and how many tokens pass each layer together. What
each chunk gives is added up; the sums of finished chunks may be kept in a file, from which an
interrupted sweep resumes. What is summed is the caller's concern.

    plan = plan_sweep(architecture, lengths, budget=6 << 30, needs=Needs(2, 2))
    sweep(sequences, sums_of_chunk, batch_tokens=plan.batch_tokens, chunk_tokens=plan.chunk_tokens)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minitron.errors import TargetError
from minitron.files.atomic_file import atomic_file
from minitron.files.device_memory import readable_bytes
from minitron.model.architecture import Architecture
from minitron.sources.layer_stream import BLOCK_BYTES
from minitron.text.encoding import TokenIds

Weights = Literal["layers", "all", "loaded"]
Sums = dict[str, torch.Tensor]  # in float64; they add up
Chunk = list[torch.Tensor]  # batches of ids, (sequences, length)

BATCH_TOKENS = 8192  # that run through a layer at once
_BATCHES_OF_KEPT = 16  # in a chunk where layers are kept: an interrupted run loses one chunk
_SLACK = 160 << 20  # reductions, ids, modules still to import
_HELD_BACK = 0.06  # that the allocator holds beside what is in use: 4 % were measured at 15B


@dataclass(frozen=True)
class Needs:
    """What determines the memory of a measurement."""

    itemsize: int  # bytes of a number as it is computed with
    stored_itemsize: int  # as it is stored
    states_held: int = 1  # copies of a token's hidden states
    has_logits: bool = False
    has_masks: bool = False  # of sliding attention
    summing: int = 0  # bytes that large sums over a layer's tokens take
    base: int = 0  # bytes in use before anything begins
    # What is loaded: layers, all weights with the embeddings, or nothing more.
    weights: Weights = "layers"


@dataclass(frozen=True)
class SweepPlan:
    """Whether layers stay, how many tokens a batch and a chunk of batches hold, peak in bytes."""

    keep: bool
    batch_tokens: int
    chunk_tokens: int
    peak: int

    def text(self, tokens: int) -> str:
        """The plan in one line."""
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
    # Keep the layers where they fit; else as few sweeps as possible, as each reads the whole model.
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
    running = running_bytes(architecture, batch, needs.itemsize)
    passing = 2 * block + logits + masks + running + needs.summing
    return with_overhead(weights + states + passing)


def running_bytes(architecture: Architecture, tokens: int, itemsize: int) -> int:
    """What a batch of tokens takes inside a layer."""
    norms = 2 * tokens * architecture.hidden_size * (4 - itemsize)  # in float32
    return tokens * architecture.layer_activations * itemsize + norms


def with_overhead(in_use: int) -> int:
    """The memory of a process whose tensors take so many bytes."""
    return in_use + int(_HELD_BACK * in_use) + _SLACK


def sweep(
    sequences: Sequence[TokenIds],
    measure: Callable[[Chunk], Sums],
    *,
    batch_tokens: int,
    chunk_tokens: int,
    kept: Path | None = None,
    keeps_last: bool = True,
) -> Sums:
    """The sums that `measure` returns for each chunk, added up.

    `kept` is a file with the sums of the chunks that are done; where it exists, the sweep resumes
    after them. Without `keeps_last` the last chunk is measured in every run.
    """
    done, total = _read(kept) if kept is not None and kept.exists() else (0, {})
    for chunk in chunks_of(batches_of(sequences[done:], batch_tokens), chunk_tokens):
        sums = measure(chunk)
        total = {key: total[key] + sums[key] if total else sums[key] for key in sums}
        done += sum(map(len, chunk))
        if kept is not None and (keeps_last or done < len(sequences)):
            _write(kept, done, total)
    return total


def batches_of(sequences: Sequence[TokenIds], tokens: int) -> Iterator[torch.Tensor]:
    """Neighbours of equal length as batches of at most `tokens`, or of one sequence."""
    start = 0
    for stop in range(1, len(sequences) + 1):
        length = len(sequences[start])
        is_full = (stop - start + 1) * length > tokens
        if is_full or stop == len(sequences) or len(sequences[stop]) != length:
            yield torch.from_numpy(np.stack(sequences[start:stop])).long()
            start = stop


def chunks_of(batches: Iterator[torch.Tensor], tokens: int) -> Iterator[Chunk]:
    """Batches together, of at most `tokens`, or one alone."""
    chunk: Chunk = []
    for batch in batches:
        if chunk and sum(b.numel() for b in chunk) + batch.numel() > tokens:
            yield chunk
            chunk = []
        chunk.append(batch)
    if chunk:
        yield chunk


def sequences_of(kept: Path) -> int:
    """How many sequences are done, by the file of a sweep."""
    with safe_open(kept, framework="pt") as file:
        return int((file.metadata() or {})["sequences"])


def _read(kept: Path) -> tuple[int, Sums]:
    """How many sequences are done, and their sums."""
    with safe_open(kept, framework="pt") as file:
        sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return sequences_of(kept), sums


def _write(kept: Path, done: int, sums: Sums) -> None:
    contiguous = {key: tensor.contiguous() for key, tensor in sums.items()}
    with atomic_file(kept) as partial:
        save_file(contiguous, partial, {"sequences": str(done)})
