"""Side by side: a source and the smaller model made of it, run together over calibration tokens.

Before layer l the source's stream is x_l, after its attention m_l; the small model's stream is s,
which sees the source's as x P (`Pair.projection`). Knows, for each linear of the small model, what
it reads and what it is fitted by, batch by batch; fits nothing.

    both = SideBySide(pair, pair.small, streams, device="cpu")
    for read, wanted in both.attention_outputs(position=0): ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from minitron.files.lazy_tensor import LazyTensor
from minitron.model.decoder import branch_scale
from minitron.model.family import Row
from minitron.model.source import Source
from minitron.reconstruction.token_states import Streams
from minitron.sources.layer_stream import LayerStream

_SMALLEST_GAIN = 1e-3  # of a norm, relative to its largest
Projection = Callable[[torch.Tensor], torch.Tensor]  # (..., hidden) to (..., kept)
Tokens = Iterator[tuple[torch.Tensor, torch.Tensor]]  # read (..., in), and what it is fitted by


@dataclass(frozen=True)
class Pair:
    """A source and the smaller model made of it, before anything is fitted."""

    source: Source
    small: Source
    rows: Mapping[str, LazyTensor]  # the source's at the kept rows, by the small model's names
    projection: Projection
    layers: tuple[int, ...]  # the kept layers of the source
    share_of_variance: float | None = None  # of the stream, in the kept directions; None: channels

    def linears(self, parts: Sequence[str], kind: str = "weight") -> list[Row]:
        """The tensors of a layer that hold these parts, each once."""
        rows = self.small.architecture.rows()
        return [row for row in rows if row.kind == kind and set(row.parts) & set(parts)]

    def kept_rows(self, row: Row, position: int) -> torch.Tensor:
        """The source's rows, with their biases as a last column, that a linear of a layer keeps."""
        weight = self.rows[row.name(position)].read()
        biases = [bias for bias in self.linears(row.parts, "bias") if bias.parts == row.parts]
        columns = [self.rows[bias.name(position)].read()[:, None] for bias in biases]
        return torch.cat([weight, *columns], 1) if columns else weight


class SideBySide:
    """The two models and their streams, which every method leaves where it says."""

    def __init__(self, pair: Pair, small: Source, streams: Streams, *, device: str) -> None:
        """Both streams before the first layer. `small` is the smaller model as far as it is
        fitted."""
        self.pair, self.device, self.dtype = pair, device, streams.dtype
        self._multiplying = partial(streams.multiplying, device)
        self.theirs, self.ours = (
            LayerStream.of_source(source, dtype=torch.float32, device=device, keep=False)
            for source in (pair.source, small)
        )
        self._x = streams.before(self.theirs, "source")
        self._s = streams.before(self.ours, "small")
        sizes = small.architecture
        width = sizes.num_attention_heads * sizes.head_dim
        self._heads = streams.states("heads", width, streams.dtype)  # what o reads

    def skip(self, index: int, layer: nn.Module) -> None:
        """Put the source's stream after a layer that the small model does not have."""
        for place in range(len(self._x)):
            with self._multiplying():
                self._x[place] = self.theirs.run(index, layer, self._x[place].to(self.device))

    def pass_kept(self, index: int, layer: nn.Module, position: int) -> None:
        """Put both streams after a layer that is fitted, by the steps that fitting it takes."""
        ours = self.ours.decoder.layers[position]
        for place in range(len(self._x)):
            for states, stream, at, module in (
                (self._x, self.theirs, index, layer),
                (self._s, self.ours, position, ours),
            ):
                [here] = self._inputs(
                    partial(stream.run, at, module, states[place].to(self.device)),
                    [stream.decoder.mlp_branch(at)[0]],
                )
                states[place] = here + self._mlp(stream, at, here)

    def attention_inputs(self, index: int, layer: nn.Module, position: int) -> Tokens:
        """What q, k, v read, and the source's; the source's stream passes its attention."""
        decoder = self.theirs.decoder
        for place in range(len(self._x)):
            theirs, after = self._inputs(
                partial(self.theirs.run, index, layer, self._x[place].to(self.device)),
                [decoder.part(index, "q"), decoder.mlp_branch(index)[0]],
            )
            self._x[place] = after
            yield self._until(position, place, "q"), theirs

    def attention_outputs(self, position: int) -> Tokens:
        """What o reads and shall return: what is missing from the source's stream after it."""
        for place in range(len(self._x)):
            read = self._until(position, place, "o")
            self._heads[place] = read
            yield read, self._wanted(position, "o", read, place)

    def mlp_inputs(self, index: int, position: int) -> Tokens:
        """What gate and up read, and the source's; the source's stream passes its MLP, the small
        model's its attention."""
        up = self.ours.decoder.part(position, "up")
        for place in range(len(self._x)):
            x, s = self._states(place)
            theirs, result = input_and_output(
                self.theirs.decoder.part(index, "up"), partial(self._mlp, self.theirs, index, x)
            )
            self._x[place] = x + result
            s = s + self._attention(position, self._heads[place].to(self.device))
            self._s[place] = s
            [read] = self._inputs(partial(self._mlp, self.ours, position, s), [up])
            yield read, theirs

    def mlp_outputs(self, position: int) -> Tokens:
        """What down reads and shall return: what is missing from the source's stream."""
        down = self.ours.decoder.part(position, "down")
        for place in range(len(self._x)):
            run = partial(self._mlp, self.ours, position, self._s[place].to(self.device))
            [read] = self._inputs(run, [down])
            yield read, self._wanted(position, "down", read, place)

    def pass_mlp(self, position: int) -> None:
        """Put the small model's stream after its MLP."""
        for place in range(len(self._s)):
            here = self._s[place].to(self.device)
            self._s[place] = here + self._mlp(self.ours, position, here)

    def last_norms(self) -> Tokens:
        """What the output embeddings read: the small model's, and the source's."""
        for place in range(len(self._x)):
            x, s = self._states(place)
            with self._multiplying():
                read, wanted = self.ours.normed(s), self.theirs.normed(x)
            yield read, wanted

    def _states(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams of a batch."""
        return self._x[place].to(self.device), self._s[place].to(self.device)

    def _wanted(self, position: int, part: str, read: torch.Tensor, place: int) -> torch.Tensor:
        """What a linear that writes to the stream shall return of what it reads, for the small
        model's stream to get what it lacks of the source's.

        A norm behind the linear is undone for the root mean square that its input has now.
        """
        x, s = self._states(place)
        missing = (self.pair.projection(x) - s) / branch_scale(self.ours.config)
        norm: Any = self.ours.decoder.output_norm(position, part)
        if norm is None:
            return missing
        linear: Any = self.ours.decoder.part(position, part)
        family = self.ours.decoder.architecture.family
        with self._multiplying():
            returned = linear(read).float()
        epsilon = getattr(self.ours.config, family.norm.epsilon)
        size = (returned.square().mean(-1, keepdim=True) + epsilon).sqrt()
        gain = norm.weight + 1 if family.norm.is_zero_centered else norm.weight
        # Where a gain is about zero, nothing that the linear returns reaches the stream.
        is_open = gain.abs() > _SMALLEST_GAIN * gain.abs().max()
        return torch.where(is_open, missing / torch.where(is_open, gain, 1) * size, returned)

    def _until(self, position: int, place: int, part: str) -> torch.Tensor:
        """What a part of the small model's attention reads."""
        decoder, states = self.ours.decoder, self._s[place].to(self.device)
        run = partial(self.ours.run, position, decoder.layers[position], states)
        [read] = self._inputs(run, [decoder.part(position, part)])
        return read

    def _inputs(
        self, run: Callable[[], object], modules: Sequence[nn.Module]
    ) -> list[torch.Tensor]:
        with self._multiplying():
            return inputs_of(run, modules)

    def _mlp(self, stream: LayerStream, index: int, states: torch.Tensor) -> torch.Tensor:
        """What the MLP and its norms add to the stream."""
        with self._multiplying():
            for module in stream.decoder.mlp_branch(index):
                states = module(states)
            scale = branch_scale(stream.config)
            return states if scale == 1 else states * scale

    def _attention(self, position: int, read: torch.Tensor) -> torch.Tensor:
        """What the small model's attention adds to the stream where o reads this."""
        decoder, scale = self.ours.decoder, branch_scale(self.ours.config)
        norm = decoder.output_norm(position, "o")
        with self._multiplying():
            returned: torch.Tensor = decoder.part(position, "o")(read)
            returned = returned if norm is None else norm(returned)
            return returned if scale == 1 else returned * scale


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
