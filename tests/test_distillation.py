"""The fused loss is the naive one, its gradients too, by every kind and way of calling."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minitron.errors import TargetError
from minitron.training import fused_loss
from minitron.training.distillation import distillation_loss
from tests.processes import RANKS, together

TOKENS, VOCABULARY, STUDENT, TEACHER = 23, 101, 10, 14
KINDS = ["forward_kl", "reverse_kl", "jsd", "mse", "cosine"]
WITH_TEMPERATURE = ["forward_kl", "reverse_kl", "jsd"]
NAMES = ("student_hidden", "student_head", "teacher_hidden", "teacher_head")


def inputs(
    dtype: torch.dtype = torch.float32, *, tokens: int = TOKENS, vocabulary: int = VOCABULARY
) -> list[Tensor]:
    """Both models' hidden states and heads; logits have a spread of about 3."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(tokens, STUDENT), (vocabulary, STUDENT), (tokens, TEACHER), (vocabulary, TEACHER)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def some_labels() -> Tensor:
    """Labels of the tokens, three of them dropped."""
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(8))
    labels[[0, 9, TOKENS - 1]] = -100
    return labels


def naive(
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
) -> Tensor:
    """The same from both models' whole logits, by torch's own losses where it has them."""
    student, teacher = student_hidden @ student_head.T, teacher_hidden @ teacher_head.T
    log_q = F.log_softmax(student / temperature, 1)
    log_p = F.log_softmax(teacher / temperature, 1)
    p, q = log_p.exp(), log_q.exp()
    m = beta * p + (1 - beta) * q
    distances = {
        "forward_kl": F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1),
        "reverse_kl": F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1),
        "jsd": beta * (p * (p / m).log()).sum(1) + (1 - beta) * (q * (q / m).log()).sum(1),
        "mse": F.mse_loss(student, teacher, reduction="none").mean(1),
        "cosine": 1 - F.cosine_similarity(student, teacher, dim=1),
    }
    losses = distances[kind] * temperature**2
    if labels is not None:
        hard = F.cross_entropy(student, labels, ignore_index=-100, reduction="none")
        losses = (losses + ce_weight * hard)[labels != -100]
    return losses.sum() if reduction == "sum" else losses.sum() / max(len(losses), 1)


def evaluated(loss: Callable[..., Tensor], tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """The loss and the gradients of the student's two tensors."""
    value = loss(*tensors, **options)
    return [value.detach(), *torch.autograd.grad(value, tensors[:2])]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Each element differs by at most this part of its tensor's largest."""
    for our, their in zip(ours, theirs, strict=True):
        scale = their.abs().max().item()
        torch.testing.assert_close(our, their, rtol=0, atol=tolerance * scale)


OPTIONS: list[dict[str, Any]] = [
    *({"kind": kind} for kind in KINDS),
    *({"kind": kind, "labels": some_labels(), "ce_weight": 0.3} for kind in KINDS),
    *({"kind": kind, "temperature": 2.5} for kind in WITH_TEMPERATURE),
    {"temperature": 0.5, "labels": some_labels(), "ce_weight": 1.0},
    {"labels": some_labels()},
    {"kind": "jsd", "beta": 0.1, "temperature": 3.0},
    {"reduction": "sum", "labels": some_labels(), "ce_weight": 0.7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients_are_those_of_the_naive_loss(options: dict[str, Any]) -> None:
    expected = evaluated(naive, inputs(torch.float64), **options)
    ours = evaluated(distillation_loss, inputs(torch.float64), chunk_size=4, **options)
    assert_close(ours, expected, 1e-13)
    ours = evaluated(distillation_loss, inputs(), chunk_size=4, **options)
    assert_close(ours, [tensor.float() for tensor in expected], 3e-6)


@pytest.mark.parametrize(
    ("students", "teachers"), [(VOCABULARY + 6, VOCABULARY), (VOCABULARY, 131)]
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_rows_of_a_head_get_no_mass_and_no_gradient(
    options: dict[str, Any], students: int, teachers: int
) -> None:
    tensors = inputs(torch.float64)
    expected = evaluated(naive, tensors, **options)
    likely = torch.full((30, TEACHER), 9.0, dtype=torch.float64)
    for place, rows in ((1, students), (3, teachers)):
        padding = likely[: rows - VOCABULARY, : tensors[place].shape[1]]
        tensors[place] = torch.cat([tensors[place].detach(), padding]).requires_grad_()
    ours = evaluated(distillation_loss, tensors, chunk_size=4, rows=VOCABULARY, **options)
    assert not ours[2][VOCABULARY:].any()
    assert_close([*ours[:2], ours[2][:VOCABULARY]], expected, 1e-13)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    student_hidden, student_head, *teacher = inputs(torch.float64, tokens=5, vocabulary=11)
    options = {**options, "labels": torch.tensor([3, -100, 10, 0, 3])}

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return distillation_loss(hidden, head, *teacher, chunk_size=2, **options)

    assert torch.autograd.gradcheck(loss, (student_hidden, student_head))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_elements_are_right_one_by_one(kind: str) -> None:
    expected = evaluated(naive, inputs(torch.float64, vocabulary=5003), kind=kind)
    ours = evaluated(distillation_loss, inputs(vocabulary=5003), kind=kind)
    plain = evaluated(naive, inputs(vocabulary=5003), kind=kind)
    for our, their, torchs in zip(ours, expected, plain, strict=True):
        # Elements that cancel to nearly nothing keep the error of what cancelled, and a product
        # over the vocabulary has the error of this processor's products.
        error = (torchs.double() - their).abs().max().item()
        floor = max(1e-6 * their.abs().max().item(), 1.25 * error)
        torch.testing.assert_close(our.double(), their, rtol=1e-5, atol=floor)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("chunk_size", [1, 5, TOKENS, 1000, None])
def test_chunks_and_threads_change_nothing(
    chunk_size: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in ("_ONE_THREAD_BYTES", "_SHARED_BYTES"):  # two rows
        monkeypatch.setattr(f"minitron.training.fused_loss.{block}", 2 * VOCABULARY * 4)
    options = {"labels": some_labels(), "ce_weight": 0.5}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = evaluated(distillation_loss, inputs(), chunk_size=chunk_size, **options)
    finally:
        torch.set_num_threads(before)
    expected = evaluated(naive, inputs(torch.float64), **options)
    assert_close(ours, [tensor.float() for tensor in expected], 3e-6)


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_sums_over_a_large_vocabulary_do_not_drift(chunk_size: int) -> None:
    options = {"labels": some_labels(), "ce_weight": 0.5}
    ours = evaluated(
        distillation_loss, inputs(vocabulary=300_007), chunk_size=chunk_size, **options
    )
    expected = evaluated(naive, inputs(torch.float64, vocabulary=300_007), **options)
    plain = evaluated(naive, inputs(vocabulary=300_007), **options)
    for our, their, torchs in zip(ours, expected, plain, strict=True):
        # A product over the vocabulary has the error of this processor's products.
        error = (torchs.double() - their).abs().max().item()
        floor = max(3e-6 * their.abs().max().item(), 1.25 * error)
        torch.testing.assert_close(our.double(), their.double(), rtol=0, atol=floor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_only_at_the_end(kind: str, dtype: torch.dtype) -> None:
    tensors = inputs(dtype)
    expected = evaluated(naive, [t.detach().double().requires_grad_() for t in tensors], kind=kind)
    loss, *gradients = evaluated(distillation_loss, tensors, kind=kind, chunk_size=2)
    assert loss.dtype == torch.float32
    assert_close([loss], [expected[0].float()], 3e-6)
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]
    for ours, exact in zip(gradients, expected[1:], strict=True):
        # float16 has its own limit below: 2^-24
        torch.testing.assert_close(
            ours.double(),
            exact,
            rtol=torch.finfo(dtype).eps,
            atol=2**-24 + 1e-6 * exact.abs().max(),
        )


def test_a_half_precision_head_is_widened_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minitron.training.fused_loss._TILE_ELEMENTS", 17 * TEACHER)
    tensors = inputs(torch.bfloat16)
    expected = evaluated(naive, [t.detach().double().requires_grad_() for t in tensors])
    ours = evaluated(distillation_loss, tensors)
    assert_close(ours[:1], [expected[0].float()], 3e-6)
    assert_close(ours[1:], [tensor.bfloat16() for tensor in expected[1:]], 4e-3)


def test_each_tensor_may_have_its_own_dtype() -> None:
    wide = inputs(torch.float64)
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.float16]
    tensors = [
        tensor.detach().to(dtype).requires_grad_()
        for tensor, dtype in zip(wide, dtypes, strict=True)
    ]
    expected = evaluated(naive, [t.detach().double().requires_grad_() for t in tensors])
    ours = evaluated(distillation_loss, tensors)
    assert_close(ours, [tensor.float() for tensor in expected], 3e-6)


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_only_the_gradient_that_is_wanted_is_made(trained: tuple[bool, bool]) -> None:
    expected = evaluated(naive, inputs(torch.float64))[1:]
    tensors = inputs(torch.float64)
    for tensor, is_trained in zip(tensors, trained, strict=False):
        tensor.requires_grad_(is_trained)
    distillation_loss(*tensors).backward()
    for tensor, gradient, is_trained in zip(tensors, expected, trained, strict=False):
        if is_trained:
            torch.testing.assert_close(tensor.grad, gradient)
        else:
            assert tensor.grad is None


def test_the_teacher_never_gets_a_gradient() -> None:
    tensors = inputs()
    distillation_loss(*tensors).backward()
    assert tensors[0].grad is not None
    assert tensors[2].grad is None
    assert tensors[3].grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_without_grad_the_value_is_the_same_and_nothing_is_multiplied_back(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = distillation_loss(*inputs(), kind=kind).detach()
    for product in ("_hidden_gradient", "_add_head_gradient"):
        monkeypatch.delattr(f"minitron.training.fused_loss.{product}")
    with torch.no_grad():
        loss = distillation_loss(*inputs(), kind=kind)
    assert not loss.requires_grad
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("tokens", [TOKENS, 0])
def test_no_kept_token_is_a_loss_of_zero_with_zero_gradients(tokens: int) -> None:
    tensors = inputs()
    tensors = [t if "head" in name else t[:tokens] for name, t in zip(NAMES, tensors, strict=True)]
    labels = torch.full((tokens,), -100)
    loss, *gradients = evaluated(distillation_loss, tensors, labels=labels, ce_weight=1.0)
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients)


def test_what_is_not_finite_in_a_dropped_token_does_no_harm() -> None:
    tensors = [tensor.detach() for tensor in inputs()]
    expected = evaluated(
        distillation_loss, [t.requires_grad_() for t in tensors], labels=some_labels()
    )
    tensors = [tensor.detach().clone() for tensor in tensors]
    tensors[0][9], tensors[2][9] = math.nan, math.inf
    ours = evaluated(distillation_loss, [t.requires_grad_() for t in tensors], labels=some_labels())
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_gradients_accumulate_over_calls_weighted_as_the_caller_weighs_them() -> None:
    expected = evaluated(naive, inputs(torch.float64))[1:]
    tensors = inputs(torch.float64)
    for weight in (0.25, 0.75, 1.0):
        (weight * distillation_loss(*tensors)).backward()
    for tensor, gradient in zip(tensors, expected, strict=False):
        torch.testing.assert_close(tensor.grad, 2 * gradient)


def test_a_retained_graph_gives_the_same_gradients_again() -> None:
    tensors = inputs(torch.float64)
    loss = 0.5 * distillation_loss(*tensors)
    first = torch.autograd.grad(loss, tensors[:2], retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward()
    for tensor, gradient, copy in zip(tensors, first, kept, strict=False):
        assert torch.equal(gradient, copy)
        torch.testing.assert_close(tensor.grad, 3 * gradient)


def test_the_head_s_gradient_is_handed_over_without_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def scaled(gradient: Tensor, *arguments: Any) -> Tensor:
        made.append(gradient.data_ptr())
        return original(gradient, *arguments)

    original = fused_loss._scale
    monkeypatch.setattr(fused_loss, "_scale", scaled)
    tensors = inputs()
    (0.5 * distillation_loss(*tensors)).backward()
    assert [tensor.grad.data_ptr() for tensor in tensors[:2]] == made


def test_a_second_derivative_is_refused_rather_than_left_out() -> None:
    tensors = inputs(torch.float64)
    with pytest.raises(TargetError, match="no second derivative"):
        torch.autograd.grad(distillation_loss(*tensors), tensors[:2], create_graph=True)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_it_works_inside_gradient_checkpointing(use_reentrant: bool) -> None:
    expected = evaluated(naive, inputs(torch.float64))
    tensors = inputs(torch.float64)
    loss = checkpoint(distillation_loss, *tensors, use_reentrant=use_reentrant)
    loss.backward()
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(tensors[0].grad, expected[1])
    torch.testing.assert_close(tensors[1].grad, expected[2])


def test_autocast_around_it_changes_nothing_on_a_cpu() -> None:
    expected = evaluated(distillation_loss, inputs(), labels=some_labels(), ce_weight=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(*(tensors := inputs()), labels=some_labels(), ce_weight=0.5)
    gradients = torch.autograd.grad(loss, tensors[:2])
    assert all(torch.equal(a, b) for a, b in zip([loss, *gradients], expected, strict=True))


def test_the_teacher_may_come_from_inference_mode() -> None:
    expected = evaluated(distillation_loss, inputs())
    student, teacher = inputs()[:2], [tensor.detach() for tensor in inputs()[2:]]
    with torch.inference_mode():
        teacher = [tensor.clone() for tensor in teacher]
    ours = evaluated(distillation_loss, [*student, *teacher])
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def distill_sharded(rank: int) -> None:
    """One process of several: head and teacher's head sharded, each its own tokens."""
    import torch.distributed as distributed
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (RANKS,))
    _, head, _, teacher_head = (tensor.detach() for tensor in inputs(torch.float64))
    hidden, teacher_hidden = (
        torch.randn(RANKS, TOKENS, width, generator=torch.Generator().manual_seed(width)).double()
        for width in (STUDENT, TEACHER)
    )
    whole = head.clone().requires_grad_()
    for other in range(RANKS):
        loss = distillation_loss(hidden[other], whole, teacher_hidden[other], teacher_head)
        (loss / RANKS).backward()

    sharded = distribute_tensor(head, mesh, [Shard(0)]).requires_grad_()
    sharded_teacher = distribute_tensor(teacher_head, mesh, [Shard(0)])
    distillation_loss(hidden[rank], sharded, teacher_hidden[rank], sharded_teacher).backward()
    assert sharded.grad.placements == (Shard(0),)
    torch.testing.assert_close(sharded.grad.full_tensor(), whole.grad)

    model = nn.Linear(STUDENT, VOCABULARY, bias=False).double()
    model.weight.data.copy_(head)
    fully_shard(model, mesh=mesh)
    weight = model.weight
    for _ in range(2):
        distillation_loss(hidden[rank], weight, teacher_hidden[rank], teacher_head).backward()
    torch.testing.assert_close(weight.grad.full_tensor(), 2 * whole.grad)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_head_gets_its_shard_of_the_mean_over_ranks() -> None:
    together(distill_sharded)


def test_a_head_tied_to_the_embedding_sums_both_gradients() -> None:
    def run(loss: Callable[..., Tensor]) -> Tensor:
        _, head, *teacher = inputs(torch.float64)
        hidden = F.embedding(some_labels().clamp_min(0), head).tanh()
        return torch.autograd.grad(loss(hidden, head, *teacher), head)[0]

    torch.testing.assert_close(run(distillation_loss), run(naive))


def test_inputs_need_not_be_contiguous() -> None:
    expected = evaluated(naive, inputs(torch.float64))
    spread = [torch.empty(2 * t.shape[0], 3 * t.shape[1], dtype=t.dtype) for t in inputs()]
    tensors = [
        wide.double()[::2, ::3].copy_(tensor.detach()).requires_grad_()
        for wide, tensor in zip(spread, inputs(torch.float64), strict=True)
    ]
    assert not any(tensor.is_contiguous() for tensor in tensors)
    assert_close(evaluated(distillation_loss, tensors), expected, 1e-13)
    turned = [t.detach().T.contiguous().T.requires_grad_() for t in inputs(torch.float64)]
    assert_close(evaluated(distillation_loss, turned), expected, 1e-13)


@pytest.mark.parametrize("kind", WITH_TEMPERATURE)
def test_distributions_of_one_token_only_stay_finite(kind: str) -> None:
    tensors = [(200 * tensor.detach()).requires_grad_() for tensor in inputs()]
    loss, *gradients = evaluated(distillation_loss, tensors, kind=kind)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [1, 5])
def test_jsd_is_as_exact_near_its_bounds(spread: float, beta: float) -> None:
    tensors = [spread * tensor.detach() for tensor in inputs()]
    expected = naive(*(tensor.double() for tensor in tensors), kind="jsd", beta=beta)
    ours = distillation_loss(*tensors, kind="jsd", beta=beta)
    torch.testing.assert_close(ours.double(), expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_no_loss(kind: str) -> None:
    hidden, head = inputs(torch.float64)[:2]
    loss, *gradients = evaluated(distillation_loss, [hidden, head, hidden, head], kind=kind)
    assert abs(loss) < 1e-14
    assert all(gradient.abs().max() < 1e-14 for gradient in gradients)


def test_a_large_temperature_is_half_the_mean_square_of_centred_logits() -> None:
    tensors = inputs(torch.float64)
    student, teacher = tensors[0] @ tensors[1].T, tensors[2] @ tensors[3].T
    difference = (student - student.mean(1, keepdim=True)) - (
        teacher - teacher.mean(1, keepdim=True)
    )
    expected = difference.square().mean() / 2  # Hinton et al., section 2.1
    loss = distillation_loss(*tensors, temperature=1e4)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)


def test_memory_beyond_the_gradients_does_not_grow_with_the_tokens() -> None:
    script = """
import resource, torch
from minitron.training.distillation import distillation_loss
torch.set_num_threads(1)
heads = torch.randn(20_011, 8, requires_grad=True), torch.randn(20_011, 12)
def peak(tokens):
    hidden = torch.randn(tokens, 8, requires_grad=True), torch.randn(tokens, 12)
    distillation_loss(hidden[0], heads[0], hidden[1], heads[1], chunk_size=64).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak(256)
print(peak(512), peak(4096))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    few, many = map(int, ran.stdout.split())
    # All logits of 3,584 more tokens would be 570 MB.
    assert many - few < 20_000


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "kl"}, "No distillation loss is called 'kl': choose forward_kl, reverse_kl"),
    ({"temperature": 0.0}, "The temperature is 0.0"),
    ({"temperature": math.nan}, "The temperature is nan"),
    ({"kind": "mse", "temperature": 2.0}, "mse has no temperature, 2.0 was given"),
    ({"kind": "jsd", "beta": 1.0}, "beta is 1.0: jsd needs it between 0 and 1"),
    ({"ce_weight": -1.0}, "ce_weight is -1.0"),
    ({"ce_weight": 1.0}, "ce_weight is 1.0 without labels"),
    ({"reduction": "none"}, "No reduction is called 'none': choose mean or sum"),
    ({"chunk_size": 0}, "chunk_size is 0"),
    ({"labels": some_labels()[1:]}, "Tokens differ: 23 hidden states of the student, 23 of the"),
    ({"labels": some_labels()[None]}, r"labels \[1, 23\]"),
    (
        {"labels": torch.full((TOKENS,), VOCABULARY), "ce_weight": 1.0},
        "Labels run from 101 to 101, the vocabulary has 101 tokens",
    ),
    (
        {"labels": torch.full((TOKENS,), -1)},
        "Labels run from -1 to -1, the vocabulary has 101 tokens",
    ),
    ({"labels": torch.zeros(TOKENS)}, "Labels are torch.float32: give token ids"),
    ({"teacher_head": torch.zeros(VOCABULARY, TEACHER, device="meta")}, "on cpu, cpu, cpu, meta"),
    ({"teacher_head": torch.zeros(102, TEACHER)}, "vocabulary has 101 tokens, the teacher's 102"),
    ({"teacher_hidden": torch.zeros(22, TEACHER)}, "23 hidden states of the student, 22 of the"),
    ({"student_hidden": torch.zeros(1, TOKENS, STUDENT)}, r"student's hidden states are \[1, 23"),
    ({"student_head": torch.zeros(VOCABULARY, 11)}, r"its head \[101, 11\]"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    tensors = dict(zip(NAMES, inputs(), strict=True))
    with pytest.raises(TargetError, match=message):
        distillation_loss(**{**tensors, **changed})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_gives_the_same(options: dict[str, Any], dtype: torch.dtype) -> None:
    options = {
        name: option.cuda() if isinstance(option, Tensor) else option
        for name, option in options.items()
    }
    tensors = [tensor.detach().cuda().requires_grad_() for tensor in inputs(dtype)]
    expected = evaluated(naive, [t.detach().double().requires_grad_() for t in tensors], **options)
    ours = evaluated(distillation_loss, tensors, chunk_size=4, **options)
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert_close([tensor.double() for tensor in ours], expected, tolerance)
