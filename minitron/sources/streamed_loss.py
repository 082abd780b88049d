"""Streamed loss: a decoder's next-token loss, with layers and vocabulary read in blocks.

In memory are two layers, the states of a chunk of tokens, and the logits of some tokens for some of
the vocabulary: a model larger than memory gives the loss of a loaded one, to float32 rounding.

    nats, counted = streamed_loss(open_source("tiny"), inputs, targets)
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from minitron.model.source import Source
from minitron.sources.layer_stream import LayerStream
from minitron.text.encoding import TokenIds

States = list[torch.Tensor]  # one a batch, (sequences, tokens, hidden)

_LOGITS = 1 << 24  # held at once
_BATCH_TOKENS = 8192  # that run through a layer at once
CHUNK_BYTES = 1 << 30  # of states, held while the layers pass


def streamed_loss(
    source: Source,
    inputs: Sequence[TokenIds],
    targets: Sequence[TokenIds],
    *,
    device: str = "cpu",
) -> tuple[float, int]:
    """The summed loss in nats, and the number of targets; those below 0 are not counted.

    `inputs` and `targets` are arrays (windows, tokens) of the same shapes. Every layer is read once
    for each gigabyte of states. Raises SourceError for weights that are incomplete or not finite.
    """
    stream = LayerStream.of_source(source, device=device, keep=False)
    width = stream.config.hidden_size * stream.dtype.itemsize
    nats, counted = 0.0, 0
    with torch.inference_mode():
        for ids, wanted in _chunks(inputs, targets, max(1, CHUNK_BYTES // width)):
            states = stream.embed_all(ids)
            for index, layer in stream.layers():
                for batch, held in enumerate(states):
                    states[batch] = stream.run(index, layer, held)
            flat = [batch.flatten().to(device) for batch in wanted]
            nats += summed_losses(stream, [states], flat).item()
            counted += sum(int((batch >= 0).sum()) for batch in flat)
    return nats, counted


def summed_losses(
    stream: LayerStream, models: Sequence[States], targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The summed cross-entropy of each model's states (models,), in float64.

    `targets` are the next ids of each batch, flat; those below 0 are not counted.
    """
    logsums = [
        [torch.full_like(ids, -torch.inf, dtype=torch.float32) for ids in targets] for _ in models
    ]
    found = [[torch.zeros_like(ids, dtype=torch.float32) for ids in targets] for _ in models]
    for first, rows in stream.head_blocks():
        for model, states in enumerate(models):
            for batch, ids in enumerate(targets):
                for run in token_runs(len(rows), states[batch]):
                    logits = logits_of(stream, states[batch], rows, run)
                    logsum = logsums[model][batch][run]
                    logsum.copy_(torch.logaddexp(logsum, logits.logsumexp(-1)))
                    found[model][batch][run] += _at(logits, ids[run] - first)
    is_counted = torch.cat([ids >= 0 for ids in targets])
    pairs = [zip(*pair, strict=True) for pair in zip(logsums, found, strict=True)]
    losses = [torch.cat([a - b for a, b in pair])[is_counted] for pair in pairs]
    return torch.stack([loss.double().sum() for loss in losses])


def token_runs(rows: int, states: torch.Tensor) -> Iterator[slice]:
    """Runs of tokens whose logits for so many rows of the vocabulary are at most _LOGITS."""
    at_once = max(1, _LOGITS // rows)
    tokens = states.shape[0] * states.shape[1]
    return (slice(start, start + at_once) for start in range(0, tokens, at_once))


def logits_of(
    stream: LayerStream, states: torch.Tensor, rows: torch.Tensor, run: slice
) -> torch.Tensor:
    """The logits of a run of tokens for some rows of the vocabulary, in float32 (tokens, rows)."""
    return stream.logit_scale(F.linear(stream.normed(states.flatten(0, 1)[run]), rows).float())


def _at(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of each row the value at its place, 0 where that is outside."""
    is_inside = (places >= 0) & (places < logits.shape[1])
    values = logits.gather(1, places.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    return torch.where(is_inside, values, 0)


def _chunks(
    inputs: Sequence[TokenIds], targets: Sequence[TokenIds], tokens: int
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Batches of ids with what they are to predict, of about `tokens` together."""
    ids: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    for windows, targets_of_windows in zip(inputs, targets, strict=True):
        step = max(1, _BATCH_TOKENS // windows.shape[1])
        for start in range(0, len(windows), step):
            ids.append(torch.from_numpy(windows[start : start + step]).long())
            wanted.append(torch.from_numpy(targets_of_windows[start : start + step]).long())
            if sum(batch.numel() for batch in ids) >= tokens:
                yield ids, wanted
                ids, wanted = [], []
    if ids:
        yield ids, wanted
