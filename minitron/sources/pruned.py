"""Pruned source: a plan applied to a source's tensors, which are cut when they are read.

Knows how kept indices of named axes become rows and columns of each tensor. Holds nothing: a cut
tensor is read some rows at a time, like any other.

    small = pruned_tensors(plan, tensors)
    write_weights(folder, specs_of(small), stream_tensors(small, "tiny"))
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from minitron.files.lazy_tensor import LazyTensor
from minitron.files.tensor_stream import PIECE_BYTES
from minitron.model.architecture import Slot
from minitron.model.family import Dimension
from minitron.model.plan import PruningPlan
from minitron.model.source import Source

Index = npt.NDArray[np.int64]

# Any type of the same width will do to move elements; numpy has no bfloat16.
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pruned_tensors(plan: PruningPlan, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of the pruned model in canonical order, located but not read."""
    return {
        slot.name: _cut(plan, slot, tensors[source_name(plan, slot)])
        for slot in plan.target.slots()
    }


def source_names(plan: PruningPlan) -> dict[str, str]:
    """The name in the source of each tensor of the pruned model."""
    return {slot.name: source_name(plan, slot) for slot in plan.target.slots()}


def kept_index(plan: PruningPlan, dimension: Dimension, layer: int | None) -> Index | None:
    """The kept positions along a dimension; None where all are kept."""
    return _index(plan, dimension, lambda axis: plan.kept_indices(axis, layer))


def partner_index(plan: PruningPlan, dimension: Dimension, layer: int) -> Index | None:
    """The same positions with each kept head's partner in its place."""
    assert plan.partners is not None
    partners = plan.partners[layer]
    return _index(
        plan,
        dimension,
        lambda axis: partners if axis == "heads" else plan.kept_indices(axis, layer),
    )


def _index(
    plan: PruningPlan, dimension: Dimension, kept_of: Callable[[str], Sequence[int] | None]
) -> Index | None:
    if all(kept_of(axis) is None for run in dimension for axis in run):
        return None
    runs, first = [], 0
    for run in dimension:
        index = np.zeros(1, np.int64)
        for axis in run:
            size, kept = plan.source.size(axis), kept_of(axis)
            along = np.arange(size) if kept is None else np.array(kept, np.int64)
            index = (index[:, None] * size + along).reshape(-1)
        runs.append(first + index)
        first += math.prod(map(plan.source.size, run))
    return np.concatenate(runs)


def narrow(tensor: torch.Tensor, index: Index, dimension: int) -> torch.Tensor:
    """`tensor` at the positions `index` of one dimension, contiguous."""
    carrier = tensor.view(_CARRIERS[tensor.dtype.itemsize]).numpy()
    # mode="clip" lets numpy skip its bounds check: several times faster, and ours are in bounds.
    rows = np.take(carrier, index, axis=dimension, mode="clip")
    return torch.from_numpy(rows).view(tensor.dtype)


def source_name(plan: PruningPlan, slot: Slot) -> str:
    """The name in the source of a tensor of the pruned model."""
    return slot.row.name(None if slot.layer is None else plan.layers[slot.layer])


class Narrowed:
    """A tensor at some of its rows and columns; None keeps all of a dimension."""

    def __init__(self, tensor: LazyTensor, rows: Index | None, columns: Index | None) -> None:
        height = tensor.shape[0] if rows is None else len(rows)
        width = tensor.shape[1:] if columns is None else (len(columns),)
        self.dtype, self.shape = tensor.dtype, (height, *width)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._tensor, self._rows, self._columns = tensor, rows, columns

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of what is kept; of the source, the rows between them are read."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        if start >= stop:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        if self._rows is None:
            return self._at_columns(self._tensor.read(start, stop))
        parts = [self._at_rows(kept) for kept in self._runs(self._rows[start:stop])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _at_rows(self, kept: Index) -> torch.Tensor:
        first = int(kept.min())
        rows = self._tensor.read(first, int(kept.max()) + 1)
        return self._at_columns(narrow(rows, kept - first, 0))

    def _at_columns(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._columns is None else narrow(rows, self._columns, 1)

    def _runs(self, kept: Index) -> list[Index]:
        """Kept rows in runs whose span in the source is no more than a piece."""
        row_bytes = max(1, self._tensor.nbytes // self._tensor.shape[0])
        step = max(1, PIECE_BYTES // row_bytes)
        return np.split(kept, np.flatnonzero(np.diff(kept // step)) + 1)

    def ranges(self, start: int = 0, stop: int | None = None) -> None:
        """None: what is cut must be read."""


class Doubled:
    """A tensor and its difference from another, added in float32: 2 * tensor - other."""

    def __init__(self, tensor: LazyTensor, other: LazyTensor) -> None:
        self.dtype, self.shape, self.nbytes = tensor.dtype, tensor.shape, tensor.nbytes
        self._tensor, self._other = tensor, other

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows, rounded once."""
        rows, other = self._tensor.read(start, stop), self._other.read(start, stop)
        wide = torch.promote_types(rows.dtype, torch.float32)
        return (2 * rows.to(wide) - other.to(wide)).to(self.dtype)

    def ranges(self, start: int = 0, stop: int | None = None) -> None:
        """None: it must be computed."""


def _cut(plan: PruningPlan, slot: Slot, tensor: LazyTensor) -> LazyTensor:
    """The source's tensor at what the plan keeps of its axes."""
    kept = [kept_index(plan, dimension, slot.layer) for dimension in slot.row.dimensions]
    if all(index is None for index in kept):
        return tensor
    narrowed = Narrowed(tensor, kept[0], kept[1] if len(kept) > 1 else None)
    if plan.partners is None or slot.layer is None or "q" not in slot.row.parts:
        return narrowed  # the head residual is added to queries alone
    partners = [partner_index(plan, dimension, slot.layer) for dimension in slot.row.dimensions]
    return Doubled(narrowed, Narrowed(tensor, partners[0], partners[1] if len(kept) > 1 else None))


class PrunedSource(Source):
    """A source pruned by a plan: it is read, scored and evaluated before anything is written."""

    layout = "pruned"

    def __init__(self, source: Source, plan: PruningPlan) -> None:
        self.name, self.format, self.revision = source.name, source.format, source.revision
        self.config = source.config_at(plan.target, plan.layers)
        self.companions = source.companions
        self._source, self._plan = source, plan

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors of the pruned model, located but not read."""
        return pruned_tensors(self._plan, self._source.weights)
