"""Device memory: what is free, and what this process holds already, on a CPU or a GPU.

free_memory("cpu")   # 17179869184
"""

import os
from pathlib import Path

import torch

_SHARE_OF_FREE = 0.8  # may be used where no budget is given


def free_memory(device: str) -> int:
    """Bytes that may be used on the device, most of what is free."""
    if torch.device(device).type != "cpu":
        return int(_SHARE_OF_FREE * torch.cuda.mem_get_info(torch.device(device))[0])
    return int(_SHARE_OF_FREE * min(_available(), _left_to_container()))


def memory_in_use(device: str) -> int:
    """Bytes that this process holds on the device already."""
    if torch.device(device).type != "cpu":
        return torch.cuda.memory_reserved(torch.device(device))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        named = dict(line.split(":", 1) for line in lines)
        return int(named["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_to_container() -> int:
    """What a control group leaves this process; no limit where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        return max(0, int(limit) - used)
    except (OSError, ValueError):  # "max" is no number
        return 1 << 62
