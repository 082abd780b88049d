"""RemoteTensor: a tensor whose file stays where it is; what is read of it comes by ranges.

Nothing is stored on this machine. A tensor comes in windows of some megabytes, of which the last
few are held, so that reading it piece by piece, in several threads or side by side with others asks
for each byte once. Does not know from where the bytes come.

    RemoteTensor(stored, fetch=lambda start, stop: download(start, stop), windows=Windows())
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch

from minitron.files.stored_tensor import StoredTensor

WINDOW = 1 << 24  # bytes that come together
HELD = 8  # windows: pieces of a few tensors, each perhaps across the edge of two
_SMALL = 1 << 18  # bytes: a row or two of a larger tensor come alone

Fetch = Callable[[int, int], bytes]


class Windows:
    """The last windows of some files; one that is on its way is waited for, not asked for again."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[object, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def window(self, key: tuple[object, int], fetch: Callable[[], bytes]) -> bytes:
        """The window of this file and offset, as `fetch` gives it."""
        with self._lock:
            coming = self._held.get(key)
            if coming is not None:
                self._held.move_to_end(key)
        if coming is None:
            coming = self._fetched(key, fetch)
        return coming.result()

    def holds(self, key: tuple[object, int]) -> bool:
        """Whether it is here or on its way."""
        return key in self._held

    def _fetched(self, key: tuple[object, int], fetch: Callable[[], bytes]) -> Future[bytes]:
        with self._lock:
            if key in self._held:  # another thread was quicker
                return self._held[key]
            coming = self._held[key] = Future[bytes]()
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        try:
            coming.set_result(fetch())
        except BaseException as error:
            with self._lock:
                self._held.pop(key, None)
            coming.set_exception(error)
        return coming


@dataclass(frozen=True)
class RemoteTensor:
    """A LazyTensor at its place in a file that is not here; `fetch` gives bytes of that file."""

    stored: StoredTensor
    fetch: Fetch
    windows: Windows

    @property
    def dtype(self) -> torch.dtype:
        """As it is stored."""
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the whole in memory."""
        return self.stored.nbytes

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first axis; a scalar is whole."""
        part = self.stored
        if part.shape:
            start, stop, _ = slice(start, stop).indices(part.shape[0])
            part = part.narrow(0, start, max(start, stop))
        if 0 in part.shape:
            return torch.empty(part.shape, dtype=part.dtype)
        elements = torch.empty(_span(part), dtype=part.dtype)
        self._fill(elements.view(torch.uint8).numpy().data, part.offset)
        if part.strides is None:
            return elements.reshape(part.shape)
        strided = elements.as_strided(part.shape, part.strides)
        return strided.clone(memory_format=torch.contiguous_format)

    def ranges(self, start: int = 0, stop: int | None = None) -> None:
        """None: it lies in no file of this machine."""

    def _fill(self, target: memoryview, begin: int) -> None:
        """Bring bytes from `begin` on; windows are counted from the tensor's own first byte."""
        first, end = self.stored.offset, begin + len(target)
        last = first + _span(self.stored) * self.dtype.itemsize
        alone = len(target) < _SMALL < last - first
        for at in range(begin - (begin - first) % WINDOW, end, WINDOW):
            low, high = max(begin, at), min(end, at + WINDOW)
            key = (self.stored.path, at)
            content: bytes | memoryview
            if alone and not self.windows.holds(key):
                content = self.fetch(low, high)
            else:
                stop = min(at + WINDOW, last)
                window = self.windows.window(key, partial(self.fetch, at, stop))
                content = memoryview(window)[low - at : high - at]  # no copy
            target[low - begin : high - begin] = content


def _span(stored: StoredTensor) -> int:
    """Elements from the first to the last of a tensor that has some, gaps included."""
    if stored.strides is None:
        return math.prod(stored.shape)
    steps = zip(stored.shape, stored.strides, strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)
