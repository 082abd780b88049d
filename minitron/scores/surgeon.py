"""Surgeon: neurons and heads scored by the order in which the linear behind them loses them.

Reconstruction fits the weights that remain. So does optimal brain surgery after each removal, and
its order of removals (`removal`) decides here. A score is the RMS over tokens of the error of the
linear's outputs once the part and all that score less are removed: whatever number is cut, what is
cut is the beginning of that order.

| axis     | linear            | groups of its inputs                                     |
|----------|-------------------|----------------------------------------------------------|
| ffn      | down              | each neuron                                              |
| heads    | output projection | each head; every KV group loses one before any loses two |
| kv_heads | output projection | all heads of a KV group together                         |

Hidden channels, which many linears read, are scored as by `contribution`. The second moments of a
linear's inputs are in memory for the layer that runs. They are complete in a sweep's last chunk,
where the processes of a run add up theirs; before it they are added up in files, as those of all
layers need more memory than a layer does.

    recorder = SurgeonRecorder(stream.decoder, ChunkPlace())
    recorder.finish_layer(3)   # after the layer has run on the chunk
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from minitron.model.architecture import Architecture
from minitron.model.decoder import Decoder
from minitron.scores.contribution import ContributionRecorder
from minitron.scores.removal import add_moments, mirror, removal_bytes, removal_errors
from minitron.sources.processes import Processes

_ROWS = 1024  # of a file, read at once


@dataclass(frozen=True)
class ChunkPlace:
    """Which of a process's sequences a chunk has, and where moments are kept until the last one."""

    start: int = 0
    stop: int = 0
    is_last: bool = True
    folder: Path | None = None  # None where there is one chunk
    processes: Processes = Processes()

    def file(self, key: str, sequences: int | str) -> Path:
        """The moments over so many sequences of this process; "*" for any number."""
        assert self.folder is not None
        return self.folder / f"{key}-{self.processes.rank}-{sequences}.float64"


class SurgeonRecorder(ContributionRecorder):
    """Sums for hidden channels, filled by hooks; errors of removal, computed once a layer has run.

    Errors are sums over all tokens of the run. One process has those of a layer, in its last chunk;
    they are 0 in all other chunks and processes.
    """

    def __init__(self, decoder: Decoder, place: ChunkPlace) -> None:
        super().__init__(decoder)
        self._place = place
        self._moments: dict[str, torch.Tensor] = {}  # by part, their upper triangles

    def hooks(self, layer: int) -> Iterator[RemovableHandle]:
        """Hooks that record what passes a layer."""
        yield from self.hidden_hooks(layer)
        for part in ("down", "o"):
            yield self._on_moments(layer, part)

    def _on_moments(self, layer: int, part: str) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, 1)
            if part not in self._moments:
                self._moments[part] = _zeros(rows)
            add_moments(self._moments[part], rows)

        return self._decoder.part(layer, part).register_forward_pre_hook(hook)

    def finish_layer(self, layer: int) -> None:
        """Store the moments of a layer that has run; of the last chunk, compute the errors."""
        processes, is_last = self._place.processes, self._place.is_last
        is_mine = is_last and layer % processes.count == processes.rank
        for part in ("down", "o"):
            moments = self._moments.pop(part)
            self._add_stored(f"{part}-{layer}", moments)
            if is_last:
                processes.add_in_place(moments)
            else:
                file = self._place.file(f"{part}-{layer}", self._place.stop)
                moments.cpu().numpy().tofile(file)
            for axis, errors in self._errors(layer, part, moments, is_mine=is_mine):
                self._add(axis, layer, errors)

    def _add_stored(self, key: str, moments: torch.Tensor) -> None:
        """Add what the chunks before this one have stored; what is older is removed."""
        if self._place.start == 0:
            return
        file = self._place.file(key, self._place.start)
        for other in file.parent.glob(self._place.file(key, "*").name):
            if other != file:
                other.unlink()
        with file.open("rb") as stored:
            for rows in moments.split(_ROWS):
                numbers = torch.from_numpy(np.fromfile(stored, count=rows.numel()))
                rows += numbers.view(rows.shape).to(rows.device)

    def _errors(
        self, layer: int, part: str, moments: torch.Tensor, *, is_mine: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Axis and errors of each way to group the inputs of a part; zeros unless `is_mine`.

        The moments are overwritten.
        """
        sizes = self._sizes
        heads, groups = sizes.num_attention_heads, sizes.num_key_value_heads
        # An axis, its groups of inputs, and the sets that lose them in turn.
        axes = [("ffn", len(moments), 1)]
        if part == "o":
            axes = [("heads", heads, groups), ("kv_heads", groups, 1)]
        if is_mine:
            mirror(moments)
        for place, (axis, count, sets) in enumerate(axes, start=1):
            if not is_mine:
                yield axis, moments.new_zeros(count)
                continue
            weight = torch.as_tensor(self._decoder.part(layer, part).weight)
            products = _zeros(weight)
            add_moments(products, weight)
            mirror(products)
            own = moments if place == len(axes) else moments.clone()
            yield axis, removal_errors(own, products, len(own) // count, sets)


def surgeon_bytes(sizes: Architecture) -> int:
    """The memory that moments and errors of a layer take at once."""
    of_heads = sizes.num_attention_heads * sizes.head_dim
    of_group = sizes.heads_per_group * sizes.head_dim
    of_neurons = removal_bytes(sizes.intermediate_size, 1)
    return max(of_neurons, removal_bytes(of_heads, of_group)) + _square_bytes(of_heads)


def stored_bytes(sizes: Architecture) -> int:
    """The disk that a sweep of several chunks takes: two files for each linear while one is
    replaced."""
    of_heads = sizes.num_attention_heads * sizes.head_dim
    layer = _square_bytes(sizes.intermediate_size) + _square_bytes(of_heads)
    return 2 * sizes.num_hidden_layers * layer


def _square_bytes(inputs: int) -> int:
    return inputs * inputs * torch.float64.itemsize


def _zeros(rows: torch.Tensor) -> torch.Tensor:
    """The moments of no row, of as many columns."""
    width = rows.shape[1]
    return torch.zeros(width, width, dtype=torch.float64, device=rows.device)
