"""The cross-entropy that holds no logits is torch's own, its gradients too."""

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
from minitron.training.logit_losses import cross_entropy_loss
from tests.processes import RANKS, together

TOKENS, VOCABULARY, WIDTH = 23, 101, 10


def inputs(dtype: torch.dtype = torch.float32, *, vocabulary: int = VOCABULARY) -> list[Tensor]:
    """Hidden states and head; logits have a spread of about 3."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(TOKENS, WIDTH), (vocabulary, WIDTH)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def some_labels() -> Tensor:
    """Labels of the tokens, three of them dropped."""
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(8))
    labels[[0, 9, TOKENS - 1]] = -100
    return labels


def naive(hidden: Tensor, head: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """As transformers computes it, from whole logits."""
    return F.cross_entropy((hidden @ head.T).float(), labels, reduction=reduction)


def naive_double(hidden: Tensor, head: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(hidden @ head.T, labels, **options)


def evaluated(loss: Callable[..., Tensor], tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """The loss and both gradients."""
    value = loss(*tensors, some_labels(), **options)
    return [value.detach(), *torch.autograd.grad(value, tensors)]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Each element differs by at most this part of its tensor's largest."""
    for our, their in zip(ours, theirs, strict=True):
        scale = their.abs().max().item()
        torch.testing.assert_close(our, their.to(our.dtype), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk_size", [1, 4, TOKENS, 1000, None])
def test_loss_and_gradients_are_those_of_whole_logits(
    chunk_size: int | None, reduction: str
) -> None:
    expected = evaluated(naive_double, inputs(torch.float64), reduction=reduction)
    options = {"chunk_size": chunk_size, "reduction": reduction}
    assert_close(evaluated(cross_entropy_loss, inputs(torch.float64), **options), expected, 1e-13)
    assert_close(evaluated(cross_entropy_loss, inputs(), **options), expected, 3e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, head = (tensor.detach()[:11] for tensor in inputs(torch.float64))
    labels = torch.tensor([3, -100, 10, 0, 3])

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return cross_entropy_loss(hidden, head, labels, chunk_size=2)

    wanted = hidden[:5].clone().requires_grad_(), head.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, wanted)


def test_float32_elements_are_right_one_by_one_over_a_large_vocabulary() -> None:
    expected = evaluated(naive_double, inputs(torch.float64, vocabulary=300_007))
    ours = evaluated(cross_entropy_loss, inputs(vocabulary=300_007), chunk_size=8)
    plain = evaluated(naive, inputs(vocabulary=300_007))
    for our, their, torchs in zip(ours, expected, plain, strict=True):
        # Elements that cancel to nearly nothing keep the error of what cancelled, and a product
        # over the vocabulary has the error of this processor's products.
        error = (torchs.double() - their).abs().max().item()
        floor = max(1e-6 * their.abs().max().item(), 1.25 * error)
        torch.testing.assert_close(our.double(), their, rtol=1e-5, atol=floor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_multiplies_as_torch_does_under_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.training.fused_loss._TILE_ELEMENTS", 17 * WIDTH)
    exact = evaluated(naive_double, inputs(torch.float64))
    found = []
    for loss in (naive, cross_entropy_loss):
        with torch.autocast("cpu", dtype=dtype):
            value = loss(*(tensors := inputs()), some_labels())
        found.append([value.detach(), *torch.autograd.grad(value, tensors)])
    theirs, ours = found
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
    assert ours[0] != exact[0].float(), "nothing was rounded"
    assert [tensor.dtype for tensor in ours] == [torch.float32] * 3
    eps = torch.finfo(dtype).eps
    assert_close(ours[1:], theirs[1:], 2 * eps)
    assert_close(ours[1:], exact[1:], 4 * eps)


def test_half_precision_outside_autocast_is_rounded_only_at_the_end() -> None:
    tensors = inputs(torch.bfloat16)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = evaluated(naive_double, wide)
    ours = evaluated(cross_entropy_loss, tensors)
    assert_close(ours[:1], expected[:1], 3e-6)
    assert_close(ours[1:], [tensor.bfloat16() for tensor in expected[1:]], 4e-3)


def test_without_grad_the_value_is_the_same_and_nothing_is_multiplied_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = cross_entropy_loss(*inputs(), some_labels()).detach()
    for product in ("_hidden_gradient", "_add_head_gradient"):
        monkeypatch.delattr(f"minitron.training.fused_loss.{product}")
    with torch.no_grad():
        loss = cross_entropy_loss(*inputs(), some_labels())
    assert not loss.requires_grad
    assert torch.equal(loss, expected)


def test_no_kept_token_is_a_loss_of_zero_with_zero_gradients() -> None:
    tensors = inputs()
    loss = cross_entropy_loss(*tensors, torch.full((TOKENS,), -100))
    assert loss == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, tensors))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_it_works_inside_gradient_checkpointing(use_reentrant: bool) -> None:
    expected = evaluated(naive_double, inputs(torch.float64))
    tensors = inputs(torch.float64)
    loss = checkpoint(cross_entropy_loss, *tensors, some_labels(), use_reentrant=use_reentrant)
    loss.backward()
    assert_close([loss.detach(), *(t.grad for t in tensors)], expected, 1e-13)


def test_a_head_tied_to_the_embedding_sums_both_gradients() -> None:
    def run(loss: Callable[..., Tensor]) -> Tensor:
        head = inputs(torch.float64)[1]
        hidden = F.embedding(some_labels().clamp_min(0), head).tanh()
        return torch.autograd.grad(loss(hidden, head, some_labels()), head)[0]

    torch.testing.assert_close(run(cross_entropy_loss), run(naive_double))


def test_labels_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(TargetError, match="Labels run from 101 to 101, the vocabulary has 101"):
        cross_entropy_loss(*inputs(), torch.full((TOKENS,), VOCABULARY))


def test_memory_beyond_the_gradients_does_not_grow_with_the_tokens() -> None:
    script = """
import resource, torch
from minitron.training.logit_losses import cross_entropy_loss
torch.set_num_threads(1)
head = torch.randn(20_011, 8, requires_grad=True)
def peak(tokens):
    hidden = torch.randn(tokens, 8, requires_grad=True)
    cross_entropy_loss(hidden, head, torch.zeros(tokens).long(), chunk_size=64).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak(256)
print(peak(512), peak(4096))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    few, many = map(int, ran.stdout.split())
    # All logits of 3,584 more tokens would be 285 MB.
    assert many - few < 20_000


def learn_sharded(rank: int) -> None:
    """One process of several: the head sharded, each its own tokens."""
    import torch.distributed as distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (RANKS,))
    hidden, head = (tensor.detach() for tensor in inputs(torch.float64))
    labels = some_labels()
    parts = list(zip(hidden.chunk(RANKS), labels.chunk(RANKS), strict=True))
    whole = head.clone().requires_grad_()
    for states, wanted in parts:
        (cross_entropy_loss(states, whole, wanted) / RANKS).backward()
    sharded = distribute_tensor(head, mesh, [Shard(0)]).requires_grad_()
    states, wanted = parts[rank]
    cross_entropy_loss(states, sharded, wanted).backward()
    torch.testing.assert_close(sharded.grad.full_tensor(), whole.grad)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_head_gets_its_shard_of_the_mean_over_ranks() -> None:
    together(learn_sharded)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_gives_the_same(dtype: torch.dtype) -> None:
    tensors = [tensor.detach().cuda().requires_grad_() for tensor in inputs(dtype)]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    labels = some_labels().cuda()
    found = []
    for loss, given in ((naive_double, wide), (cross_entropy_loss, tensors)):
        value = loss(*given, labels)
        found.append([value.detach(), *torch.autograd.grad(value, given)])
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert_close(found[1], found[0], tolerance)
