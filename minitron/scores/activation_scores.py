"""Scores by activations: what each part of a network does on real text.

Formulas of arXiv 2407.14679, section 2.2; `aggregation` makes one value of those over tokens and
sequences, by default as in the paper (over a sequence mean of absolute values, over sequences L2).

| axis     | activation                                                        | then           |
|----------|-------------------------------------------------------------------|----------------|
| hidden   | what attention and the MLP of each layer read: its norms' outputs | sum over norms |
| ffn      | input of the down projection, that is, after the activation       | per layer      |
| heads    | L2 norm over head_dim of each head, before the output projection  | per layer      |
| kv_heads | the same norm over all heads of a KV group                        | per layer      |
| layers   | block influence: 1 - mean cosine of a layer's in and out; or what | per layer, and |
|          | is lost without it (`layer_cuts`)                                 | per block      |

The paper's formula takes neurons before the activation. On a squared ReLU that lost to random
pruning (benchmarks/LOG.md); NVIDIA's ModelOpt takes them after it, and so do we.

`scores="modelopt"` is what NVIDIA's ModelOpt computes (modelopt/torch/prune/plugins/
mcore_minitron.py, 0.43): heads are averaged over the sequence channel by channel and only then
normed over head_dim, and layers sum each sequence's 1 - mean cosine. The rest is the same.
`scores="contribution"` and `"obs"` have their own formulas, but for layers (`contribution`,
`surgeon`).

    sums = sums_over(LayerStream.of_source(open_source("tiny"), keep=True), batches, Measurement())
    importance_of(sums, Measurement(), config, {}).heads   # (layers, heads)
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from minitron.files.dtypes import name_of
from minitron.model.decoder import Decoder
from minitron.model.importance import Importance
from minitron.progress import Progress
from minitron.recipes.importance import ByActivations
from minitron.scores.aggregation import (
    Aggregation,
    Transform,
    batch_score,
    sequence_scores,
    sums_of,
)
from minitron.scores.contribution import ContributionRecorder, contribution_scores
from minitron.scores.layer_cuts import CutScores, Measure, cuts_of
from minitron.scores.surgeon import ChunkPlace, SurgeonRecorder
from minitron.scores.sweep import Sums
from minitron.sources.layer_stream import LayerStream
from minitron.text.corpus import Corpus


@dataclass(frozen=True)
class Measurement:
    """What is measured in a sweep."""

    aggregation: Aggregation = Aggregation()
    scores: ByActivations = "paper"
    neurons: Literal["after", "before"] = "after"
    layer_scores: Measure = "influence"
    block_size: int | None = None


def made_by(corpus: Corpus, dtype: torch.dtype) -> dict[str, Any]:
    """What an importance was measured on."""
    return {
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "samples": len(corpus.sequences),
        "seq_len": corpus.sequences.shape[1],
        "tokens": corpus.tokens,
        "dtype": name_of(dtype),
    }


def sums_over(
    stream: LayerStream,
    batches: Sequence[torch.Tensor],
    measurement: Measurement,
    progress: Progress | None = None,
    place: ChunkPlace | None = None,
) -> Sums:
    """Sums over one chunk: batches that pass each layer together; the only one unless `place`."""
    layers = int(stream.config.num_hidden_layers)
    recorder = _recorder(stream, measurement, place or ChunkPlace())
    cuts = cuts_of(layers, measurement.block_size)
    left_out = CutScores(cuts, measurement.layer_scores, stream.device)
    with torch.inference_mode():
        states = stream.embed_all(batches)
        for index, layer in stream.layers():
            with _hooked(recorder.hooks(index)):
                for batch, before in enumerate(states):
                    states[batch] = stream.run(index, layer, before)
                    left_out.step(index, before, states[batch])
                    if progress is not None:
                        progress.advance(batches[batch].numel() / layers)
            if isinstance(recorder, SurgeonRecorder):
                recorder.finish_layer(index)
            left_out.run(stream, index, layer)
        if isinstance(recorder, ContributionRecorder):
            recorder.finish(stream, states)
        left_out.finish(stream, list(batches), states)
    counts = {"samples": sum(map(len, batches)), "tokens": sum(ids.numel() for ids in batches)}
    counted = {key: torch.tensor([count]).double() for key, count in counts.items()}
    measured = {**recorder.sums, **left_out.sums}
    return {**counted, **{key: tensor.cpu() for key, tensor in measured.items()}}


def importance_of(
    sums: Sums, measurement: Measurement, config: Any, made_by: dict[str, Any]
) -> Importance:
    """The scores that sums over the whole corpus make."""
    layers, blocks = _layer_scores(sums, measurement).tensor_split([int(config.num_hidden_layers)])
    described: dict[str, Any] = {
        "scores": measurement.scores,
        "layer_scores": measurement.layer_scores,
        "block_size": measurement.block_size,
    }
    if measurement.scores in ("contribution", "obs"):
        widths = contribution_scores(sums)
    else:
        widths = _aggregated(sums, measurement, config)
        of = measurement.aggregation
        described["aggregation"] = {"batch": of.batch, "sequence": of.sequence}
        described["neurons"] = measurement.neurons
    return Importance(
        made_by={**described, **made_by},
        **widths,
        layers=layers,
        blocks=blocks if len(blocks) else None,
    )


def _aggregated(sums: Sums, measurement: Measurement, config: Any) -> dict[str, torch.Tensor]:
    """Axis of the width to scores, as the paper or ModelOpt reduces activations."""
    aggregation, samples = measurement.aggregation, float(sums["samples"])
    rows = {
        axis: torch.stack(
            [
                batch_score(row, samples, aggregation.batch)
                for row in sums[f"{axis} {aggregation.sequence}"]
            ]
        )
        for axis in ("hidden", "ffn", "heads")
    }
    heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
    if measurement.scores == "modelopt":
        norms = rows["heads"].unflatten(-1, (heads, -1)).square().sum(-1)
        groups = norms.unflatten(-1, (kv_heads, -1)).sum(-1)
        rows["heads"] = torch.cat((norms, groups), dim=-1).sqrt()
    return {
        "hidden": rows["hidden"].sum(0),
        "ffn": rows["ffn"],
        "heads": rows["heads"][:, :heads].contiguous(),
        "kv_heads": rows["heads"][:, heads:].contiguous(),
    }


def _layer_scores(sums: Sums, measurement: Measurement) -> torch.Tensor:
    """The score of every cut: each layer alone, then each block."""
    if measurement.layer_scores == "loss":
        return (sums["losses"][:-1] - sums["losses"][-1]) / sums["targets"]
    if measurement.layer_scores == "logits":
        return sums["errors"] / sums["squares"]
    if measurement.scores == "modelopt":
        return sums["samples"] - sums["mean_cosines"]
    return 1 - sums["cosines"] / sums["tokens"]


def _recorder(
    stream: LayerStream, measurement: Measurement, place: ChunkPlace
) -> "LayerRecorder | ContributionRecorder":
    if measurement.scores == "obs":
        return SurgeonRecorder(stream.decoder, place)
    if measurement.scores == "contribution":
        return ContributionRecorder(stream.decoder)
    activation = getattr(stream.config, stream.decoder.architecture.family.activation)
    return LayerRecorder(stream.decoder, activation, measurement)


@contextmanager
def _hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove the hooks afterwards."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LayerRecorder:
    """Sums over sequences of every unit's scores, filled by hooks on the layer that runs."""

    def __init__(self, decoder: Decoder, activation: str, measurement: Measurement) -> None:
        """`activation` is the name in the config."""
        self._decoder = decoder
        self._measurement = measurement
        sizes = decoder.architecture
        self._layers = sizes.num_hidden_layers
        self._heads = sizes.num_attention_heads
        self._kv_heads = sizes.num_key_value_heads
        # A gate multiplies the activation by numbers of either sign.
        is_positive = activation in ("relu", "relu2") and not sizes.family.is_gated
        self._has_positive_neurons = is_positive
        self.sums: Sums = {}

    def hooks(self, layer: int) -> Iterator[RemovableHandle]:
        """Hooks that record what passes a layer."""
        # What attention and the MLP read, in every family: the outputs of the layer's norms.
        for place, reader in enumerate(("q", "up")):
            yield self._on_input(layer, reader, "hidden", 2 * layer + place)
        if self._measurement.neurons == "before":
            yield self._on_output(layer, "up", "ffn", layer)
        else:
            is_positive = self._has_positive_neurons
            yield self._on_input(layer, "down", "ffn", layer, is_positive=is_positive)
        norms = self._head_norms if self._measurement.scores == "paper" else None
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
        kind = self._measurement.aggregation.sequence
        scores = sequence_scores(activations, kind, transform, is_positive=is_positive)
        sums = sums_of(scores)  # (2, units)
        key = f"{axis} {kind}"
        if key not in self.sums:
            self.sums[key] = sums.new_zeros(rows, *sums.shape)
        self.sums[key][row] += sums
