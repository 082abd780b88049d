"""Compare the fused distillation loss with a plain one and Liger's, forward and backward.

All losses get the same hidden states and heads, and run in turn in every round, so that other load
on the machine affects all of them; the result is the median over the rounds of the ratio in a
round. "products" is a lower bound: the four matrix products alone, of 512 tokens at a time, into
existing buffers. Memory is the peak of resident memory above that of inputs and interpreter,
without the gradient of the student's head, which every loss needs. First, loss and gradients are
compared with those of the plain loss.

    python benchmarks/distillation_loss.py                                # half an hour, 12 GB
    python benchmarks/distillation_loss.py --tokens 256 --vocabulary 64000 --threads 1  # a minute
    python benchmarks/distillation_loss.py --tokens 512 --chunks 16 32 64 --ways naive  # the cost

Liger's is optional: pip install --no-deps liger-kernel.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minitron.training.distillation import distillation_loss

MEGABYTE = 1e6
# Largest difference from the naive loss's gradient, as a part of its largest element.
TOLERANCE = 1e-4

Way = Callable[[], Tensor]


@dataclass
class Inputs:
    """Input of all losses; the two tensors of the student are trained."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor

    def of(self, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The inputs of the first tokens."""
        hidden = self.student_hidden.detach()[:tokens].requires_grad_()
        return hidden, self.student_head, self.teacher_hidden[:tokens], self.teacher_head


@dataclass
class Runs:
    """Seconds and bytes of one loss, an entry per round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def make_inputs(options: argparse.Namespace) -> Inputs:
    """Random inputs; the logits have a standard deviation of 1 (student) and 2 (teacher)."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for width, spread in ((options.student, 1.0), (options.teacher, 2.0)):
        tensors.append(torch.randn(options.tokens, width, generator=generator))
        head = torch.randn(options.vocabulary, width, generator=generator)
        tensors.append(head.mul_(spread * width**-0.5))
    inputs = Inputs(*tensors)
    inputs.student_head.requires_grad_()
    return inputs


def naive(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    """The loss of TRL and ModelOpt without a fused kernel, from all logits of both models."""
    student = F.log_softmax(hidden @ head.T, dim=-1)
    with torch.no_grad():
        teacher = F.log_softmax(teacher_hidden @ teacher_head.T, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def liger(
    hidden: Tensor,
    head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    chunk_size: int = 1024,
) -> Tensor:
    """Liger's chunked loss at beta 0, which is forward KL."""
    loss = LIGER(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=0.0,
        compiled=False,
        chunk_size=chunk_size,
    )
    labels = torch.zeros(len(hidden), dtype=torch.long)
    result: Tensor = loss(hidden, head, teacher_hidden, teacher_head, labels)
    return result


def make_products(inputs: Inputs, tokens: int) -> Way:
    """The products for the logits of both models and the gradients of hidden states and head."""
    hidden, head, teacher_hidden, teacher_head = (t.detach() for t in inputs.of(tokens))
    step = min(512, tokens)
    student = torch.zeros(step, len(head))
    teacher = torch.zeros(step, len(head))
    hidden_gradient = torch.zeros_like(hidden)
    head_gradient = torch.zeros_like(head)

    def multiply() -> Tensor:
        for start in range(0, tokens, step):
            rows = slice(start, start + step)
            torch.mm(hidden[rows], head.T, out=student)
            torch.mm(teacher_hidden[rows], teacher_head.T, out=teacher)
            torch.mm(student, head, out=hidden_gradient[rows])
            head_gradient.addmm_(student.T, hidden[rows], beta=int(start > 0))
        return torch.zeros(())

    return multiply


def make_way(
    loss: Callable[..., Tensor], inputs: Inputs, tokens: int, gradients: list[Tensor | None]
) -> Way:
    """A function for forward and backward; `gradients` holds the gradients until its next call."""

    def run() -> Tensor:
        tensors = inputs.of(tokens)
        value = loss(*tensors)
        value.backward()
        gradients[:] = [tensors[0].grad, tensors[1].grad]
        inputs.student_head.grad = None
        return value.detach()

    return run


def resident(name: str) -> float:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return float(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}: memory is measured on Linux only")


def measure(way: Way, runs: Runs, unavoidable: int) -> None:
    """Run one loss once and append its seconds and bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # do not count freed memory of earlier runs in the base
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    base = resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    runs.wall.append(time.perf_counter() - wall)
    runs.cpu.append(time.process_time() - cpu)
    runs.memory.append(resident("VmHWM") - base - unavoidable)


def check(name: str, ours: list[Any], theirs: list[Any]) -> float:
    """The largest relative difference of loss and gradients; too large is an error."""
    worst = 0.0
    for our, their in zip(ours, theirs, strict=True):
        worst = max(worst, float((our - their).abs().max() / their.abs().max()))
    if not worst <= TOLERANCE:
        raise SystemExit(f"{name} differs from naive by {worst:.1e}: nothing is timed.")
    return worst


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of the ratio of ours to another in a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def compare(inputs: Inputs, tokens: int, options: argparse.Namespace) -> None:
    losses: dict[str, Callable[..., Tensor]] = {"ours": distillation_loss, "naive": naive}
    for chunk in options.chunks:
        losses[f"ours, {chunk} at once"] = partial(distillation_loss, chunk_size=chunk)
    if LIGER is not None:
        losses["liger"] = liger
        losses["liger, 128 at once"] = partial(liger, chunk_size=128)
    wanted = {"ours", "naive", *options.ways} | {name for name in losses if "ours" in name}
    gradients: list[Tensor | None] = []
    ways = {
        name: make_way(loss, inputs, tokens, gradients)
        for name, loss in losses.items()
        if name in wanted
    }
    expected = [ways["naive"](), *gradients]
    differences = {name: check(name, [way(), *gradients], expected) for name, way in ways.items()}
    del expected
    gradients.clear()
    if "products" in wanted:
        ways["products"] = make_products(inputs, tokens)
    runs = {name: Runs() for name in ways}
    names = list(ways)
    head = inputs.student_head
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            unavoidable = 0 if name == "products" else head.numel() * head.itemsize
            measure(ways[name], runs[name], unavoidable)
            gradients.clear()
    report(tokens, runs, differences)


def report(tokens: int, runs: dict[str, Runs], differences: dict[str, float]) -> None:
    print(f"\n{tokens} tokens, {torch.get_num_threads()} threads")
    print(f"{'':20}{'wall s':>9}{'cpu s':>9}{'MB':>8}   ours/its: wall   cpu   memory  difference")
    ours = runs["ours"]
    for name, run in runs.items():
        wall, cpu, memory = (statistics.median(x) for x in (run.wall, run.cpu, run.memory))
        line = f"{name:20}{wall:9.2f}{cpu:9.2f}{memory / MEGABYTE:8.0f}"
        line += f"{ratio(ours.wall, run.wall):17.3f}{ratio(ours.cpu, run.cpu):7.3f}"
        if name != "products":
            line += f"    1/{ratio(run.memory, ours.memory):<5.1f}{differences[name]:9.1e}"
        print(line, flush=True)


def find_liger() -> Any:
    """Liger's loss, or None if it is not installed."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except ImportError:
        print("liger_kernel is not installed: its loss is left out")
        return None
    return LigerFusedLinearJSDLoss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=256_000)
    parser.add_argument("--student", type=int, default=512, help="the student's width")
    parser.add_argument("--teacher", type=int, default=1024, help="the teacher's width")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--flat", action="store_true", help="also a quarter of the tokens")
    parser.add_argument("--chunks", type=int, nargs="*", default=[], help="ours with others, too")
    parser.add_argument(
        "--ways", nargs="*", default=["liger", "liger, 128 at once", "products"], help="beside ours"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    inputs = make_inputs(options)
    print(
        f"vocabulary {options.vocabulary}, widths {options.student} and {options.teacher}, fp32, "
        f"{options.rounds} rounds, medians; base {resident('VmRSS') / MEGABYTE:.0f} MB"
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        for tokens in [options.tokens, options.tokens // 4][: 1 + options.flat]:
            compare(inputs, tokens, options)


if __name__ == "__main__":
    LIGER = find_liger()
    main()
