"""Aggregation: how a unit's activations over sequences and tokens become one score.

Formulas of arXiv 2407.14679, section 2.2, of a unit's values x over n tokens, then of the
sequences' scores over n sequences: mean is the mean of absolute values, l2 the root of the sum of
squares, var the mean square distance from the mean. Over sequences only their number, sum and sum
of squares are stored, in float64: those add up over batches, chunks and processes.

    Aggregation.parse("l2,mean")   # over the batch, over the sequence: the paper's best
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from minitron.errors import TargetError

KINDS = ("l2", "mean", "var")
# Float32 values in a block. On a CPU a block stays in a core's cache while it is cast, transformed
# and reduced, which is many times faster than torch's reductions over whole tensors.
_CPU_BLOCK = 1 << 17
_GPU_BLOCK = 1 << 24

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Aggregation:
    """The kinds of aggregation over the corpus's sequences (batch) and a sequence's tokens."""

    batch: str = "l2"
    sequence: str = "mean"

    @classmethod
    def parse(cls, text: str) -> "Aggregation":
        """Read "batch,sequence". Raises TargetError for anything but two of KINDS."""
        parts = [part.strip().lower() for part in text.split(",")]
        if len(parts) != 2 or not set(parts) <= set(KINDS):
            raise TargetError(
                f"--aggregation is {text!r}: it must be two of {', '.join(KINDS)}, over the batch "
                "and over the sequence, such as l2,mean"
            )
        return cls(*parts)


def sequence_scores(
    activations: torch.Tensor,
    kind: str,
    transform: Transform | None = None,
    *,
    is_positive: bool = False,
) -> torch.Tensor:
    """Of (sequences, tokens, width), each sequence's scores (sequences, units) in float32.

    `transform` computes units from the last dimension of float32 blocks. `is_positive` states that
    no value is negative, so that absolute values need not be computed.
    """
    tokens = activations.shape[1]
    if kind == "mean":
        return _summed(activations, transform, _same if is_positive else _magnitude).div(tokens)
    if kind == "l2":
        return _summed(activations, transform, _square).sqrt()
    # Two passes: sum of squares minus squared mean loses a small variance beside a large mean.
    means = _summed(activations, transform, _same).div(tokens)

    def square_distance(units: torch.Tensor, out: torch.Tensor, rows: slice) -> torch.Tensor:
        return torch.sub(units, means[rows, None], out=out).square_()

    return _summed(activations, transform, square_distance).div(tokens)


def token_squares(activations: torch.Tensor) -> torch.Tensor:
    """Of (sequences, tokens, width), the sum over all tokens of each square, in float64."""
    return _summed(activations, None, _square).double().sum(0)


def sums_of(scores: torch.Tensor) -> torch.Tensor:
    """The sum and the sum of squares of sequences' scores (sequences, units)."""
    wide = scores.double()
    return torch.stack((wide.sum(0), wide.square().sum(0)))


def batch_score(sums: torch.Tensor, samples: float, kind: str) -> torch.Tensor:
    """The score over all sequences from the result of `sums_of`, (2, units)."""
    total, squares = sums[0], sums[1]
    if kind == "mean":
        return total / samples
    if kind == "l2":
        return squares.sqrt()
    return (squares / samples - (total / samples).square()).clamp(min=0)


def _same(units: torch.Tensor, out: torch.Tensor, rows: slice) -> torch.Tensor:
    return units


def _magnitude(units: torch.Tensor, out: torch.Tensor, rows: slice) -> torch.Tensor:
    return torch.abs(units, out=out)


def _square(units: torch.Tensor, out: torch.Tensor, rows: slice) -> torch.Tensor:
    return torch.square(units, out=out)


def _summed(
    activations: torch.Tensor,
    transform: Transform | None,
    of: Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor],
) -> torch.Tensor:
    """The sum over tokens of a function of each block, in float32 (sequences, units).

    `of` gets a block's units, a tensor of their shape that it may overwrite, and the rows of the
    sequences that the block belongs to.
    """
    sums: dict[int, torch.Tensor] = {}  # by the first sequence
    for rows, block, scratch in _blocks(activations):
        units = block if transform is None else transform(block)
        # A transform's result is ours to overwrite; a block may be the model's own activations.
        part = of(units, scratch if units is block else units, rows).sum(1)
        known = sums.get(rows.start)
        sums[rows.start] = part if known is None else known.add_(part)
    return torch.cat(list(sums.values()))


def _blocks(activations: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Blocks (sequences, tokens, width) in float32, of whole sequences or of a part of one.

    With each block comes a scratch tensor of its shape: the block itself where it was cast, and
    separate memory where it is a view of the activations, which must not change.
    """
    samples, tokens, width = activations.shape
    size = _CPU_BLOCK if activations.device.type == "cpu" else _GPU_BLOCK
    at_once = max(1, size // width)  # tokens
    sequences, piece = max(1, at_once // tokens), min(tokens, at_once)
    memory = activations.new_empty(min(sequences, samples) * piece * width, dtype=torch.float32)
    for first in range(0, samples, sequences):
        rows = slice(first, min(first + sequences, samples))
        for start in range(0, tokens, piece):
            part = activations[rows, start : start + piece]
            scratch = memory[: part.numel()].view(part.shape)
            yield rows, part if part.dtype == torch.float32 else scratch.copy_(part), scratch
