"""Writes a Hub folder: sharded safetensors, the two config files, tokenizer and license.

Plans shards, index and headers from shapes before it reads the first byte; then each tensor is read
once, in pieces, in the planned order.

    write_weights(folder, {"w": TensorSpec(torch.bfloat16, (2, 3))}, [("w", rows) ...])
"""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from minitron.errors import TokenizerError
from minitron.files.checked_json import read_object
from minitron.files.dtypes import name_of
from minitron.files.lazy_tensor import LazyTensor
from minitron.files.model_files import TOKENIZER_CONFIG, portable_tokenizer_config, tokenizer_folder
from minitron.files.safetensors_file import ShardFile, TensorSpec
from minitron.files.tensor_stream import Piece
from minitron.model.config_json import PAD, has_row, with_usable_pad
from minitron.model.source import Source
from minitron.progress import Progress
from minitron.sources.loading import check_builds, load_tokenizer, read_generation_config
from minitron.text.tokenizer_ids import CODE, CODE_FILE, following_settings, rebuilt_tokenizer

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = "2GB"  # several are written in parallel: half the time of one large file
_PARALLEL = 2  # files


def write_weights(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    pieces: Iterable[tuple[str, Piece]],
    *,
    max_shard_size: int | str | None = None,
) -> None:
    """Write `pieces` as the tensors of `specs`, in its order.

    `pieces` yields the bytes of each tensor in row-major order, as one piece or as several
    consecutive ones with the same name; file ranges are copied from file to file. Writes
    model.safetensors, or shards with their index.
    """
    split = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=lambda spec: spec.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size or MAX_SHARD_SIZE,
    )
    files = {
        folder / name: {tensor: specs[tensor] for tensor in tensors}
        for name, tensors in split.filename_to_tensors.items()
    }
    _write_shards(files, pieces)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def specs_of(tensors: Mapping[str, LazyTensor]) -> dict[str, TensorSpec]:
    """The dtypes and shapes of tensors, which are known before they are read."""
    return {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def write_companions(
    folder: Path, source: Source, config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write config.json and generation_config.json, and copy tokenizer and license.

    transformers 4 and 5 read the same from these files.
    """
    write_json(folder / "config.json", {**config, **_dtype_in_both_forms(config, dtype)})
    _copy_tokenizer(folder, source)
    for path in source.companions.license_files():
        shutil.copyfile(path, folder / path.name)
    generation = source.companions.file("generation_config.json")
    if generation is not None:
        shutil.copyfile(generation, folder / generation.name)
        settings = json.loads(generation.read_text(encoding="utf-8"))
        if not has_row(settings.get(PAD), config["vocab_size"]):
            write_json(folder / generation.name, with_usable_pad(settings, config["vocab_size"]))
    else:
        write_json(folder / "generation_config.json", _generation_config(config))


def _copy_tokenizer(folder: Path, source: Source) -> None:
    """Copy a tokenizer's files, and change a config with which transformers builds another one."""
    paths = list(source.companions.tokenizer_files())
    for path in paths:
        copy = folder / path.relative_to(tokenizer_folder(paths))
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    file = folder / TOKENIZER_CONFIG
    found = _tokenizer_config(file, source.name) if file.is_file() else {}
    has_fast_file = (folder / "tokenizer.json").is_file()
    settings = portable_tokenizer_config(found, has_fast_file=has_fast_file)
    if settings != found:
        write_json(file, settings)
    # A tokenizer with code of its own repository is copied, never run.
    if has_fast_file and "auto_map" not in settings:
        _keep_ids(folder, source.name, settings)


def _keep_ids(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Make AutoTokenizer return the ids of the tokenizer.json in `folder`."""
    rebuilt = rebuilt_tokenizer(folder, name)
    if rebuilt is None:
        return
    for following in following_settings(rebuilt, folder, settings):
        write_json(folder / TOKENIZER_CONFIG, following)
        if "auto_map" in following:
            (folder / CODE_FILE).write_text(CODE, encoding="utf-8")
        if rebuilt_tokenizer(folder, name) is None:
            return
    logger.warning(
        "%s: for the new folder AutoTokenizer returns other ids than its tokenizer.json: open it "
        "with PreTrainedTokenizerFast.from_pretrained",
        name,
    )


def _tokenizer_config(path: Path, name: str) -> dict[str, Any]:
    return read_object(path, TokenizerError, "fetch it again", called=f"{name}/{TOKENIZER_CONFIG}")


def check_companions(source: Source, config: Mapping[str, Any]) -> None:
    """Refuse, before anything is written, companion files with which the folder would not load.

    Raises ArchitectureError for a config that makes no model, SourceError for a damaged
    generation_config.json, TokenizerError for a tokenizer that cannot be read.
    """
    check_builds(config)
    generation = source.companions.file("generation_config.json")
    if generation is not None:
        read_generation_config(generation, source.name)
    path = source.companions.file(TOKENIZER_CONFIG)
    settings = {} if path is None else _tokenizer_config(path, source.name)
    # A tokenizer with code of its own repository is copied, never run.
    if "tokenizer.json" in source.companions.tokenizer_names and "auto_map" not in settings:
        load_tokenizer(source)


def _dtype_in_both_forms(config: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The dtype of the weights under its present and its former key.

    transformers reads `dtype` first from 4.56 on; earlier versions read only `torch_dtype`.
    """
    known = dtype or config.get("dtype") or config.get("torch_dtype")
    return {} if known is None else dict.fromkeys(("dtype", "torch_dtype"), name_of(known))


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A generation_config.json for a source without one: the ids of config.json."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys if config.get(key) is not None}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a new file of JSON."""
    path.write_bytes(json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON as the Hub's own libraries write it: two spaces, sorted keys, a last newline."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def _write_shards(
    files: Mapping[Path, Mapping[str, TensorSpec]], stream: Iterable[tuple[str, Piece]]
) -> None:
    """Distribute the stream to the files, which are written in parallel.

    A tensor larger than a shard gets its own file, so the stream may alternate between files.
    """
    total = sum(spec.nbytes for specs in files.values() for spec in specs.values())
    lock = Lock()
    with (
        Progress("write", total=total, unit="byte") as progress,
        ThreadPoolExecutor(_PARALLEL) as pool,
    ):

        def advance(count: int) -> None:
            with lock:
                progress.advance(count)

        shards = {path: ShardFile(path, specs, advance) for path, specs in files.items()}
        shard_of = {name: shards[path] for path, specs in files.items() for name in specs}
        writing: dict[ShardFile, Future[None]] = {}
        streamed = 0
        try:
            for name, piece in stream:
                streamed += piece.nbytes
                shard = shard_of[name]
                # Started with its first piece: a file that waits for pieces would block a thread.
                if shard not in writing:
                    writing[shard] = pool.submit(shard.write)
                shard.add(name, piece)
                _raise_failure(writing.values())
            assert streamed == total, f"{total} bytes were planned, {streamed} streamed"
            for future in writing.values():
                future.result()
        finally:
            for shard in shards.values():
                shard.give_up()


def _raise_failure(writing: Iterable[Future[None]]) -> None:
    for future in writing:
        if future.done():
            future.result()
