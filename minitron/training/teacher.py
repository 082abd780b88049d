"""The teacher: what a student is to predict, whether it runs beside it or was written down before.

Knows how a model's last hidden states are taken without gradients; `inner_states` those between its
layers. `teacher_cache` has the teacher that was written down.

    teacher = RunningTeacher(load_model(open_source("tiny")))
    teacher.lesson(input_ids, rows).loss(student_hidden, student_head, labels, DistillLoss())
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minitron.files.device_memory import free_memory, readable_bytes
from minitron.files.dtypes import dtype_named
from minitron.files.lazy_tensor import LazyTensor
from minitron.model.architecture import Architecture
from minitron.model.decoder import Decoder, decoder_module
from minitron.model.families import EMBEDDING, HEAD
from minitron.model.source import Source
from minitron.recipe import DistillRecipe
from minitron.sources.layer_stream import LayerStream
from minitron.sources.loading import loaded_bytes
from minitron.sources.processes import device_of_run, processes_of_run
from minitron.training.distillation import distillation_loss
from minitron.training.inner_states import InnerState, captured_states

_LOGITS_BYTES = {"cpu": 2 << 27, "cuda": 2 << 29}  # of student and teacher, as `fused_loss` does
_STATE_BYTES = 16  # a parameter: itself, its gradient and AdamW's two moments in float32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillLoss:
    """Which distance from the teacher's predictions, as `distillation_loss` takes it."""

    kind: str = "forward_kl"
    temperature: float = 1.0
    ce_weight: float = 0.0
    beta: float = 0.5


class Lesson(Protocol):
    """What a teacher has to say on a batch: on every position of it but each row's last."""

    @property
    def inner(self) -> Sequence[Tensor]:
        """Inner states [rows, seq_len, width], as they were asked for."""

    def loss(self, hidden: Tensor, head: Tensor, labels: Tensor, how: DistillLoss) -> Tensor:
        """The student's mean loss: hidden [tokens, width], head [vocabulary, width], labels
        [tokens]."""


class Teacher(Protocol):
    """Whoever gives lessons."""

    def lesson(self, input_ids: Tensor, rows: Tensor) -> Lesson:
        """On `input_ids` [rows, seq_len], which lie at `rows` [rows] of the corpus."""


@dataclass(frozen=True)
class FullLesson:
    """Every probability, as last hidden states [tokens, width] and output embedding."""

    hidden: Tensor
    head: Tensor
    inner: Sequence[Tensor] = ()

    def loss(self, hidden: Tensor, head: Tensor, labels: Tensor, how: DistillLoss) -> Tensor:
        """Exact over the whole vocabulary: the rows that both heads have, where one is padded."""
        rows = min(head.shape[0], self.head.shape[0])
        return distillation_loss(
            hidden,
            head,
            self.hidden,
            self.head,
            kind=how.kind,
            temperature=how.temperature,
            beta=how.beta,
            ce_weight=how.ce_weight,
            labels=labels if how.ce_weight else None,
            rows=rows,
        )


class RunningTeacher:
    """A model in memory, run on each batch in its own precision, without gradients."""

    def __init__(self, model: PreTrainedModel, inner: Sequence[InnerState] = ()) -> None:
        """`inner` are the inner states that its lessons hold."""
        self._model: Any = model.eval().requires_grad_(False)
        self._decoder = Decoder.of(model)
        self._inner = tuple(inner)

    def lesson(self, input_ids: Tensor, rows: Tensor) -> FullLesson:
        """One forward pass without the output embedding."""
        without_autocast = torch.autocast(input_ids.device.type, enabled=False)
        with (
            torch.no_grad(),
            without_autocast,
            captured_states(self._decoder, self._inner) as inner,
        ):
            outputs = decoder_module(self._model)(input_ids=input_ids, use_cache=False)
        states = outputs.last_hidden_state
        head = self._model.get_output_embeddings().weight
        return FullLesson(states[:, :-1].flatten(0, 1), head, tuple(inner))


class StreamedTeacher:
    """A model that is read layer by layer on each batch: two layers and the head are in memory."""

    def __init__(self, stream: LayerStream, head: Tensor, inner: Sequence[InnerState] = ()) -> None:
        """`head` is the output embedding; `inner` as for RunningTeacher."""
        self._stream = stream
        self._head = head
        self._inner = tuple(inner)

    def lesson(self, input_ids: Tensor, rows: Tensor) -> FullLesson:
        """One pass through the layers."""
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
        return FullLesson(states, self._head, tuple(inner))


def output_embedding(source: Source) -> LazyTensor:
    """What makes a model's last hidden states logits; where it is tied, the embedding."""
    return source.tensors[HEAD if HEAD in source.tensors else EMBEDDING]


def teacher_fits(
    teacher: Source, recipe: DistillRecipe, student: Architecture, seq_len: int
) -> bool:
    """Whether this process has room for the teacher and for training the student beside it."""
    device = device_of_run()
    wished = dtype_named(recipe.teacher_dtype)
    needed = loaded_bytes(teacher, wished, device)
    training = training_bytes(student, recipe, seq_len=seq_len, device=device)
    free = free_memory(device)
    if device == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    processes_of_run().wait_for_everyone()  # all have looked before any takes what it needs
    fits = needed + training <= free
    if not fits:
        logger.info(
            "the teacher takes %s, training %s, and %s of memory may be used: the teacher is read "
            "layer by layer at every batch",
            *map(readable_bytes, (needed, training, free)),
        )
    return fits


def training_bytes(
    student: Architecture, recipe: DistillRecipe, *, seq_len: int, device: str
) -> int:
    """What a step of training holds, about: weights, gradients, AdamW's moments, activations, the
    loss's chunk of logits and its gradient of the output embedding."""
    state = _STATE_BYTES * student.parameters
    loss = 4 * student.vocab_size * student.hidden_size + _LOGITS_BYTES[device.partition(":")[0]]
    tokens = recipe.batch_size * seq_len
    layers = student.num_hidden_layers
    inside = _numbers_inside(student)
    if recipe.gradient_checkpointing:
        held = layers * student.hidden_size + inside
    else:
        held = layers * inside
    return state + loss + 4 * tokens * held


def _numbers_inside(student: Architecture) -> int:
    """Numbers that a layer keeps of each token for its backward pass."""
    queries = student.num_attention_heads * student.head_dim
    keys = student.num_key_value_heads * student.head_dim
    return (
        6 * student.hidden_size  # the stream, norms and their outputs, twice
        + 4 * (queries + keys)  # before and after rotation, values, attention's output
        + (4 if student.family.is_gated else 2) * student.intermediate_size
    )
