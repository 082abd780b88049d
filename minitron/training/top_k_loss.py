"""Forward KL against a teacher of whom only the likeliest tokens are known.

What lies beyond the k likeliest is one event, with the sum of its probabilities. Logits are made a
few tokens at a time and made again in the backward pass, so memory does not grow with the tokens.

    top_k_loss(hidden, head, ids, log_probabilities, labels, ce_weight=0.0)
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOGITS = 1 << 25  # at once


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
