"""`minitron inspect`: what a model is, from its config and headers, without reading weights.

inspect(source="tiny").to_json()["parameters"]
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

from minitron.errors import ArchitectureError
from minitron.files.dtypes import dtype_named, name_of
from minitron.model.architecture import Architecture, likeness
from minitron.model.families import FAMILIES
from minitron.model.source import Source
from minitron.printing import print_json, print_record
from minitron.recipe import verb
from minitron.recipes.first_steps import InspectRecipe
from minitron.sources.hub_folder import HubFolder
from minitron.sources.opening import open_source

_TEXT_ONLY = ("tokenizer", "writer")  # not in --json


@dataclass(frozen=True)
class Inspection:
    """What a model is: the keys of `minitron inspect --json`, and its tokenizer's files."""

    model_type: str
    format: str
    layout: str | None  # None where there are no weights
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    parameters: int
    non_embedding_parameters: int
    bytes: int  # of the weights
    dtype: str
    kv_cache_bytes_per_token: int
    tokenizer: list[str]
    writer: str | None = None  # the version that a NeMo checkpoint names

    def to_json(self) -> dict[str, Any]:
        """The keys of `minitron inspect --json`."""
        return {key: value for key, value in asdict(self).items() if key not in _TEXT_ONLY}


@verb(InspectRecipe)
def inspect(recipe: InspectRecipe) -> Inspection:
    """Sizes, parameters, bytes and layout of a model; a config.json alone will do.

    Bytes are those of the stored tensors, or parameters times the config's dtype where there are
    none; the KV cache is counted in the same dtype. Raises SourceError, ArchitectureError.
    """
    return inspection_of(open_source(recipe.source, reads_weights=False))


def command(recipe: InspectRecipe, *, as_json: bool) -> None:
    """What the command line runs and prints."""
    inspection = inspect(**vars(recipe))
    if as_json:
        print_json(inspection.to_json())
    else:
        print_record(vars(inspection))


def inspection_of(source: Source) -> Inspection:
    """What an open source is."""
    architecture = _architecture_of(source)
    dtype, size = _stored_dtype_and_bytes(source, architecture)
    return Inspection(
        model_type=architecture.model_type,
        format=source.format,
        layout=source.layout,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=architecture.num_attention_heads,
        num_key_value_heads=architecture.num_key_value_heads,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocab_size,
        parameters=architecture.parameters,
        non_embedding_parameters=architecture.non_embedding_parameters,
        bytes=size,
        dtype=name_of(dtype),
        kv_cache_bytes_per_token=architecture.kv_cache_elements_per_token * dtype.itemsize,
        tokenizer=source.companions.tokenizer_names,
        writer=source.writer,
    )


def _architecture_of(source: Source) -> Architecture:
    """The sizes in config.json; an unknown family's refusal says which one its tensors are like."""
    try:
        return source.architecture
    except ArchitectureError as error:
        is_unknown = source.config.get("model_type") not in FAMILIES
        if not is_unknown or not isinstance(source, HubFolder) or not source.files_of_tensors:
            raise
        raise ArchitectureError(f"{error}; {likeness(source.files_of_tensors)}") from error


def _stored_dtype_and_bytes(source: Source, architecture: Architecture) -> tuple[torch.dtype, int]:
    """The dtype of most bytes, and the bytes of all."""
    if source.layout is None:
        dtype = _config_dtype(source)
        return dtype, architecture.parameters * dtype.itemsize
    bytes_by_dtype: Counter[torch.dtype] = Counter()
    for tensor in source.weights.values():
        bytes_by_dtype[tensor.dtype] += tensor.nbytes
    return bytes_by_dtype.most_common(1)[0][0], bytes_by_dtype.total()


def _config_dtype(source: Source) -> torch.dtype:
    """The dtype that config.json names, float32 where it names none."""
    name = source.config.get("dtype") or source.config.get("torch_dtype") or "float32"
    try:
        return dtype_named(str(name))
    except ValueError:
        raise ArchitectureError(
            f"config.json says dtype {name!r}: name one of torch, as bfloat16"
        ) from None
