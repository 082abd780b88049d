"""Weights on their way: copied or made, checked beside, in order."""

import os
from pathlib import Path

import pytest
import torch

from minitron.errors import SourceError, TargetError
from minitron.files import safetensors_file
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import Cast, LazyTensor, Shifted, StoredTensor
from minitron.files.safetensors_file import read_safetensors_header
from minitron.files.tensor_stream import PIECE_BYTES, stream_tensors
from minitron.records.folder_writer import specs_of, write_weights


def store(path: Path, tensor: torch.Tensor) -> StoredTensor:
    path.write_bytes(tensor.view(torch.uint8).numpy().tobytes())
    return StoredTensor(LocalFile.at(path), tensor.dtype, tuple(tensor.shape), offset=0)


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    """One that takes several pieces, and two small ones."""
    generator = torch.Generator().manual_seed(0)
    rows = 5 * PIECE_BYTES // (4 * 96) // 2
    return {
        "large": torch.randn(rows, 96, generator=generator),
        "norm": torch.randn(7, generator=generator),
        "last": torch.randn(3, 5, generator=generator),
    }


def lazy(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    stored = {name: store(folder / name, tensor) for name, tensor in weights.items()}
    return {**stored, "norm": Shifted(stored["norm"], 1.0)}


def test_what_is_written_is_what_was_asked_for(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    tensors = lazy(tmp_path, weights)
    write_weights(tmp_path, specs_of(tensors), stream_tensors(tensors, "it"))
    written = read_safetensors_header(LocalFile.at(tmp_path / "model.safetensors"))
    assert list(written) == ["large", "norm", "last"]
    for name, tensor in {**weights, "norm": weights["norm"] + 1}.items():
        assert torch.equal(written[name].read(), tensor), name


def test_bytes_that_are_as_wanted_are_not_read(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    pieces = dict(stream_tensors(lazy(tmp_path, weights), "it", check=False))
    assert isinstance(pieces["large"], LocalFile)
    assert isinstance(pieces["norm"], torch.Tensor)


def test_where_the_kernel_cannot_copy_the_bytes_are_the_same(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: int) -> int:
        raise OSError(18, os.strerror(18))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    tensors = lazy(tmp_path, weights)
    write_weights(tmp_path, specs_of(tensors), stream_tensors(tensors, "it"))
    written = read_safetensors_header(LocalFile.at(tmp_path / "model.safetensors"))
    assert torch.equal(written["large"].read(), weights["large"])


def test_a_file_that_ends_early_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(12))
    part = LocalFile.at(path).window(4, 8)
    path.write_bytes(b"12345678")
    with (
        (tmp_path / "out").open("wb", buffering=0) as out,
        pytest.raises(SourceError, match="short is truncated: it ends at 8"),
    ):
        safetensors_file.write_piece(out, part, torch.float32, lambda done: None)


@pytest.mark.parametrize("name", ["large", "norm", "last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(
    tmp_path: Path, weights: dict[str, torch.Tensor], name: str, value: float
) -> None:
    weights[name].view(-1)[-2] = value
    tensors = lazy(tmp_path, weights)
    with pytest.raises(SourceError, match=rf"it: {name} holds NaN or infinity"):
        list(stream_tensors(tensors, "it"))
    assert {name for name, _ in stream_tensors(tensors, "it", check=False)} == set(weights)


def test_a_cast_that_overflows_is_distinguished_from_damage(tmp_path: Path) -> None:
    stored = store(tmp_path / "w", torch.tensor([[1.0, 1e6]]))
    with pytest.raises(TargetError, match="w holds values too large for float16: choose bfloat16"):
        list(stream_tensors({"w": Cast(stored, torch.float16)}, "it"))
    assert torch.equal(
        dict(stream_tensors({"w": Cast(stored, torch.bfloat16)}, "it"))["w"],
        torch.tensor([[1.0, 1e6]]).bfloat16(),
    )
