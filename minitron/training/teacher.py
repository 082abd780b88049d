"""The teacher: what a student is trained to predict, and whether the two fit together.

Knows how the last hidden states of a model are computed without gradients, for a model in memory
and for one that is read layer by layer; `inner_states` captures those between its layers. Knows
whether memory holds teacher and student, and whether each token id is the same token in both. A
teacher whose outputs were stored before is in `teacher_cache`.

    teacher = RunningTeacher(load_model(open_source("tiny")))
    teacher.predict(input_ids, rows).loss(student_hidden, student_head, labels, DistillLoss())
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minitron.errors import TokenizerError
from minitron.files.device_memory import free_memory, readable_bytes
from minitron.files.dtypes import dtype_named
from minitron.files.lazy_tensor import LazyTensor
from minitron.model.architecture import Architecture
from minitron.model.decoder import UNSCALED, Decoder, LogitScale, decoder_module
from minitron.model.family import EMBEDDING, HEAD
from minitron.model.source import Source
from minitron.recipes.training import DistillRecipe
from minitron.sources.layer_stream import LayerStream
from minitron.sources.loading import load_tokenizer, loaded_bytes
from minitron.sources.processes import (
    device_of_run,
    processes_of_run,
    processes_on_this_machine,
)
from minitron.training.distillation import distillation_loss
from minitron.training.inner_states import InnerState, captured_states

_LOGITS_BYTES = {"cpu": 2 << 27, "cuda": 2 << 29}  # of `fused_loss`: a chunk of both models
_STATE_BYTES = 16  # per parameter: itself, its gradient and AdamW's two moments in float32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillLoss:
    """The options of `distillation_loss`."""

    kind: str = "forward_kl"
    temperature: float = 1.0
    ce_weight: float = 0.0
    beta: float = 0.5


class TeacherOutput(Protocol):
    """A teacher's predictions on a batch, at every position but the last of each row."""

    @property
    def inner(self) -> Sequence[Tensor]:
        """The captured inner states, each [rows, seq_len, width]."""

    def loss(
        self,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        options: DistillLoss,
        logit_scale: LogitScale = UNSCALED,
    ) -> Tensor:
        """The mean loss of a student: hidden [tokens, width], head [vocabulary, width], labels
        [tokens], and what makes logits of its products."""


class Teacher(Protocol):
    """A model, or a cache of its outputs, whose predictions a student learns."""

    def predict(self, input_ids: Tensor, rows: Tensor) -> TeacherOutput:
        """Its output on `input_ids` [rows, seq_len], the sequences `rows` [rows] of the corpus."""


@dataclass(frozen=True)
class FullOutput:
    """All probabilities, as last hidden states [tokens, width] and output embedding."""

    hidden: Tensor
    head: Tensor
    inner: Sequence[Tensor] = ()
    logit_scale: LogitScale = UNSCALED

    def loss(
        self,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        options: DistillLoss,
        logit_scale: LogitScale = UNSCALED,
    ) -> Tensor:
        """Exact over the vocabulary; of heads padded to different sizes, over the rows of both."""
        rows = min(head.shape[0], self.head.shape[0])
        return distillation_loss(
            hidden,
            head,
            self.hidden,
            self.head,
            kind=options.kind,
            temperature=options.temperature,
            beta=options.beta,
            ce_weight=options.ce_weight,
            labels=labels if options.ce_weight else None,
            rows=rows,
            logit_scale=logit_scale,
            teacher_logit_scale=self.logit_scale,
        )


class RunningTeacher:
    """A model in memory, run on each batch in its own precision, without gradients."""

    def __init__(self, model: PreTrainedModel, inner: Sequence[InnerState] = ()) -> None:
        """Its outputs hold the states `inner`."""
        self._model: Any = model.eval().requires_grad_(False)
        self._decoder = Decoder.of(model)
        self._inner = tuple(inner)

    @property
    def model(self) -> PreTrainedModel:
        """The model that runs."""
        model: PreTrainedModel = self._model
        return model

    def predict(self, input_ids: Tensor, rows: Tensor) -> FullOutput:
        """Run the model once, without its output embedding."""
        without_autocast = torch.autocast(input_ids.device.type, enabled=False)
        with (
            torch.no_grad(),
            without_autocast,
            captured_states(self._decoder, self._inner) as inner,
        ):
            outputs = decoder_module(self._model)(input_ids=input_ids, use_cache=False)
        states = outputs.last_hidden_state
        head = self._model.get_output_embeddings().weight
        scale = LogitScale.of(self._model.config)
        return FullOutput(states[:, :-1].flatten(0, 1), head, tuple(inner), scale)


class StreamedTeacher:
    """A model that is read layer by layer for each batch: two layers and the head are in memory."""

    def __init__(self, stream: LayerStream, head: Tensor, inner: Sequence[InnerState] = ()) -> None:
        """`head` is the output embedding; `inner` as for RunningTeacher."""
        self._stream = stream
        self._head = head
        self._inner = tuple(inner)

    def predict(self, input_ids: Tensor, rows: Tensor) -> FullOutput:
        """Run the layers once, one after another."""
        stream = self._stream
        with (
            torch.no_grad(),
            torch.autocast(input_ids.device.type, enabled=False),
            captured_states(stream.decoder, self._inner) as inner,
        ):
            states = stream.embed(input_ids)
            for index, layer in stream.layers():
                states = stream.run(index, layer, states)
            states = stream.normed(states)[:, :-1].flatten(0, 1)
        return FullOutput(states, self._head, tuple(inner), stream.logit_scale)


def output_embedding(source: Source) -> LazyTensor:
    """The weight that maps last hidden states to logits; tied, it is the input embedding."""
    return source.tensors[HEAD if HEAD in source.tensors else EMBEDDING]


def teacher_fits(
    teacher: Source, recipe: DistillRecipe, student: Architecture, seq_len: int
) -> bool:
    """Whether this process has room for the teacher and for training the student beside it."""
    device = device_of_run()
    needed = loaded_bytes(teacher, dtype_named(recipe.teacher_dtype), device)
    training = training_bytes(student, recipe, seq_len=seq_len, device=device)
    free = free_memory(device)
    if device == "cpu":
        free //= processes_on_this_machine()
    # Every process reads the free memory before any of them allocates.
    processes_of_run().wait_for_everyone()
    fits = needed + training <= free
    if not fits:
        logger.info(
            "the teacher needs %s and training %s, and %s of memory are free: the teacher is read "
            "layer by layer for every batch",
            *map(readable_bytes, (needed, training, free)),
        )
    return fits


def training_bytes(
    student: Architecture, recipe: DistillRecipe, *, seq_len: int, device: str
) -> int:
    """The memory of a training step, about: weights, gradients, AdamW's moments, activations, the
    loss's chunk of logits and its gradient of the output embedding."""
    state = _STATE_BYTES * student.parameters
    loss = 4 * student.vocab_size * student.hidden_size + _LOGITS_BYTES[device.partition(":")[0]]
    tokens = recipe.batch_size * seq_len
    layers = student.num_hidden_layers
    one_layer = _activations_per_token(student)
    if recipe.gradient_checkpointing:  # only the inputs of all other layers
        activations = layers * student.hidden_size + one_layer
    else:
        activations = layers * one_layer
    return state + loss + 4 * tokens * activations


def _activations_per_token(student: Architecture) -> int:
    """The numbers that one layer stores for each token until its backward pass."""
    queries = student.num_attention_heads * student.head_dim
    keys = student.num_key_value_heads * student.head_dim
    return (
        6 * student.hidden_size  # twice: residual stream, norm and its output
        + 4 * (queries + keys)  # before and after rotation, values, attention's output
        + (4 if student.family.is_gated else 2) * student.intermediate_size
    )


_SHOWN = 3


def shared_rows(student: Source, teacher: Source) -> int:
    """How many first rows of both embeddings are the vocabulary of two models with one tokenizer.

    Embeddings may be padded with rows that no token uses: Qwen2.5 0.5B has 128 fewer than 7B. Rows
    that only one model has are not part of the vocabulary. Raises TokenizerError for different
    tokens, and for different numbers of rows where a tokenizer is missing or has tokens beyond the
    smaller number.
    """
    counts = [source.architecture.vocab_size for source in (student, teacher)]
    have_tokens = all(any(s.companions.tokenizer_files()) for s in (student, teacher))
    tokens = _same_tokens(student, teacher) if have_tokens else {}
    rows, last = min(counts), max(tokens, default=-1)
    if counts[0] == counts[1] or (tokens and last < rows):
        return rows
    raise TokenizerError(
        f"{student.name} predicts {counts[0]:,} token ids, {teacher.name} {counts[1]:,}"
        + (f", and their tokenizer has ids up to {last:,}" if tokens else "")
        + ": distill from the model that the student was made from, or one of its vocabulary"
        + ("" if tokens else "; where both have one tokenizer, put its files into both folders")
    )


def silence_padding(embedding: Tensor, rows: int) -> Tensor:
    """An output embedding whose rows from `rows` on are never the result of greedy decoding.

    Each of these rows becomes the mean of the first `rows`. Its logit is then the mean of theirs,
    which is never above the largest, and its probability is at most 1 / `rows` (Jensen's
    inequality), in practice close to 0.
    """
    padding = embedding.shape[0] - rows
    mean = embedding[:rows].float().mean(0, keepdim=True).to(embedding.dtype)
    return torch.cat([embedding[:rows], mean.expand(padding, -1)])


def _same_tokens(student: Source, teacher: Source) -> dict[int, str]:
    """The tokens of both models, by id. Raises TokenizerError where they differ."""
    ours, theirs = _tokens(student), _tokens(teacher)
    differing = sorted(i for i in {*ours, *theirs} if ours.get(i) != theirs.get(i))
    if differing:
        pairs = [(i, _describe(ours.get(i)), _describe(theirs.get(i))) for i in differing[:_SHOWN]]
        first, our, their = pairs[0]
        listed = f"id {first} is {our} in {student.name}, {their} in {teacher.name}"
        listed += "".join(f"; id {i} {our} and {their}" for i, our, their in pairs[1:])
        raise TokenizerError(
            f"student and teacher differ in {len(differing):,} tokens: {listed}"
            + ("; ...: " if len(differing) > _SHOWN else ": ")
            + "distill from a teacher with the student's tokenizer"
        )
    return ours


def _tokens(source: Source) -> dict[int, str]:
    vocabulary: dict[str, int] = load_tokenizer(source).get_vocab()
    return {number: token for token, number in vocabulary.items()}


def _describe(token: str | None) -> str:
    return "nothing" if token is None else repr(token)
