"""The loss of a model on held-out text: nats a token, perplexity, bits per byte.

Logits are computed for a few hundred tokens at a time: with a vocabulary of 256,000, those of a
batch would need more memory than the model. `minitron.text.corpus` splits text into windows.

    evaluate_text(model, held_out_text("books.txt", tokenizer, 512)).perplexity
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from minitron.errors import CorpusError, SourceError
from minitron.files.device_memory import free_memory
from minitron.files.dtypes import name_of
from minitron.model.decoder import LogitScale
from minitron.model.source import Source
from minitron.progress import Progress
from minitron.records.task_scores import TaskScores
from minitron.sources.loading import default_device, load_model, loaded_bytes
from minitron.sources.streamed_loss import streamed_loss
from minitron.text.corpus import UNCOUNTED, Corpus, HeldOut

logger = logging.getLogger(__name__)

_BATCH_TOKENS = 8192
_LOGITS_TOKENS = 512


@dataclass(frozen=True)
class TextLoss:
    """The loss of a model on a text."""

    loss: float  # nats a token
    tokens: int  # predicted
    bits_per_byte: float | None  # None where the text was given as ids

    @property
    def perplexity(self) -> float:
        """exp(loss), infinity where that overflows."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model: on a text, on benchmarks, or on both."""

    text: TextLoss | None = None
    tasks: Mapping[str, TaskScores] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Nats a token; None where no text was given."""
        return None if self.text is None else self.text.loss

    @property
    def perplexity(self) -> float | None:
        """exp(loss), infinity where that overflows; None where no text was given."""
        return None if self.text is None else self.text.perplexity

    @property
    def bits_per_byte(self) -> float | None:
        """None where no text was given, or one as ids."""
        return None if self.text is None else self.text.bits_per_byte

    @property
    def tokens(self) -> int:
        """The number of predicted tokens of the text."""
        return 0 if self.text is None else self.text.tokens

    def to_json(self) -> dict[str, object]:
        """The keys of `minitron evaluate --json`."""
        perplexity = self.perplexity
        return {
            "loss": self.loss,
            "perplexity": None if perplexity == math.inf else perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "tasks": {name: scores.to_json() for name, scores in self.tasks.items()},
        }


def source_loss(source: Source, held_out: HeldOut) -> float:
    """The loss of a source in nats a token; reads it layer by layer if it does not fit into memory.

    Raises CorpusError for ids outside its vocabulary, SourceError for weights that are not finite.
    """
    device = default_device()
    if loaded_bytes(source, None, device) <= free_memory(device):
        return evaluate_text(load_model(source, device=device), held_out).loss
    for ids in held_out.inputs:
        Corpus(ids, "the text").check_fits(int(source.config["vocab_size"]))
    logger.info("%s is read layer by layer: it does not fit into memory", source.name)
    nats, counted = streamed_loss(source, held_out.inputs, held_out.targets, device=device)
    return nats / counted


def evaluate_text(model: PreTrainedModel, held_out: HeldOut) -> TextLoss:
    """The loss of a loaded model on held-out text.

    Raises CorpusError for ids outside its vocabulary, SourceError for a loss that is no number.
    """
    vocab_size = int(model.config.vocab_size)
    highest = max(int(ids.max()) for ids in (*held_out.inputs, *held_out.targets))
    if highest >= vocab_size:
        raise CorpusError(
            f"the text holds token id {highest}, outside the model's vocabulary of {vocab_size}"
        )
    nats, counted = 0.0, 0
    total = sum(inputs.size for inputs in held_out.inputs)
    with (
        torch.inference_mode(),
        Progress("evaluate", total=total, unit="token") as progress,
    ):
        for inputs, targets in _batches(held_out):
            nats += _summed_nats(model, inputs.to(model.device), targets.to(model.device))
            counted += int((targets != UNCOUNTED).sum())
            progress.advance(inputs.numel())
    if not math.isfinite(nats):
        raise SourceError(
            f"the model has a loss of {nats} in {name_of(model.dtype)}: "
            "compute with --dtype float32, or retrain it"
        )
    bits = None if held_out.bytes is None else nats / math.log(2) / held_out.bytes
    return TextLoss(nats / counted, counted, bits)


def _batches(held_out: HeldOut) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for inputs, targets in zip(held_out.inputs, held_out.targets, strict=True):
        rows = max(1, _BATCH_TOKENS // inputs.shape[1])
        for start in range(0, len(inputs), rows):
            yield (
                torch.from_numpy(inputs[start : start + rows]).long(),
                torch.from_numpy(targets[start : start + rows]).long(),
            )


def _summed_nats(model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """The summed cross-entropy of a batch; inputs and targets (windows, tokens)."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    counted = targets != UNCOUNTED
    head, scale = model.get_output_embeddings(), LogitScale.of(model.config)
    states, ids = hidden[counted].split(_LOGITS_TOKENS), targets[counted].split(_LOGITS_TOKENS)
    losses = (
        F.cross_entropy(scale(head(state).float()), target, reduction="sum")
        for state, target in zip(states, ids, strict=True)
    )
    return float(sum(loss.double() for loss in losses))
