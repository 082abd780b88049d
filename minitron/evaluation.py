"""Evaluation: loss, perplexity and bits per byte of a model on text.

Texts are packed with a separator before each; every token of a text is predicted once, from at most
`seq_len` tokens before it, in windows that do not overlap. Separators are context and are not
counted, so bits per byte compare across tokenizers. Logits are made a few hundred tokens at a
time: with a vocabulary of 256,000 they would be the largest thing in memory.

    evaluate(source="tiny", corpus="books.jsonl.gz").bits_per_byte
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minitron.corpus import Document, TokenIds, load_ids, read_documents, tokenize
from minitron.errors import CorpusError, SourceError
from minitron.model_card import write_card
from minitron.provenance import add_results, read_provenance
from minitron.recipe import EvaluateRecipe, verb
from minitron.source import (
    default_device,
    load_model,
    load_tokenizer,
    open_source,
    sequence_length,
)

_BATCH_TOKENS = 8192
_LOGITS_TOKENS = 512
_UNCOUNTED = -100


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on a text."""

    loss: float  # nats a token
    tokens: int  # predicted
    bits_per_byte: float | None  # None where the text was given as ids
    tasks: dict[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """exp(loss), infinity where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def to_json(self) -> dict[str, object]:
        """The keys of `minitron evaluate --json`."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "tasks": self.tasks,
        }


@dataclass(frozen=True)
class HeldOut:
    """Tokens to predict and what they are predicted from, to be used for several models."""

    inputs: tuple[TokenIds, ...]  # each (windows, tokens)
    targets: tuple[TokenIds, ...]  # the same shapes; -100 where nothing is counted
    bytes: int | None  # of the text; None where only ids are known


@verb(EvaluateRecipe)
def evaluate(recipe: EvaluateRecipe) -> Evaluation:
    """Loss (nats a token), perplexity and bits per byte of a model on text.

    Raises SourceError, TokenizerError, or CorpusError for text that is missing, empty or not of
    the model's vocabulary.
    """
    source = open_source(recipe.source)
    if recipe.record:
        read_provenance(Path(recipe.source))  # refuses a folder that has no record to add to
    seq_len = sequence_length(source, recipe.seq_len)
    if recipe.corpus.endswith(".npy"):
        held_out = held_out_ids(recipe.corpus, seq_len)
    else:
        held_out = held_out_text(recipe.corpus, load_tokenizer(source), seq_len)
    dtype = None if recipe.dtype is None else getattr(torch, recipe.dtype)
    model = load_model(source, dtype=dtype, device=default_device())
    evaluation = evaluate_model(model, held_out)
    if recipe.record:
        add_results(Path(recipe.source), _results(evaluation, recipe, seq_len))
        write_card(Path(recipe.source))
    return evaluation


def held_out_text(name: str, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> HeldOut:
    """The text of a file or a Hub dataset, packed into windows of `seq_len` tokens."""
    documents = list(tokenize(read_documents(name), tokenizer))
    separators = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    start = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream = np.concatenate([np.array(start, np.int32), *(d.ids for d in documents)])
    inputs, targets = stream[:-1], stream[1:].copy()
    targets[np.isin(targets, separators)] = _UNCOUNTED
    if not (targets != _UNCOUNTED).any():
        raise CorpusError(f"{name} holds no text: there is nothing to predict")
    whole = len(inputs) // seq_len * seq_len
    rest = len(inputs) - whole
    parts = [(inputs[:whole], targets[:whole], seq_len), (inputs[whole:], targets[whole:], rest)]
    shaped = [(i.reshape(-1, n), t.reshape(-1, n)) for i, t, n in parts if len(i)]
    return HeldOut(tuple(i for i, _ in shaped), tuple(t for _, t in shaped), _bytes_of(documents))


def held_out_ids(name: str, seq_len: int) -> HeldOut:
    """The rows of an `.npy` of ids, each predicted from its second token on."""
    ids = load_ids(name, seq_len=seq_len + 1).sequences
    if ids.shape[1] < 2:
        raise CorpusError(f"{name} holds sequences of one token: there is nothing to predict")
    return HeldOut((ids[:, :-1],), (ids[:, 1:],), None)


def evaluate_model(model: PreTrainedModel, held_out: HeldOut) -> Evaluation:
    """What a loaded model scores.

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
        tqdm(total=total, unit="token", unit_scale=True, desc="evaluate", disable=None) as progress,
    ):
        for inputs, targets in _batches(held_out):
            nats += _nats(model, inputs.to(model.device), targets.to(model.device))
            counted += int((targets != _UNCOUNTED).sum())
            progress.update(inputs.numel())
    if not math.isfinite(nats):
        raise SourceError(
            f"the model has a loss of {nats} in {str(model.dtype).removeprefix('torch.')}: "
            "compute with --dtype float32, or retrain it"
        )
    bits = None if held_out.bytes is None else nats / math.log(2) / held_out.bytes
    return Evaluation(loss=nats / counted, tokens=counted, bits_per_byte=bits)


def _results(evaluation: Evaluation, recipe: EvaluateRecipe, seq_len: int) -> dict[str, Any]:
    """The evaluation as minitron.json and the card hold it."""
    corpus = Path(recipe.corpus).name
    bits = evaluation.bits_per_byte
    told = "" if bits is None else f"{bits:.3f} bits per byte on "
    return {
        "measured": f"{told}{corpus}, held out: {evaluation.tokens:,} tokens, each predicted from "
        f"at most {seq_len} before it. `minitron evaluate {Path(recipe.source).name} "
        f"--corpus {corpus}`",
        "columns": ["loss (nats a token)", "perplexity"],
        "rows": [
            {
                "name": Path(recipe.source).name,
                "values": [f"{evaluation.loss:.4f}", f"{evaluation.perplexity:.2f}"],
            }
        ],
    }


def _bytes_of(documents: list[Document]) -> int:
    return sum(document.bytes for document in documents)


def _batches(held_out: HeldOut) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for inputs, targets in zip(held_out.inputs, held_out.targets, strict=True):
        rows = max(1, _BATCH_TOKENS // inputs.shape[1])
        for start in range(0, len(inputs), rows):
            yield (
                torch.from_numpy(inputs[start : start + rows]).long(),
                torch.from_numpy(targets[start : start + rows]).long(),
            )


def _nats(model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """The summed cross-entropy of a batch; inputs and targets (windows, tokens)."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    head = model.get_output_embeddings()
    pieces = zip(hidden.split(_LOGITS_TOKENS), targets.flatten().split(_LOGITS_TOKENS), strict=True)
    summed = (
        F.cross_entropy(head(states).float(), wanted, ignore_index=_UNCOUNTED, reduction="sum")
        for states, wanted in pieces
    )
    return float(sum(piece.double() for piece in summed))
