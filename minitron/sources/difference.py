"""Difference: how far the weights of two models of the same sizes are apart.

difference = weight_difference(HubFolder.at(made), HubFolder.at(recorded))
str(difference)   # "at most 3.1e-05 from the recorded weights (...), 2e-04 of a tensor's ..."
"""

from dataclasses import dataclass

from minitron.errors import SourceError
from minitron.model.source import Source

_NUMBERS = 1 << 24  # of a tensor, that are compared at once


@dataclass(frozen=True)
class Difference:
    """The largest difference of all tensors, and the largest as a share of its tensor."""

    absolute: float
    relative: float  # to the largest absolute value of the tensor
    tensor: str  # the one of `relative`

    def __str__(self) -> str:
        if not self.absolute:
            return "equal in every number"
        return (
            f"the largest difference is {self.absolute:.2g}, and as a share of its tensor's "
            f"largest value {self.relative:.2g}, in {self.tensor}"
        )


def weight_difference(made: Source, recorded: Source) -> Difference:
    """Compare all numbers, some rows at a time. Raises SourceError for other tensors or shapes."""
    ours, theirs = made.weights, recorded.weights
    shapes = [{name: held.shape for name, held in one.items()} for one in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise SourceError(f"{recorded.name} has other tensors than {made.name}")
    worst = Difference(0.0, 0.0, next(iter(ours)))
    for name, tensor in ours.items():
        rows = tensor.shape[0]
        step = max(1, _NUMBERS * rows // max(1, tensor.nbytes // tensor.dtype.itemsize))
        absolute = largest = 0.0
        for start in range(0, rows, step):
            was = theirs[name].read(start, min(rows, start + step)).double()
            now = tensor.read(start, min(rows, start + step)).double()
            apart = (now - was).abs().nan_to_num(nan=float("inf"))
            absolute = max(absolute, float(apart.max()))
            largest = max(largest, float(was.abs().max()))
        relative = absolute / largest if largest else float(absolute > 0)
        is_worse = relative > worst.relative
        worst = Difference(
            max(worst.absolute, absolute),
            relative if is_worse else worst.relative,
            name if is_worse else worst.tensor,
        )
    return worst
