"""Memory of a reconstruction, computed from shapes before the work.

Decides how many tokens pass together, and whether the streams and what the heads return are in
memory or on disk. What is held at once: two layers of both models, the sums of one linear in
float64, a batch's activations.

    plan_memory(source, target, lengths, budget=20 << 30, needs=Needs(4, 2)).peak
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import torch

from minitron.errors import TargetError
from minitron.files.device_memory import free_memory, memory_in_use, readable_bytes
from minitron.model.architecture import Architecture
from minitron.model.family import EMBEDDING
from minitron.model.source import Source
from minitron.options import parse_bytes
from minitron.recipes.pruning import Hidden
from minitron.reconstruction.calibration_tokens import split
from minitron.reconstruction.finished import batch_tokens_of
from minitron.reconstruction.head import BYTES_AT_ONCE
from minitron.reconstruction.least_squares import COLUMNS_AT_ONCE, TOKENS_AT_ONCE
from minitron.reconstruction.projection import hidden_choice
from minitron.scores.sweep import BATCH_TOKENS, Needs, running_bytes, with_overhead
from minitron.sources.layer_stream import BLOCK_BYTES
from minitron.sources.processes import Processes
from minitron.sources.streamed_loss import CHUNK_BYTES
from minitron.text.encoding import TokenIds

logger = logging.getLogger(__name__)

_WIDE = 8  # bytes of a number in float64


@dataclass(frozen=True)
class MemoryPlan:
    """Tokens in a batch, tokens embedded at once, where the streams are, and the peak in bytes."""

    batch_tokens: int
    embedded_tokens: int
    on_disk: bool
    peak: int

    def text(self, tokens: int) -> str:
        """The plan in one line."""
        place = "on disk" if self.on_disk else "in memory"
        return (
            f"reconstructing on {tokens:,} tokens, {self.batch_tokens:,} at once, with both "
            f"streams {place}: at most {readable_bytes(self.peak)} of memory expected"
        )


def memory_of(
    source: Source,
    target: Architecture,
    sequences: Sequence[TokenIds],
    *,
    hidden: Hidden,
    dtype: torch.dtype,
    processes: Processes,
    memory_budget: str | None = None,
    folder: Path | None = None,
    is_logged: bool = True,
) -> MemoryPlan:
    """How the work fits into memory, and logs it. Raises TargetError where it does not.

    `folder` may hold what an interrupted call has finished, of whose batches these are.
    """
    device = processes.device
    in_use = memory_in_use(device)
    budget = in_use + free_memory(device)
    if memory_budget is not None:
        budget = parse_bytes(memory_budget, "--memory-budget")
    needs = Needs(
        itemsize=torch.float32.itemsize,
        stored_itemsize=source.tensors[EMBEDDING].dtype.itemsize,
        has_masks=bool(source.config.get("sliding_window")),
        base=in_use,
    )
    fitted, held_out = split(sequences)
    mine = [part[processes.part(len(part))] for part in (fitted, held_out)]
    lengths = [len(sequence) for part in mine for sequence in part]
    if len(fitted) < processes.count:
        raise TargetError(
            f"{len(fitted)} sequences to fit on cannot be shared by {processes.count} processes"
        )
    plan = plan_memory(
        source.architecture,
        target,
        lengths,
        budget=budget,
        needs=needs,
        rotates=hidden_choice(hidden, source.architecture, target) == "rotate",
        streams_count=torch.device(device).type == "cpu",
        batch_tokens=None if folder is None else batch_tokens_of(folder),
        multiplied_itemsize=dtype.itemsize,
    )
    if processes.is_first and is_logged:
        logger.info("%s", plan.text(sum(lengths)))
    return plan


def plan_memory(
    source: Architecture,
    target: Architecture,
    lengths: Sequence[int],
    *,
    budget: int,
    needs: Needs,
    rotates: bool = False,
    streams_count: bool = True,
    batch_tokens: int | None = None,
    multiplied_itemsize: int = 4,
) -> MemoryPlan:
    """Decide for sequences of `lengths` tokens. Raises TargetError where the least does not fit.

    `streams_count`: streams in memory are in the budget's memory, as they are not for a GPU's.
    `batch_tokens` leaves no choice of them. `multiplied_itemsize`: of what linears multiply, where
    streams are in float32.
    """
    work = _Work(source, target, max(lengths), needs, rotates, multiplied_itemsize)
    total = sum(lengths)
    heads = target.num_attention_heads * target.head_dim * multiplied_itemsize
    streams = total * ((source.hidden_size + target.hidden_size) * needs.itemsize + heads)

    def plan(batch: int, on_disk: bool) -> MemoryPlan:
        fitting = max(work.of_layers(batch), work.of_head(batch), work.of_loss(batch, total))
        fitting = max(fitting, work.of_covariance(batch) if rotates else 0)
        # What is embedded at once costs no more than what follows.
        state = source.hidden_size * needs.itemsize
        embedded = max(batch, (fitting - 2 * BLOCK_BYTES) // state)
        held = 0 if on_disk or not streams_count else streams
        return MemoryPlan(batch, embedded, on_disk, needs.base + with_overhead(fitting + held))

    batches = [max(work.longest, min(total, BATCH_TOKENS >> times)) for times in range(5)]
    batches = [*batches, work.longest] if batch_tokens is None else [batch_tokens]
    # A larger batch is worth more than streams in memory: it is a few seconds of the disk's time.
    plans = [plan(batch, on_disk) for batch in batches for on_disk in (False, True)]
    for some in plans:
        if some.peak <= budget:
            return some
    least = min(some.peak for some in plans)
    raise TargetError(
        f"the memory budget is {readable_bytes(budget)}: to reconstruct, two layers of both "
        f"models, the sums of one linear and a sequence of {work.longest} tokens need at least "
        f"{readable_bytes(least)}; or give --reconstruct none"
    )


@dataclass(frozen=True)
class _Work:
    """The bytes that each phase of a reconstruction holds, above those of streams."""

    source: Architecture
    target: Architecture
    longest: int
    needs: Needs
    rotates: bool
    multiplied_itemsize: int

    def of_layers(self, batch: int) -> int:
        """The fits of a layer's linears: the more of adding up and solving."""
        target = self.target
        bias = int(bool({"attention_bias", "mlp_bias", *target.family.bias_flags} & target.flags))
        hidden, ffn = target.hidden_size, target.intermediate_size
        queries = target.num_attention_heads * target.head_dim
        keys = target.num_key_value_heads * target.head_dim
        ups = ffn * (2 if target.family.is_gated else 1)
        wide = self.source.hidden_size + bias
        linears = [
            (hidden + bias, queries + 2 * keys, wide),
            (queries + bias, hidden, 0),
            (hidden + bias, ups, wide),
            (ffn + bias, hidden, 0),
        ]
        most = max(self._of_linear(*linear, batch) for linear in linears)
        layers = self._two_layers(self.source) + self._two_layers(target)
        return layers + self._reading() + most

    def _of_linear(self, inputs: int, outputs: int, wide: int, batch: int) -> int:
        """The fit of a linear; `wide`: the inputs of the source's whose rows it keeps, or 0."""
        itemsize, weight, returned = self.needs.itemsize, inputs * outputs, wide or outputs
        summed = 2 * _WIDE * (inputs * inputs + inputs * returned) + _WIDE * wide * wide
        # The input, perhaps with ones, and what it is fitted by.
        tokens = 2 * batch * (inputs + returned) * itemsize
        cast = 2 * _WIDE * min(batch, TOKENS_AT_ONCE) * (inputs + returned)
        products = 2 * _WIDE * COLUMNS_AT_ONCE * max(inputs, returned)
        adding = summed + self._running(batch) + tokens + cast + products
        # The rows, and those before they are joined; some of them, and what is made of these.
        rows = 2 * outputs * wide * self.needs.stored_itemsize
        rows += 4 * _WIDE * min(outputs, TOKENS_AT_ONCE) * wide
        turning = summed + 2 * _WIDE * weight + rows if wide else 0
        sums = 2 * _WIDE * (inputs * inputs + weight)
        # The factor; the solution, the best one, what is cast for it; the weight, joined.
        solving = _WIDE * (inputs * inputs + 3 * weight) + 2 * itemsize * weight
        solving += 3 * _WIDE * min(outputs, TOKENS_AT_ONCE) * inputs
        return max(adding, turning, sums + solving)

    def of_head(self, batch: int) -> int:
        """The fit of the output embedding."""
        narrow, wide = self.target.hidden_size, self.source.hidden_size
        if self.target.tie_word_embeddings and not self.rotates:
            return 0
        both = narrow + wide
        sums = 2 * _WIDE * (narrow * narrow + narrow * wide + wide * wide)
        adding = batch * 6 * both * self.needs.itemsize
        solving = _WIDE * (both * both + narrow * narrow + 7 * both * narrow)
        block = min(BYTES_AT_ONCE, _WIDE * both * self.target.vocab_size)
        return sums + max(adding, solving + 4 * block + self._reading())

    def of_covariance(self, batch: int) -> int:
        """The covariance of the source's stream, and its eigenvectors."""
        square = _WIDE * self.source.hidden_size**2
        cast = 4 * _WIDE * min(batch, TOKENS_AT_ONCE) * self.source.hidden_size
        running = self._running(batch) + cast + self._two_layers(self.source) + self._reading()
        return max(square + running, 6 * square)

    def of_loss(self, batch: int, tokens: int) -> int:
        """The loss on the held-out tokens, computed in float32."""
        states = min(tokens, batch + CHUNK_BYTES // (4 * self.source.hidden_size))
        logits = 8 * BLOCK_BYTES
        layers = self._two_layers(self.source) * 4 // self.needs.itemsize
        state = 4 * self.source.hidden_size
        return layers + self._reading() + self._running(batch, 4) + states * state + logits

    def _two_layers(self, sizes: Architecture) -> int:
        numbers = sum(_sizes_in_layer(sizes))
        return min(2, sizes.num_hidden_layers) * numbers * self.needs.itemsize

    def _reading(self) -> int:
        """What reading a tensor of a coming layer holds beside it."""
        most = [max(_sizes_in_layer(sizes)) for sizes in (self.source, self.target)]
        stored = max(most[0], 2 * most[1]) * self.needs.stored_itemsize
        if not self.rotates:
            return stored
        basis = self.source.hidden_size * self.target.hidden_size
        blocks = 2 * BLOCK_BYTES
        return stored + _WIDE * (most[1] + 2 * basis) + blocks

    def _running(self, batch: int, itemsize: int | None = None) -> int:
        """A batch inside a layer of the source, whose layers are the larger ones."""
        masks = 5 * self.longest * self.longest if self.needs.has_masks else 0
        cast = 0
        if self.multiplied_itemsize < self.needs.itemsize:
            cast = max(_sizes_in_layer(self.source)) * self.multiplied_itemsize
        return masks + cast + running_bytes(self.source, batch, itemsize or self.needs.itemsize)


@cache  # a listing of all tensors is not fast
def _sizes_in_layer(sizes: Architecture) -> list[int]:
    """The numbers in each tensor of a layer."""
    return [prod(slot.shape) for slot in sizes.slots() if slot.layer == 0]
