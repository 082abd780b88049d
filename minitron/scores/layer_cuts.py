"""Layer cuts: what a model loses when a layer, or a run of layers, is left out.

Three measures, each of one sweep over the corpus (arXiv 2407.14679, section 2.2; for logits
2511.16664, eq. 5):

| influence | 1 - mean cosine between the stream before and after what is cut | no extra work |
| loss      | how much the loss on the next token rises, in nats              | see below     |
| logits    | sum of squared differences of the logits / sum of their squares | see below     |

For the last two, every shortened model runs beside the whole one: it shares all layers before its
cut, so cutting each of L layers costs about L / 2 passes and holds the states L + 1 times.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from minitron.sources.layer_stream import LayerStream
from minitron.sources.streamed_loss import States, logits_of, summed_losses, token_runs

Measure = Literal["influence", "loss", "logits"]

_VALUES = 1 << 16  # cast to float32 at once: they stay in a core's cache


@dataclass(frozen=True)
class Cut:
    """The layers [start, stop), left out."""

    start: int
    stop: int


def cuts_of(layers: int, block_size: int | None) -> tuple[Cut, ...]:
    """Every layer alone, then every run of `block_size` layers."""
    single = [Cut(start, start + 1) for start in range(layers)]
    runs = [] if block_size is None else range(layers - block_size + 1)
    return (*single, *(Cut(start, start + (block_size or 0)) for start in runs))


def passes_of(cuts: tuple[Cut, ...], layers: int) -> float:
    """The work of running every shortened model behind its cut, in passes over the corpus."""
    return sum(layers - cut.stop for cut in cuts) / layers


class CutScores:
    """Sums over tokens for every cut, filled while a chunk passes the layers."""

    def __init__(self, cuts: tuple[Cut, ...], measure: Measure, device: str) -> None:
        self._cuts = cuts
        self._measure = measure
        self._held: dict[Cut, States] = {}
        names = {
            "influence": ("cosines", "mean_cosines"),
            "loss": ("losses",),
            "logits": ("errors",),
        }[measure]
        size = len(cuts) + (measure == "loss")  # the whole model's loss comes last
        self.sums = {name: torch.zeros(size, dtype=torch.float64, device=device) for name in names}
        if measure != "influence":
            self.sums["squares" if measure == "logits" else "targets"] = torch.zeros(
                1, dtype=torch.float64, device=device
            )

    def step(self, index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Record the whole model's next batch before and after layer `index`."""
        for place, cut in enumerate(self._cuts):
            if cut.start == index:
                self._held.setdefault(cut, []).append(before)
            if cut.stop == index + 1 and self._measure == "influence":
                held = self._held[cut]
                cosine = cosines(held.pop(0), after)  # (sequences, tokens)
                self.sums["cosines"][place] += cosine.sum()
                self.sums["mean_cosines"][place] += cosine.mean(1).sum()

    def run(self, stream: LayerStream, index: int, layer: nn.Module) -> None:
        """Run the layer for the models that were cut before it."""
        if self._measure == "influence":
            return
        for cut, states in self._held.items():
            if cut.stop <= index:
                for batch, held in enumerate(states):
                    states[batch] = stream.run(index, layer, held)

    def finish(self, stream: LayerStream, ids: list[torch.Tensor], states: States) -> None:
        """Compare the outputs of all models on a chunk, and drop its states."""
        models = [*(self._held[cut] for cut in self._cuts if cut in self._held), states]
        if self._measure == "loss":
            targets = [tokens[:, 1:].flatten().to(stream.device) for tokens in ids]
            inputs = [[batch[:, :-1] for batch in model] for model in models]
            self.sums["losses"] += summed_losses(stream, inputs, targets)
            self.sums["targets"] += sum(map(len, targets))
        elif self._measure == "logits":
            self._add_errors(stream, models)
        self._held.clear()

    def _add_errors(self, stream: LayerStream, models: list[States]) -> None:
        for _, rows in stream.head_blocks():
            for batches in zip(*models, strict=True):
                for run in token_runs(len(rows), batches[0]):
                    wanted = logits_of(stream, batches[-1], rows, run)
                    self.sums["squares"] += wanted.square().sum(dtype=torch.float64)
                    for place, states in enumerate(batches[:-1]):
                        difference = logits_of(stream, states, rows, run) - wanted
                        squares = difference.square().sum(dtype=torch.float64)
                        self.sums["errors"][place] += squares


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The cosine of each token's two states, (sequences, tokens) in float64; 0 for no length."""
    first, second = one.flatten(0, 1), other.flatten(0, 1)
    at_once = max(1, _VALUES // one.shape[-1]) if one.device.type == "cpu" else len(first)
    sums = torch.empty(3, len(first), dtype=torch.float32, device=one.device)
    product = torch.empty(at_once, one.shape[-1], dtype=torch.float32, device=one.device)
    for start in range(0, len(first), at_once):
        rows = slice(start, start + at_once)
        a, b = first[rows].float(), second[rows].float()
        # The squares as the product is: of equal states the cosine is 1 to the last bit.
        for place, (left, right) in enumerate(((a, b), (a, a), (b, b))):
            out = product[: len(a)]
            torch.sum(torch.mul(left, right, out=out), -1, out=sums[place, rows])
    wide = sums.double()
    lengths = (wide[1] * wide[2]).sqrt().clamp(min=1e-30)
    return wide[0].div(lengths).view(one.shape[:-1])
