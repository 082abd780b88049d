"""Contribution: how much each part of a network gives to the linears that read it.

Reconstruction fits the weights that remain, so what counts of a part is what the linear behind it
makes of it. W is the weight (out, in) of a linear, and RMS the root of the mean square over tokens.

| axis     | score                                                                              |
|----------|------------------------------------------------------------------------------------|
| hidden   | RMS of a normed channel * |W[:, channel]|, summed over q, k, v, up, gate and head  |
| ffn      | RMS of what down reads of a neuron * |W[:, neuron]|                                |
| heads    | RMS of |W[:, head] o|, where o is the head's output and W the output projection's  |
| kv_heads | the same of all heads of a KV group together                                       |

Sums over tokens are of squares, so those of chunks and of processes add up. The sum of |W o|^2 is
the sum of all products of W^T W with the second moments of o, the sum of o o^T.

    recorder = ContributionRecorder(stream.decoder)
    contribution_scores(sums)["heads"]   # (layers, heads)
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from minitron.model.architecture import Architecture
from minitron.model.decoder import Decoder
from minitron.scores.aggregation import token_squares
from minitron.sources.layer_stream import LayerStream

_VALUES = 1 << 20  # of weights and activations, cast at once
_READERS = (("q", "k", "v"), ("up", "gate"))  # of the output of each norm


class ContributionRecorder:
    """Sums over tokens of squared contributions, filled by hooks on the layer that runs."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._sizes = decoder.architecture
        self.sums: dict[str, torch.Tensor] = {}

    def hooks(self, layer: int) -> Iterator[RemovableHandle]:
        """Hooks that record what passes a layer."""
        yield from self.hidden_hooks(layer)
        yield self._on_input(layer, "down", {"down": "ffn"})
        yield self._on_heads(layer)

    def hidden_hooks(self, layer: int) -> Iterator[RemovableHandle]:
        """Hooks that record what reads the outputs of a layer's norms."""
        for of_norm in _READERS:
            parts = [part for part in of_norm if part in self._sizes.family.layer_modules]
            yield self._on_input(layer, parts[0], {part: f"hidden {part}" for part in parts})

    def finish(self, stream: LayerStream, states: Iterable[torch.Tensor]) -> None:
        """Record what the output embedding reads of a chunk's last states."""
        of_columns = [_column_squares(rows) for _, rows in stream.head_blocks()]
        columns = torch.stack(of_columns).sum(0)
        for batch in states:
            self._add("hidden head", 0, token_squares(stream.normed(batch)) * columns, rows=1)

    def _on_input(self, layer: int, part: str, keys: Mapping[str, str]) -> RemovableHandle:
        """Record what readers of the input of `part` get from it; `keys` name their sums."""

        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = token_squares(inputs[0])
            for reader, key in keys.items():
                weight = torch.as_tensor(self._decoder.part(layer, reader).weight)
                rows = self._decoder.output_of(reader, weight.T).T
                self._add(key, layer, squares * _column_squares(rows))

        return self._decoder.part(layer, part).register_forward_pre_hook(hook)

    def _on_heads(self, layer: int) -> RemovableHandle:
        """Record what the output projection makes of each head, and of each KV group."""

        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sizes = self._sizes
            groups, size = sizes.num_key_value_heads, sizes.heads_per_group
            given, weight = inputs[0].flatten(0, 1), torch.as_tensor(module.weight)
            products = _moments(given, groups) * _moments(weight, groups)
            by_head = products.unflatten(2, (size, -1)).unflatten(1, (size, -1)).sum((2, 4))
            self._add("kv_heads", layer, by_head.sum((1, 2)))
            self._add("heads", layer, by_head.diagonal(dim1=1, dim2=2).flatten())

        return self._decoder.part(layer, "o").register_forward_pre_hook(hook)

    def _add(self, key: str, row: int, squares: torch.Tensor, rows: int | None = None) -> None:
        if key not in self.sums:
            rows = rows or self._sizes.num_hidden_layers
            self.sums[key] = squares.new_zeros(rows, len(squares))
        self.sums[key][row] += squares


def contribution_scores(sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Axis to scores, from the recorder's sums over the whole corpus and their number of tokens."""

    def rms(key: str) -> torch.Tensor:
        return (sums[key] / sums["tokens"]).clamp(min=0).sqrt()

    readers = [rms(key).sum(0) for key in sums if key.startswith("hidden ")]
    return {
        "hidden": torch.stack(readers).sum(0),
        **{axis: rms(axis) for axis in ("ffn", "heads", "kv_heads")},
    }


def contribution_bytes(sizes: Architecture) -> int:
    """The memory that the products of a layer's heads take at once."""
    columns = sizes.heads_per_group * sizes.head_dim
    square = sizes.num_key_value_heads * columns * columns * torch.float64.itemsize
    # Two moments and their product, a part of one in float32; runs of rows.
    return 7 * square // 2 + 4 * _VALUES * torch.float64.itemsize


def _column_squares(weight: torch.Tensor) -> torch.Tensor:
    """The sum of squares of each column of (out, in), in float64."""
    runs = weight.detach().split(max(1, _VALUES // weight.shape[1]))
    return torch.stack([rows.double().square().sum(0) for rows in runs]).sum(0)


def _moments(rows: torch.Tensor, groups: int) -> torch.Tensor:
    """X^T X in float64 of the columns of each group, (groups, columns, columns)."""
    columns = rows.shape[1] // groups
    total = torch.zeros(groups, columns, columns, dtype=torch.float64, device=rows.device)
    for run in rows.detach().split(max(1, _VALUES // rows.shape[1])):
        x = run.float().unflatten(1, (groups, columns)).transpose(0, 1)
        total += x.mT @ x
    return total
