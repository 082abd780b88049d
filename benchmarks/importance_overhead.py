"""The cost of measuring importance, with minitron and with hooks, above the bare forward pass.

The same model and tokens run in three ways, in turn in every round, so that other load on the
machine affects all:

- bare: the forward pass of transformers' decoder, without the output embedding;
- ours: `sums_over`, all axes at once, on the same loaded weights;
- hooks: the forward pass of transformers, with the output embedding and without it, and hooks that
  compute the same scores as NVIDIA's ModelOpt: `x.float().abs().mean(seq)`, cosine_similarity and a
  norm per head.

The result is the median over the rounds of the CPU seconds above those of the bare decoder in the
same round. The scores of both are compared first; imports and loading are not timed.

    OMP_NUM_THREADS=1 python benchmarks/importance_overhead.py --rounds 9      # about five minutes
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.models.nemotron as transformers_nemotron

from minitron.model.importance import Importance
from minitron.scores.activation_scores import Measurement, importance_of, sums_over
from minitron.sources.layer_stream import LayerStream

RESULTS = Path(__file__).parent / "results" / "importance_overhead.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = {
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
AXES = ("hidden", "ffn", "heads", "layers")


def make_model(dtype: torch.dtype) -> Any:
    """A Nemotron model of transformers with random weights."""
    torch.manual_seed(0)
    config = transformers_nemotron.NemotronConfig(max_position_embeddings=4096, **SIZES)
    return transformers_nemotron.NemotronForCausalLM(config).to(dtype).eval()


class Hooks:
    """Sums of scores as in ModelOpt's hooks, with the paper's norm of heads."""

    def __init__(self, model: Any) -> None:
        self.squares: dict[str, torch.Tensor] = {}
        self.cosines: dict[str, torch.Tensor] = {}
        self.handles: list[Any] = []
        for index, layer in enumerate(model.model.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                hook = self._on(f"hidden{index}{norm}", lambda inputs, output: output)
                self.handles.append(getattr(layer, norm).register_forward_hook(hook))
            hook = self._on(f"ffn{index}", lambda inputs, output: inputs[0])
            self.handles.append(layer.mlp.down_proj.register_forward_hook(hook))
            hook = self._on(f"heads{index}", lambda inputs, output: head_norms(inputs[0]))
            self.handles.append(layer.self_attn.o_proj.register_forward_hook(hook))
            self.handles.append(layer.register_forward_hook(self._on_layer(f"layers{index}")))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _on(self, name: str, choose: Callable[..., torch.Tensor]) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            means = choose(inputs, output).float().abs().mean(dim=1)
            self.squares[name] = self.squares.get(name, 0) + means.pow(2).sum(dim=0)

        return hook

    def _on_layer(self, name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(inputs[0].float(), after.float(), dim=2)
            self.cosines[name] = self.cosines.get(name, 0) + (1 - cosine.mean())

        return hook

    def scores(self) -> dict[str, torch.Tensor]:
        def rows(axis: str) -> torch.Tensor:
            return torch.stack([s.sqrt() for n, s in self.squares.items() if n.startswith(axis)])

        layers = torch.stack(list(self.cosines.values()))
        return {
            "hidden": rows("hidden").sum(0),
            "ffn": rows("ffn"),
            "heads": rows("heads"),
            "layers": layers,
        }


def head_norms(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.float().unflatten(-1, (SIZES["num_attention_heads"], -1)).norm(dim=-1)


def ways_of(model: Any, ids: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """A function per way, which runs the model once over `ids`."""
    stream, measurement = LayerStream.of_model(model), Measurement()

    def bare() -> None:
        with torch.inference_mode():
            model.model(input_ids=ids, use_cache=False)

    def ours() -> Importance:
        sums = sums_over(stream, [ids], measurement)
        return importance_of(sums, measurement, stream.config, {})

    def hooked(run: Callable[..., Any]) -> Callable[[], dict[str, torch.Tensor]]:
        def with_hooks() -> dict[str, torch.Tensor]:
            hooks = Hooks(model)
            with torch.inference_mode():
                run(input_ids=ids, use_cache=False)
            hooks.remove()
            return hooks.scores()

        return with_hooks

    return {"bare": bare, "ours": ours, "hooks": hooked(model.model), "hooks, full": hooked(model)}


def check_equality(ways: dict[str, Callable[[], Any]], tolerance: float) -> float:
    """The largest relative difference between our scores and the hooks'; too large is an error."""
    ours, theirs = ways["ours"](), ways["hooks"]()
    worst = 0.0
    for axis in AXES:
        a, b = ours.axis(axis), theirs[axis].double()
        worst = max(worst, float(((a - b).abs() / b.abs().clamp(min=1e-6 * b.abs().max())).max()))
    if not worst <= tolerance:
        raise SystemExit(f"The scores differ by {worst:.1e}: nothing is timed.")
    return worst


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of all ways, run in turn; each round starts with another way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            ways[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    """Time every dtype, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=1024)
    options = parser.parse_args()
    ids = torch.randint(SIZES["vocab_size"], (options.samples, options.seq_len))
    # Results of other dtypes are kept.
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    run = {"threads": torch.get_num_threads(), "rounds": options.rounds, "tokens": ids.numel()}
    print("| | bare decoder, CPU s | ours above it | hooks above it | hooks and output embedding |")
    print("|---|---:|---:|---:|---:|")
    for name in options.dtypes:
        ways = ways_of(make_model(DTYPES[name]), ids)
        difference = check_equality(ways, tolerance=1e-4)
        seconds = measure(ways, options.rounds)
        above = {
            way: statistics.median(
                some / bare - 1 for some, bare in zip(taken, seconds["bare"], strict=True)
            )
            for way, taken in seconds.items()
            if way != "bare"
        }
        bare = statistics.median(seconds["bare"])
        cells = " | ".join(f"{share:+.1%}" for share in above.values())
        print(f"| {name} | {bare:.2f} | {cells} |", flush=True)
        measured = {"bare": bare, "above": above, "difference": difference, "cpu": seconds}
        results[name] = {**run, **measured}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
