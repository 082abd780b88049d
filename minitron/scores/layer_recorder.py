"""Layer recorder: sums of what passes a decoder layer, taken by hooks while it runs.

Knows which activations of a layer belong to which axis; how their values become scores is
`aggregation`. Over sequences only sums are kept, in float64.

    with recorder.watching(3):
        decoder.layers[3](states)
    recorder.sums["ffn mean"]   # (layers, 2, ffn): sum and sum of squares over sequences
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from minitron.model.decoder import Decoder
from minitron.scores.aggregation import Transform, sequence_scores, sums_of
from minitron.scores.corpus_sweep import Sums


@dataclass(frozen=True)
class Watched:
    """What is recorded of a layer, and how it is aggregated over a sequence's tokens."""

    kinds: tuple[str, ...] = ("mean",)
    neurons: Literal["after", "before"] = "after"  # the activation function
    head_norms: bool = True  # else every channel of every head


class LayerRecorder:
    """Sums over sequences of every unit's scores, filled by hooks on the layer that runs."""

    def __init__(self, decoder: Decoder, activation: str, watched: Watched) -> None:
        """`activation` is the config's hidden_act."""
        self._decoder = decoder
        self._watched = watched
        sizes = decoder.architecture
        self._layers = sizes.num_hidden_layers
        self._heads = sizes.num_attention_heads
        self._kv_heads = sizes.num_key_value_heads
        # A gate multiplies the activation by numbers of either sign.
        is_positive = activation in ("relu", "relu2") and not sizes.family.is_gated
        self._has_positive_neurons = is_positive
        self.sums: Sums = {}

    @contextmanager
    def watching(self, layer: int) -> Iterator[None]:
        """Record what passes a layer meanwhile."""
        handles = list(self._hooks(layer))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, layer: int) -> Iterator[RemovableHandle]:
        # What attention and the MLP read, in every family: the outputs of the layer's norms.
        for place, reader in enumerate(("q", "up")):
            yield self._on_input(layer, reader, "hidden", 2 * layer + place)
        if self._watched.neurons == "before":
            yield self._on_output(layer, "up", "ffn", layer)
        else:
            is_positive = self._has_positive_neurons
            yield self._on_input(layer, "down", "ffn", layer, is_positive=is_positive)
        norms = self._head_norms if self._watched.head_norms else None
        yield self._on_input(layer, "o", "heads", layer, norms, is_positive=norms is not None)

    def _on_output(self, layer: int, part: str, axis: str, row: int) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._add(axis, row, self._decoder.output_of(part, output))

        return self._decoder.part(layer, part).register_forward_hook(hook)

    def _on_input(
        self,
        layer: int,
        part: str,
        axis: str,
        row: int,
        transform: Transform | None = None,
        *,
        is_positive: bool = False,
    ) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._add(axis, row, inputs[0], transform, is_positive)

        return self._decoder.part(layer, part).register_forward_pre_hook(hook)

    def _head_norms(self, outputs: torch.Tensor) -> torch.Tensor:
        """Of each head and, behind them, of each KV group: (..., heads + kv_heads)."""
        norms = torch.linalg.vector_norm(outputs.unflatten(-1, (self._heads, -1)), dim=-1)
        groups = torch.linalg.vector_norm(norms.unflatten(-1, (self._kv_heads, -1)), dim=-1)
        return torch.cat((norms, groups), dim=-1)

    def _add(
        self,
        axis: str,
        row: int,
        activations: torch.Tensor,
        transform: Transform | None = None,
        is_positive: bool = False,
    ) -> None:
        """Add each sequence's scores; activations (sequences, tokens, width)."""
        rows = 2 * self._layers if axis == "hidden" else self._layers
        for kind in self._watched.kinds:
            scores = sequence_scores(activations, kind, transform, is_positive=is_positive)
            sums = sums_of(scores)  # (2, units)
            key = f"{axis} {kind}"
            if key not in self.sums:
                self.sums[key] = sums.new_zeros(rows, *sums.shape)
            self.sums[key][row] += sums
