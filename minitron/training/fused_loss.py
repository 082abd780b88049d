"""A loss of logits that are never all in memory at once, with its gradients.

Computes the logits of one chunk of tokens from hidden states and output embedding, calls a
`RowLoss`, which overwrites them with their gradient, multiplies that back to hidden states and
output embedding, and reuses the buffer for the next chunk: memory does not grow with the number of
tokens. Knows chunks, products and autograd; does not know which loss it computes.

    loss = fused_loss(hidden, head, row_loss, labels=labels)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from minitron.errors import TargetError

IGNORED_LABEL = -100  # as in torch's cross_entropy

# Logits of one model in a chunk. On a CPU that is 128 tokens of a 256,000-token vocabulary. Smaller
# chunks are slower: each one reads both heads and the head's gradient from memory again.
_CPU_LOGITS, _GPU_LOGITS = 1 << 25, 1 << 27
# Bytes of one model's logits per call of the row loss and thread, on a CPU. Rows of a single thread
# fit into the cache of its core. Several threads wait for each other after every operation, which
# takes long on a busy machine, so their calls are larger and fewer.
_ONE_THREAD_BYTES, _SHARED_BYTES = 1 << 20, 1 << 23
_TILE_ELEMENTS = 1 << 23  # of a half-precision head that are copied to float32 for one product
_HALF_DTYPES = (torch.bfloat16, torch.float16)

# (logits, the teacher's logits, labels, needs_gradient) -> the loss of each row. Overwrites both
# logits; the first then hold the gradient with respect to them, divided by `gradient_scale`.
RowLoss = Callable[[Tensor, Tensor | None, Tensor | None, bool], Tensor]


def fused_loss(
    hidden: Tensor,
    head: Tensor,
    row_loss: RowLoss,
    *,
    labels: Tensor | None = None,
    gives_labels: bool = True,
    teacher: tuple[Tensor, Tensor] | None = None,
    rows: int | None = None,
    is_mean: bool = True,
    gradient_scale: float = 1.0,
    chunk_size: int | None = None,
    rounds_as_autocast: bool = False,
) -> Tensor:
    """The loss of hidden states [tokens, width] under a head [vocabulary, width].

    Tokens with the label -100 in `labels` [tokens] are dropped. `row_loss` receives the labels of
    the others if `gives_labels`. `teacher` holds the hidden states and the head of another model,
    which get no gradient. The first `rows` of both heads are the vocabulary (default: all); later
    rows pad the head, take part in no product and get a gradient of 0. Returns the mean over the
    tokens that are kept (0 without any), or their sum.

    Under autocast on a GPU, products are in its dtype and accumulate in float32. On a CPU that
    happens only with `rounds_as_autocast`, which rounds the logits too and is several times faster
    on processors with that dtype. Raises TargetError for labels that are no token ids.
    """
    head = _gather_dtensor(head)
    rows = head.shape[0] if rows is None else rows
    if labels is not None:
        _check_labels(labels, rows)
    if teacher is not None:
        teacher = teacher[0].detach(), _gather_dtensor(teacher[1].detach())[:rows]
    kept = None if labels is None else (labels != IGNORED_LABEL).nonzero().squeeze(1)
    tokens = hidden.shape[0] if kept is None else kept.shape[0]
    with_gradient = torch.is_grad_enabled()
    is_cpu = hidden.device.type == "cpu"
    job = _Job(
        row_loss=row_loss,
        teacher=None
        if teacher is None
        else (_cast_for_autocast(teacher[0]), _cast_for_autocast(teacher[1])),
        kept=kept,
        tokens=tokens,
        labels=labels if gives_labels else None,
        scale=1.0 / max(tokens, 1) if is_mean else 1.0,
        gradient_scale=gradient_scale,
        vocabulary=rows,
        chunk_size=chunk_size or _default_chunk(head[:rows]),
        inner_dtype=_inner_dtype(hidden, head, *(teacher or ())),
        rounds=rounds_as_autocast and is_cpu and torch.is_autocast_enabled("cpu"),
        needs_hidden_gradient=with_gradient and hidden.requires_grad,
        needs_head_gradient=with_gradient and head.requires_grad,
    )
    loss: Tensor = _FusedLoss.apply(hidden, head, job)  # type: ignore[no-untyped-call]
    return loss


@dataclass(frozen=True)
class _Job:
    """The arguments of one call, without hidden states and head."""

    row_loss: RowLoss
    teacher: tuple[Tensor, Tensor] | None
    kept: Tensor | None  # positions of the tokens that are not dropped; None for all
    tokens: int  # that are not dropped
    labels: Tensor | None
    scale: float  # factor of the sum over tokens
    gradient_scale: float
    vocabulary: int  # first rows of the head that are used
    chunk_size: int
    inner_dtype: torch.dtype  # of logits, gradients and sums
    rounds: bool  # whether products are rounded to half precision
    needs_hidden_gradient: bool
    needs_head_gradient: bool

    def rows(self, start: int, stop: int) -> slice | Tensor:
        """Positions of the kept tokens [start, stop)."""
        return slice(start, stop) if self.kept is None else self.kept[start:stop]


class _FusedLoss(torch.autograd.Function):
    """Forward computes the gradients, unscaled and in the inner dtype; backward scales them.

    Waiting for backward would mean to keep the logits, or to compute them again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, job: _Job) -> Tensor:
        cast = partial(_cast_for_autocast, on_cpu=job.rounds)
        operands = cast(hidden), cast(head)
        # The operands have autocast's dtype; autocast itself would also round sums and losses.
        with torch.autocast(hidden.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(*operands, job)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, head.dtype
        ctx.scale = job.scale * job.gradient_scale
        return loss

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable accepts create_graph and silently omits the second derivative.
        if torch.is_grad_enabled():
            raise TargetError(
                "create_graph is True: this loss has no second derivative, leave it False"
            )
        scale = loss_gradient * ctx.scale
        gradients = (
            None if gradient is None else _scale(gradient, scale, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None)


def _loss_and_gradients(
    hidden: Tensor, head: Tensor, job: _Job
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The scaled loss, and both gradients of the sum over tokens divided by `gradient_scale`."""
    shape, head = head.shape, head[: job.vocabulary]  # a view without the padding
    empty = partial(torch.empty, dtype=job.inner_dtype, device=hidden.device)
    zeros = partial(torch.zeros, dtype=job.inner_dtype, device=hidden.device)
    buffer = min(job.chunk_size, job.tokens), head.shape[0]
    all_logits = empty(buffer)
    all_teacher_logits = None if job.teacher is None else empty(buffer)
    losses = empty(job.tokens)
    hidden_gradient = zeros(hidden.shape) if job.needs_hidden_gradient else None
    # The first chunk overwrites the head's gradient, so it need not be zero before.
    new = empty if job.tokens else zeros
    head_gradient = new(shape) if job.needs_head_gradient else None
    if head_gradient is not None:
        head_gradient[job.vocabulary :].zero_()
    for start in range(0, job.tokens, job.chunk_size):
        stop = min(start + job.chunk_size, job.tokens)
        rows = job.rows(start, stop)
        logits, states = all_logits[: stop - start], hidden[rows]
        _write_logits(logits, states, head, rounds=job.rounds)
        teacher_logits = None
        if job.teacher is not None and all_teacher_logits is not None:
            teacher_logits = all_teacher_logits[: stop - start]
            _write_logits(teacher_logits, job.teacher[0][rows], job.teacher[1], rounds=False)
        labels = None if job.labels is None else job.labels[rows]
        losses[start:stop] = _write_logit_gradients(logits, teacher_logits, labels, job)
        if hidden_gradient is not None:
            hidden_gradient[rows] = _hidden_gradient(logits, head, rounds=job.rounds)
        if head_gradient is not None:
            written = head_gradient[: job.vocabulary]
            _add_head_gradient(written, logits, states, int(start > 0), rounds=job.rounds)
    return losses.sum() * job.scale, hidden_gradient, head_gradient


def _write_logit_gradients(
    logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None, job: _Job
) -> Tensor:
    """The loss of each token; overwrites `logits` with their gradient / `gradient_scale`.

    A row loss reads its rows a dozen times, so a CPU takes a few rows a call, which stay in the
    cache. torch splits an operation on several rows over its threads by row.
    """
    step = logits.shape[0]
    if logits.device.type == "cpu":
        threads = torch.get_num_threads()
        nbytes = _ONE_THREAD_BYTES if threads == 1 else _SHARED_BYTES
        step = threads * max(1, nbytes // (logits.shape[1] * logits.itemsize))
    needs_gradient = job.needs_hidden_gradient or job.needs_head_gradient
    losses = [
        job.row_loss(
            logits[start : start + step],
            None if teacher_logits is None else teacher_logits[start : start + step],
            None if labels is None else labels[start : start + step],
            needs_gradient,
        )
        for start in range(0, logits.shape[0], step)
    ]
    return torch.cat(losses)


def _write_logits(logits: Tensor, hidden: Tensor, head: Tensor, *, rounds: bool) -> None:
    for columns, tile in _tiles(head, logits.dtype):
        _add_product(logits[:, columns], hidden, tile.t(), 0, rounds=rounds)


def _hidden_gradient(logit_gradient: Tensor, head: Tensor, *, rounds: bool) -> Tensor:
    tokens, vocabulary = logit_gradient.shape
    # For a single row BLAS computes a matrix-vector product, which adds the vocabulary one by one
    # and loses digits: two equal rows make it a matrix product.
    logit_gradient = logit_gradient.expand(max(tokens, 2), vocabulary)
    gradient = logit_gradient.new_zeros(logit_gradient.shape[0], head.shape[1])
    for columns, tile in _tiles(head, logit_gradient.dtype):
        _add_product(gradient, logit_gradient[:, columns], tile, rounds=rounds)
    return gradient[:tokens]


def _add_head_gradient(
    gradient: Tensor, logit_gradient: Tensor, hidden: Tensor, beta: float, *, rounds: bool
) -> None:
    for rows, tile in _tiles(gradient, hidden.dtype):
        _add_product(tile, logit_gradient[:, rows].t(), hidden, beta, rounds=rounds)


def _tiles(head: Tensor, dtype: torch.dtype) -> list[tuple[slice, Tensor]]:
    """Slices of a head's rows; one slice unless a product with `dtype` needs a copy of the rows."""
    step = head.shape[0] if head.dtype == dtype else max(1, _TILE_ELEMENTS // head.shape[1])
    starts = range(0, head.shape[0], step)
    return [(slice(start, start + step), head[start : start + step]) for start in starts]


def _add_product(
    total: Tensor, left: Tensor, right: Tensor, beta: float = 1, *, rounds: bool
) -> None:
    """total = beta * total + left @ right, in total's dtype; half-precision product if `rounds`."""
    halves = {left.dtype, right.dtype}.intersection(_HALF_DTYPES)
    if rounds and halves:
        half = halves.pop()
        product = left.to(half) @ right.to(half)
        total.add_(product) if beta else total.copy_(product)
    elif total.is_cuda and total.dtype == torch.float32 and len(halves) == 1:
        half = halves.pop()
        left, right = left.to(half), right.to(half)
        torch.addmm(total, left, right, beta=beta, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, left.to(total.dtype), right.to(total.dtype), beta=beta, out=total)


def _scale(gradient: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times `by` in the tensor's dtype; in place unless the graph is retained."""
    if gradient.dtype != dtype:
        return torch.mul(gradient, by, out=torch.empty_like(gradient, dtype=dtype))
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return gradient * by
    return gradient.mul_(by)


def _inner_dtype(*tensors: Tensor) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def _default_chunk(head: Tensor) -> int:
    """Tokens in a chunk: a multiple of 16, for which matrix products are fastest."""
    logits = _CPU_LOGITS if head.device.type == "cpu" else _GPU_LOGITS
    return max(16, logits // max(head.shape[0], 1) // 16 * 16)


def _cast_for_autocast(operand: Tensor, *, on_cpu: bool = False) -> Tensor:
    """The operand in the dtype in which autocast runs linear layers: on a GPU, or if `on_cpu`."""
    device = operand.device.type
    # Without rounded products a CPU gains nothing: it would copy the operand back to float32.
    if operand.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return operand
    return (
        operand if device == "cpu" and not on_cpu else operand.to(torch.get_autocast_dtype(device))
    )


def _gather_dtensor(head: Tensor) -> Tensor:
    """Gather a head that FSDP2 sharded; backward averages its gradient and shards it, as FSDP."""
    if not hasattr(head, "full_tensor"):
        return head
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(head, DTensor)
    return head.full_tensor(grad_placements=[Partial("avg")] * head.device_mesh.ndim)


def _check_labels(labels: Tensor, vocabulary: int) -> None:
    if labels.dtype not in (torch.int64, torch.int32):
        raise TargetError(f"Labels are {labels.dtype}: give token ids as torch.int64")
    kept = labels[labels != IGNORED_LABEL]
    if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < vocabulary:
        raise TargetError(
            f"Labels run from {int(kept.min())} to {int(kept.max())}, the vocabulary has "
            f"{vocabulary} tokens: give token ids, and -100 for tokens to drop"
        )
