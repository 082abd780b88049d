"""Composed tensors against the same operations in memory, and the ranges of their bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import (
    Cast,
    Columns,
    LazyTensor,
    Rows,
    Shifted,
    SideBySide,
    Stacked,
    StoredTensor,
    Zeros,
)

Stored = Callable[[torch.Tensor], StoredTensor]


@pytest.fixture
def store(tmp_path: Path) -> Stored:
    """Puts a tensor into a file of its own, behind some other bytes."""

    def store(tensor: torch.Tensor) -> StoredTensor:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
        path.write_bytes(b"other" + tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return StoredTensor(LocalFile.at(path), tensor.dtype, tuple(tensor.shape), offset=5)

    return store


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def bytes_at(ranges: tuple[LocalFile, ...] | None) -> bytes:
    assert ranges is not None
    return b"".join(part.path.read_bytes()[part.start : part.start + part.size] for part in ranges)


def assert_same(lazy: LazyTensor, wanted: torch.Tensor) -> None:
    """Whole, in every cut into rows, and as bytes where it has some."""
    assert (lazy.dtype, lazy.shape, lazy.nbytes) == (wanted.dtype, wanted.shape, wanted.nbytes)
    assert torch.equal(lazy.read(), wanted)
    for start in range(len(wanted) + 1):
        for stop in range(start, len(wanted) + 1):
            rows = lazy.read(start, stop)
            assert rows.is_contiguous()
            assert torch.equal(rows, wanted[start:stop])
            ranges = lazy.ranges(start, stop)
            if ranges is not None:
                assert bytes_at(ranges) == wanted[start:stop].numpy().tobytes()


def test_rows_are_runs_in_the_order_given(store: Stored) -> None:
    tensor = matrix(9, 5)
    rows = Rows(store(tensor), ((6, 9), (0, 2), (2, 2), (4, 5)))
    assert_same(rows, torch.cat([tensor[6:9], tensor[0:2], tensor[4:5]]))
    assert rows.ranges() is not None


def test_stacked_tensors_follow_each_other(store: Stored) -> None:
    parts = [matrix(3, 4, seed) for seed in range(3)]
    assert_same(Stacked([store(part) for part in parts]), torch.cat(parts))


def test_tensors_side_by_side_share_their_rows(store: Stored) -> None:
    parts = [matrix(6, width, width) for width in (2, 5, 3)]
    joined = SideBySide([store(part) for part in parts])
    assert_same(joined, torch.cat(parts, dim=1))
    assert joined.ranges() is None


def test_columns_are_cut_from_every_row(store: Stored) -> None:
    tensor = matrix(4, 7)
    columns = Columns(store(tensor), 2, 6)
    assert_same(columns, tensor[:, 2:6])
    assert columns.ranges() is None


def test_a_shift_is_made_in_float32_and_rounded_once(store: Stored) -> None:
    weight = torch.tensor([1.0078125, 0.99609375, 3e-3, -2.0], dtype=torch.bfloat16)
    shifted = Shifted(store(weight), -1, torch.float32)
    assert_same(shifted, weight.float() - 1)
    assert torch.equal(Shifted(store(weight), -1).read(), (weight.float() - 1).bfloat16())


def test_a_cast_to_the_same_dtype_keeps_its_bytes(store: Stored) -> None:
    tensor = matrix(3, 4)
    assert_same(Cast(store(tensor), torch.float32), tensor)
    assert Cast(store(tensor), torch.float32).ranges() is not None
    assert_same(Cast(store(tensor), torch.bfloat16), tensor.bfloat16())
    assert Cast(store(tensor), torch.bfloat16).ranges() is None


def test_compositions_compose(store: Stored) -> None:
    ranks = [matrix(6, 4, seed) for seed in range(2)]
    fused = Stacked([store(rank) for rank in ranks])
    lazy = Rows(Stacked([Rows(fused, ((1, 3), (7, 12))), Zeros(fused.dtype, (2, 4))]), ((0, 8),))
    whole = torch.cat(ranks)
    assert_same(lazy, torch.cat([whole[1:3], whole[7:12], torch.zeros(1, 4)]))


def test_a_stored_tensor_gives_one_entry_of_its_first_axis(store: Stored) -> None:
    tensor = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for layer in range(3):
        assert_same(store(tensor).select(layer), tensor[layer])
        assert_same(store(tensor).select(layer).select(2), tensor[layer, 2])


def test_a_stored_tensor_is_narrowed_along_any_axis(store: Stored) -> None:
    tensor = matrix(5, 6)
    assert_same(store(tensor).narrow(0, 1, 4), tensor[1:4])
    assert store(tensor).narrow(0, 1, 4).ranges() is not None
    assert_same(store(tensor).narrow(1, 2, 5), tensor[:, 2:5])
    assert store(tensor).narrow(1, 2, 5).ranges() is None
    assert_same(store(tensor).narrow(1, 2, 5).narrow(0, 1, 3), tensor[1:3, 2:5])
