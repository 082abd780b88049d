"""Measure a 15B model on a machine without memory for it: memory and time per layer.

Writes a checkpoint with the sizes of Nemotron-4 15B (31 GB in bf16, random weights, shards) into
--folder and runs `minitron importance` on it in a separate process: some thousand tokens through
all layers, and 65,536 tokens through the first two, where the hidden states of all tokens are in
memory. Then prunes its first two layers to the widths of an 8B model and reconstructs them, by
channels and by directions of the residual stream. Records the peak of resident memory of the
process and the figure that it logged at the start, and projects the time of a full calibration set.
Writes benchmarks/results/large_model.json; takes an hour on two cores to measure, and longer to
prune.

    python benchmarks/large_model.py --folder /path/with/48GB
    python benchmarks/large_model.py --folder /path/with/16GB --only "two layers, by channels"
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minitron.files.safetensors_file import TensorSpec
from minitron.model.architecture import Architecture
from minitron.options import words_of_flag
from minitron.records.folder_writer import write_json, write_weights

RESULTS = Path(__file__).parent / "results" / "large_model.json"
SIZES = {
    "vocab_size": 256000,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
LAYERS = 32
CUT = {"hidden_size": 4096, "intermediate_size": 16384}  # Minitron-8B's; it keeps the heads
RUNS = {  # layers, sequences, tokens per sequence, how hidden_size is cut or None: only measured
    "all layers": (LAYERS, 4, 2000, None),
    "two layers": (2, 16, 4096, None),
    "two layers, by channels": (2, 4, 512, "select"),
    "two layers, by directions": (2, 4, 512, "rotate"),
}
FULL = 1024 * 4096  # tokens, as in the paper
BUDGET = "6GiB"
BUDGET_TO_FIT = "18GiB"
# An H200 multiplies bf16 matrices of this size at about 790 TFLOP/s; half of that is assumed.
H200_FLOPS = 0.5 * 790e12


def write_model(folder: Path, layers: int) -> None:
    """Write random normal weights, drawn once and shifted for each tensor."""
    config = {"model_type": "nemotron", "dtype": "bfloat16", **SIZES}
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    drawn = (torch.randn((1 << 24) + 4099) * 0.02).bfloat16()
    made = Architecture(model_type="nemotron", num_hidden_layers=layers, **SIZES)
    specs = {name: TensorSpec(torch.bfloat16, shape) for name, shape in made.shapes().items()}

    def pieces() -> Any:
        start = 0
        for name, spec in specs.items():
            left = spec.nbytes // 2
            while left:
                start = (start + 7919) % 4096
                count = min(left, 1 << 24)
                yield name, drawn[start : start + count]
                left -= count

    write_weights(folder, specs, pieces())
    write_json(
        folder / "config.json",
        {**config, "num_hidden_layers": layers, "max_position_embeddings": 4096},
    )


def run(name: str, folder: Path, threads: int) -> dict[str, Any]:
    """Run one measurement in a separate process."""
    layers, sequences, length, hidden = RUNS[name]
    source = folder / f"{layers}-layers"
    write_model(source, layers)
    ids = folder / f"{sequences}x{length}.npy"
    random = np.random.default_rng(0)
    np.save(ids, random.integers(0, SIZES["vocab_size"], (sequences, length), dtype=np.int32))
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    work = ["importance"] if hidden is None else ["prune", "--hidden", hidden]
    command = [sys.executable, "-m", "minitron", *work, str(source), str(out)]
    command += ["--corpus", str(ids)]
    command += ["--memory-budget", BUDGET if hidden is None else BUDGET_TO_FIT]
    if hidden is not None:
        command += [word for key, size in CUT.items() for word in words_of_flag(key, size)]
    log = folder / "stderr.txt"
    begun = time.perf_counter()
    with log.open("w") as written:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        running = subprocess.Popen(command, stderr=written, env=environment)
        _, status, used = os.wait4(running.pid, 0)
    wall = time.perf_counter() - begun
    output = log.read_text()
    if status:
        raise SystemExit(f"{name} failed: {output}")
    cpu = used.ru_utime + used.ru_stime
    phase = "measuring" if hidden is None else "reconstructing"
    stated = re.search(rf"{phase} .*: at most (.*) of memory expected", output)
    tokens = sequences * length
    return {
        "layers": layers,
        "tokens": tokens,
        "threads": threads,
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "cpu_seconds_a_layer": round(cpu / layers, 2),
        "peak_resident_gib": round(used.ru_maxrss / (1 << 20), 2),
        "stated_before": stated[1] if stated else None,
        "cpu_ms_a_token_and_layer": round(1e3 * cpu / layers / tokens, 3),
    }


def projections(made: Architecture, measured: dict[str, Any]) -> dict[str, Any]:
    """The projected time of the papers' calibration set, here and on an H200 (products only)."""
    decoder = made.parameters - 2 * made.vocab_size * made.hidden_size
    attention = 2 * 2 * made.num_attention_heads * made.head_dim * 4096 / 2  # causal, per layer
    flops = FULL * (2 * decoder + LAYERS * attention)
    here = measured["cpu_ms_a_token_and_layer"] / 1e3 * LAYERS * FULL
    return {
        "tokens": FULL,
        "here_core_hours": round(here / 3600, 1),
        "flops": flops,
        "h200_hours_at_half_of_790_tflops": round(flops / H200_FLOPS / 3600, 2),
    }


def main() -> None:
    """Write the checkpoint, run the measurements without a result, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", choices=RUNS, help="one of the runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    made = Architecture(model_type="nemotron", num_hidden_layers=LAYERS, **SIZES)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    results["model"] = {**SIZES, "num_hidden_layers": LAYERS, "parameters": made.parameters}
    results["memory_budget"] = BUDGET
    for name in [options.only] if options.only else RUNS:
        results["runs"][name] = run(name, options.folder, options.threads)
        print(name, json.dumps(results["runs"][name]), flush=True)
        if name == "all layers":
            results["projection"] = projections(made, results["runs"][name])
        write_json(RESULTS, results)


if __name__ == "__main__":
    main()
