"""The losses of rows of logits: cross-entropy with the text, and distances of two predictions.

`minitron train` minimizes cross-entropy, and students are evaluated by it; `fused_loss` computes it
chunk by chunk, so the logits are never held. The distances are the formulas of `distillation_loss`
and their gradients, written for buffers: each function overwrites its arguments, and the student's
logits become their gradient.

    cross_entropy_loss(hidden, model.lm_head.weight, labels)
    losses = DISTANCES["forward_kl"](student_logits, teacher_logits, 0.5, True)
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minitron.model.decoder import UNSCALED, LogitScale
from minitron.training.fused_loss import RowLoss, fused_loss


def cross_entropy_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    chunk_size: int | None = None,
    rows: int | None = None,
    logit_scale: LogitScale = UNSCALED,
) -> Tensor:
    """The "mean" over tokens of -log softmax(hidden head^T)[label], or their "sum".

    Hidden states are [tokens, width], the head [vocabulary, width], and labels [tokens] the token
    that each hidden state predicts; the label -100 drops a token. `logit_scale` makes logits of
    their products. The first `rows` of the head are
    the vocabulary (default: all); later rows get no probability. Under autocast products are in
    its dtype, sums in float32. Memory, precision and sharded heads: see `distillation_loss`. Raises
    TargetError for labels outside the vocabulary.
    """
    assert reduction in ("mean", "sum")
    assert hidden.shape[:1] == labels.shape
    return fused_loss(
        hidden,
        head,
        of_products(_row_loss, logit_scale),
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


def of_products(row_loss: RowLoss, ours: LogitScale, theirs: LogitScale = UNSCALED) -> RowLoss:
    """`row_loss` of the logits that two models make of products of states and head."""
    if ours == theirs == UNSCALED:
        return row_loss

    def loss(
        products: Tensor, teacher: Tensor | None, labels: Tensor | None, needs_gradient: bool
    ) -> Tensor:
        slope = ours.apply_(products)
        if teacher is not None:
            theirs.apply_(teacher)
        losses = row_loss(products, teacher, labels, needs_gradient)
        if needs_gradient:
            products.mul_(slope)
        return losses

    return loss


def _row_loss(
    logits: Tensor, teacher: Tensor | None, labels: Tensor | None, needs_gradient: bool
) -> Tensor:
    assert labels is not None
    return cross_entropy_rows(logits, labels, gradient=logits)


# (student, teacher, beta, needs_gradient) -> the loss of each row. Takes logits that are divided by
# the temperature and overwrites both: `student` becomes the gradient with respect to the student's.
Distance = Callable[[Tensor, Tensor, float, bool], Tensor]


def _forward_kl(student: Tensor, teacher: Tensor, beta: float, needs_gradient: bool) -> Tensor:
    log_ratio = _to_probabilities(student, teacher)
    losses = log_ratio.mul_(teacher).sum(1)
    if needs_gradient:
        student.sub_(teacher)
    return losses


def _reverse_kl(student: Tensor, teacher: Tensor, beta: float, needs_gradient: bool) -> Tensor:
    log_ratio = _to_probabilities(student, teacher).neg_()
    losses = torch.mul(student, log_ratio, out=teacher).sum(1)
    if needs_gradient:
        student.mul_(log_ratio.sub_(losses[:, None]))
    return losses


def _jsd(student: Tensor, teacher: Tensor, beta: float, needs_gradient: bool) -> Tensor:
    odds = _to_probabilities(student, teacher).add_(math.log(beta / (1 - beta)))
    # log(p / m) = logsigmoid(odds) - log(beta), log(q / m) = logsigmoid(-odds) - log(1 - beta),
    # which differ by odds: computing one from the other would lose digits where odds are large.
    tail = odds.abs().neg_().exp_().log1p_()
    teacher_ratio = odds.clamp_max(0).sub_(tail).sub_(math.log(beta))
    teacher_losses = teacher_ratio.mul_(teacher).sum(1)
    student_ratio = odds.clamp_min_(0).add_(tail).neg_()
    student_losses = torch.sub(student_ratio, math.log1p(-beta), out=teacher).mul_(student).sum(1)
    if needs_gradient:
        # The gradient leaves out the constant log(1 - beta): where q is far from p, student_ratio
        # is tiny, and the sum with the constant would lose it.
        mean = torch.mul(student, student_ratio, out=teacher).sum(1, keepdim=True)
        student.mul_(student_ratio.sub_(mean)).mul_(1 - beta)
    return beta * teacher_losses + (1 - beta) * student_losses


def _to_probabilities(student: Tensor, teacher: Tensor) -> Tensor:
    """Turn rows of logits into probabilities q and p, in place; returns log(p / q).

    The ratio is computed from the difference of the logits: a difference of two logarithms would
    lose its last digits. Each exponential is computed once.
    """
    student.sub_(student.amax(1, keepdim=True))
    teacher.sub_(teacher.amax(1, keepdim=True))
    difference = teacher - student
    # torch.softmax adds up a row of 256,000 with an error of 1e-5, torch.sum with one of 1e-7.
    student_sum = student.exp_().sum(1, keepdim=True)
    teacher_sum = teacher.exp_().sum(1, keepdim=True)
    student.mul_(1 / student_sum)
    teacher.mul_(1 / teacher_sum)
    return difference.add_((student_sum / teacher_sum).log_())


def _mse(student: Tensor, teacher: Tensor, beta: float, needs_gradient: bool) -> Tensor:
    student.sub_(teacher)
    losses = torch.mul(student, student, out=teacher).mean(1)
    student.mul_(2 / student.shape[1])
    return losses


def _cosine(student: Tensor, teacher: Tensor, beta: float, needs_gradient: bool) -> Tensor:
    smallest = 1e-8  # as in torch's cosine_similarity: a row of zeros has no direction
    student_norm = torch.linalg.vector_norm(student, dim=1, keepdim=True).clamp_min(smallest)
    teacher.div_(torch.linalg.vector_norm(teacher, dim=1, keepdim=True).clamp_min(smallest))
    student.div_(student_norm)
    similarity = (student * teacher).sum(1, keepdim=True)
    if needs_gradient:
        student.mul_(similarity).sub_(teacher).div_(student_norm)
    return 1 - similarity.squeeze(1)


DISTANCES: dict[str, Distance] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "mse": _mse,
    "cosine": _cosine,
}
WITHOUT_TEMPERATURE = ("mse", "cosine")
