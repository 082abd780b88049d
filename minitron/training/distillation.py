"""The losses of distillation, computed without ever holding the logits.

With a vocabulary of 256,000 the logits of teacher and student fill the memory. Both losses take
hidden states and output embeddings instead and make the logits of a few tokens at a time, so memory
does not grow with the number of tokens. `distillation_loss` is exact (`fused_loss` computes it,
`logit_losses` has the formulas); `top_k_loss` needs only the teacher's k likeliest tokens.

    hidden = student.model(ids).last_hidden_state[:, :-1].flatten(0, 1)
    loss = distillation_loss(hidden, student.lm_head.weight, teacher_hidden, teacher_head)
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minitron.errors import TargetError
from minitron.model.decoder import UNSCALED, LogitScale
from minitron.training.fused_loss import fused_loss
from minitron.training.logit_losses import (
    DISTANCES,
    WITHOUT_TEMPERATURE,
    Distance,
    cross_entropy_rows,
    of_products,
)

_CHUNK_LOGITS = 1 << 25  # that `top_k_loss` computes at once


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    labels: Tensor | None = None,
    ce_weight: float = 0.0,
    beta: float = 0.5,
    reduction: str = "mean",
    chunk_size: int | None = None,
    rows: int | None = None,
    logit_scale: LogitScale = UNSCALED,
    teacher_logit_scale: LogitScale = UNSCALED,
) -> Tensor:
    """The distance of the student's next-token distributions from the teacher's, differentiable.

    Hidden states are [tokens, width], heads [vocabulary, width]; the widths of the two models may
    differ. Heads that are padded to different numbers of rows need `rows`: so many first rows are
    the vocabulary of both. Both distributions are over these rows, and later rows get no gradient.
    Logits are the products of hidden states and heads, which the two scales may divide and cap.
    With logits t of the teacher and s of the student, p = softmax(t / temperature) and
    q = softmax(s / temperature), the distance of one token by `kind` is

    - `forward_kl`: sum p log(p / q), the Minitron papers' choice;
    - `reverse_kl`: sum q log(q / p);
    - `jsd`: beta sum p log(p / m) + (1 - beta) sum q log(q / m) with m = beta p + (1 - beta) q, the
      generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649), 0 < beta < 1;
    - `mse`: the mean over the vocabulary of (t - s)^2;
    - `cosine`: 1 - t.s / (|t| |s|).

    The first three are multiplied by temperature^2, so that gradients keep their size as the
    temperature grows (Hinton et al., arXiv 1503.02531); the last two have no temperature.

    The loss of a token is distance + ce_weight * cross-entropy(s, label), the latter at temperature
    1 (the Minitron paper's L_CLM + L_logits is `ce_weight=1`). `labels` [tokens] are aligned with
    the hidden states: labels[i] is the token that hidden state i predicts. Tokens with the label
    -100 are dropped, also without `ce_weight`. `reduction` is the "mean" over the other tokens (0
    if there are none) or their "sum".

    Forward computes the gradients of the student's hidden states and head if they require them;
    backward scales them and has no derivative itself. The teacher gets no gradient. Products,
    softmax and sums are in float32 (float64 if an input is) for inputs of any dtype; on a GPU
    half-precision products accumulate in float32. A head that is a DTensor, as FSDP2 leaves it
    outside its module's forward, is gathered for the call; its gradient is averaged over the ranks
    and sharded again, as FSDP does.

    Memory beyond the gradients: the logits of `chunk_size` tokens of both models, by default 134 MB
    a model on a CPU (128 tokens of a vocabulary of 256,000), 537 MB on a GPU. On a CPU, chunks of
    half the size take a sixth more time, of a quarter half more, of an eighth more than twice.

    Raises TargetError for options, shapes, devices and labels that do not fit.
    """
    distance = _check_options(kind, temperature, ce_weight, beta, reduction, labels)
    tensors = (student_hidden, student_head, teacher_hidden, teacher_head)
    _check_shapes(*tensors, labels, chunk_size, rows)
    _check_devices(*tensors, labels)
    return fused_loss(
        student_hidden,
        student_head,
        of_products(
            _RowLoss(distance, temperature, beta, ce_weight), logit_scale, teacher_logit_scale
        ),
        labels=labels,
        gives_labels=ce_weight > 0,
        teacher=(teacher_hidden, teacher_head),
        rows=rows,
        is_mean=reduction == "mean",
        gradient_scale=temperature,
        chunk_size=chunk_size,
    )


@dataclass(frozen=True)
class _RowLoss:
    """`distillation_loss` of a few rows of logits: a `RowLoss` of `fused_loss`."""

    distance: Distance
    temperature: float
    beta: float
    ce_weight: float

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        needs_gradient: bool,
    ) -> Tensor:
        assert teacher is not None
        hard_losses, hard_gradient = None, None
        if labels is not None:
            hard_gradient = student.new_empty(student.shape)
            hard_losses = cross_entropy_rows(student, labels, gradient=hard_gradient)
        if self.temperature != 1:
            student.div_(self.temperature)
            teacher.div_(self.temperature)
        losses = self.distance(student, teacher, self.beta, needs_gradient) * self.temperature**2
        if hard_losses is None or hard_gradient is None:
            return losses
        if needs_gradient:
            student.add_(hard_gradient, alpha=self.ce_weight / self.temperature)
        return losses + self.ce_weight * hard_losses


def _check_options(
    kind: str,
    temperature: float,
    ce_weight: float,
    beta: float,
    reduction: str,
    labels: Tensor | None,
) -> Distance:
    if kind not in DISTANCES:
        raise TargetError(f"No distillation loss is called {kind!r}: choose {', '.join(DISTANCES)}")
    if not (0 < temperature < math.inf):
        raise TargetError(f"The temperature is {temperature}: it must be above 0 and finite")
    if temperature != 1 and kind in WITHOUT_TEMPERATURE:
        raise TargetError(f"{kind} has no temperature, {temperature} was given: leave it at 1")
    if kind == "jsd" and not 0 < beta < 1:
        raise TargetError(
            f"beta is {beta}: jsd needs it between 0 and 1; at 0 and 1 it would be "
            "forward_kl and reverse_kl: choose these"
        )
    if not (0 <= ce_weight < math.inf):
        raise TargetError(f"ce_weight is {ce_weight}: it must be 0 or above, and finite")
    if ce_weight and labels is None:
        raise TargetError(f"ce_weight is {ce_weight} without labels: give labels")
    if reduction not in ("mean", "sum"):
        raise TargetError(f"No reduction is called {reduction!r}: choose mean or sum")
    return DISTANCES[kind]


def _check_shapes(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor | None,
    chunk_size: int | None,
    rows: int | None,
) -> None:
    for owner, hidden, head in (
        ("student", student_hidden, student_head),
        ("teacher", teacher_hidden, teacher_head),
    ):
        if hidden.dim() != 2 or head.dim() != 2 or hidden.shape[1] != head.shape[1]:
            raise TargetError(
                f"The {owner}'s hidden states are {list(hidden.shape)} and its head "
                f"{list(head.shape)}: they must be [tokens, width] and [vocabulary, width]"
            )
    sizes = student_head.shape[0], teacher_head.shape[0]
    if rows is None and sizes[0] != sizes[1]:
        raise TargetError(
            f"The student's vocabulary has {sizes[0]} tokens, the teacher's {sizes[1]}: they must "
            "be equal; for padded heads, rows is the number of rows that both use"
        )
    if rows is not None and not 0 < rows <= min(sizes):
        raise TargetError(
            f"rows is {rows}: it must be from 1 to {min(sizes)}, the smaller head's rows"
        )
    counts = [student_hidden.shape[0], teacher_hidden.shape[0]]
    if labels is not None:
        counts.append(labels.shape[0] if labels.dim() == 1 else -1)
    if len(set(counts)) > 1:
        raise TargetError(
            f"Tokens differ: {counts[0]} hidden states of the student, {counts[1]} of the teacher"
            + (f", labels {list(labels.shape)}" if labels is not None else "")
        )
    if chunk_size is not None and chunk_size < 1:
        raise TargetError(f"chunk_size is {chunk_size}: it must be 1 or more tokens")


def _check_devices(*tensors: Tensor | None) -> None:
    devices = [str(tensor.device) for tensor in tensors if tensor is not None]
    if len(set(devices)) > 1:
        raise TargetError(
            f"Hidden states, heads and labels are on {', '.join(devices)}: they must be on one "
            "device"
        )


def top_k_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    ids: Tensor,
    log_probabilities: Tensor,
    labels: Tensor,
    *,
    ce_weight: float = 0.0,
    rows: int | None = None,
    logit_scale: LogitScale = UNSCALED,
) -> Tensor:
    """The mean over tokens of KL(teacher || student) + ce_weight * cross-entropy(labels).

    `student_hidden` is [tokens, width], `student_head` [vocabulary, width], `ids` [tokens, k] the
    teacher's likeliest tokens, and `log_probabilities` [tokens, k + 1] theirs and, last, that of
    all other tokens together: the loss treats those as one event. The first `rows` of the head are
    the vocabulary (default: all); later rows and ids get no probability. Logits are computed a few
    tokens at a time, and again in backward.
    """
    student_head = student_head[:rows]
    vocabulary = student_head.shape[0]
    # `_top_k_sum` adds one column for all tokens that the student does not have.
    ids = ids.clamp(max=vocabulary)
    chunk_size = max(1, _CHUNK_LOGITS // vocabulary)
    tensors = (student_hidden, ids, log_probabilities, labels)
    chunks = zip(*(tensor.split(chunk_size) for tensor in tensors), strict=True)
    fixed = ce_weight, logit_scale
    sums = [
        checkpoint(_top_k_sum, hidden, student_head, i, p, label, *fixed, use_reentrant=False)
        for hidden, i, p, label in chunks
    ]
    return torch.stack(sums).sum() / student_hidden.shape[0]


def rest_log_mass(logits: Tensor, ids: Tensor) -> Tensor:
    """The log of the summed exponentials of all logits [tokens, vocabulary] but those at `ids`."""
    return logits.scatter(1, ids, -torch.inf).logsumexp(1)


def _top_k_sum(
    hidden: Tensor,
    head: Tensor,
    ids: Tensor,
    teacher: Tensor,
    labels: Tensor,
    ce_weight: float,
    logit_scale: LogitScale,
) -> Tensor:
    logits = logit_scale((hidden @ head.T).float())  # (tokens, vocabulary)
    teacher, is_ours = teacher.float(), ids < head.shape[0]
    if not is_ours.all():  # one more token, to which neither model gives any probability
        logits = F.pad(logits, (0, 1), value=-torch.inf)
        teacher = teacher.masked_fill(F.pad(~is_ours, (0, 1)), -torch.inf)
    total = logits.logsumexp(1, keepdim=True)
    known, rest = logits.gather(1, ids), rest_log_mass(logits, ids).unsqueeze(1)
    student = torch.cat([known, rest], 1) - total  # (tokens, k + 1)
    teacher = teacher.log_softmax(1)  # rounded to float16, they no longer sum to 1
    ratio = (teacher - student).masked_fill(teacher.isneginf(), 0)
    divergence = (teacher.exp() * ratio).sum()
    if not ce_weight:
        return divergence
    return divergence + ce_weight * F.cross_entropy(logits, labels, reduction="sum")
