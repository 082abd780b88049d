"""The intermediate loss compares mapped states through one learned projection."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minitron.errors import TargetError
from minitron.training.intermediate_loss import IntermediateLoss, dynamic_weight

STUDENT, TEACHER = 10, 14


def states(layers: int, width: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, width, generator=generator) for _ in range(layers)]


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_intermediate_loss_is_the_sum_over_mapped_pairs(kind: str) -> None:
    student, teacher = states(3, STUDENT, 1), states(4, TEACHER, 2)
    loss = IntermediateLoss(STUDENT, TEACHER, [(0, 0), (1, 3)], kind=kind)
    expected = torch.zeros(())
    for ours, theirs in ((0, 0), (1, 3)):
        projected = student[ours] @ loss.projection.weight.T
        if kind == "mse":
            expected += F.mse_loss(projected, teacher[theirs])
        else:
            expected += 1 - F.cosine_similarity(projected, teacher[theirs], dim=-1).mean()
    torch.testing.assert_close(loss(student, teacher), expected)


def test_intermediate_loss_trains_student_and_projection_only() -> None:
    student = [state.requires_grad_() for state in states(2, STUDENT, 1)]
    teacher = [state.requires_grad_() for state in states(2, TEACHER, 2)]
    loss = IntermediateLoss(STUDENT, TEACHER, [(1, 1)])
    loss(student, teacher).backward()
    assert loss.projection.weight.grad is not None
    assert student[1].grad is not None
    assert student[0].grad is None
    assert all(state.grad is None for state in teacher)


def test_intermediate_loss_drops_labelled_tokens() -> None:
    student, teacher = states(1, STUDENT, 1), states(1, TEACHER, 2)
    loss = IntermediateLoss(STUDENT, TEACHER, [(0, 0)])
    labels = torch.zeros(2, 5, dtype=torch.long)
    labels[0, 3:], labels[1, :1] = -100, -100
    kept = labels != -100
    expected = loss([student[0][kept]], [teacher[0][kept]])
    torch.testing.assert_close(loss(student, teacher, labels), expected)
    assert loss(student, teacher, torch.full_like(labels, -100)) == 0


def test_intermediate_loss_is_exact_for_half_precision_states() -> None:
    student, teacher = states(1, STUDENT, 1), states(1, TEACHER, 2)
    loss = IntermediateLoss(STUDENT, TEACHER, [(0, 0)]).bfloat16()
    assert loss([student[0].bfloat16()], [teacher[0].bfloat16()]).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kind": "kl"}, "No intermediate loss is called 'kl'"), ({"layer_map": []}, "map is empty")],
)
def test_an_intermediate_loss_of_nothing_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        IntermediateLoss(STUDENT, TEACHER, **{"layer_map": [(0, 0)], **arguments})


def test_the_dynamic_weight_makes_both_losses_equal_and_is_a_constant() -> None:
    logit, inner = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    weight = dynamic_weight(logit, inner)
    assert weight == 6
    assert not weight.requires_grad
    assert dynamic_weight(logit, torch.zeros(())) == 0
