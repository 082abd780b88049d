"""Weights files written in threads: the right bytes, bounded memory, and an end when one fails."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minitron.errors import SourceError
from minitron.files import safetensors_file
from minitron.files.file import LocalFile
from minitron.files.safetensors_file import ShardFile, TensorSpec
from minitron.records.folder_writer import write_weights

ROW = 4 * 11  # bytes


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 11, generator=torch.Generator().manual_seed(seed))


def specs(**counts: int) -> dict[str, TensorSpec]:
    return {name: TensorSpec(torch.float32, (count, 11)) for name, count in counts.items()}


def test_shards_written_at_once_hold_the_same_bytes_as_one_file(tmp_path: Path) -> None:
    tensors = {name: rows(count, count) for name, count in {"a": 7, "b": 5, "c": 9, "d": 3}.items()}
    stored = tmp_path / "stored"
    stored.write_bytes(b"xx" + tensors["b"].numpy().tobytes())

    def pieces() -> Iterator[tuple[str, Any]]:
        yield "a", tensors["a"][:3]
        yield "a", tensors["a"][3:]
        yield "b", LocalFile.at(stored).window(2, 5 * ROW)
        yield "c", tensors["c"]
        yield "d", tensors["d"]

    for name, largest in {"one": 1 << 30, "many": 400}.items():
        (tmp_path / name).mkdir()
        write_weights(tmp_path / name, specs(a=7, b=5, c=9, d=3), pieces(), max_shard_size=largest)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 4
    for name in ("one", "many"):
        found: dict[str, torch.Tensor] = {}
        for path in (tmp_path / name).glob("*.safetensors"):
            found |= load_file(path)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_two_files_are_written_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)  # breaks where one file waits for the other's end
    write = safetensors_file.write_piece

    def together(*arguments: Any) -> int:
        both.wait()
        return write(*arguments)

    monkeypatch.setattr(safetensors_file, "write_piece", together)
    stored = tmp_path / "stored"
    stored.write_bytes(bytes(7 * ROW))
    pieces = [
        ("a", LocalFile.at(stored).window(0, 7 * ROW)),
        ("b", LocalFile.at(stored).window(0, 7 * ROW)),
    ]
    write_weights(tmp_path, specs(a=7, b=7), pieces, max_shard_size=7 * ROW)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_few_pieces_wait_in_memory_and_any_number_of_file_ranges(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path / "w.safetensors", specs(a=40), lambda _: None)
    stored = tmp_path / "stored"
    stored.write_bytes(bytes(ROW))
    for _ in range(30):
        shard.add("a", LocalFile.at(stored).window(0, ROW))
    put = []

    def hand_on() -> None:
        for seed in range(10):
            shard.add("a", rows(1, seed))
            put.append(seed)

    with ThreadPoolExecutor(2) as pool:
        handing = pool.submit(hand_on)
        time.sleep(0.5)
        assert len(put) == 4, "nobody writes yet"
        pool.submit(shard.write).result(timeout=30)
        handing.result(timeout=30)
    held = load_file(tmp_path / "w.safetensors")["a"]
    assert torch.equal(held[30:], torch.cat([rows(1, seed) for seed in range(10)]))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_full_disk_in_one_file_ends_all_of_them(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "stored"
    stored.write_bytes(bytes(9 * ROW))
    taken = []

    def pieces() -> Iterator[tuple[str, Any]]:
        for name in "abcdef":
            for row in range(9):
                taken.append(name)
                yield (
                    name,
                    rows(1, row) if in_memory else LocalFile.at(stored).window(row * ROW, ROW),
                )

    def full(file: Any, *_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors_file, "write_piece", full)
    counts = dict.fromkeys("abcdef", 9)
    with pytest.raises(OSError, match="No space left"):
        write_weights(tmp_path, specs(**counts), pieces(), max_shard_size=9 * ROW)
    if in_memory:
        assert "c" not in taken  # it did not go on making what nobody writes


def test_what_makes_the_pieces_fails_and_no_writer_is_left_waiting(tmp_path: Path) -> None:
    def pieces() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", rows(9, 0)
        raise SourceError("b holds NaN")

    before = threading.active_count()
    with pytest.raises(SourceError, match="b holds NaN"):
        write_weights(tmp_path, specs(a=9, b=9, c=9), pieces(), max_shard_size=9 * ROW)
    assert threading.active_count() == before


def test_a_file_that_ends_early_is_reported(tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.write_bytes(bytes(9 * ROW))
    part = LocalFile.at(stored).window(0, 9 * ROW)
    stored.write_bytes(bytes(3 * ROW))
    with pytest.raises(SourceError, match="stored is truncated"):
        write_weights(tmp_path, specs(a=9), [("a", part)])


@pytest.mark.parametrize("in_memory", [True, False])
def test_tensors_larger_than_a_shard_have_files_of_their_own(
    in_memory: bool, tmp_path: Path
) -> None:
    # As an embedding of 256,000 tokens does: the files around them are not yet full.
    counts = {"big": 90, "a": 3, "b": 4, "large": 80, "c": 2, "huge": 99, "d": 5}
    tensors = {name: rows(count, count) for name, count in counts.items()}
    stored = tmp_path / "stored"
    stored.write_bytes(b"".join(tensor.numpy().tobytes() for tensor in tensors.values()))

    def pieces() -> Iterator[tuple[str, Any]]:
        start = 0
        for name, count in counts.items():
            for row in range(count):
                yield (
                    name,
                    tensors[name][row : row + 1]
                    if in_memory
                    else LocalFile.at(stored).window(start, ROW),
                )
                start += ROW

    write_weights(tmp_path, specs(**counts), pieces(), max_shard_size=20 * ROW)
    found: dict[str, torch.Tensor] = {}
    for path in tmp_path.glob("*.safetensors"):
        found |= load_file(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
