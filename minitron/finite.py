"""Whether weights are finite, told at the speed of memory.

NaN and infinity are the bit patterns at and above the all-ones exponent, so the largest integer
among the positive and among the negative patterns tells; torch.isnan on bfloat16 is many times
slower.

    check_finite(torch.zeros(3), "model.norm.weight", "nvidia/Minitron-4B-Base")
"""

import numpy as np
import torch

from minitron.errors import SourceError

# Signed and unsigned integer of the same width, and the smallest pattern that is not finite.
_PATTERNS: dict[torch.dtype, tuple[type[np.signedinteger], type[np.unsignedinteger], int]] = {
    torch.bfloat16: (np.int16, np.uint16, 0x7F80),
    torch.float16: (np.int16, np.uint16, 0x7C00),
    torch.float32: (np.int32, np.uint32, 0x7F800000),
    torch.float64: (np.int64, np.uint64, 0x7FF0000000000000),
    torch.float8_e5m2: (np.int8, np.uint8, 0x7C),
    torch.float8_e4m3fn: (np.int8, np.uint8, 0x7F),  # has one NaN and no infinity
}
FLOATS = frozenset(_PATTERNS)  # what weights may be stored in


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite; integers always are finite."""
    if tensor.dtype not in _PATTERNS or not tensor.numel():
        return True
    signed, unsigned, limit = _PATTERNS[tensor.dtype]
    bits = tensor.contiguous().view(-1).view(getattr(torch, signed.__name__)).numpy()
    sign = 1 << (8 * tensor.dtype.itemsize - 1)
    # As signed, the largest is a positive number; as unsigned, the largest negative one, if any.
    positive, either = int(bits.max()), int(bits.view(unsigned).max())
    return positive < limit and (either < sign or either - sign < limit)


def check_finite(tensor: torch.Tensor, name: str, source: str) -> None:
    """Refuse a tensor that is not finite; SourceError names it."""
    if not is_finite(tensor):
        raise SourceError(
            f"{source}: {name} holds NaN or infinity: the checkpoint is damaged, fetch it again"
        )
