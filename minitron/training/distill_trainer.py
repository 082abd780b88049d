"""Distill trainer: transformers' Trainer, with a teacher's lesson as the loss.

While a batch runs, the student's output embedding gives the loss instead of the logits. So no
logits are held, and the embedding is at hand there however DDP, FSDP or DeepSpeed lay it out.

    trainer = DistillTrainer(model=student, teacher=teacher, loss=DistillLoss(), args=arguments)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from minitron.training.distillation import IntermediateLoss, dynamic_weight
from minitron.training.teacher import DistillLoss, Lesson, Teacher, inner_states

_PROJECTION = "intermediate_loss"
_LOGITS = 1 << 25  # at once, in evaluation

LossOf = Callable[[Tensor, Tensor], Tensor]  # last hidden states, output embedding -> the loss


class DistillTrainer(Trainer):
    """Trains on the teacher's lessons, evaluates by cross-entropy with the text."""

    def __init__(
        self,
        *,
        teacher: Teacher,
        loss: DistillLoss,
        positions: Sequence[int] = (),
        alpha: float | None = 0.0,
        **options: Any,
    ) -> None:
        """`positions` are those of the student's inner states that are compared with the lessons',
        by a projection that `add_projection` added; `alpha` is their weight, None the dynamic one.
        """
        super().__init__(**options)
        # A mean over the batch: Trainer is to divide it by the batches that are accumulated.
        self.model_accepts_loss_kwargs = False
        self._teacher = teacher
        self._loss = loss
        self._positions = tuple(positions)
        self._alpha = alpha
        self._student: Any = options["model"]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss that the student's output embedding gives in place of logits."""
        input_ids = inputs["input_ids"]
        labels = input_ids[:, 1:].flatten()
        positions = self._positions if model.training else ()
        lesson = self._teacher.lesson(input_ids, inputs["row"]) if model.training else None
        with inner_states(self._student.model, positions) as inner:

            def loss_of(hidden: Tensor, head: Tensor) -> Tensor:
                states = hidden[:, :-1].flatten(0, 1)  # the last one predicts nothing we know
                if lesson is None:
                    return _cross_entropy(states, head, labels)
                loss = lesson.loss(states, head, labels, self._loss)
                return self._with_inner(loss, lesson, list(inner.values()))

            with loss_in_head(self._student, loss_of):
                outputs = model(input_ids=input_ids, use_cache=False)
        return (outputs.logits, outputs) if return_outputs else outputs.logits

    def _with_inner(self, loss: Tensor, lesson: Lesson, states: list[Tensor]) -> Tensor:
        if not states:
            return loss
        distance: Tensor = getattr(self._student, _PROJECTION)(states, lesson.inner)
        weight = dynamic_weight(loss, distance) if self._alpha is None else self._alpha
        return loss + weight * distance


def add_projection(model: PreTrainedModel, teachers_width: int, *, pairs: int) -> None:
    """Give a student the learned map to its teacher's width, to be trained and saved with it."""
    same_place = [(place, place) for place in range(pairs)]
    width: int = model.config.hidden_size
    model.add_module(_PROJECTION, IntermediateLoss(width, teachers_width, same_place))


@contextmanager
def loss_in_head(model: PreTrainedModel, loss_of: LossOf) -> Iterator[None]:
    """While the block lasts, the model's output embedding gives `loss_of` instead of logits."""
    head: Any = model.get_output_embeddings()
    head.forward = lambda hidden: loss_of(hidden, head.weight)
    try:
        yield
    finally:
        del head.forward


def _cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """The mean over tokens, logits made a few at a time."""
    rows = max(1, _LOGITS // head.shape[0])
    pieces = zip(hidden.split(rows), labels.split(rows), strict=True)
    summed = [
        F.cross_entropy((states @ head.T).float(), wanted, reduction="sum")
        for states, wanted in pieces
    ]
    return torch.stack(summed).sum() / len(labels)
