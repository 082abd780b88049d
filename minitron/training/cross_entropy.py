"""Cross-entropy with the text, computed without ever holding the logits.

The loss that `minitron train` trains on and by which students are measured, as torch's
cross_entropy gives it on whole logits; how it is computed is in `fused_loss`.

    cross_entropy_loss(hidden, model.lm_head.weight, labels)
"""

import torch
from torch import Tensor

from minitron.training.fused_loss import fused_loss


def cross_entropy_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    chunk_size: int | None = None,
    rows: int | None = None,
) -> Tensor:
    """The "mean" over tokens of -log softmax(hidden head^T)[label], or their "sum".

    Of the head the first `rows` are the vocabulary, all unless it is given: the others get no mass.
    Hidden states are [tokens, width], the head [vocabulary, width], labels [tokens] what each
    hidden state predicts; -100 drops a token. Under autocast products are in its dtype, sums in
    float32. Memory, precision and sharded heads are as for `distillation_loss`. Raises TargetError
    for labels outside the vocabulary.
    """
    assert reduction in ("mean", "sum")
    assert hidden.shape[:1] == labels.shape
    return fused_loss(
        hidden,
        head,
        _row_loss,
        labels=labels,
        rows=rows,
        is_mean=reduction == "mean",
        chunk_size=chunk_size,
        rounds_as_autocast=True,
    )


def cross_entropy_rows(logits: Tensor, labels: Tensor, *, gradient: Tensor) -> Tensor:
    """The loss of each row; what it gives the logits as gradient is written to `gradient`.

    That may be `logits` itself.
    """
    shifted = torch.sub(logits, logits.amax(1, keepdim=True), out=gradient)
    at_labels = shifted.gather(1, labels[:, None])
    total = shifted.exp_().sum(1, keepdim=True)
    shifted.mul_(1 / total)
    shifted.scatter_add_(1, labels[:, None], torch.full_like(at_labels, -1))
    return (total.log() - at_labels).squeeze(1)


def _row_loss(
    logits: Tensor, teacher: Tensor | None, labels: Tensor | None, needs_gradient: bool
) -> Tensor:
    assert labels is not None
    return cross_entropy_rows(logits, labels, gradient=logits)
