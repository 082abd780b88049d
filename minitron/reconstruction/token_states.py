"""Token states: a stream of hidden states, batch by batch, in memory or in a file.

A file is read and written, not mapped: mapped pages would count as memory of the process.

    states = TokenStates(batches, width=160, dtype=torch.float32, file=None)
    states[0] = stream.embed(batches[0])
"""

import os
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from pathlib import Path

import torch


class TokenStates:
    """The states of each batch of ids, (sequences, length, width), on the CPU."""

    def __init__(
        self, batches: Sequence[torch.Tensor], width: int, dtype: torch.dtype, file: Path | None
    ) -> None:
        """In memory, or in `file`, which is created."""
        self._shapes = [(*ids.shape, width) for ids in batches]
        self._dtype, self._file = dtype, None
        sizes = (prod(shape) * dtype.itemsize for shape in self._shapes)
        self._starts = list(accumulate(sizes, initial=0))
        if file is not None:
            self._file = file.open("w+b", buffering=0)
        self._held: list[torch.Tensor | None] = [None] * len(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, place: int) -> torch.Tensor:
        if self._file is None:
            held = self._held[place]
            assert held is not None
            return held
        states = torch.empty(self._shapes[place], dtype=self._dtype)
        left, at = _bytes_of(states), self._starts[place]
        while left:
            count = os.preadv(self._file.fileno(), [left], at)
            assert count, "the file is shorter than it was"
            left, at = left[count:], at + count
        return states

    def __setitem__(self, place: int, states: torch.Tensor) -> None:
        states = states.to(device="cpu", dtype=self._dtype)
        assert states.shape == self._shapes[place]
        if self._file is None:
            self._held[place] = states
            return
        left, at = _bytes_of(states), self._starts[place]
        while left:
            count = os.pwrite(self._file.fileno(), left, at)
            left, at = left[count:], at + count


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
