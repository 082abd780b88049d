"""A tensor that is located in its file when it is first read."""

from pathlib import Path

import pytest
import torch

from minitron.errors import SourceError
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import DeferredTensor, StoredTensor

VALUES = torch.arange(15, dtype=torch.float32).reshape(5, 3)


@pytest.fixture
def in_file(tmp_path: Path) -> StoredTensor:
    path = tmp_path / "file"
    path.write_bytes(b"head" + VALUES.numpy().tobytes())
    return StoredTensor(LocalFile.at(path), torch.float32, (5, 3), offset=4)


def test_nothing_is_located_before_rows_are_read(in_file: StoredTensor) -> None:
    located = []
    tensor = DeferredTensor(torch.float32, (5, 3), lambda: located.append(1) or in_file)
    assert (tensor.nbytes, tensor.shape) == (60, (5, 3))
    assert (tensor.select(2).nbytes, tensor.select(2).shape) == (12, (3,))
    assert located == []
    assert torch.equal(tensor.read(1, 3), VALUES[1:3])
    assert tensor.ranges(1, 3) == (in_file.file.window(16, 24),)
    assert torch.equal(tensor.select(2).read(), VALUES[2])
    assert located == [1, 1, 1]


def test_another_file_than_was_announced_is_refused(in_file: StoredTensor) -> None:
    with pytest.raises(SourceError, match="is not the file whose beginning was read"):
        DeferredTensor(torch.float32, (3, 5), lambda: in_file).read()
