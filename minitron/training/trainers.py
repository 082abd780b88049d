"""The trainers: transformers' Trainer with losses that never hold the logits.

While a batch runs, the model's output embedding returns the loss instead of the logits: there its
weight is at hand however DDP, FSDP or DeepSpeed lay it out. `TextTrainer` trains on the text,
`DistillTrainer` on what a teacher predicts.

    trainer = TextTrainer(model=model, args=arguments, train_dataset=dataset)
    trainer = DistillTrainer(model=student, teacher=teacher, loss=DistillLoss(), args=arguments)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from minitron.model.decoder import Decoder
from minitron.training.cross_entropy import cross_entropy_loss
from minitron.training.inner_states import (
    InnerStates,
    IntermediateLoss,
    attention_relation_loss,
    captured_states,
    dynamic_weight,
)
from minitron.training.teacher import DistillLoss, Teacher

_PROJECTION = "intermediate_loss"

LossOf = Callable[[Tensor, Tensor], Tensor]  # last hidden states, output embedding -> the loss


class TextTrainer(Trainer):
    """Trains and evaluates by cross-entropy with the text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._unwrapped: Any = options["model"]
        self._rows: int | None = None  # of the output embedding; None for all

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """None after the last step: a run that was killed after it would make one more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss that Trainer's own gives: of a batch's share in the tokens that are accumulated,
        or where those were not counted, the mean."""
        input_ids = inputs["input_ids"]
        labels = inputs["labels"][:, 1:].flatten()
        counted = num_items_in_batch if self.model_accepts_loss_kwargs else None

        def loss_of(hidden: Tensor, head: Tensor) -> Tensor:
            states = hidden[:, :-1].flatten(0, 1)  # the last one predicts nothing we know
            if counted is None:
                return cross_entropy_loss(states, head, labels, rows=self._rows)
            total = cross_entropy_loss(states, head, labels, reduction="sum", rows=self._rows)
            return total.div(counted)

        with loss_in_head(self._unwrapped, loss_of):
            outputs = model(input_ids=input_ids, use_cache=False)
        loss = outputs.logits
        if counted is not None and self.args.average_tokens_across_devices:
            # Counted over all processes, whose gradients are averaged.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss


class DistillTrainer(TextTrainer):
    """Trains on the teacher's lessons, evaluates by cross-entropy with the text."""

    def __init__(
        self,
        *,
        teacher: Teacher,
        loss: DistillLoss,
        inner: InnerStates,
        rows: int | None = None,
        **options: Any,
    ) -> None:
        """`inner` are the states between layers that are compared with the lessons', those that are
        compared as they are by a projection that `add_projection` added. `rows` of the student's
        output embedding are the vocabulary, all unless it is given."""
        super().__init__(**options)
        self._rows = rows
        # A mean over the batch: Trainer is to divide it by the batches that are accumulated.
        self.model_accepts_loss_kwargs = False
        self._teacher = teacher
        self._loss = loss
        self._inner = inner

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
        wanted = [pair.ours for pair in self._inner.pairs]
        with captured_states(self._decoder, wanted) as inner:

            def loss_of(hidden: Tensor, head: Tensor) -> Tensor:
                states = hidden[:, :-1].flatten(0, 1)  # the last one predicts nothing we know
                loss_by = partial(lesson.loss, states, head, labels)
                loss = loss_by(self._loss)
                if not inner:
                    return loss
                distance = self._distance(inner, lesson.inner)
                return loss + self._weight(distance, loss, loss_by) * distance

            with loss_in_head(self._unwrapped, loss_of):
                outputs = model(input_ids=input_ids, use_cache=False)
        return (outputs.logits, outputs) if return_outputs else outputs.logits

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder.of(self._unwrapped)

    def _distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """Of the inner states: the sum over pairs."""
        pairs = list(zip(self._inner.pairs, ours, theirs, strict=True))
        distances = [
            attention_relation_loss(student, teacher, heads=self._inner.relation_heads)
            for pair, student, teacher in pairs
            if pair.is_related
        ]
        if plain := [(student, teacher) for pair, student, teacher in pairs if not pair.is_related]:
            projection = getattr(self._unwrapped, _PROJECTION)
            distances.append(projection(*zip(*plain, strict=True)))
        return torch.stack(distances).sum()

    def _weight(
        self, distance: Tensor, loss: Tensor, loss_by: Callable[[DistillLoss], Tensor]
    ) -> Tensor | float:
        """Alpha; the dynamic one knows no cross-entropy, as the paper's L_logits / L_is."""
        if self._inner.alpha is not None:
            return self._inner.alpha
        if self._loss.ce_weight:
            with torch.no_grad():
                loss = loss_by(replace(self._loss, ce_weight=0.0))
        return dynamic_weight(loss, distance)


def add_projection(model: PreTrainedModel, teachers_width: int, inner: InnerStates) -> None:
    """Give a student the learned map to its teacher's width, to be trained and saved with it."""
    plain = sum(not pair.is_related for pair in inner.pairs)
    if not plain:
        return
    same_place = [(place, place) for place in range(plain)]
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
