"""Measure speed and memory of the embedded models.

Each model reads a prompt and generates greedily, in turn in every round, so that other load on the
machine affects all. Bytes of weights and KV cache are computed from the config and the loaded
model. Writes benchmarks/results/members.json; takes a minute.

    OMP_NUM_THREADS=1 python benchmarks/members.py
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import minitron
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source, zoo

RESULTS = Path(__file__).parent / "results" / "members.json"
PROMPT, NEW = 512, 64  # tokens


def ways_of(name: str) -> dict[str, Callable[[], object]]:
    """Functions that read a prompt, and that generate after a short one."""
    model = load_model(open_source(name), dtype=torch.float32)
    ids = torch.randint(6, model.config.vocab_size, (1, PROMPT))
    options: dict[str, Any] = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW}

    @torch.inference_mode()
    def read() -> object:
        return model(ids, logits_to_keep=1)

    @torch.inference_mode()
    def generate() -> object:
        return model.generate(ids[:, :8], **options)

    return {"read": read, "generate": generate}


def main() -> None:
    """Time all models in turn, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    ways = {name: ways_of(name) for name in zoo()}
    seconds: dict[str, dict[str, list[float]]] = {n: {"read": [], "generate": []} for n in ways}
    for turn in range(-1, options.rounds):  # the first one warms up
        for name, of_name in ways.items():
            for way, run in of_name.items():
                begun = time.perf_counter()
                run()
                if turn >= 0:
                    seconds[name][way].append(time.perf_counter() - begun)
    results: dict[str, Any] = {"rounds": options.rounds, "threads": torch.get_num_threads()}
    members = {}
    for name, taken in seconds.items():
        inspection = minitron.inspect(name)
        times = {
            way: statistics.median(
                teacher / own for teacher, own in zip(seconds["tiny"][way], mine, strict=True)
            )
            for way, mine in taken.items()
        }
        members[name] = {
            "parameters": inspection.parameters,
            "weights_bytes": inspection.bytes,
            "kv_bytes_a_token": inspection.kv_cache_bytes_per_token,
            "read_tokens_a_second": PROMPT / statistics.median(taken["read"]),
            "generated_tokens_a_second": NEW / statistics.median(taken["generate"]),
            "times_the_teacher": times,
        }
    RESULTS.write_text(json.dumps({**results, "members": members}, indent=2) + "\n")
    print(json.dumps(members, indent=1))


if __name__ == "__main__":
    main()
