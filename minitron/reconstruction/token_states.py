"""Token states: a stream of hidden states, batch by batch, in memory or in a file.

A file is read and written, not mapped: mapped pages would count as memory of the process.

    streams = Streams(batches, torch.bfloat16, at_once=8192, folder=None)
    states = streams.before(LayerStream.of_source(source, keep=False), "source")
    states[0] = run(states[0])
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path

import torch

from minitron.scores.sweep import chunks_of
from minitron.sources.layer_stream import LayerStream


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


@dataclass(frozen=True)
class Streams:
    """The tokens of which streams are made, and where these are held; what linears multiply in."""

    batches: Sequence[torch.Tensor]  # of ids, (sequences, length)
    dtype: torch.dtype  # that linears multiply in; streams are in float32
    at_once: int  # tokens that are embedded while the embedding is read once
    folder: Path | None  # None: in memory

    def multiplying(self, device: str) -> AbstractContextManager[object]:
        """What a model of float32 runs in, so that its linears multiply in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(torch.device(device).type, dtype=self.dtype)

    def states(self, name: str, width: int, dtype: torch.dtype) -> TokenStates:
        """States of these tokens, which are to be set."""
        file = None if self.folder is None else self.folder / f"{name}.states"
        return TokenStates(self.batches, width, dtype, file)

    def before(self, stream: LayerStream, name: str) -> TokenStates:
        """A stream before its first layer, in float32."""
        states = self.states(name, stream.config.hidden_size, torch.float32)
        place = 0
        for chunk in chunks_of(iter(self.batches), self.at_once):
            for embedded in stream.embed_all(chunk):
                states[place] = embedded
                place += 1
        return states


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
