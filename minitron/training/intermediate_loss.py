"""The distance of a student's inner states from its teacher's, beside the loss of distillation.

Knows the learned map between two widths, the relations of attention, and how such a distance is
weighed. Does not know how states are taken from a model (`inner_states`), nor the logits' loss
(`distillation`).

    states = IntermediateLoss(512, 1024, [(0, 0), (14, 30)])
"""

from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitron.errors import TargetError
from minitron.training.fused_loss import IGNORED_LABEL


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
        """The sum over pairs of the mean over tokens; those labelled -100 are dropped.

        Raises TargetError for states of different tokens.
        """
        losses = [
            self._pair_loss(student_states[ours], teacher_states[theirs], labels)
            for ours, theirs in self.layer_map
        ]
        return torch.stack(losses).sum()

    def _pair_loss(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if student.shape[:-1] != teacher.shape[:-1]:
            raise TargetError(
                f"The student's inner states are of {list(student.shape[:-1])} tokens, its "
                f"teacher's of {list(teacher.shape[:-1])}: they must be of the same text"
            )
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


def attention_relation_loss(student: Tensor, teacher: Tensor, *, heads: int) -> Tensor:
    """How differently tokens relate to each other in two models' queries, or keys, or values.

    Both are [rows, seq_len, width] and are cut into `heads` parts of equal width. In each, a token
    relates to itself and those before it by softmax(x x^T / sqrt(part's width)); the loss is the KL
    divergence of the student's relations from the teacher's, the mean over rows, parts and tokens
    (MiniLMv2, arXiv 2012.15828, section 3.1, with the mask of a causal model). Needs no projection:
    the widths may differ. Holds [rows, heads, seq_len, seq_len] of both models.
    """
    with torch.autocast(student.device.type, enabled=False):
        target, guess = _relations(teacher.detach(), heads), _relations(student, heads)
        divergence: Tensor = F.kl_div(guess, target, log_target=True, reduction="none")
        return divergence.sum(-1).mean()


def _relations(states: Tensor, heads: int) -> Tensor:
    """The log-probabilities with which each token relates to each: (rows, heads, seq, seq)."""
    wide = torch.promote_types(states.dtype, torch.float32)
    rows, length, width = states.shape
    parts = states.to(wide).reshape(rows, length, heads, width // heads).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / sqrt(width // heads)
    is_future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    # Not -inf, whose difference from itself is no number.
    return scores.masked_fill(is_future, torch.finfo(wide).min / 2).log_softmax(-1)


def dynamic_weight(logit_loss: Tensor, intermediate_loss: Tensor) -> Tensor:
    """The paper's alpha, L_logits / L_is, a constant to autograd; 0 where L_is is 0."""
    weight = logit_loss.detach() / intermediate_loss.detach()
    return weight.where(intermediate_loss.detach() != 0, 0.0)
