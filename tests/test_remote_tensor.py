"""A tensor is read where it lies, each byte of it once, and nothing is stored."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from minitron.errors import SourceError
from minitron.files import remote_tensor
from minitron.files.remote_tensor import RemoteTensor, Windows
from minitron.files.stored_tensor import StoredTensor

VALUES = torch.arange(210, dtype=torch.float32).reshape(30, 7)
FILE = b"some header" + VALUES.numpy().tobytes() + b"what follows"
OFFSET = len(b"some header")
STORED = StoredTensor(Path("elsewhere"), torch.float32, (30, 7), OFFSET)
Asked = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_tensor, "WINDOW", 100)
    monkeypatch.setattr(remote_tensor, "_SMALL", 1)


@pytest.fixture
def asked() -> Asked:
    return []


def elsewhere(asked: Asked) -> Callable[[int, int], bytes]:
    def fetch(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return FILE[start:stop]

    return fetch


def remote(asked: Asked, stored: StoredTensor = STORED) -> RemoteTensor:
    return RemoteTensor(stored, elsewhere(asked), Windows())


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 1), (3, 17), (29, 30), (-2, None)])
def test_rows_are_those_of_the_file(asked: Asked, start: int, stop: int | None) -> None:
    tensor = remote(asked)
    assert torch.equal(tensor.read(start, stop), VALUES[start:stop])
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (torch.float32, (30, 7), 840)
    assert tensor.ranges() is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(("start", "stop"), [(7, 7), (9, 4), (30, None)])
def test_no_rows_are_not_asked_for(asked: Asked, start: int, stop: int | None) -> None:
    assert remote(asked).read(start, stop).shape == (0, 7)
    assert asked == []


@pytest.mark.parametrize("step", [1, 2, 3, 30])
def test_each_byte_comes_once_whatever_the_pieces(asked: Asked, step: int) -> None:
    tensor = remote(asked)
    rows = [tensor.read(start, start + step) for start in range(0, 30, step)]
    assert torch.equal(torch.cat(rows), VALUES)
    bounds = [*range(OFFSET, OFFSET + 840, 100), OFFSET + 840]
    assert asked == list(zip(bounds, bounds[1:], strict=False))


def test_each_byte_comes_once_for_threads_that_read_at_once(asked: Asked) -> None:
    tensor = remote(asked)
    together = threading.Barrier(8)

    def read(row: int) -> torch.Tensor:
        together.wait()
        return tensor.read(row, row + 1)

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(read, range(24)))
    assert torch.equal(torch.cat(rows), VALUES[:24])
    assert len(asked) == len(set(asked)) == 7


def test_tensors_are_read_side_by_side_without_asking_twice(asked: Asked) -> None:
    windows, fetch = Windows(), elsewhere(asked)
    halves = [
        RemoteTensor(STORED.narrow(0, start, start + 15), fetch, windows) for start in (0, 15)
    ]
    rows = [half.read(row, row + 1) for row in range(15) for half in halves]
    assert torch.equal(torch.cat(rows[::2] + rows[1::2]), VALUES)
    assert len(asked) == len(set(asked))
    assert sum(stop - start for start, stop in asked) == 840


def test_of_all_windows_only_the_last_are_held(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_tensor, "HELD", 2)
    tensor = remote(asked)
    tensor.read()
    asked.clear()
    tensor.read(26, 30)
    assert asked == []
    tensor.read(0, 1)
    assert asked == [(OFFSET, OFFSET + 100)]


def test_a_row_of_a_large_tensor_comes_alone(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_tensor, "_SMALL", 30)
    tensor = remote(asked)
    assert torch.equal(tensor.read(3, 4), VALUES[3:4])
    assert asked == [(OFFSET + 84, OFFSET + 100), (OFFSET + 100, OFFSET + 112)]
    tensor.read(0, 6)
    asked.clear()
    tensor.read(3, 4)
    assert asked == []


@pytest.mark.parametrize("axis", [0, 1])
def test_a_tensor_with_gaps_is_read_without_them(asked: Asked, axis: int) -> None:
    part = remote(asked, STORED.narrow(axis, 2, 5))
    assert torch.equal(part.read(), VALUES.narrow(axis, 2, 3))
    assert torch.equal(part.read(1, 3), VALUES.narrow(axis, 2, 3)[1:3])
    assert part.read().is_contiguous()


def test_a_transposed_tensor_and_a_scalar_are_read(asked: Asked) -> None:
    turned = StoredTensor(Path("elsewhere"), torch.float32, (7, 30), OFFSET, strides=(1, 7))
    assert torch.equal(remote(asked, turned).read(2, 4), VALUES.T[2:4])
    scalar = StoredTensor(Path("elsewhere"), torch.float32, (), OFFSET + 4)
    assert torch.equal(remote(asked, scalar).read(), torch.tensor(1.0))


def test_what_could_not_be_fetched_is_asked_for_again() -> None:
    answers: list[bytes | Exception] = [SourceError("the net is away"), FILE[OFFSET:][:100]]

    def fetch(start: int, stop: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    tensor = RemoteTensor(STORED, fetch, Windows())
    with pytest.raises(SourceError, match="the net is away"):
        tensor.read(0, 1)
    assert torch.equal(tensor.read(0, 1), VALUES[:1])
