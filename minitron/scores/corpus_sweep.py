"""Corpus sweep: a corpus taken chunk by chunk, what each gives added up, and kept when interrupted.

Knows sequences, batches and chunks; not what is made of them. The sums of finished chunks may lie
in a file, from which an interrupted sweep goes on.

    sweep(sequences, sums_of_chunk, batch_tokens=8192, chunk_tokens=65536)
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minitron.text.encoding import TokenIds

Sums = dict[str, torch.Tensor]  # in float64; they add up
Chunk = list[torch.Tensor]  # batches of ids, (sequences, length)


def sweep(
    sequences: Sequence[TokenIds],
    measure: Callable[[Chunk], Sums],
    *,
    batch_tokens: int,
    chunk_tokens: int,
    kept: Path | None = None,
) -> Sums:
    """What `measure` finds on each chunk, added up.

    `kept` is a file that holds the sums of the chunks done so far, and is begun where there is
    none: the sweep goes on behind them.
    """
    done, total = _read(kept) if kept is not None and kept.exists() else (0, {})
    for chunk in chunks_of(batches_of(sequences[done:], batch_tokens), chunk_tokens):
        sums = measure(chunk)
        total = {key: total[key] + sums[key] if total else sums[key] for key in sums}
        done += sum(map(len, chunk))
        if kept is not None:
            _write(kept, done, total)
    return total


def batches_of(sequences: Sequence[TokenIds], tokens: int) -> Iterator[torch.Tensor]:
    """Neighbours of equal length as batches of at most `tokens`, or of one sequence."""
    start = 0
    for stop in range(1, len(sequences) + 1):
        length = len(sequences[start])
        is_full = (stop - start + 1) * length > tokens
        if is_full or stop == len(sequences) or len(sequences[stop]) != length:
            yield torch.from_numpy(np.stack(sequences[start:stop])).long()
            start = stop


def chunks_of(batches: Iterator[torch.Tensor], tokens: int) -> Iterator[Chunk]:
    """Batches together, of at most `tokens`, or one alone."""
    chunk: Chunk = []
    for batch in batches:
        if chunk and sum(b.numel() for b in chunk) + batch.numel() > tokens:
            yield chunk
            chunk = []
        chunk.append(batch)
    if chunk:
        yield chunk


def _read(kept: Path) -> tuple[int, Sums]:
    """How many sequences are done, and their sums."""
    with safe_open(kept, framework="pt") as file:
        sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return int((file.metadata() or {})["sequences"]), sums


def _write(kept: Path, done: int, sums: Sums) -> None:
    written = kept.with_name(kept.name + ".new")
    contiguous = {key: tensor.contiguous() for key, tensor in sums.items()}
    save_file(contiguous, written, {"sequences": str(done)})
    written.replace(kept)
