"""Compare pruning with `cp` and with loading the whole model: time and memory.

A random bf16 Nemotron checkpoint is pruned with random scores, so that only reading, checking,
cutting and writing are timed. The ways alternate, each in a separate process after its imports;
memory is the peak of anonymous pages above that after the imports. The results of both prunings are
compared byte for byte.

    python benchmarks/prune_copy.py --folder /path/with/15GB --gigabytes 4
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from copying import Peak, weights_digest

# Hidden 2560 -> 1920, ffn 10240 -> 7680: 2.6 of 4.1 GB are kept.
SIZES = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
TARGET = {"hidden_size": 1920, "intermediate_size": 7680}
WAYS = ("cp", "minitron", "load everything")


def make_source(folder: Path, gigabytes: float) -> None:
    """Write random weights in shards."""
    import torch

    from minitron.files.safetensors_file import TensorSpec
    from minitron.model.architecture import Architecture
    from minitron.records.folder_writer import write_json, write_weights
    from minitron.scores.weight_scores import random_scores

    def architecture(layers: int) -> Architecture:
        return Architecture(model_type="nemotron", num_hidden_layers=layers, **SIZES)

    layers = 1
    while 2 * architecture(layers).parameters < gigabytes * 1e9:
        layers += 1
    made = architecture(layers)
    specs = {name: TensorSpec(torch.bfloat16, shape) for name, shape in made.shapes().items()}
    torch.manual_seed(0)
    folder.mkdir()
    pieces = ((name, torch.randn(spec.shape).bfloat16()) for name, spec in specs.items())
    write_weights(folder, specs, pieces)
    write_json(
        folder / "config.json",
        {"model_type": "nemotron", "num_hidden_layers": layers, "dtype": "bfloat16", **SIZES},
    )
    random_scores(made, 0).save(folder.parent / "importance.safetensors")


def run_minitron(source: Path, out: Path) -> None:
    """Prune with minitron."""
    import minitron

    importance = str(source.parent / "importance.safetensors")
    minitron.prune(str(source), str(out), **TARGET, importance=importance)


def run_load_everything(source: Path, out: Path) -> None:
    """Prune with a simple script: load all shards, slice, save."""
    import torch
    from safetensors.torch import load_file, save_file

    from minitron.model.architecture import Architecture
    from minitron.model.importance import Importance
    from minitron.model.plan import choose_plan
    from minitron.sources.pruned import kept_index

    whole = Architecture.from_config(json.loads((source / "config.json").read_text()))
    importance = Importance.load(source.parent / "importance.safetensors")
    plan = choose_plan(importance, whole, whole.resized(**TARGET))
    tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(path))
    cut = {}
    for slot in plan.target.slots():
        tensor = tensors[slot.name]
        for dimension, runs in enumerate(slot.row.dimensions):
            index = kept_index(plan, runs, slot.layer)
            if index is not None:
                tensor = tensor.index_select(dimension, torch.from_numpy(index))
        cut[slot.name] = tensor.contiguous()
    out.mkdir()
    save_file(cut, out / "model.safetensors", {"format": "pt"})


def one_way(way: str, source: Path, out: Path) -> None:
    """Run one way after its imports; print seconds, CPU seconds and bytes above the base."""
    import torch  # noqa: F401

    import minitron.verbs.prune  # noqa: F401

    run: Callable[[Path, Path], None] = run_minitron if way == "minitron" else run_load_everything
    with Peak() as peak:
        started, cpu = time.perf_counter(), time.process_time()
        run(source, out)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": peak.most - peak.base}))


def measure(way: str, source: Path, out: Path) -> dict[str, float]:
    """Run one way in a process; the caller removes the result."""
    if way == "cp":
        started = time.perf_counter()
        subprocess.run(["cp", "-r", source, out], check=True)
        return {"seconds": time.perf_counter() - started, "cpu": 0.0, "bytes": 0.0}
    command = [sys.executable, __file__, "--way", way, "--source", str(source), "--out", str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(printed.splitlines()[-1]))


def main() -> None:
    """Run the ways alternately, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="an empty place with four times the space")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.way:
        one_way(options.way, options.source, options.out)
        return
    source = options.folder / "source"
    if not source.exists():
        make_source(source, options.gigabytes)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    digests = {}
    for repeat in range(options.repeats):
        for way in WAYS:
            out = options.folder / f"out-{way.replace(' ', '-')}"
            shutil.rmtree(out, ignore_errors=True)
            os.sync()  # do not wait for the writes of another way
            runs[way].append(measure(way, source, out))
            if repeat == 0 and way != "cp":
                digests[way] = weights_digest(out)
            shutil.rmtree(out)
    assert len(set(digests.values())) == 1, "the prunings differ"
    size = sum(path.stat().st_size for path in source.iterdir())
    print(f"{size / 1e9:.2f} GB, {options.repeats} repeats, medians")
    print("| way | seconds | x cp | CPU seconds | MB above base |\n|---|---:|---:|---:|---:|")
    middle = {
        way: {key: statistics.median(run[key] for run in of_way) for key in of_way[0]}
        for way, of_way in runs.items()
    }
    for way, median in middle.items():
        ratio = median["seconds"] / middle["cp"]["seconds"]
        print(
            f"| {way} | {median['seconds']:.2f} | {ratio:.2f} | {median['cpu']:.2f} "
            f"| {median['bytes'] / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
