"""The intermediate loss compares mapped states through one learned projection."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minitron.errors import TargetError
from minitron.training.inner_states import (
    IntermediateLoss,
    attention_relation_loss,
    dynamic_weight,
)

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


def test_states_of_other_tokens_are_refused_rather_than_repeated() -> None:
    loss = IntermediateLoss(STUDENT, TEACHER, [(0, 0)])
    with pytest.raises(TargetError, match=r"are of \[2, 5\] tokens, its teacher's of \[1, 5\]"):
        loss(states(1, STUDENT, 1), [states(1, TEACHER, 2)[0][:1]])


def test_attention_relations_are_those_of_each_token_with_itself_and_the_ones_before() -> None:
    student, teacher = states(1, 6, 1)[0], states(1, 10, 2)[0]

    def relation(state: Tensor, row: int, head: int, token: int) -> Tensor:
        width = state.shape[-1] // 2
        part = state[row, :, head * width : (head + 1) * width]
        return torch.softmax(part[: token + 1] @ part[token] / width**0.5, 0)

    kl = []
    for row, head, token in product(range(2), range(2), range(5)):
        p, q = (relation(state, row, head, token) for state in (teacher, student))
        kl.append((p * (p / q).log()).sum())
    expected = torch.stack(kl).mean()
    torch.testing.assert_close(attention_relation_loss(student, teacher, heads=2), expected)


def test_attention_relations_train_the_student_only_and_stay_finite_when_extreme() -> None:
    student, teacher = states(1, 6, 1)[0] * 1e3, states(1, 10, 2)[0].requires_grad_()
    student = student.bfloat16().requires_grad_()
    loss = attention_relation_loss(student, teacher * 1e3, heads=2)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.any()
    assert teacher.grad is None


def test_the_dynamic_weight_makes_both_losses_equal_and_is_a_constant() -> None:
    logit, inner = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    weight = dynamic_weight(logit, inner)
    assert weight == 6
    assert not weight.requires_grad
    assert dynamic_weight(logit, torch.zeros(())) == 0
