"""Byte size: what a person writes as a size of memory, and how one is told.

parse_bytes("6GiB")   # 6442450944
"""

import re

from minitron.errors import TargetError

_UNITS = {
    "": 1,
    "b": 1,
    "bytes": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str, flag: str) -> int:
    """Read "6GiB", "800 MB" or a number of bytes. Raises TargetError, naming `flag`."""
    parsed = _SIZE.fullmatch(text)
    unit = parsed[2].lower() if parsed else None
    if parsed is None or unit not in _UNITS:
        raise TargetError(f"{flag} is {text!r}: write a size such as 6GiB, 800MB or 4096")
    return int(float(parsed[1]) * _UNITS[unit])


def readable_bytes(count: int) -> str:
    """A size in the binary unit that suits it, rounded up, so that what is told suffices."""
    for unit, power in (("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if count >= 1024**power:
            hundredths = -(-count * 100 // 1024**power)
            return f"{hundredths / 100:.2f} {unit}"
    return f"{count} bytes"
