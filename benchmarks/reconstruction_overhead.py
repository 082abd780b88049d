"""The time of a prune with reconstruction against that of measuring importance on the same tokens.

The embedded teacher is cut to tiny-half's sizes by channels (select) and by directions (rotate), as
`minitron prune` does it, its importance and card included, and measured by `minitron importance`:
each way with the dtype that is the default on this machine, and in float32. All ways run in turn in
every round, each round in the other order, so that other load on the machine affects all. Ratios
are within a round, of CPU seconds and of wall seconds; the result is their median. Imports are not
timed.

    OMP_NUM_THREADS=1 python benchmarks/reconstruction_overhead.py --corpus books.jsonl.gz
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import minitron
from minitron.sources.layer_stream import compute_dtype
from minitron.sources.loading import default_device
from minitron.sources.opening import open_source

RESULTS = Path(__file__).parent / "results" / "reconstruction_overhead.json"
SIZES = {"hidden_size": 192, "intermediate_size": 592}
SIZES |= {"num_attention_heads": 6, "num_hidden_layers": 5}  # tiny-half's
WAYS = ("select", "rotate")
SEQ_LEN = 512
Seconds = tuple[float, float]  # of the CPU, and on the wall


def seconds_of(run: Callable[[Path], object]) -> Seconds:
    """The time that a call takes which writes into a folder."""
    with TemporaryDirectory() as folder:
        cpu, wall = time.process_time(), time.perf_counter()
        run(Path(folder))
        return time.process_time() - cpu, time.perf_counter() - wall


def runs_of(text: dict[str, Any]) -> dict[str, Callable[[Path], object]]:
    """Importance, and a prune in each way, on the same text."""

    def importance(folder: Path) -> None:
        minitron.importance("tiny", str(folder / "scores"), **text)

    def prune(hidden: str) -> Callable[[Path], object]:
        return lambda folder: minitron.prune(
            "tiny", str(folder / "half"), hidden=hidden, **SIZES, **text
        )

    return {"importance": importance, **{way: prune(way) for way in WAYS}}


def measure(text: dict[str, Any], rounds: int) -> dict[str, list[Seconds]]:
    """The seconds of each run in each round."""
    runs = runs_of(text)
    for run in runs.values():  # imports modules, and fills caches
        seconds_of(run)
    taken: dict[str, list[Seconds]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            taken[name].append(seconds_of(runs[name]))
    return taken


def main() -> None:
    """Time both dtypes, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    text = {"corpus": options.corpus, "samples": options.samples, "seq_len": SEQ_LEN}
    default = str(compute_dtype(open_source("tiny").tensors, default_device()))
    results: dict[str, Any] = {"tokens": options.samples * SEQ_LEN, "rounds": options.rounds}
    results |= {"threads": torch.get_num_threads(), "dtypes": {}}
    print("| dtype | way | CPU | wall |\n|---|---|---:|---:|")
    for dtype in dict.fromkeys([default.removeprefix("torch."), "float32"]):
        taken = measure({**text, "compute_dtype": dtype}, options.rounds)
        ratios = {
            way: [
                statistics.median(
                    some[kind] / whole[kind]
                    for some, whole in zip(taken[way], taken["importance"], strict=True)
                )
                for kind in range(2)
            ]
            for way in WAYS
        }
        for way, (cpu, wall) in ratios.items():
            print(f"| {dtype} | {way} | {cpu:.2f} | {wall:.2f} |", flush=True)
        results["dtypes"][dtype] = {
            "ratios": {way: {"cpu": cpu, "wall": wall} for way, (cpu, wall) in ratios.items()},
            "seconds": taken,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
