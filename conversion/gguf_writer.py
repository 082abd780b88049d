"""Writes a GGUF file for llama.cpp, tensor after tensor.

The package `gguf` writes header and metadata; the tensors follow in pieces, quantised block by
block as their rows are read, so that memory holds a few pieces and never a tensor.

    write_gguf(Path("OUT.partial"), config, tensors, metadata={}, kind="Q8_0", source="tiny")
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from minitron.conversion.gguf_file import ALIGNMENT, gguf_package, row_runs
from minitron.conversion.gguf_metadata import FREQUENCIES, gguf_metadata, rope_frequencies
from minitron.conversion.gguf_tensors import gguf_of, gguf_tensors
from minitron.errors import TargetError
from minitron.files.lazy_tensor import Cast, DerivedTensor, LazyTensor
from minitron.files.safetensors_file import write_piece
from minitron.files.tensor_stream import CheckedTensor, stream_tensors
from minitron.model.architecture import Architecture
from minitron.model.engines import unsupported_engines

ENGINE = "llama.cpp"  # as engines.py calls it
_SAME = {"FLOAT32": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}
# llama.cpp's number of a file whose matrices are of a type.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

logger = logging.getLogger(__name__)


def kind_of(word: str) -> str:
    """The type of ggml that an option or torch calls by this word. Raises TargetError."""
    kind = _SAME.get(word.upper(), word.upper())
    if kind not in _FILE_TYPES:
        raise TargetError(f"the weights are {word}: give --dtype, as f16 or q8_0")
    return kind


def check_loadable(config: Mapping[str, Any]) -> None:
    """Refuse a model that llama.cpp does not load, or of which it computes another.

    Raises TargetError with the reason.
    """
    gguf_of(Architecture.from_config(config))
    reason = unsupported_engines(config).get(ENGINE)
    if reason is not None:
        raise TargetError(f"{ENGINE} cannot run this model: {reason}; prune to sizes that it can")


def write_gguf(
    file: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    *,
    metadata: Mapping[str, Any],
    kind: str,
    source: str,
    check: bool = True,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Write a model into `file`, which is there and empty.

    `config` is complete: it has every key that its class has. `metadata` are keys beside those of
    the architecture, as the tokenizer's. `kind` is the type of the matrices; one whose rows are no
    whole blocks of it is written as F16, and norms and biases as F32, as llama.cpp's converter does
    it. Raises TargetError and SourceError, naming the tensor, as `stream_tensors` does.
    """
    architecture = Architecture.from_config(config)
    context_length = _context_length(config)
    keys = {
        "general.architecture": gguf_of(architecture).architecture,
        "general.type": "model",
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": gguf_package().GGML_QUANT_VERSION,
        "general.size_label": gguf_package().size_label(architecture.parameters, 0, 0, 0),
        **gguf_metadata(config, context_length=context_length),
        **metadata,
    }
    planned: dict[str, tuple[LazyTensor, str]] = {}
    if (frequencies := rope_frequencies(config)) is not None:
        planned[FREQUENCIES] = _InMemory(frequencies), "F32"
    for name, tensor in gguf_tensors(tensors, architecture).items():
        own = _kind_of(tensor, kind)
        planned[name] = _stored_as(tensor, own, name if check else None, source), own
    _write_header(file, keys, planned)
    _append_tensors(file, {name: tensor for name, (tensor, _) in planned.items()}, progress)


def _context_length(config: Mapping[str, Any]) -> int:
    """The longest sequence that llama.cpp computes as the model's class does.

    Its code for these families attends to every token: it is right up to the sliding window.
    """
    longest: int = config["max_position_embeddings"]
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    if not window or (kinds and "sliding_attention" not in kinds) or window >= longest:
        return longest
    logger.warning(
        "llama.cpp's code for %s has no sliding window: context_length is %s, the window, and not "
        "%s",
        config["model_type"],
        window,
        longest,
    )
    return int(window)


class _Blocks(DerivedTensor):
    """The rows of a matrix as quantised blocks, in bytes."""

    def __init__(self, tensor: LazyTensor, kind: str) -> None:
        self.tensor, self.kind = tensor, gguf_package().GGMLQuantizationType[kind]
        block, nbytes = gguf_package().GGML_QUANT_SIZES[self.kind]
        super().__init__(torch.uint8, (*tensor.shape[:-1], tensor.shape[-1] // block * nbytes))

    def _read(self, start: int, stop: int) -> torch.Tensor:
        quantize, parts = gguf_package().quants.quantize, []
        for run in row_runs(self.tensor.shape, start, stop):
            rows = self.tensor.read(*run).float().numpy()
            parts.append(torch.from_numpy(quantize(rows, self.kind)))
        return torch.cat(parts)


class _InMemory(DerivedTensor):
    """A small tensor that was computed."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.dtype, tuple(tensor.shape))
        self.tensor = tensor

    def _read(self, start: int, stop: int) -> torch.Tensor:
        return self.tensor[start:stop].clone()


def _kind_of(tensor: LazyTensor, kind: str) -> str:
    if len(tensor.shape) == 1:
        return "F32"
    package = gguf_package()
    block, _ = package.GGML_QUANT_SIZES[package.GGMLQuantizationType[kind]]
    return "F16" if tensor.shape[-1] % block else kind


def _stored_as(tensor: LazyTensor, kind: str, checked: str | None, source: str) -> LazyTensor:
    """The tensor as it is written; `checked` is its name in an error where it is not finite."""
    cast = tensor
    if kind in _DTYPES and tensor.dtype != _DTYPES[kind]:
        cast = Cast(tensor, _DTYPES[kind])
    if checked is not None:
        cast = CheckedTensor(cast, checked, source)
    return cast if kind in _DTYPES else _Blocks(cast, kind)


def _write_header(
    file: Path, keys: Mapping[str, Any], planned: Mapping[str, tuple[LazyTensor, str]]
) -> None:
    package = gguf_package()
    writer = package.GGUFWriter(None, keys["general.architecture"])
    for key, value in keys.items():
        if key != "general.architecture":  # the writer has added it
            _add(writer, key, value)
    for name, (tensor, kind) in planned.items():
        shape = tensor.tensor.shape if isinstance(tensor, _Blocks) else tensor.shape
        number = package.GGMLQuantizationType[kind]
        writer.add_tensor_info(name, shape, None, tensor.nbytes, raw_dtype=number)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp reads it with."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _append_tensors(
    file: Path, tensors: Mapping[str, LazyTensor], progress: Callable[[int], object]
) -> None:
    """Write the tensors behind the header, each at a multiple of the alignment."""
    with file.open("ab", buffering=0) as out:
        out.write(bytes(-out.tell() % ALIGNMENT))
        last = None
        for name, piece in stream_tensors(tensors, "", check=False):
            if name != last:
                out.write(bytes(-out.tell() % ALIGNMENT))
                last = name
            write_piece(out, piece, tensors[name].dtype, progress)
        out.write(bytes(-out.tell() % ALIGNMENT))
