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

from minitron.model.decoder import Decoder, LogitScale
from minitron.training.inner_states import (
    InnerStates,
    IntermediateLoss,
    attention_relation_loss,
    captured_states,
    dynamic_weight,
)
from minitron.training.logit_losses import cross_entropy_loss
from minitron.training.teacher import DistillLoss, Teacher

_PROJECTION = "intermediate_loss"

LossOf = Callable[[Tensor, Tensor], Tensor]  # last hidden states, output embedding -> the loss


class TextTrainer(Trainer):
    """Trains and evaluates by cross-entropy with the text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._unwrapped: Any = options["model"]
        self._logit_scale = LogitScale.of(self._unwrapped.config)
        self._rows: int | None = None  # of the output embedding; None for all

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """No batch after the last step: a run resumed there would otherwise train one step more."""
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
        """The loss as Trainer itself computes it: the sum over the batch's tokens divided by the
        tokens of all accumulated batches, or the mean where Trainer did not count these."""
        input_ids = inputs["input_ids"]
        labels = inputs["labels"][:, 1:].flatten()
        counted = num_items_in_batch if self.model_accepts_loss_kwargs else None

        def loss_of(hidden: Tensor, head: Tensor) -> Tensor:
            states = hidden[:, :-1].flatten(0, 1)  # the last token has no next one
            found = cross_entropy_loss(
                states,
                head,
                labels,
                reduction="mean" if counted is None else "sum",
                rows=self._rows,
                logit_scale=self._logit_scale,
            )
            return found if counted is None else found.div(counted)

        loss, outputs = self._run_with_loss(model, input_ids, loss_of)
        if counted is not None and self.args.average_tokens_across_devices:
            # Trainer counted the tokens of all processes, whose gradients are averaged.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def _run_with_loss(self, model: Any, input_ids: Tensor, loss_of: LossOf) -> tuple[Tensor, Any]:
        """Run `model` with `loss_of` as its output embedding: the loss, and the model's outputs.

        transformers' models return the result of their output embedding as `logits`; here it is
        the loss. It has to be part of the outputs: DDP and FSDP prepare backward from these.
        """
        with head_computes_loss(self._unwrapped, loss_of):
            outputs = model(input_ids=input_ids, use_cache=False)
        return outputs.logits, outputs


class DistillTrainer(TextTrainer):
    """Trains on the teacher's outputs, evaluates by cross-entropy with the text."""

    def __init__(
        self,
        *,
        teacher: Teacher,
        loss: DistillLoss,
        inner: InnerStates,
        rows: int | None = None,
        **options: Any,
    ) -> None:
        """`inner` are the inner states that are compared with the teacher's; for those that are
        compared directly, `add_projection` must have added the projection. The first `rows` of the
        student's output embedding are the vocabulary (default: all)."""
        super().__init__(**options)
        self._rows = rows
        # The loss is a mean over the batch: Trainer divides it by the accumulated batches.
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
        """The loss against the teacher's output in training, against the text in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        input_ids = inputs["input_ids"]
        labels = inputs["labels"][:, 1:].flatten()
        output = self._teacher.predict(input_ids, inputs["row"])
        wanted = [pair.ours for pair in self._inner.pairs]
        with captured_states(self._decoder, wanted) as inner:

            def loss_of(hidden: Tensor, head: Tensor) -> Tensor:
                states = hidden[:, :-1].flatten(0, 1)  # the last token has no next one
                loss_with = partial(
                    output.loss, states, head, labels, logit_scale=self._logit_scale
                )
                loss = loss_with(self._loss)
                if not inner:
                    return loss
                distance = self._distance(inner, output.inner)
                return loss + self._alpha(distance, loss, loss_with) * distance

            loss, outputs = self._run_with_loss(model, input_ids, loss_of)
        return (loss, outputs) if return_outputs else loss

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder.of(self._unwrapped)

    def _distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """The distance of the inner states: the sum over pairs."""
        pairs = list(zip(self._inner.pairs, ours, theirs, strict=True))
        distances = [
            attention_relation_loss(student, teacher, heads=self._inner.relation_heads)
            for pair, student, teacher in pairs
            if pair.compares_relations
        ]
        if plain := [
            (student, teacher) for pair, student, teacher in pairs if not pair.compares_relations
        ]:
            projection = getattr(self._unwrapped, _PROJECTION)
            distances.append(projection(*zip(*plain, strict=True)))
        return torch.stack(distances).sum()

    def _alpha(
        self, distance: Tensor, loss: Tensor, loss_with: Callable[[DistillLoss], Tensor]
    ) -> Tensor | float:
        """The weight of the distance; dynamic, it is the paper's L_logits / L_is, in which L_logits
        has no cross-entropy."""
        if self._inner.alpha is not None:
            return self._inner.alpha
        if self._loss.ce_weight:
            with torch.no_grad():
                loss = loss_with(replace(self._loss, ce_weight=0.0))
        return dynamic_weight(loss, distance)


def add_projection(model: PreTrainedModel, teachers_width: int, inner: InnerStates) -> None:
    """Add the learned map to the teacher's width to a student; it is trained and saved with it."""
    plain = sum(not pair.compares_relations for pair in inner.pairs)
    if not plain:
        return
    same_index = [(index, index) for index in range(plain)]
    width: int = model.config.hidden_size
    model.add_module(_PROJECTION, IntermediateLoss(width, teachers_width, same_index))


@contextmanager
def head_computes_loss(model: PreTrainedModel, loss_of: LossOf) -> Iterator[None]:
    """While the block runs, the model's output embedding returns `loss_of` instead of logits.

    It is called within the model's forward, where FSDP has gathered its weight.
    """
    head: Any = model.get_output_embeddings()
    head.forward = lambda hidden: loss_of(hidden, head.weight)
    try:
        with LogitScale.left_out(model.config):  # it would be applied to the loss
            yield
    finally:
        del head.forward
