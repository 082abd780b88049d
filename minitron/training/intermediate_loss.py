"""The distance of a student's inner states from its teacher's, beside the loss of distillation.

Knows the learned map between two widths and how such a distance is weighed. Does not know how
states are taken from a model (`teacher`), nor the logits' loss (`distillation`).

    states = IntermediateLoss(512, 1024, [(0, 0), (14, 30)])
"""

from collections.abc import Sequence

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
