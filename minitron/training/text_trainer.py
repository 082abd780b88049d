"""Text trainer: transformers' Trainer, with the cross-entropy that holds no logits.

While a batch runs, the model's output embedding gives the loss instead of the logits. So it is at
hand there however DDP, FSDP or DeepSpeed lay it out. Knows nothing of teachers.

    trainer = TextTrainer(model=model, args=arguments, train_dataset=dataset)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, Trainer

from minitron.training.cross_entropy import cross_entropy_loss

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


@contextmanager
def loss_in_head(model: PreTrainedModel, loss_of: LossOf) -> Iterator[None]:
    """While the block lasts, the model's output embedding gives `loss_of` instead of logits."""
    head: Any = model.get_output_embeddings()
    head.forward = lambda hidden: loss_of(hidden, head.weight)
    try:
        yield
    finally:
        del head.forward
