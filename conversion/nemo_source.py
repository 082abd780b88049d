"""A `.nemo`, or a NeMo 2 folder, as a source like any other.

Knows how the parts of a NeMo checkpoint become those of a Hub folder. The reader of the weights is
chosen by the members of the archive, and tensors that stack all layers are split; only indexes and
headers are read.

    NemoSource(Path("minitron-8b-base.nemo")).tensors["lm_head.weight"].read(0, 10)
    checkpoint = read_checkpoint(open_archive(Path("minitron-8b-base.nemo")), is_gated=False)
    checkpoint.tensors["decoder.layers.31.mlp.linear_fc1.weight"].read(0, 10)
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minitron.conversion.chunked_tensor import ChunkedTensor
from minitron.conversion.distributed_reader import torch_dist_tensors, zarr_tensors
from minitron.conversion.megatron_names import (
    EMBEDDING,
    HEAD,
    LAYERS,
    canonical_name,
    hub_tensors,
    stacked_name,
)
from minitron.conversion.nemo_archive import Archive, open_archive
from minitron.conversion.nemo_family import family_of_settings
from minitron.conversion.nemo_to_hub import config_from_nemo, is_zero_centered
from minitron.conversion.nemo_tokenizer import ArchiveTokenizer, is_instruct
from minitron.conversion.nemo_yaml import read_nemo2_settings, read_settings
from minitron.conversion.state_dicts import has_state_dicts, read_state_dicts
from minitron.errors import SourceError
from minitron.files.file import File
from minitron.files.lazy_tensor import LazyTensor
from minitron.model.families import NEMOTRON
from minitron.model.source import Source
from modeling_nemotron import CHAT_TEMPLATE, NemotronConfig, chat_generation_config

_NEMO_1, _NEMO_2 = "model_config.yaml", "context/model.yaml"
_LARGEST_TEXT = 1 << 24  # bytes of a yaml


class NemoSource(Source):
    """A NeMo checkpoint. Raises SourceError, or ArchitectureError for what no family holds."""

    format = "nemo"
    layout: str | None

    def __init__(
        self, path: Path | File, *, revision: str | None = None, keep_vocab_padding: bool = False
    ) -> None:
        """`revision` is that of the repository that a file on the Hub is in."""
        self._archive = open_archive(path)
        self.name, self.revision = self._archive.name, revision
        self._settings = self._read_settings()
        config_from_nemo(self._settings, vocab_size=1)  # raises before any tensor is located
        tokenizer = ArchiveTokenizer(self._archive, self._settings, self.name)
        self._checkpoint = read_checkpoint(
            self._archive, is_gated=family_of_settings(self._settings).is_gated
        )
        self.layout = f"{self._checkpoint.layout} in a {self._archive.kind}"
        self.writer = self._checkpoint.writer
        self.config = self._config(tokenizer, keep_vocab_padding=keep_vocab_padding)
        is_nemotron = self.architecture.family is NEMOTRON
        chats = is_nemotron and is_instruct(self._settings, self.name)
        self.companions = NemoCompanions(tokenizer, self.config, chats=chats)

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The model's tensors under the Hub's names, located but not read."""
        megatron = dict(self._checkpoint.tensors)
        if self.architecture.tie_word_embeddings and "PP" in self._checkpoint.layout:
            megatron.pop(f"{HEAD}.weight", None)  # the last stage's copy of the embedding
        return hub_tensors(
            megatron, self.architecture, is_zero_centered=is_zero_centered(self._settings)
        )

    def _read_settings(self) -> dict[str, Any]:
        for name, read in ((_NEMO_1, read_settings), (_NEMO_2, read_nemo2_settings)):
            if name in self._archive:
                text = self._archive.read(name, _LARGEST_TEXT).decode("utf-8", "replace")
                return read(text, f"{self.name}/{name}")
        raise SourceError(
            f"{self.name} has neither {_NEMO_1} nor {_NEMO_2}: it is not a NeMo checkpoint"
        )

    def _config(self, tokenizer: ArchiveTokenizer, *, keep_vocab_padding: bool) -> dict[str, Any]:
        """config.json, with the vocabulary that tokenizer and tensors agree on."""
        embedding = self._checkpoint.tensors.get(f"{EMBEDDING}.weight")
        if embedding is None:
            raise SourceError(f"{self.name} has no word embeddings: it is not a language model")
        rows, tokens = embedding.shape[0], tokenizer.tokens
        if tokens is not None and tokens > rows:
            raise SourceError(
                f"{self.name}: its tokenizer has {tokens} tokens, but its embedding only {rows} "
                "rows: they do not belong together"
            )
        return config_from_nemo(
            self._settings,
            vocab_size=rows if tokens is None or keep_vocab_padding else tokens,
            dtype=embedding.dtype,
            special=tokenizer.special,
        )


class NemoCompanions:
    """Tokenizer and generation settings; a NeMo checkpoint carries no license files."""

    def __init__(
        self, tokenizer: ArchiveTokenizer, config: Mapping[str, Any], *, chats: bool
    ) -> None:
        """`config` is config.json; `chats` is true of a model trained on the chat prompt."""
        self._tokenizer, self._config, self._chats = tokenizer, config, chats

    def file(self, name: str) -> Path | None:
        """A chat model's generation_config.json; None for any other file."""
        if name != "generation_config.json" or not self._chats:
            return None
        chat_generation_config(NemotronConfig(**self._config)).save_pretrained(
            self._tokenizer.folder
        )
        return self._tokenizer.folder / name

    @property
    def tokenizer_names(self) -> list[str]:
        """The tokenizer's file in the archive, or its id on the Hub."""
        return self._tokenizer.names

    def tokenizer_files(self) -> Iterator[Path]:
        """tokenizer.json and the files beside it. Raises TokenizerError where none can be made."""
        return iter(self._tokenizer_files)

    def license_files(self) -> Iterator[Path]:
        """None: a `.nemo` carries no terms."""
        return iter(())

    @cached_property
    def _tokenizer_files(self) -> tuple[Path, ...]:
        return self._tokenizer.files(CHAT_TEMPLATE if self._chats else None)


_DISTRIBUTED = "metadata.json"
_LARGEST_JSON = 1 << 16
_BACKENDS = {"zarr": zarr_tensors, "torch_dist": torch_dist_tensors}


@dataclass(frozen=True)
class MegatronCheckpoint:
    """The tensors of a GPT model; each keeps the file that it is in, which may be a temporary one.

    A tied model that was saved in pipeline stages may have `output_layer.weight` too, the last
    stage's copy of the embedding.
    """

    layout: str  # zarr, torch_dist, nemo2 torch_dist, state_dict, state_dict TP 2 PP 2, ...
    tensors: Mapping[str, LazyTensor]
    writer: str | None = None  # the format and its version, as the checkpoint states it


def read_checkpoint(archive: Archive, *, is_gated: bool) -> MegatronCheckpoint:
    """The model in the archive. `is_gated`: linear_fc1 is the gate above the up projection.

    Raises SourceError for what is not a Megatron GPT checkpoint, is not complete or is damaged.
    """
    for folder, version in (("model_weights", ""), ("weights", "nemo2 ")):
        if f"{folder}/{_DISTRIBUTED}" in archive:
            return _read_distributed(archive, folder, version)
    if has_state_dicts(archive):
        found = read_state_dicts(archive, is_gated=is_gated)
        return MegatronCheckpoint(found.layout, found.tensors)
    seen = ", ".join(archive.names()[:4]) or "nothing"
    raise SourceError(
        f"{archive.name} holds {seen}: a Megatron GPT checkpoint was expected, which has "
        f"model_weights/{_DISTRIBUTED}, weights/{_DISTRIBUTED}, model_weights.ckpt or one a rank"
    )


def _read_distributed(archive: Archive, folder: str, version: str) -> MegatronCheckpoint:
    name = f"{folder}/{_DISTRIBUTED}"
    try:
        metadata = json.loads(archive.read(name, _LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{archive.name}: {name} is damaged: {error}") from None
    backend = metadata.get("sharded_backend") if isinstance(metadata, dict) else None
    if not isinstance(backend, str) or backend not in _BACKENDS:
        raise SourceError(
            f"{archive.name}: {name} names the sharded_backend {backend!r:.80}; "
            f"{' and '.join(_BACKENDS)} can be read"
        )
    chunked = _BACKENDS[backend](archive, folder)
    tensors: dict[str, LazyTensor] = {}
    for canonical, tensor in _single_layers(chunked):
        if canonical in tensors:
            raise SourceError(f"{archive.name} holds {canonical} twice")
        tensors[canonical] = tensor
    if f"{EMBEDDING}.weight" not in tensors:
        seen = ", ".join(list(chunked)[:3]) or "no tensors"
        raise SourceError(
            f"{archive.name} holds {seen}, but no {EMBEDDING}.weight: it is not a Megatron GPT "
            "checkpoint, or not complete"
        )
    writer = f"{backend} version {metadata.get('sharded_backend_version')!r:.20}"
    return MegatronCheckpoint(f"{version}{backend}", tensors, writer)


def _single_layers(chunked: Mapping[str, ChunkedTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """Tensors by canonical name; one that stacks all layers is split into one a layer."""
    for key, tensor in chunked.items():
        name = canonical_name(key)
        assert name is not None, key  # the readers leave out what is not a weight
        part = stacked_name(name)
        if part is None:
            yield name, tensor.whole()
        else:
            for layer, single in enumerate(tensor.layers()):
                yield f"{LAYERS}{layer}.{part}", single
