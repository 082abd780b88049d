"""Side by side: a source and the smaller model made of it, run together over calibration tokens.

Before layer l the source's stream is x_l, after its attention m_l; the small model's stream is s,
which sees the source's as x P (`Pair.projection`). Knows, for each linear of the small model, what
it reads and what it shall return, batch by batch; fits nothing.

    both = SideBySide(pair, batches, folder, dtype=torch.float32, device="cpu")
    for read, wanted in both.attention_outputs(position=0): ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from minitron.files.lazy_tensor import LazyTensor
from minitron.model.families import Row
from minitron.model.source import Source
from minitron.sources.layer_stream import LayerStream

Projection = Callable[[torch.Tensor], torch.Tensor]  # (..., hidden) to (..., kept)
Tokens = Iterator[tuple[torch.Tensor, torch.Tensor]]  # read (..., in), wanted (..., out)


@dataclass(frozen=True)
class Pair:
    """A source and the smaller model made of it, before anything is fitted."""

    source: Source
    small: Source
    rows: Mapping[str, LazyTensor]  # the source's at the kept rows, by the small model's names
    projection: Projection
    layers: tuple[int, ...]  # the kept layers of the source

    def linears(self, parts: Sequence[str], kind: str = "weight") -> list[Row]:
        """The tensors of a layer that hold these parts, each once."""
        rows = self.small.architecture.rows()
        return [row for row in rows if row.kind == kind and set(row.parts) & set(parts)]


class SideBySide:
    """The two models and their streams, which every method leaves where it says."""

    def __init__(
        self,
        pair: Pair,
        batches: Sequence[torch.Tensor],
        folder: Path | None,
        *,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        """The streams of all tokens are in memory, or in files of `folder` where one is given."""
        self.pair, self.device, self._batches = pair, device, batches
        self.theirs = LayerStream.of_source(pair.source, dtype=dtype, device=device, keep=False)
        self.ours = LayerStream.of_source(pair.small, dtype=dtype, device=device, keep=False)
        self._x, self._s = (
            token_states(
                batches, stream.config.hidden_size, dtype, folder and folder / f"{name}.states"
            )
            for stream, name in ((self.theirs, "source"), (self.ours, "small"))
        )

    def embed(self) -> None:
        """Put both streams before the first layer."""
        for states, stream in ((self._x, self.theirs), (self._s, self.ours)):
            for kept, embedded in zip(states, stream.embed_all(self._batches), strict=True):
                kept.copy_(embedded)

    def skip(self, index: int, layer: nn.Module) -> None:
        """Put the source's stream after a layer that the small model does not have."""
        for x in self._x:
            x.copy_(self.theirs.run(index, layer, x.to(self.device)))

    def attention_inputs(self, index: int, layer: nn.Module, position: int) -> Tokens:
        """What q, k, v read and shall return; the source's stream passes its attention."""
        linears = self._kept_rows(position, ("q", "k", "v"))
        decoder = self.theirs.decoder
        for x, s in zip(self._x, self._s, strict=True):
            read, after = inputs_of(
                partial(self.theirs.run, index, layer, x.to(self.device)),
                [decoder.part(index, "q"), decoder.mlp_branch(index)[0]],
            )
            wanted = torch.cat([F.linear(read, *linear) for linear in linears], -1)
            x.copy_(after)
            yield self._until(position, s, "q"), wanted

    def attention_outputs(self, position: int) -> Tokens:
        """What o reads and shall return: what is missing from the source's stream after it."""
        for m, s in zip(self._x, self._s, strict=True):
            wanted = self.pair.projection(m.to(self.device)) - s.to(self.device)
            yield self._until(position, s, "o"), wanted

    def mlp_inputs(self, index: int, position: int) -> Tokens:
        """What gate and up read and shall return; the source's stream passes its MLP, the small
        model's its attention."""
        linears = self._kept_rows(position, ("gate", "up"))
        theirs, ours = self.theirs.decoder, self.ours.decoder
        for m, s in zip(self._x, self._s, strict=True):
            here = m.to(self.device)
            read, result = input_and_output(
                theirs.part(index, "up"), partial(_mlp, self.theirs, index, here)
            )
            m.copy_(here + result)
            wanted = torch.cat([F.linear(read, *linear) for linear in linears], -1)
            after, inputs = inputs_of(
                partial(self.ours.run, position, ours.layers[position], s.to(self.device)),
                [ours.mlp_branch(position)[0], ours.part(position, "up")],
            )
            s.copy_(after)
            yield inputs, wanted

    def mlp_outputs(self, position: int) -> Tokens:
        """What down reads and shall return: what is missing from the source's stream."""
        down = self.ours.decoder.part(position, "down")
        for x, s in zip(self._x, self._s, strict=True):
            here = s.to(self.device)
            [read] = inputs_of(partial(_mlp, self.ours, position, here), [down])
            yield read, self.pair.projection(x.to(self.device)) - here

    def pass_mlp(self, position: int) -> None:
        """Put the small model's stream after its MLP."""
        for s in self._s:
            here = s.to(self.device)
            s.copy_(here + _mlp(self.ours, position, here))

    def last_norms(self) -> Tokens:
        """What the output embeddings read: the small model's, and the source's."""
        for x, s in zip(self._x, self._s, strict=True):
            yield self.ours.normed(s.to(self.device)), self.theirs.normed(x.to(self.device))

    def _until(self, position: int, states: torch.Tensor, part: str) -> torch.Tensor:
        """What a part of the small model's attention reads."""
        layer = self.ours.decoder.layers[position]
        [read] = inputs_of(
            lambda: self.ours.run(position, layer, states.to(self.device)),
            [self.ours.decoder.part(position, part)],
        )
        return read

    def _kept_rows(
        self, position: int, parts: Sequence[str]
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """The weight and bias of the source's kept rows, for each tensor of these parts."""

        def read(row: Row) -> torch.Tensor:
            stored = self.pair.rows[row.name(position)].read()
            return stored.to(device=self.device, dtype=self.theirs.dtype)

        weights, biases = (self.pair.linears(parts, kind) for kind in ("weight", "bias"))
        return [
            (read(weight), read(biases[place]) if biases else None)
            for place, weight in enumerate(weights)
        ]


def token_states(
    batches: Sequence[torch.Tensor], width: int, dtype: torch.dtype, file: Path | None
) -> list[torch.Tensor]:
    """Room for the states of each batch of ids, (sequences, length, width), to write in place.

    In memory, or mapped from `file`, which is created.
    """
    shapes = [(*ids.shape, width) for ids in batches]
    sizes = [prod(shape) for shape in shapes]
    if file is None:
        return [torch.empty(shape, dtype=dtype) for shape in shapes]
    whole = torch.from_file(str(file), shared=True, size=sum(sizes), dtype=dtype)
    return [part.view(shape) for part, shape in zip(whole.split(sizes), shapes, strict=True)]


class _Reached(Exception):
    """The last module of `inputs_of` was called."""


def inputs_of(run: Callable[[], object], modules: Sequence[nn.Module]) -> list[torch.Tensor]:
    """The first argument of each of `modules`, in the order of their calls; the last is not run."""
    found: list[torch.Tensor] = []

    def record(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found.append(args[0])
        if module is modules[-1]:
            raise _Reached

    hooks = [module.register_forward_pre_hook(record) for module in modules]
    try:
        run()
    except _Reached:
        return found
    finally:
        for hook in hooks:
            hook.remove()
    raise AssertionError("a module was not called")


def input_and_output(
    module: nn.Module, run: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first argument of `module` while `run` runs, and what `run` returns."""
    found: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        result = run()
    finally:
        hook.remove()
    return found[0], result


def _mlp(stream: LayerStream, index: int, states: torch.Tensor) -> torch.Tensor:
    """What the MLP and its norms add to the stream."""
    for module in stream.decoder.mlp_branch(index):
        states = module(states)
    return states
