"""The losses of distillation, computed without ever holding the logits.

With a vocabulary of 256,000, the logits of teacher and student are what fills the memory.
`distillation_loss` takes the hidden states and the output embeddings instead: it makes the logits
of a few tokens, turns them in place into their gradient, multiplies that out and goes on. Memory
does not grow with the number of tokens, and the result is the one of the naive loss. Knows nothing
of models, layers or training.

    hidden = student.model(ids).last_hidden_state[:, :-1].flatten(0, 1)
    loss = distillation_loss(hidden, student.lm_head.weight, teacher_hidden, teacher_head)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minitron.errors import TargetError

IGNORED_LABEL = -100  # as in torch's cross_entropy

# Logits of one model at once. On a CPU 128 tokens of a 256,000-token vocabulary: fewer make the
# products slower, since every chunk reads both heads and the head's gradient from memory again.
_CPU_LOGITS, _GPU_LOGITS = 1 << 25, 1 << 27
# Logits of one model that a thread works on at once. A single thread's fit its core's own cache;
# several meet after each operation, where a busy machine makes them wait: so they meet less often.
_ALONE_BYTES, _TOGETHER_BYTES = 1 << 20, 1 << 23
_TILE_ELEMENTS = 1 << 23  # of a head in half precision, widened for a product
_HALVES = (torch.bfloat16, torch.float16)

# (student, teacher, beta, needs_gradient) -> the loss of each row. Takes logits divided by the
# temperature, destroys both, and leaves the gradient with respect to the student's in `student`.
_Distance = Callable[[Tensor, Tensor, float, bool], Tensor]


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
) -> Tensor:
    """How far the student's next-token distributions are from the teacher's, with gradients.

    Hidden states are [tokens, width], heads [vocabulary, width]; the widths of the two models may
    differ. With t and s the logits, p = softmax(t / temperature), q = softmax(s / temperature), one
    token's distance by `kind` is

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
    backward scales them. The teacher gets none. Products, softmax and sums are in float32 (float64
    if an input is) whatever the inputs are; on a GPU half-precision products accumulate in float32.
    A head that is a DTensor, as FSDP2 leaves it outside its module's forward, is gathered for the
    call, and its gradient is averaged over the ranks and sharded again, as FSDP does.

    Beyond the gradients it holds the logits of `chunk_size` tokens twice: by default 134 MB a model
    on a CPU (128 tokens of a vocabulary of 256,000), 537 MB on a GPU. On a CPU half as many cost a
    sixth more time, a quarter half more, an eighth more than twice the time.

    Raises TargetError for options, shapes and labels that do not fit.
    """
    distance = _check_options(kind, temperature, ce_weight, beta, reduction, labels)
    student_head, teacher_head = _whole(student_head), _whole(teacher_head.detach())
    tensors = (student_hidden, student_head, teacher_hidden.detach(), teacher_head)
    _check_shapes(*tensors, labels, ce_weight, chunk_size)
    kept = None if labels is None else (labels != IGNORED_LABEL).nonzero().squeeze(1)
    tokens = student_hidden.shape[0] if kept is None else kept.shape[0]
    with_gradient = torch.is_grad_enabled()
    job = _Job(
        teacher_hidden=_as_autocast(tensors[2]),
        teacher_head=_as_autocast(tensors[3]),
        kept=kept,
        tokens=tokens,
        labels=labels if ce_weight else None,
        ce_weight=ce_weight,
        distance=distance,
        beta=beta,
        temperature=temperature,
        scale=1.0 / max(tokens, 1) if reduction == "mean" else 1.0,
        chunk_size=chunk_size or _default_chunk(student_head),
        inside=reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32),
        needs_hidden_gradient=with_gradient and student_hidden.requires_grad,
        needs_head_gradient=with_gradient and student_head.requires_grad,
    )
    loss: Tensor = _FusedLoss.apply(student_hidden, student_head, job)  # type: ignore[no-untyped-call]
    return loss


class IntermediateLoss(nn.Module):
    """The distance of the student's inner states from the teacher's (arXiv 2407.14679, section 3).

    One learned linear map, shared by all states, brings the student's width to the teacher's: train
    its parameters with the student's. `layer_map` pairs positions in the two lists of states given
    to `forward`, (student's, teacher's); the paper counts layers and found the third last with the
    third last best. It takes states after their layer norm: outputs of the embedding, inputs or
    outputs of the MLPs. `kind` is "cosine" (1 - cosine similarity, the paper's best) or "mse" (mean
    over the width).

        states = IntermediateLoss(512, 1024, [(0, 0), (14, 30)])
        inner = states(student_states, teacher_states, labels)
        loss = logit_loss + dynamic_weight(logit_loss, inner) * inner
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        layer_map: Sequence[tuple[int, int]],
        *,
        kind: str = "cosine",
    ) -> None:
        super().__init__()
        if kind not in ("cosine", "mse"):
            raise TargetError(f"No intermediate loss is called {kind!r}: choose cosine or mse")
        if not layer_map:
            raise TargetError("The layer map is empty: give pairs of (student's, teacher's) layer")
        self.projection = nn.Linear(student_width, teacher_width, bias=False)
        self.layer_map = tuple(layer_map)
        self.kind = kind

    def forward(
        self,
        student_states: Sequence[Tensor],
        teacher_states: Sequence[Tensor],
        labels: Tensor | None = None,
    ) -> Tensor:
        """The sum over pairs of the mean over tokens; those labelled -100 are dropped."""
        losses = [
            self._pair_loss(student_states[ours], teacher_states[theirs], labels)
            for ours, theirs in self.layer_map
        ]
        return torch.stack(losses).sum()

    def _pair_loss(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if labels is not None:
            is_kept = labels != IGNORED_LABEL
            student, teacher = student[is_kept], teacher[is_kept]
        projected: Tensor = self.projection(student)
        wide = torch.promote_types(projected.dtype, torch.float32)
        projected, teacher = projected.to(wide), teacher.detach().to(wide)
        if self.kind == "mse":
            distances = (projected - teacher).square().mean(-1)
        else:
            distances = 1 - F.cosine_similarity(projected, teacher, dim=-1)
        return distances.sum() / max(distances.numel(), 1)


def dynamic_weight(logit_loss: Tensor, intermediate_loss: Tensor) -> Tensor:
    """The paper's alpha, L_logits / L_is, a constant to autograd; 0 where L_is is 0."""
    weight = logit_loss.detach() / intermediate_loss.detach()
    return weight.where(intermediate_loss.detach() != 0, 0.0)


@dataclass(frozen=True)
class _Job:
    """One call: what it needs beside the student's hidden states and head."""

    teacher_hidden: Tensor
    teacher_head: Tensor
    kept: Tensor | None  # positions of the tokens that count; None for all
    tokens: int  # that count
    labels: Tensor | None  # None without cross-entropy
    ce_weight: float
    distance: _Distance
    beta: float
    temperature: float
    scale: float  # of the sum over tokens
    chunk_size: int
    inside: torch.dtype
    needs_hidden_gradient: bool
    needs_head_gradient: bool

    def rows(self, start: int, stop: int) -> slice | Tensor:
        """Positions of the kept tokens [start, stop)."""
        return slice(start, stop) if self.kept is None else self.kept[start:stop]


class _FusedLoss(torch.autograd.Function):
    """Gradients are made in forward, unscaled and in the inner dtype; backward scales them."""

    @staticmethod
    def forward(ctx: Any, student_hidden: Tensor, student_head: Tensor, job: _Job) -> Tensor:
        hidden, head = _as_autocast(student_hidden), _as_autocast(student_head)
        with torch.autocast(student_hidden.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(hidden, head, job)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = student_hidden.dtype, student_head.dtype
        ctx.scale = job.scale * job.temperature
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale = loss_gradient * ctx.scale
        gradients = (
            None if gradient is None else _scaled(gradient, scale, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None)


def _loss_and_gradients(
    student_hidden: Tensor, student_head: Tensor, job: _Job
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The scaled loss, and both gradients of the sum over tokens divided by the temperature."""
    empty = partial(torch.empty, dtype=job.inside, device=student_hidden.device)
    zeros = partial(torch.zeros, dtype=job.inside, device=student_hidden.device)
    buffer = min(job.chunk_size, job.tokens), student_head.shape[0]
    student_logits, teacher_logits = empty(buffer), empty(buffer)
    losses = empty(job.tokens)
    hidden_gradient = zeros(student_hidden.shape) if job.needs_hidden_gradient else None
    # The first chunk overwrites the head's gradient.
    first = empty if job.tokens else zeros
    head_gradient = first(student_head.shape) if job.needs_head_gradient else None
    for start in range(0, job.tokens, job.chunk_size):
        stop = min(start + job.chunk_size, job.tokens)
        rows = job.rows(start, stop)
        student, teacher = student_logits[: stop - start], teacher_logits[: stop - start]
        hidden = student_hidden[rows]
        _write_logits(student, hidden, student_head)
        _write_logits(teacher, job.teacher_hidden[rows], job.teacher_head)
        labels = None if job.labels is None else job.labels[rows]
        losses[start:stop] = _write_logit_gradients(student, teacher, labels, job)
        if hidden_gradient is not None:
            hidden_gradient[rows] = _hidden_gradient(student, student_head)
        if head_gradient is not None:
            _add_head_gradient(head_gradient, student, hidden, beta=int(start > 0))
    return losses.sum() * job.scale, hidden_gradient, head_gradient


def _write_logit_gradients(
    student: Tensor, teacher: Tensor, labels: Tensor | None, job: _Job
) -> Tensor:
    """Each token's loss; `student` becomes the gradient with respect to its logits / temperature.

    On a CPU a few rows at a time, so that what is read a dozen times stays in the cache; torch
    splits operations on several rows over its threads by row.
    """
    step = student.shape[0]
    if student.device.type == "cpu":
        threads = torch.get_num_threads()
        nbytes = _ALONE_BYTES if threads == 1 else _TOGETHER_BYTES
        step = threads * max(1, nbytes // (student.shape[1] * student.itemsize))
    losses = [
        _write_rows(
            student[start : start + step],
            teacher[start : start + step],
            None if labels is None else labels[start : start + step],
            job,
        )
        for start in range(0, student.shape[0], step)
    ]
    return torch.cat(losses)


def _write_rows(student: Tensor, teacher: Tensor, labels: Tensor | None, job: _Job) -> Tensor:
    needs_gradient = job.needs_hidden_gradient or job.needs_head_gradient
    hard = None if labels is None else _cross_entropy(student, labels)
    if job.temperature != 1:
        student.div_(job.temperature)
        teacher.div_(job.temperature)
    losses = job.distance(student, teacher, job.beta, needs_gradient) * job.temperature**2
    if hard is None:
        return losses
    hard_losses, hard_gradient = hard
    if needs_gradient:
        student.add_(hard_gradient, alpha=job.ce_weight / job.temperature)
    return losses + job.ce_weight * hard_losses


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each row, and its gradient with respect to the logits."""
    shifted = logits - logits.amax(1, keepdim=True)
    at_labels = shifted.gather(1, labels[:, None])
    total = shifted.exp_().sum(1, keepdim=True)
    gradient = shifted.mul_(1 / total)
    gradient.scatter_add_(1, labels[:, None], torch.full_like(at_labels, -1))
    return (total.log() - at_labels).squeeze(1), gradient


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
    log_ratio = _to_probabilities(student, teacher)
    # log(q / m) = -log(1 - beta) + student_ratio, log(p / m) the same + log(p / q). The constant is
    # added last: where q is far from p, student_ratio is tiny and makes the gradient.
    student_ratio = F.logsigmoid(-(log_ratio + math.log(beta / (1 - beta))))
    teacher_losses = log_ratio.add_(student_ratio).mul_(teacher).sum(1)
    student_losses = torch.mul(student, student_ratio, out=teacher).sum(1)
    if needs_gradient:
        student.mul_(student_ratio.sub_(student_losses[:, None])).mul_(1 - beta)
    return beta * teacher_losses + (1 - beta) * student_losses - math.log1p(-beta)


def _to_probabilities(student: Tensor, teacher: Tensor) -> Tensor:
    """Turn rows of logits into probabilities q and p, in place; returns log(p / q).

    The ratio comes from the logits' difference: that of two logarithms would have lost its last
    digits. Each exponential is taken once.
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


_DISTANCES: dict[str, _Distance] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "mse": _mse,
    "cosine": _cosine,
}
_WITHOUT_TEMPERATURE = ("mse", "cosine")


def _write_logits(logits: Tensor, hidden: Tensor, head: Tensor) -> None:
    for columns, tile in _tiles(head, logits.dtype):
        _add_product(logits[:, columns], hidden, tile.t(), beta=0)


def _hidden_gradient(logit_gradient: Tensor, head: Tensor) -> Tensor:
    tokens, vocabulary = logit_gradient.shape
    # A single row is a vector to BLAS, which adds up the vocabulary one by one, and drifts.
    logit_gradient = logit_gradient.expand(max(tokens, 2), vocabulary)
    gradient = logit_gradient.new_zeros(logit_gradient.shape[0], head.shape[1])
    for columns, tile in _tiles(head, logit_gradient.dtype):
        _add_product(gradient, logit_gradient[:, columns], tile)
    return gradient[:tokens]


def _add_head_gradient(
    gradient: Tensor, logit_gradient: Tensor, hidden: Tensor, beta: float
) -> None:
    for rows, tile in _tiles(gradient, hidden.dtype):
        _add_product(tile, logit_gradient[:, rows].t(), hidden, beta)


def _tiles(head: Tensor, dtype: torch.dtype) -> list[tuple[slice, Tensor]]:
    """Rows of a head, all at once unless a product with `dtype` makes a copy of them."""
    step = head.shape[0] if head.dtype == dtype else max(1, _TILE_ELEMENTS // head.shape[1])
    starts = range(0, head.shape[0], step)
    return [(slice(start, start + step), head[start : start + step]) for start in starts]


def _add_product(total: Tensor, left: Tensor, right: Tensor, beta: float = 1) -> None:
    """total = beta * total + left @ right, in total's dtype."""
    halves = {left.dtype, right.dtype}.intersection(_HALVES)
    if total.is_cuda and total.dtype == torch.float32 and len(halves) == 1:
        half = halves.pop()
        left, right = left.to(half), right.to(half)
        torch.addmm(total, left, right, beta=beta, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, left.to(total.dtype), right.to(total.dtype), beta=beta, out=total)


def _scaled(gradient: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient in its tensor's dtype; in place where nobody needs the unscaled one again."""
    if gradient.dtype != dtype:
        return torch.mul(gradient, by, out=torch.empty_like(gradient, dtype=dtype))
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return gradient * by
    return gradient.mul_(by)


def _default_chunk(head: Tensor) -> int:
    """Tokens whose logits fill the buffers, in sixteens, which the products like."""
    logits = _CPU_LOGITS if head.device.type == "cpu" else _GPU_LOGITS
    return max(16, logits // max(head.shape[0], 1) // 16 * 16)


def _as_autocast(operand: Tensor) -> Tensor:
    """What autocast would make of a linear layer's operand on a GPU."""
    device = operand.device.type
    # A CPU gains nothing: what is narrowed would be widened again for the product.
    if device == "cpu" or operand.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return operand
    return operand.to(torch.get_autocast_dtype(device))


def _whole(head: Tensor) -> Tensor:
    """A head sharded over ranks, gathered; its gradient is averaged and sharded again."""
    if not hasattr(head, "full_tensor"):
        return head
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(head, DTensor)
    return head.full_tensor(grad_placements=[Partial("avg")] * head.device_mesh.ndim)


def _check_options(
    kind: str,
    temperature: float,
    ce_weight: float,
    beta: float,
    reduction: str,
    labels: Tensor | None,
) -> _Distance:
    if kind not in _DISTANCES:
        raise TargetError(
            f"No distillation loss is called {kind!r}: choose {', '.join(_DISTANCES)}"
        )
    if not (0 < temperature < math.inf):
        raise TargetError(f"The temperature is {temperature}: it must be above 0 and finite")
    if temperature != 1 and kind in _WITHOUT_TEMPERATURE:
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
    return _DISTANCES[kind]


def _check_shapes(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor | None,
    ce_weight: float,
    chunk_size: int | None,
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
    if student_head.shape[0] != teacher_head.shape[0]:
        raise TargetError(
            f"The student's vocabulary has {student_head.shape[0]} tokens, the teacher's "
            f"{teacher_head.shape[0]}: they must be the same"
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
    if labels is not None and ce_weight:
        kept = labels[labels != IGNORED_LABEL]
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < student_head.shape[0]:
            raise TargetError(
                f"Labels run from {int(kept.min())} to {int(kept.max())}, the vocabulary has "
                f"{student_head.shape[0]} tokens: give token ids, and -100 where none counts"
            )
