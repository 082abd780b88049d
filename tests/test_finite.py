"""NaN and infinity are found in every float dtype, wherever they stand, and nothing else is."""

from pathlib import Path

import pytest
import torch

from minitron.errors import SourceError
from minitron.files import dtypes
from minitron.files.dtypes import check_finite, is_finite, is_finite_in_file
from minitron.files.file import LocalFile

FLOATS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def extreme(dtype: torch.dtype) -> torch.Tensor:
    """Ordinary numbers between the largest and smallest finite ones, (5, 7)."""
    info = torch.finfo(dtype)
    numbers = torch.linspace(-1, 1, 35, dtype=torch.float64)
    numbers[3], numbers[4], numbers[5] = info.max, info.min, info.tiny
    numbers[6], numbers[7] = 0.0, -0.0
    return numbers.to(dtype).view(5, 7)


def all_patterns(dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern of a dtype of one or two bytes."""
    width = dtype.itemsize
    patterns = torch.arange(2 ** (8 * width), dtype=torch.int64).to(SIGNED[width])
    return patterns.view(dtype)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (dtype, value)
        for dtype in FLOATS
        for value in ("nan", "-nan", "inf", "-inf")
        if "nan" in value or dtype != torch.float8_e4m3fn  # which has no infinity
    ],
    ids=str,
)
@pytest.mark.parametrize("position", [0, 17, -1])
def test_one_such_value_is_found(dtype: torch.dtype, value: str, position: int) -> None:
    tensor = extreme(dtype)
    bad = torch.tensor(float(value.removeprefix("-")), dtype=torch.float64).to(dtype)
    if value.startswith("-"):
        bits = bad.view(SIGNED[dtype.itemsize])
        bad = (bits | (torch.tensor(1, dtype=bits.dtype) << (8 * dtype.itemsize - 1))).view(dtype)
        assert torch.signbit(bad.to(torch.float64))
    assert is_finite(tensor)
    tensor.view(-1)[position] = bad
    assert not is_finite(tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    assert is_finite(extreme(dtype))
    assert is_finite(torch.full((3,), torch.finfo(dtype).max, dtype=torch.float64).to(dtype))
    assert is_finite(torch.full((3,), torch.finfo(dtype).min, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype.itemsize <= 2], ids=str)
def test_every_bit_pattern_is_judged_as_torch_judges_it(dtype: torch.dtype) -> None:
    patterns = all_patterns(dtype)
    finite = patterns.to(torch.float64).isfinite()
    assert is_finite(patterns[finite])
    bad = patterns[~finite]
    assert len(bad) > 0
    assert not any(is_finite(one) for one in bad[:: max(1, len(bad) // 40)].split(1))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_always_are(dtype: torch.dtype) -> None:
    assert is_finite(torch.full((3, 5), -1, dtype=torch.int64).to(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nothing_is_finite_and_so_is_a_single_number(dtype: torch.dtype) -> None:
    assert is_finite(torch.empty((0, 4), dtype=dtype))
    assert is_finite(torch.zeros((), dtype=dtype))
    assert not is_finite(torch.full((), float("nan")).to(dtype))


def test_only_what_a_view_shows_is_judged() -> None:
    tensor = torch.ones(4, 6)
    tensor[:, 5] = float("nan")
    assert is_finite(tensor[:, :5])
    assert is_finite(tensor.T[:5])
    assert not is_finite(tensor.T)


def test_the_tensor_and_its_model_are_named() -> None:
    check_finite(torch.ones(3), "model.norm.weight", "their/model")
    with pytest.raises(SourceError, match=r"their/model: model.norm.weight holds NaN or infinity"):
        check_finite(torch.tensor([1, float("inf")]), "model.norm.weight", "their/model")


@pytest.mark.parametrize("offset", [0, 3, 4095, 4097])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_in_a_file_too_whatever_its_windows_and_where_it_begins(
    dtype: torch.dtype, offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "_WINDOW", 4096)
    monkeypatch.setattr(dtypes, "_IN_CACHE", 100)
    tensor = extreme(dtype).repeat(90, 3)  # several windows
    path = tmp_path / "weights"

    def is_finite_there(values: torch.Tensor) -> bool:
        data = values.contiguous().view(torch.uint8).numpy().tobytes()
        path.write_bytes(b"\xff" * offset + data + b"\xff" * 8)  # as integers, all are NaN
        return is_finite_in_file(LocalFile.at(path).window(offset, len(data)), dtype)

    assert is_finite_there(tensor)
    for position in (0, 4096 // dtype.itemsize - 1, 4096 // dtype.itemsize, tensor.numel() - 1):
        damaged = tensor.clone()
        damaged.view(-1)[position] = torch.tensor(float("nan")).to(dtype)
        assert not is_finite_there(damaged), position


def test_a_file_that_ends_before_its_tensor_is_reported(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(104))
    part = LocalFile.at(tmp_path / "weights").window(60, 44)
    (tmp_path / "weights").write_bytes(bytes(100))
    with pytest.raises(SourceError, match="weights is truncated: it ends at 100"):
        is_finite_in_file(part, torch.float32)
