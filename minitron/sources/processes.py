"""Processes: the ones that torchrun or accelerate launched together, and work split among them.

Knows accelerate's view of processes, which is the Trainer's too; one process alone is a run too.
Does not know what is computed.

    processes = Processes.of_run()
    rows = sequences[processes.part(len(sequences))]
    sums = processes.add_up(sums_over(rows))
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState

from minitron.files.unfinished import Reached, partial_of, unfinished_folder
from minitron.sources.loading import default_device


def processes_of_run() -> PartialState:
    """The processes that were launched together, or this one alone, with their process group."""
    return PartialState(cpu=default_device() == "cpu")


def device_of_run() -> str:
    """Where this process computes: "cpu", or a GPU of its own."""
    device = processes_of_run().device
    return "cpu" if device.type == "cpu" else str(device)


def processes_on_this_machine() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process, of those that were launched together, is the one that prints."""
    return bool(processes_of_run().is_main_process)


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @classmethod
    def of_run(cls) -> "Processes":
        """Those that were launched together, or this one alone."""
        run = processes_of_run()
        return cls(run.process_index, run.num_processes, device_of_run())

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

    def add_in_place(self, *sums: torch.Tensor) -> None:
        """Make each tensor, which is on this process's device, the sum over all processes."""
        for tensor in sums if self.count > 1 else ():
            torch.distributed.all_reduce(tensor)

    def of_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a tensor is in the first process."""
        if self.count == 1:
            return tensor
        shared = tensor.to(self.device).contiguous()
        torch.distributed.broadcast(shared, 0)
        return shared.to(tensor.device)

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.count > 1:
            torch.distributed.barrier()


@contextmanager
def shared_folder(
    out: Path,
    recipe: Mapping[str, Any],
    *,
    resumable: bool = True,
    reached: Reached | None = None,
) -> Iterator[Path]:
    """An unfinished folder that the processes of a run share: the first creates and renames it."""
    processes = processes_of_run()
    if not processes.is_main_process:
        processes.wait_for_everyone()  # until the folder exists
        yield partial_of(out)
        processes.wait_for_everyone()  # until no process uses it
        processes.wait_for_everyone()  # until it is renamed
        return
    with unfinished_folder(out, recipe, resumable=resumable, reached=reached) as folder:
        processes.wait_for_everyone()
        yield folder
        processes.wait_for_everyone()
    processes.wait_for_everyone()
