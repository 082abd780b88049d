"""Tensors as a stream of pieces: read ahead in threads, or ranges of files that are only copied.

Knows how weights are checked on their way: what is computed as it is read, what is copied from file
to file beside the copying. Does not know what the tensors mean or where they are written.

    write_weights(folder, specs_of(tensors), stream_tensors(tensors, "8b.nemo"))
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from minitron.errors import TargetError
from minitron.files.dtypes import check_finite, is_finite, is_finite_in_file, name_of
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import Cast, DerivedTensor, LazyTensor

Piece = torch.Tensor | LocalFile
Job = Callable[[], torch.Tensor]

PIECE_BYTES = 1 << 20  # read at once: fits a core's cache while it is checked and cut
_THREADS = 2
_AHEAD = 4  # pieces being read while one is written


def stream_tensors(
    tensors: Mapping[str, LazyTensor],
    source: str,
    *,
    source_names: Mapping[str, str] | None = None,
    check: bool = True,
) -> Iterator[tuple[str, Piece]]:
    """Every tensor whole, in order: as ranges of local files where it is in some, else as rows.

    Raises SourceError, naming the tensor, where values are not finite or cannot be read, and
    TargetError where they are finite but overflow the dtype that they are cast to; either may be
    raised after the bytes were yielded. `check` False checks no value. `source_names` are the
    tensors' names in the source, where they differ.
    """
    # One thread checks while the kernel copies: more would take processor time from the copying.
    with ThreadPoolExecutor(_THREADS) as pool, ThreadPoolExecutor(1) as checking:
        checks: deque[Future[None]] = deque()

        def jobs() -> Iterator[tuple[str, Job | LocalFile]]:
            for name, tensor in tensors.items():
                checked = CheckedTensor(tensor, (source_names or {}).get(name, name), source)
                ranges = tensor.ranges()
                if ranges is None:
                    computed = checked if check else tensor
                    for start, stop in pieces_of(tensor):
                        yield name, partial(computed.read, start, stop)
                    continue
                if check:
                    checks.append(checking.submit(_check_in_files, checked, ranges))
                yield from ((name, piece) for piece in ranges)
                while checks and checks[0].done():
                    checks.popleft().result()

        try:
            yield from _read_ahead(jobs(), pool)
            for future in checks:
                future.result()
        finally:
            checking.shutdown(wait=True, cancel_futures=True)
            pool.shutdown(wait=True, cancel_futures=True)


def _read_ahead(
    jobs: Iterable[tuple[str, Job | LocalFile]], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, Piece]]:
    """Read pieces in threads, a few ahead of the consumer, and yield them in order."""
    waiting: deque[tuple[str, Future[torch.Tensor] | LocalFile]] = deque()
    for name, job in jobs:
        waiting.append((name, job if isinstance(job, LocalFile) else pool.submit(job)))
        if len(waiting) > _AHEAD:
            yield _finish(*waiting.popleft())
    while waiting:
        yield _finish(*waiting.popleft())


def pieces_of(tensor: LazyTensor) -> Iterator[tuple[int, int]]:
    """Runs of rows of about PIECE_BYTES that cover a tensor."""
    rows = tensor.shape[0]
    step = max(1, PIECE_BYTES * rows // max(1, tensor.nbytes))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _finish(name: str, piece: Future[torch.Tensor] | LocalFile) -> tuple[str, Piece]:
    return name, piece if isinstance(piece, LocalFile) else piece.result()


def _check_in_files(tensor: "CheckedTensor", ranges: Iterable[LocalFile]) -> None:
    if all(is_finite_in_file(part, tensor.dtype) for part in ranges):
        return
    for start, stop in pieces_of(tensor):
        tensor.read(start, stop)  # raises the error


class CheckedTensor(DerivedTensor):
    """A tensor whose rows are refused, as they are read, where they are not finite.

    Raises SourceError, or TargetError where only the cast overflows. It has no file ranges: to be
    checked, the values must be read.
    """

    def __init__(self, tensor: LazyTensor, name: str, source: str) -> None:
        super().__init__(tensor.dtype, tensor.shape)
        self.tensor, self.name, self.source = tensor, name, source

    def _read(self, start: int, stop: int) -> torch.Tensor:
        rows = self.tensor.read(start, stop)
        if not is_finite(rows):
            before = self.tensor.tensor if isinstance(self.tensor, Cast) else self.tensor
            check_finite(before.read(start, stop), self.name, self.source)
            dtype = name_of(self.dtype)
            raise TargetError(
                f"{self.source}: {self.name} holds values too large for {dtype}: choose bfloat16"
            )
        return rows
