"""Compare prefill and decode of our Nemotron with those of transformers' Nemotron.

Both models share one set of random weights and run in turn, so that other load on the machine
affects both; the result is the median over the rounds of their ratio in a round. "products" is a
lower bound: the linear layers alone, on inputs of the same size. Logits are compared first.
Imports, loading and compilation are not timed.

    python benchmarks/modeling.py --rounds 15           # three minutes on two cores
    python benchmarks/modeling.py --small --layers 6 --rounds 41  # the products take a small share
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers.models.nemotron as transformers_nemotron
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

import modeling_nemotron

LIBRARIES: dict[str, Any] = {"ours": modeling_nemotron, "transformers": transformers_nemotron}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {
    "vocab_size": 16384,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
SMALL_SIZES = {
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 48,
}
# The largest relative difference from transformers' logits.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@dataclass(frozen=True)
class Job:
    """A task of both models: `prompt` tokens at once, then `steps` tokens one at a time."""

    name: str
    prompt: int
    steps: int


@dataclass(frozen=True)
class Times:
    """Seconds of one way, an entry per round."""

    wall: list[float]
    cpu: list[float]


def make_models(layers: int, dtype: torch.dtype) -> dict[str, Any]:
    """Both models with the same tensors, norms random too."""
    torch.manual_seed(0)
    models = {
        name: library.NemotronForCausalLM(
            library.NemotronConfig(num_hidden_layers=layers, **SIZES)
        ).eval()
        for name, library in LIBRARIES.items()
    }
    for parameter in models["ours"].parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.2)
    models["ours"].to(dtype)
    models["transformers"].load_state_dict(models["ours"].state_dict(), assign=True)
    return models


def make_run(model: Any, job: Job, is_compiled: bool) -> Callable[[], Tensor]:
    """A function that runs the job once and returns its last logits."""
    ids = torch.randint(1, SIZES["vocab_size"], (1, job.prompt + job.steps))
    prompt, following = ids[:, : job.prompt], ids[:, job.prompt :].split(1, dim=1)
    forward = torch.compile(model, fullgraph=True) if is_compiled else model
    length = job.prompt + job.steps

    def prefill() -> Tensor:
        logits: Tensor = forward(prompt, use_cache=False).logits
        return logits

    def decode() -> Tensor:
        cache = StaticCache(model.config, length) if is_compiled else DynamicCache()
        logits: Tensor = model(prompt, past_key_values=cache, logits_to_keep=1).logits
        with clock.running():
            for token in following:
                logits = forward(token, past_key_values=cache).logits
        return logits

    return decode if job.steps else prefill


def make_products(model: Any, job: Job) -> Callable[[], None]:
    """A function that runs the linear layers alone, on as many tokens as the job has."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    tokens, repeats = (1, job.steps) if job.steps else (job.prompt, 1)
    inputs = {
        size: torch.randn(1, tokens, size, dtype=model.dtype)
        for size in {layer.in_features for layer in layers}
    }

    def multiply() -> None:
        for _ in range(repeats):
            for layer in layers:
                F.linear(inputs[layer.in_features], layer.weight)

    return multiply


class Clock:
    """Wall and CPU seconds of a run, or of a part of it."""

    def __init__(self) -> None:
        self.part: tuple[float, float] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.part = time.perf_counter() - wall, time.process_time() - cpu

    def time(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of `run`, or of the part of it that this clock measured."""
        self.part = None
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        return self.part or (time.perf_counter() - wall, time.process_time() - cpu)


clock = Clock()


def check_equality(runs: dict[str, Callable[[], Tensor]], dtype: str) -> float:
    """The largest relative difference of the logits; too large is an error."""
    ours, theirs = runs["ours"]().float(), runs["transformers"]().float()
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not difference <= TOLERANCE[dtype]:
        raise SystemExit(f"The logits differ by {difference:.1e} of their size: nothing is timed.")
    return difference


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Times of all ways, run in turn; each round starts with another way."""
    times = {name: Times([], []) for name in ways}
    names = list(ways)
    for name in names:
        ways[name]()  # warm
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, cpu = clock.time(ways[name])
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
    return times


def report(title: str, job: Job, difference: float, times: dict[str, Times]) -> str:
    tokens = job.steps or job.prompt
    cells = []
    for way in times.values():
        wall, cpu = (statistics.median(seconds) / tokens * 1e3 for seconds in (way.wall, way.cpu))
        cells.append(f"{wall:8.3f} {cpu:8.3f}")
    ours, theirs = times["ours"], times["transformers"]
    cells.append(f"{ratio(ours.wall, theirs.wall):8.3f} {ratio(ours.cpu, theirs.cpu):8.3f}")
    return f"{title:24}{'  '.join(cells)}  {difference:9.1e}"


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds of the ratio of their time to ours in a round."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="sizes that make overheads visible")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prefill")
    parser.add_argument("--steps", type=int, default=16, help="tokens of a decode")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.small:
        SIZES.update(SMALL_SIZES)
    jobs = (Job("prefill", options.prompt, 0), Job("decode", 64, options.steps))

    print(f"{options.layers} layers, {SIZES}, {options.threads} threads, {options.rounds} rounds")
    print("Milliseconds a token (wall, processor); ratio above 1: ours is faster.")
    print(f"{'':24}{'ours':^17}  {'transformers':^17}  {'products':^17}  {'ratio':^17}  difference")
    for dtype in options.dtypes:
        models = make_models(options.layers, DTYPES[dtype])
        for mode in options.modes:
            for job in jobs:
                torch.compiler.reset()
                runs = {}
                for name, model in models.items():
                    torch.manual_seed(1)  # the same tokens
                    runs[name] = make_run(model, job, mode == "compiled")
                difference = check_equality(runs, dtype)
                ways = {**runs, "products": make_products(models["ours"], job)}
                times = measure(ways, options.rounds)
                print(report(f"{job.name} {dtype} {mode}", job, difference, times), flush=True)


if __name__ == "__main__":
    main()
