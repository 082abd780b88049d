"""A file that is not on this machine comes in pieces, each byte once, and nothing is stored."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from minitron.errors import SourceError
from minitron.files import cached_file
from minitron.files.cached_file import CachedFile, Cursor, PieceCache
from minitron.files.file import File
from minitron.files.lazy_tensor import StoredTensor

CONTENT = bytes(range(250)) * 4
VALUES = torch.arange(210, dtype=torch.float32).reshape(30, 7)
FILE = b"some header" + VALUES.numpy().tobytes() + b"what follows"
OFFSET = len(b"some header")
Asked = list[tuple[int, int]]


class Remote(File):
    """A file elsewhere, which keeps a list of the ranges that were requested."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, Asked()
        self.name, self.size = "elsewhere", len(content)

    def read_into(self, target: memoryview, start: int) -> None:
        self.asked.append((start, start + len(target)))
        target[:] = self.content[start : start + len(target)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_file, "BLOCK", 100)
    monkeypatch.setattr(cached_file, "WINDOW", 100_000)
    monkeypatch.setattr(cached_file, "SMALL", 1)


@pytest.fixture
def remote() -> Remote:
    return Remote(FILE)


def tensor_in(remote: Remote, pieces: PieceCache | None = None) -> StoredTensor:
    stored = StoredTensor(remote, torch.float32, (30, 7), OFFSET)
    return stored.cached(pieces or PieceCache(100))


# What describes tensors, by blocks


def test_what_is_read_through_a_cursor_is_requested_once() -> None:
    remote = Remote(CONTENT[:-30])
    cursor = Cursor(CachedFile(remote).window(120, 500))
    for position, size in ((0, 10), (5, 100), (150, 80), (0, 60)):
        cursor.seek(position)
        assert cursor.read(size) == CONTENT[120 + position :][:size]
    assert remote.asked == [(100, 200), (200, 300), (300, 400)]


def test_the_last_block_ends_with_the_file() -> None:
    remote = Remote(CONTENT[:-30])
    file = CachedFile(remote)
    assert file.read(960, 970) == CONTENT[960:970]
    assert remote.asked == [(900, 970)]
    with pytest.raises(SourceError, match="elsewhere is truncated: it ends at 970, 5000 are"):
        file.read(960, 5000)


def test_missing_blocks_come_in_one_request() -> None:
    remote = Remote(CONTENT)
    file = CachedFile(remote)
    file.read(200, 300)
    assert file.read(0, 600) == CONTENT[:600]
    assert file.read(0, 600) == CONTENT[:600]
    assert remote.asked == [(200, 300), (0, 600)]


def test_a_large_read_is_one_request_and_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_file, "WINDOW", 400)
    remote = Remote(CONTENT)
    file = CachedFile(remote)
    assert file.read(150, 950) == CONTENT[150:950]
    assert remote.asked == [(150, 950)]


def test_a_cursor_reads_lines_and_never_beyond_the_end() -> None:
    cursor = Cursor(Remote(b"one\ntwo"))
    assert [cursor.readline(), cursor.readline(), cursor.readline()] == [b"one\n", b"two", b""]
    assert cursor.seek(-3, io.SEEK_END) == 4
    assert cursor.read(1 << 62) == b"two"
    with pytest.raises(ValueError, match="seek to -1"):
        cursor.seek(-1)


# Tensors, by windows


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 1), (3, 17), (29, 30), (-2, None)])
def test_rows_are_those_of_the_file(remote: Remote, start: int, stop: int | None) -> None:
    tensor = tensor_in(remote)
    assert torch.equal(tensor.read(start, stop), VALUES[start:stop])
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (torch.float32, (30, 7), 840)
    assert tensor.ranges() is None


@pytest.mark.parametrize(("start", "stop"), [(7, 7), (9, 4), (30, None)])
def test_no_rows_are_not_requested(remote: Remote, start: int, stop: int | None) -> None:
    assert tensor_in(remote).read(start, stop).shape == (0, 7)
    assert remote.asked == []


@pytest.mark.parametrize("step", [1, 2, 3, 30])
def test_each_byte_comes_once_whatever_the_rows(remote: Remote, step: int) -> None:
    tensor = tensor_in(remote)
    rows = [tensor.read(start, start + step) for start in range(0, 30, step)]
    assert torch.equal(torch.cat(rows), VALUES)
    bounds = [*range(OFFSET, OFFSET + 840, 100), OFFSET + 840]
    assert remote.asked == list(zip(bounds, bounds[1:], strict=False))


def test_each_byte_comes_once_for_threads_that_read_at_once(remote: Remote) -> None:
    tensor = tensor_in(remote)
    together = threading.Barrier(8)

    def read(row: int) -> torch.Tensor:
        together.wait()
        return tensor.read(row, row + 1)

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(read, range(24)))
    assert torch.equal(torch.cat(rows), VALUES[:24])
    assert len(remote.asked) == len(set(remote.asked)) == 7


def test_tensors_are_read_side_by_side_without_a_second_request(remote: Remote) -> None:
    pieces = PieceCache(100)
    stored = StoredTensor(remote, torch.float32, (30, 7), OFFSET)
    halves = [stored.narrow(0, start, start + 15).cached(pieces) for start in (0, 15)]
    rows = [half.read(row, row + 1) for row in range(15) for half in halves]
    assert torch.equal(torch.cat(rows[::2] + rows[1::2]), VALUES)
    assert len(remote.asked) == len(set(remote.asked))
    assert sum(stop - start for start, stop in remote.asked) == 840


def test_of_all_windows_only_the_last_are_kept(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_file, "KEPT", 200)
    tensor = tensor_in(remote)
    tensor.read()
    remote.asked.clear()
    tensor.read(26, 30)
    assert remote.asked == []
    tensor.read(0, 1)
    assert remote.asked == [(OFFSET, OFFSET + 100)]


def test_a_row_of_a_large_tensor_comes_alone(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_file, "SMALL", 30)
    tensor = tensor_in(remote)
    assert torch.equal(tensor.read(3, 4), VALUES[3:4])
    assert remote.asked == [(OFFSET + 84, OFFSET + 100), (OFFSET + 100, OFFSET + 112)]
    tensor.read(0, 6)
    remote.asked.clear()
    tensor.read(3, 4)
    assert remote.asked == []


@pytest.mark.parametrize("axis", [0, 1])
def test_a_tensor_with_gaps_is_read_without_them(remote: Remote, axis: int) -> None:
    stored = StoredTensor(remote, torch.float32, (30, 7), OFFSET)
    part = stored.narrow(axis, 2, 5).cached(PieceCache(100))
    assert torch.equal(part.read(), VALUES.narrow(axis, 2, 3))
    assert torch.equal(part.read(1, 3), VALUES.narrow(axis, 2, 3)[1:3])
    assert part.read().is_contiguous()


def test_a_transposed_tensor_and_a_scalar_are_read(remote: Remote) -> None:
    turned = StoredTensor(remote, torch.float32, (7, 30), OFFSET, strides=(1, 7))
    assert torch.equal(turned.cached(PieceCache(100)).read(2, 4), VALUES.T[2:4])
    scalar = StoredTensor(remote, torch.float32, (), OFFSET + 4)
    assert torch.equal(scalar.cached(PieceCache(100)).read(), torch.tensor(1.0))


def test_what_could_not_be_read_is_requested_again(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = remote.read_into, [SourceError("the net is away")]

    def failing(target: memoryview, start: int) -> None:
        if failures:
            raise failures.pop()
        read(target, start)

    monkeypatch.setattr(remote, "read_into", failing)
    tensor = tensor_in(remote)
    with pytest.raises(SourceError, match="the net is away"):
        tensor.read(0, 1)
    assert torch.equal(tensor.read(0, 1), VALUES[:1])
