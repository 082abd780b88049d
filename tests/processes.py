"""Processes of their own for tests, with torch, transformers and minitron imported.

These imports take four seconds of processor time. A server imports them once, and every process is
a fork of it. It has the environment of the first test that asked for a process.

    assert exit_code(main, ["inspect", "tiny"]) == 0
    together(work, "a", 1)     # work(rank, "a", 1) in two processes that find each other over gloo
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch.multiprocessing import start_processes

from minitron import cli

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        *("pytest", "hypothesis", "transformers.trainer", "torch.distributed.fsdp"),
        *("minitron.verbs.distill", "minitron.verbs.prune", "minitron.verbs.importance"),
    ]
)
RANKS = 2


def exit_code(function: Callable[..., object], *arguments: Any) -> int | None:
    """Call a function of a module in a process, and wait for its end."""
    process = _FORKS.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def together(function: Callable[..., object], *arguments: Any) -> None:
    """Call a function with each rank, in processes as torchrun starts them; raise what one raises.

    Each finds the others by its environment, as `init_process_group("gloo")` does.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(_join, (function, port, arguments), nprocs=RANKS, start_method="forkserver")


def _join(
    rank: int, function: Callable[..., object], port: int, arguments: tuple[Any, ...]
) -> None:
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": RANKS}
    own = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS, "CUDA_VISIBLE_DEVICES": ""}
    os.environ.update({name: str(value) for name, value in {**at, **own}.items()})
    function(rank, *arguments)


def run_command(rank: int, printed: str, words: list[str]) -> None:
    """Run a command of minitron in one process of several, and write what it prints to a file."""
    with Path(f"{printed}-{rank}").open("w") as file, redirect_stdout(file):
        cli.main(words)
