"""Layer recorder: sums of what passes a decoder layer, taken by hooks while it runs.

Knows which activations of a layer belong to which axis; how their values become scores is
`aggregation`. Over sequences only sums are kept, in float64.

    with recorder.watching(index, layer):
        layer(states)
    recorder.sums["ffn mean"]   # (layers, 2, ffn): sum and sum of squares over sequences
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

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

    def __init__(self, config: Any, watched: Watched) -> None:
        self._watched = watched
        self._layers = int(config.num_hidden_layers)
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        is_gated = config.model_type != "nemotron"
        self._has_positive_neurons = not is_gated and config.hidden_act in ("relu", "relu2")
        self.sums: Sums = {}

    @contextmanager
    def watching(self, index: int, layer: nn.Module) -> Iterator[None]:
        """Record what passes `layer` meanwhile."""
        handles = list(self._hooks(index, layer))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, index: int, layer: Any) -> Iterator[torch.utils.hooks.RemovableHandle]:
        for place, norm in enumerate((layer.input_layernorm, layer.post_attention_layernorm)):
            yield norm.register_forward_hook(self._on_output("hidden", 2 * index + place))
        if self._watched.neurons == "before":
            yield layer.mlp.up_proj.register_forward_hook(self._on_output("ffn", index))
        else:
            neurons = self._on_input("ffn", index, is_positive=self._has_positive_neurons)
            yield layer.mlp.down_proj.register_forward_pre_hook(neurons)
        norms = self._head_norms if self._watched.head_norms else None
        heads = self._on_input("heads", index, norms, is_positive=norms is not None)
        yield layer.self_attn.o_proj.register_forward_pre_hook(heads)

    def _on_output(self, axis: str, row: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._add(axis, row, output)

        return hook

    def _on_input(
        self, axis: str, row: int, transform: Transform | None = None, *, is_positive: bool = False
    ) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._add(axis, row, inputs[0], transform, is_positive)

        return hook

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
