"""Cross-entropy with the text, computed without ever holding the logits.

`minitron train` minimizes it, and students are evaluated by it. The values are those of torch's
cross_entropy on all logits; `fused_loss` computes them chunk by chunk.

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

    Hidden states are [tokens, width], the head [vocabulary, width], and labels [tokens] the token
    that each hidden state predicts; the label -100 drops a token. The first `rows` of the head are
    the vocabulary (default: all); later rows get no probability. Under autocast products are in
    its dtype, sums in float32. Memory, precision and sharded heads: see `distillation_loss`. Raises
    TargetError for labels outside the vocabulary.
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
    """The loss of each row; writes its gradient to `gradient`, which may be `logits` itself."""
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
