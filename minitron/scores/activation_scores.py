"""Scores by activations: what each part of a network does on real text.

Formulas of arXiv 2407.14679, section 2.2; `aggregation` has how values over tokens and sequences
become one, by default as in the paper (over a sequence mean of absolute values, over sequences L2).

| axis     | activation                                                        | then           |
|----------|-------------------------------------------------------------------|----------------|
| hidden   | output of each norm of the decoder layers                         | sum over norms |
| ffn      | input of down_proj, that is, after the activation                 | per layer      |
| heads    | L2 norm over head_dim of each head's output before o_proj         | per layer      |
| kv_heads | the same norm over all heads of a KV group                        | per layer      |
| layers   | block influence: 1 - mean cosine of a layer's in and out; or what | per layer, and |
|          | is lost without it (`layer_cuts`)                                 | per block      |

The paper's formula takes neurons before the activation. On a squared ReLU that lost to random
pruning (benchmarks/LOG.md); NVIDIA's ModelOpt takes them after it, and so do we.

`scores="modelopt"` is what NVIDIA's ModelOpt computes (modelopt/torch/prune/plugins/
mcore_minitron.py, 0.43): heads are averaged over the sequence channel by channel and only then
normed over head_dim, and layers sum each sequence's 1 - mean cosine. The rest is the same.

    activation_scores(load_model(open_source("tiny")), corpus)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from minitron.model.importance import Importance
from minitron.scores.aggregation import KINDS, Aggregation, batch_score
from minitron.scores.corpus_sweep import Sums, sweep
from minitron.scores.layer_cuts import CutScores, Measure, cuts_of
from minitron.scores.layer_recorder import LayerRecorder, Watched
from minitron.sources.layer_stream import LayerStream
from minitron.text.corpus import Corpus

_BATCH_TOKENS = 8192
_CHUNK_BATCHES = 16


@dataclass(frozen=True)
class Measurement:
    """What is measured in a sweep."""

    aggregation: Aggregation = Aggregation()
    scores: Literal["paper", "modelopt"] = "paper"
    neurons: Literal["after", "before"] = "after"
    layer_scores: Measure = "influence"
    block_size: int | None = None
    other_kinds: tuple[str, ...] = ()  # over the sequence, for other aggregations of the same sums

    @property
    def watched(self) -> Watched:
        """What of each layer is recorded."""
        kinds = tuple(dict.fromkeys((self.aggregation.sequence, *self.other_kinds)))
        return Watched(kinds, self.neurons, head_norms=self.scores == "paper")


def activation_scores(
    model: PreTrainedModel, corpus: Corpus, measurement: Measurement | None = None
) -> Importance:
    """Scores of every axis from one forward pass, without the output embedding.

    `corpus.sequences` [samples, seq_len] must hold ids of the model's vocabulary.
    """
    measurement = measurement or Measurement()
    stream = LayerStream.of_model(model)
    sums = _sums_over_corpus(stream, corpus, measurement)
    return importance_of(sums, measurement, stream.config, made_by(corpus, stream.dtype))


def aggregated_scores(
    model: PreTrainedModel, corpus: Corpus, measurement: Measurement | None = None
) -> dict[tuple[str, str], Importance]:
    """The same under every aggregation, by its (batch, sequence), from one forward pass."""
    every = replace(measurement or Measurement(), other_kinds=KINDS)
    stream = LayerStream.of_model(model)
    sums = _sums_over_corpus(stream, corpus, every)
    described = made_by(corpus, stream.dtype)
    return {
        (batch, sequence): importance_of(
            sums,
            replace(every, aggregation=Aggregation(batch, sequence)),
            stream.config,
            described,
        )
        for batch, sequence in product(KINDS, KINDS)
    }


def _sums_over_corpus(stream: LayerStream, corpus: Corpus, measurement: Measurement) -> Sums:
    with tqdm(
        total=corpus.tokens, unit="token", unit_scale=True, desc="score", disable=None
    ) as progress:
        return sweep(
            list(corpus.sequences),
            lambda chunk: sums_over(stream, chunk, measurement, progress),
            batch_tokens=_BATCH_TOKENS,
            chunk_tokens=_CHUNK_BATCHES * _BATCH_TOKENS,
        )


def made_by(corpus: Corpus, dtype: torch.dtype) -> dict[str, Any]:
    """What an importance was measured on."""
    return {
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "samples": len(corpus.sequences),
        "seq_len": corpus.sequences.shape[1],
        "tokens": corpus.tokens,
        "dtype": str(dtype).removeprefix("torch."),
    }


def sums_over(
    stream: LayerStream,
    batches: Sequence[torch.Tensor],
    measurement: Measurement,
    progress: "tqdm[Any] | None" = None,
) -> Sums:
    """Sums over one chunk: batches that pass each layer together."""
    layers = int(stream.config.num_hidden_layers)
    recorder = LayerRecorder(stream.decoder, stream.config.hidden_act, measurement.watched)
    cuts = cuts_of(layers, measurement.block_size)
    left_out = CutScores(cuts, measurement.layer_scores, stream.device)
    with torch.inference_mode():
        states = stream.embed_all(batches)
        for index, layer in stream.layers():
            with recorder.watching(index):
                for batch, before in enumerate(states):
                    states[batch] = stream.run(index, layer, before)
                    left_out.step(index, before, states[batch])
                    if progress is not None:
                        progress.update(batches[batch].numel() / layers)
            left_out.run(stream, index, layer)
        left_out.finish(stream, list(batches), states)
    counts = {"samples": sum(map(len, batches)), "tokens": sum(ids.numel() for ids in batches)}
    counted = {key: torch.tensor([count]).double() for key, count in counts.items()}
    measured = {**recorder.sums, **left_out.sums}
    return {**counted, **{key: tensor.cpu() for key, tensor in measured.items()}}


def importance_of(
    sums: Sums, measurement: Measurement, config: Any, made_by: dict[str, Any]
) -> Importance:
    """The scores that sums over the whole corpus make."""
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
    layers, blocks = _layer_scores(sums, measurement).tensor_split([int(config.num_hidden_layers)])
    described = {
        "scores": measurement.scores,
        "aggregation": {"batch": aggregation.batch, "sequence": aggregation.sequence},
        "neurons": measurement.neurons,
        "layer_scores": measurement.layer_scores,
        "block_size": measurement.block_size,
    }
    return Importance(
        made_by={**described, **made_by},
        hidden=rows["hidden"].sum(0),
        ffn=rows["ffn"],
        heads=rows["heads"][:, :heads].contiguous(),
        kv_heads=rows["heads"][:, heads:].contiguous(),
        layers=layers,
        blocks=blocks if len(blocks) else None,
    )


def _layer_scores(sums: Sums, measurement: Measurement) -> torch.Tensor:
    """The score of every cut: each layer alone, then each block."""
    if measurement.layer_scores == "loss":
        return (sums["losses"][:-1] - sums["losses"][-1]) / sums["targets"]
    if measurement.layer_scores == "logits":
        return sums["errors"] / sums["squares"]
    if measurement.scores == "modelopt":
        return sums["samples"] - sums["mean_cosines"]
    return 1 - sums["cosines"] / sums["tokens"]
