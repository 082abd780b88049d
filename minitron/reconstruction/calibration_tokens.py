"""Calibration tokens: the sequences to fit on, those held out, and what a process runs of them.

fitted, held_out = split(sequences)
batches, is_held_out = batches_of_process(fitted, held_out, 8192, Processes())
"""

import logging
from collections.abc import Sequence
from itertools import accumulate

import torch

from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from minitron.scores.sweep import batches_of
from minitron.sources.processes import Processes
from minitron.text.encoding import TokenIds

_HELD_OUT_EVERY = 20  # of the sequences one is held out
# `tiny` cut to half has 4.046 nats a token with 32, 4.049 with 4, and 4.044 with 128.
_TOKENS_A_DIRECTION = 32
_TOKENS_AN_INPUT = 4  # fewer, and a fit follows the text rather than the model

logger = logging.getLogger(__name__)


def split(sequences: Sequence[TokenIds]) -> tuple[list[TokenIds], list[TokenIds]]:
    """The sequences to fit on, and those held out: one of twenty, spread over the text."""
    if len(sequences) < 2:
        raise TargetError(
            "--reconstruct needs at least 2 sequences of calibration text, one of which is held "
            "out: give more --samples, or --reconstruct none"
        )
    every = min(_HELD_OUT_EVERY, len(sequences))
    is_held_out = [index % every == every - 1 for index in range(len(sequences))]
    both = list(zip(sequences, is_held_out, strict=True))
    return [s for s, held in both if not held], [s for s, held in both if held]


def widest_input(architecture: Architecture) -> int:
    """The inputs of the linear that has most of them."""
    queries = architecture.num_attention_heads * architecture.head_dim
    return max(architecture.hidden_size, architecture.intermediate_size, queries)


def warn_of_few_tokens(target: Architecture, tokens: int) -> None:
    """Log, before the work, that a fit of the widest input needs more tokens."""
    widest = widest_input(target)
    needed = _TOKENS_AN_INPUT * widest
    if tokens < needed:
        logger.warning(
            "reconstructing on %s tokens: a linear of %s inputs wants %s or more",
            f"{tokens:,}",
            f"{widest:,}",
            f"{needed:,}",
        )


def enough_for_directions(sequences: Sequence[TokenIds], hidden_size: int) -> Sequence[TokenIds]:
    """The first sequences, as many as show which directions carry the stream."""
    ends = accumulate(map(len, sequences))
    needed = _TOKENS_A_DIRECTION * hidden_size
    return sequences[: 1 + sum(end < needed for end in ends)]


def batches_of_process(
    fitted: Sequence[TokenIds],
    held_out: Sequence[TokenIds],
    tokens: int,
    processes: Processes,
) -> tuple[list[torch.Tensor], list[bool]]:
    """This process's batches of at most so many tokens, and which of them are held out."""
    batches: list[torch.Tensor] = []
    is_held_out: list[bool] = []
    for held, sequences in ((False, fitted), (True, held_out)):
        mine = sequences[processes.part(len(sequences))]
        batches += batches_of(mine, tokens)
        is_held_out += [held] * (len(batches) - len(is_held_out))
    return batches, is_held_out
