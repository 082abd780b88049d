"""A tensor of a file that is fetched when it is first read."""

from pathlib import Path

import pytest
import torch

from minitron.errors import SourceError
from minitron.files.fetched_tensor import FetchedTensor
from minitron.files.lazy_tensor import FileRange
from minitron.files.stored_tensor import StoredTensor

VALUES = torch.arange(15, dtype=torch.float32).reshape(5, 3)


@pytest.fixture
def stored(tmp_path: Path) -> StoredTensor:
    path = tmp_path / "file"
    path.write_bytes(b"head" + VALUES.numpy().tobytes())
    return StoredTensor(path, torch.float32, (5, 3), offset=4)


def test_nothing_is_fetched_before_rows_are_read(stored: StoredTensor) -> None:
    fetched = []
    tensor = FetchedTensor(torch.float32, (5, 3), lambda: fetched.append(1) or stored)
    assert (tensor.nbytes, tensor.shape) == (60, (5, 3))
    assert fetched == []
    assert torch.equal(tensor.read(1, 3), VALUES[1:3])
    assert tensor.ranges(1, 3) == (FileRange(stored.path, 16, 24),)
    assert fetched == [1, 1]


def test_another_file_than_was_announced_is_refused(stored: StoredTensor) -> None:
    with pytest.raises(SourceError, match="is not the file whose beginning was read"):
        FetchedTensor(torch.float32, (3, 5), lambda: stored).read()
