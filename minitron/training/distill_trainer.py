"""Distill trainer: transformers' Trainer, with a teacher's lesson as the loss.

The student's output embedding gives the loss instead of the logits, as in `text_trainer`.

    trainer = DistillTrainer(model=student, teacher=teacher, loss=DistillLoss(), args=arguments)
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from minitron.training.intermediate_loss import IntermediateLoss, dynamic_weight
from minitron.training.teacher import DistillLoss, Lesson, Teacher, inner_states
from minitron.training.text_trainer import TextTrainer, loss_in_head

_PROJECTION = "intermediate_loss"


class DistillTrainer(TextTrainer):
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

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The lesson's loss; the text's where the student is evaluated."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        input_ids = inputs["input_ids"]
        labels = inputs["labels"][:, 1:].flatten()
        lesson = self._teacher.lesson(input_ids, inputs["row"])
        with inner_states(self._unwrapped.model, self._positions) as inner:

            def loss_of(hidden: Tensor, head: Tensor) -> Tensor:
                states = hidden[:, :-1].flatten(0, 1)  # the last one predicts nothing we know
                loss = lesson.loss(states, head, labels, self._loss)
                return self._with_inner(loss, lesson, list(inner.values()))

            with loss_in_head(self._unwrapped, loss_of):
                outputs = model(input_ids=input_ids, use_cache=False)
        return (outputs.logits, outputs) if return_outputs else outputs.logits

    def _with_inner(self, loss: Tensor, lesson: Lesson, states: list[Tensor]) -> Tensor:
        if not states:
            return loss
        distance: Tensor = getattr(self._unwrapped, _PROJECTION)(states, lesson.inner)
        weight = dynamic_weight(loss, distance) if self._alpha is None else self._alpha
        return loss + weight * distance


def add_projection(model: PreTrainedModel, teachers_width: int, *, pairs: int) -> None:
    """Give a student the learned map to its teacher's width, to be trained and saved with it."""
    same_place = [(place, place) for place in range(pairs)]
    width: int = model.config.hidden_size
    model.add_module(_PROJECTION, IntermediateLoss(width, teachers_width, same_place))
