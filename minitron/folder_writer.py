"""Writes what a Hub folder holds: sharded safetensors, each tensor pulled once, and its companions.

Shards, index and headers are planned from shapes before the first byte is read; the tensors then
stream through in pieces, in the planned order. Does not know what they mean.

    write_weights(folder, {"w": TensorSpec(torch.bfloat16, (2, 3))}, [("w", rows) ...])
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from tqdm.auto import tqdm

from minitron.source import Source
from minitron.tensors.lazy_tensor import LazyTensor
from minitron.tensors.piece_writer import write_piece
from minitron.tensors.safetensors_file import safetensors_header
from minitron.tensors.tensor_stream import Piece

MAX_SHARD_SIZE = "5GB"  # as huggingface_hub's own default


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_weights(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    pieces: Iterable[tuple[str, Piece]],
    *,
    max_shard_size: str | None = None,
) -> None:
    """Write `pieces` as the tensors of `specs`, in its order.

    `pieces` gives each tensor's bytes in row-major order, as one piece or as several under the
    same name, one after the other; those that are file ranges are copied from file to file.
    Files: model.safetensors, or shards with their index.
    """
    split = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=lambda spec: spec.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size or MAX_SHARD_SIZE,
    )
    total = sum(spec.nbytes for spec in specs.values())
    stream = iter(pieces)
    with tqdm(total=total, unit="B", unit_scale=True, desc="write", disable=None) as progress:
        for file_name, names in split.filename_to_tensors.items():
            _write_shard(
                folder / file_name, {name: specs[name] for name in names}, stream, progress
            )
    assert next(stream, None) is None, "more was streamed than was planned"
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def specs_of(tensors: Mapping[str, LazyTensor]) -> dict[str, TensorSpec]:
    """What is known of tensors before they are read."""
    return {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def write_companions(
    folder: Path, source: Source, config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write config.json and generation_config.json, and copy tokenizer and license unchanged."""
    named = {"dtype": str(dtype).removeprefix("torch.")} if dtype is not None else {}
    write_json(folder / "config.json", {**config, **named})
    for path in (*source.tokenizer_files(), *source.license_files()):
        shutil.copyfile(path, folder / path.name)
    generation = source.file("generation_config.json")
    if generation is not None:
        shutil.copyfile(generation, folder / generation.name)
    else:
        write_json(folder / "generation_config.json", _generation_config(config))


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where generation begins and ends, for a source that does not say it apart."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys if config.get(key) is not None}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as the Hub's own libraries do: two spaces, sorted keys, a last newline."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _write_shard(
    path: Path,
    specs: Mapping[str, TensorSpec],
    stream: Iterator[tuple[str, Piece]],
    progress: "tqdm[Any]",
) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(safetensors_header({name: (s.dtype, s.shape) for name, s in specs.items()}))
        for name, spec in specs.items():
            written = 0
            while written < spec.nbytes:
                got, piece = next(stream)
                assert got == name, f"{name} was planned, {got} came"
                written += write_piece(file, piece, spec.dtype, progress.update)
            assert written == spec.nbytes, f"{name}: {spec.nbytes} bytes planned, not {written}"
