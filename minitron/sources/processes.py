"""Processes: the work split over what torchrun or accelerate launched, and one sum at the end.

Knows ranks and devices; does not know what is added up.

    with joined_processes() as processes:
        rows = sequences[processes.part(len(sequences))]
        sums = processes.add_up(sums_over(rows))
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed

from minitron.sources.loading import default_device


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def part(self, length: int) -> slice:
        """This process's share of a sequence: neighbours, as evenly as can be."""
        return slice(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def add_up(self, sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The sums over all processes, by one all-reduce; every process has the same names."""
        if self.count == 1:
            return dict(sums)
        flat = torch.cat([tensor.flatten() for tensor in sums.values()]).to(self.device)
        torch.distributed.all_reduce(flat)
        parts = flat.cpu().split([tensor.numel() for tensor in sums.values()])
        named = zip(sums.items(), parts, strict=True)
        return {key: part.view(tensor.shape) for (key, tensor), part in named}

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()


def is_first_process() -> bool:
    """Whether this process, of those that were launched together, is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes that were launched together, or this one alone, on the GPU where there is one.

    Uses a process group that exists already, and else leaves none behind.
    """
    device = default_device()
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if count == 1:
        yield Processes(device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    is_ours = not torch.distributed.is_initialized()
    if is_ours:
        torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield Processes(rank, count, device)
    finally:
        if is_ours:
            torch.distributed.destroy_process_group()
