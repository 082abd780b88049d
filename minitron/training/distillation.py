"""The losses of distillation, computed without ever holding the logits.

With a vocabulary of 256,000 the logits of teacher and student fill the memory. Both losses take
hidden states and output embeddings instead and make the logits of a few tokens at a time, so memory
does not grow with the number of tokens. `distillation_loss` is exact (`fused_loss` computes it,
`logit_distances` has the formulas); `top_k_loss` needs only the teacher's k likeliest tokens.

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
from minitron.training.cross_entropy import cross_entropy_rows
from minitron.training.fused_loss import fused_loss
from minitron.training.logit_distances import (
    DISTANCES,
    WITHOUT_TEMPERATURE,
    Distance,
)

_LOGITS = 1 << 25  # at once


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
) -> Tensor:
    """How far the student's next-token distributions are from the teacher's, with gradients.

    Hidden states are [tokens, width], heads [vocabulary, width]; the widths of the two models may
    differ. Heads that are padded to different numbers of rows need `rows`, how many of the first
    are the vocabulary of both: both distributions are over those alone, and the rows after them get
    no gradient. With t and s the logits, p = softmax(t / temperature), q = softmax(s /
    temperature), one token's distance by `kind` is

    - `forward_kl`: sum p log(p / q), the Minitron papers' choice;
    - `reverse_kl`: sum q log(q / p);
    - `jsd`: beta sum p log(p / m) + (1 - beta) sum q log(q / m) with m = beta p + (1 - beta) q, the
      generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649), 0 < beta < 1;
    - `mse`: the mean over the vocabulary of (t - s)^2;
    - `cosine`: 1 - t.s / (|t| |s|).

    The first three are multiplied by temperature^2, so that gradients keep their size as the
    temperature grows (Hinton et al., arXiv 1503.02531); the last two refuse a temperature.

    A token's loss is distance + ce_weight * cross-entropy(s, label), the latter at temperature 1
    (the Minitron paper's L_CLM + L_logits is `ce_weight=1`). `labels` [tokens] are aligned with the
    hidden states already: labels[i] is the token that hidden state i predicts. Tokens labelled -100
    are dropped, also without `ce_weight`. `reduction` is the "mean" over kept tokens, 0 if there
    are none, or their "sum".

    Forward computes the gradients of the student's hidden states and head, if they are wanted;
    backward scales them, and has no derivative itself. The teacher gets none. Products, softmax and
    sums are in float32 (float64 if an input is) whatever the inputs are; on a GPU half-precision
    products accumulate in float32. A head that is a DTensor, as FSDP2 leaves it outside its
    module's forward, is gathered for the call, and its gradient is averaged over the ranks and
    sharded again, as FSDP does.

    Beyond the gradients it holds the logits of `chunk_size` tokens twice: by default 134 MB a model
    on a CPU (128 tokens of a vocabulary of 256,000), 537 MB on a GPU. On a CPU half as many cost a
    sixth more time, a quarter half more, an eighth more than twice the time.

    Raises TargetError for options, shapes, devices and labels that do not fit.
    """
    distance = _check_options(kind, temperature, ce_weight, beta, reduction, labels)
    tensors = (student_hidden, student_head, teacher_hidden, teacher_head)
    _check_shapes(*tensors, labels, chunk_size, rows)
    _check_devices(*tensors, labels)
    return fused_loss(
        student_hidden,
        student_head,
        _RowLoss(distance, temperature, beta, ce_weight),
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
    """The loss of a few rows of logits, as `fused_loss` takes it."""

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
            f"beta is {beta}: jsd needs it between 0 and 1; for the ends of the scale take "
            "forward_kl and reverse_kl"
        )
    if not (0 <= ce_weight < math.inf):
        raise TargetError(f"ce_weight is {ce_weight}: it must be 0 or above, and finite")
    if ce_weight and labels is None:
        raise TargetError(f"ce_weight is {ce_weight} but there are no labels: give labels")
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
            "be the same, or rows say how many both have"
        )
    if rows is not None and not 0 < rows <= min(sizes):
        raise TargetError(f"rows is {rows}: it must be from 1 to {min(sizes)}, which both have")
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
) -> Tensor:
    """The mean over tokens of KL(teacher || student) + ce_weight * cross-entropy(labels).

    `student_hidden` [tokens, width], `student_head` [vocabulary, width], `ids` [tokens, k] and the
    teacher's `log_probabilities` [tokens, k + 1], whose last is that of all other tokens together.
    Of the head the first `rows` are the vocabulary, all unless it is given: the others get no mass,
    and ids beyond count as if the teacher gave them none.
    """
    student_head = student_head[:rows]
    vocabulary = student_head.shape[0]
    ids = ids.clamp(max=vocabulary)  # where `_summed` puts tokens that the student does not have
    at_once = max(1, _LOGITS // vocabulary)
    parts = (student_hidden, ids, log_probabilities, labels)
    pieces = zip(*(part.split(at_once) for part in parts), strict=True)
    sums = [
        checkpoint(_summed, hidden, student_head, i, p, wanted, ce_weight, use_reentrant=False)
        for hidden, i, p, wanted in pieces
    ]
    return torch.stack(sums).sum() / student_hidden.shape[0]


def beyond(logits: Tensor, ids: Tensor) -> Tensor:
    """The log of the summed exponentials of all logits [tokens, vocabulary] but those at `ids`."""
    return logits.scatter(1, ids, -torch.inf).logsumexp(1)


def _summed(
    hidden: Tensor, head: Tensor, ids: Tensor, teacher: Tensor, labels: Tensor, ce_weight: float
) -> Tensor:
    logits = (hidden @ head.T).float()  # (tokens, vocabulary)
    teacher, is_ours = teacher.float(), ids < head.shape[0]
    if not is_ours.all():  # a token more, which neither gives anything
        logits = F.pad(logits, (0, 1), value=-torch.inf)
        teacher = teacher.masked_fill(F.pad(~is_ours, (0, 1)), -torch.inf)
    whole = logits.logsumexp(1, keepdim=True)
    known, rest = logits.gather(1, ids), beyond(logits, ids).unsqueeze(1)
    student = torch.cat([known, rest], 1) - whole  # (tokens, k + 1)
    teacher = teacher.log_softmax(1)  # to sum to one again after rounding
    ratio = (teacher - student).masked_fill(teacher.isneginf(), 0)
    divergence = (teacher.exp() * ratio).sum()
    if not ce_weight:
        return divergence
    return divergence + ce_weight * F.cross_entropy(logits, labels, reduction="sum")
