"""Surgery: a plan applied to a source, as a stream of (name, piece of a tensor).

Knows how kept indices of named axes become rows and columns of each tensor. Holds a few pieces of
some megabytes, never a tensor, let alone a model: pieces are read and cut ahead by a few threads
(reading, checking and cutting release the interpreter lock) and handed on in order.

    write_weights(folder, target_specs(plan, tensors), narrowed(plan, tensors, "tiny"))
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from minitron.architecture import Slot
from minitron.finite import check_finite
from minitron.folder_writer import TensorSpec
from minitron.plan import PruningPlan
from minitron.stored_tensor import StoredTensor

Index = npt.NDArray[np.int64]

_PIECE_BYTES = 1 << 20  # read at once: what stays in a core's cache while it is checked and cut
_THREADS = 2
_AHEAD = 4  # pieces being made while one is written
# Any type of the same width will do to move elements; numpy has no bfloat16.
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def target_specs(plan: PruningPlan, tensors: Mapping[str, StoredTensor]) -> dict[str, TensorSpec]:
    """The tensors of the pruned model: shapes of the target, each in its source's dtype."""
    return {
        slot.name: TensorSpec(tensors[source_name(plan, slot)].dtype, slot.shape)
        for slot in plan.target.slots()
    }


def narrowed(
    plan: PruningPlan, tensors: Mapping[str, StoredTensor], source: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the pruned model in canonical order, as pieces of consecutive rows.

    Raises SourceError, naming the tensor, where a piece read is not finite or cannot be read.
    """
    return _made_ahead(
        piece
        for slot in plan.target.slots()
        for piece in _pieces(plan, slot, tensors[source_name(plan, slot)], source)
    )


def kept_index(plan: PruningPlan, axes: tuple[str, ...], layer: int | None) -> Index | None:
    """The kept positions along a dimension of these flattened axes; None where all are kept."""
    kept = [plan.kept(axis, layer) for axis in axes]
    if all(indices is None for indices in kept):
        return None
    index = np.zeros(1, np.int64)
    for axis, indices in zip(axes, kept, strict=True):
        size = plan.source.size(axis)
        along = np.arange(size) if indices is None else np.array(indices, np.int64)
        index = (index[:, None] * size + along).reshape(-1)
    return index


def narrow(tensor: torch.Tensor, index: Index, dimension: int) -> torch.Tensor:
    """`tensor` at the positions `index` of one dimension, contiguous."""
    carrier = tensor.view(_CARRIERS[tensor.dtype.itemsize]).numpy()
    # mode="clip" lets numpy skip its bounds check: several times faster, and ours are in bounds.
    taken = np.take(carrier, index, axis=dimension, mode="clip")
    return torch.from_numpy(taken).view(tensor.dtype)


def source_name(plan: PruningPlan, slot: Slot) -> str:
    """The name under which a tensor of the pruned model stands in the source."""
    return slot.row.name(None if slot.layer is None else plan.layers[slot.layer])


@dataclass(frozen=True)
class _Piece:
    """Some consecutive rows of one tensor, still to be read and cut."""

    name: str  # in the pruned model
    source: str  # the model, and
    source_name: str  # the tensor's name in it: what a damaged one is reported as
    stored: StoredTensor
    start: int
    stop: int
    rows: Index | None  # kept, counted from start
    columns: Index | None

    def make(self) -> tuple[str, torch.Tensor]:
        """Read, check and cut."""
        tensor = self.stored.read(self.start, self.stop)
        check_finite(tensor, self.source_name, self.source)
        if self.rows is not None:
            tensor = narrow(tensor, self.rows, 0)
        if self.columns is not None:
            tensor = narrow(tensor, self.columns, 1)
        return self.name, tensor


def _pieces(plan: PruningPlan, slot: Slot, stored: StoredTensor, source: str) -> Iterator[_Piece]:
    """One tensor's pieces; those without a kept row are not read."""
    kept = [kept_index(plan, axes, slot.layer) for axes in slot.row.axes]
    rows, columns = kept[0], kept[1] if len(kept) > 1 else None
    step = max(1, _PIECE_BYTES * stored.shape[0] // max(1, stored.nbytes))
    for start in range(0, stored.shape[0], step):
        stop = min(start + step, stored.shape[0])
        within = None if rows is None else rows[(rows >= start) & (rows < stop)] - start
        if within is None or within.size:
            yield _Piece(
                name=slot.name,
                source=source,
                source_name=source_name(plan, slot),
                stored=stored,
                start=start,
                stop=stop,
                rows=within,
                columns=columns,
            )


def _made_ahead(pieces: Iterable[_Piece]) -> Iterator[tuple[str, torch.Tensor]]:
    """Make pieces in threads, a few ahead of the reader, and hand them on in order."""
    waiting: deque[Future[tuple[str, torch.Tensor]]] = deque()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for piece in pieces:
            waiting.append(pool.submit(piece.make))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
