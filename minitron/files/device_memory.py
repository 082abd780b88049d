"""Memory: what is free on a CPU or a GPU, what this process uses, and sizes for people.

free_memory("cpu")    # 17179869184
readable_bytes(6442450944)      # "6.00 GiB"
"""

import os
from pathlib import Path

import torch

_SHARE_OF_FREE = 0.8  # may be used where no budget is given


def free_memory(device: str) -> int:
    """Bytes that may be used on the device: most of the free ones."""
    if torch.device(device).type != "cpu":
        return int(_SHARE_OF_FREE * torch.cuda.mem_get_info(torch.device(device))[0])
    return int(_SHARE_OF_FREE * min(_available(), _free_in_cgroup()))


def memory_in_use(device: str) -> int:
    """Bytes that this process holds on the device already."""
    if torch.device(device).type != "cpu":
        return torch.cuda.memory_reserved(torch.device(device))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def total_memory() -> int:
    """Bytes that this process may count on: the machine's, or its container's where less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, _container_bytes("memory.max") or machine)


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        named = dict(line.split(":", 1) for line in lines)
        return int(named["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _free_in_cgroup() -> int:
    """Bytes below the control group's limit; very many where it sets none."""
    limit, used = _container_bytes("memory.max"), _container_bytes("memory.current")
    return 1 << 62 if limit is None or used is None else max(0, limit - used)


def _container_bytes(name: str) -> int | None:
    """A number of this process's control group; None where there is none."""
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):  # "max" is no number
        return None


def readable_bytes(count: int) -> str:
    """A size in the largest fitting binary unit, rounded up: so much memory is always enough."""
    for unit, power in (("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if count >= 1024**power:
            hundredths = -(-count * 100 // 1024**power)
            return f"{hundredths / 100:.2f} {unit}"
    return f"{count} bytes"
