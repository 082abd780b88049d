"""The teacher: what a student is to predict, whether it runs beside it or was written down before.

Knows how a model's last hidden states, and those between its layers, are taken without gradients.
`teacher_cache` has the teacher that was written down.

    teacher = RunningTeacher(load_model(open_source("tiny")), positions=())
    teacher.lesson(input_ids, rows).loss(student_hidden, student_head, labels, DistillLoss())
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minitron.layer_stream import EMBEDDING, HEAD, LayerStream
from minitron.source import Source
from minitron.tensors.lazy_tensor import LazyTensor
from minitron.training.distillation import distillation_loss


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
        """Hidden states between layers [rows, seq_len, width], as they were asked for."""

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
        """Exact over the whole vocabulary."""
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
        )


class RunningTeacher:
    """A model in memory, run on each batch in its own precision, without gradients."""

    def __init__(self, model: PreTrainedModel, positions: Sequence[int] = ()) -> None:
        """`positions` are the inner states its lessons hold, as `inner_states` counts them."""
        self._model: Any = model.eval().requires_grad_(False)
        self._positions = tuple(positions)

    def lesson(self, input_ids: Tensor, rows: Tensor) -> FullLesson:
        """One forward pass without the output embedding."""
        without_autocast = torch.autocast(input_ids.device.type, enabled=False)
        with (
            torch.no_grad(),
            without_autocast,
            inner_states(self._model.model, self._positions) as inner,
        ):
            states = self._model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        head = self._model.get_output_embeddings().weight
        return FullLesson(states[:, :-1].flatten(0, 1), head, tuple(inner.values()))


class StreamedTeacher:
    """A model that is read layer by layer on each batch: two layers and the head are in memory."""

    def __init__(self, stream: LayerStream, head: Tensor, positions: Sequence[int] = ()) -> None:
        """`head` is the output embedding; `positions` as for RunningTeacher."""
        self._stream = stream
        self._head = head
        self._positions = tuple(positions)

    def lesson(self, input_ids: Tensor, rows: Tensor) -> FullLesson:
        """One pass through the layers."""
        inner: dict[int, Tensor] = {}
        with torch.no_grad(), torch.autocast(input_ids.device.type, enabled=False):
            states = self._stream.embed(input_ids)
            for index, layer in self._stream.layers():
                if index in self._positions:
                    norm: Any = layer.input_layernorm
                    inner[index] = norm(states)
                states = self._stream.run(index, layer, states)
            states = self._stream.normed(states)[:, :-1].flatten(0, 1)
        return FullLesson(states, self._head, tuple(inner[p] for p in self._positions))


def output_embedding(source: Source) -> LazyTensor:
    """What makes a model's last hidden states logits; where it is tied, the embedding."""
    return source.tensors[HEAD if HEAD in source.tensors else EMBEDDING]


@contextmanager
def inner_states(decoder: Any, positions: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect what enters layers while the block lasts, after their first norm: by layer.

    Position 0 is what the embedding gives, position i what layer i - 1 gives.
    """
    seen: dict[int, Tensor] = dict.fromkeys(positions, torch.empty(0))  # in the order asked for

    def note(position: int) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            seen[position] = output

        return hook

    handles = [
        decoder.layers[position].input_layernorm.register_forward_hook(note(position))
        for position in positions
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
