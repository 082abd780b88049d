"""The teacher's cache: a folder with a teacher's outputs on a corpus, to distill from without it.

`teacher-cache.json` describes its origin; `config.json` and the tokenizer are the teacher's;
`ids.npy` [samples, seq_len] is the text; each `shard-*.safetensors` holds the outputs on a few
samples, at all positions but the last:

| kept  | tensors of a shard                                                                     |
|-------|----------------------------------------------------------------------------------------|
| exact | `hidden` [samples, seq_len - 1, width] bfloat16; `head.safetensors` maps it to logits  |
| top-k | `ids` [..., k] int32, `log_probabilities` [..., k + 1] float16, last all other tokens' |

`minitron teacher-cache` writes it.

    open_teacher_cache(Path("tiny-cache")).teacher("cpu")
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron.errors import CorpusError, SourceError
from minitron.files.checked_json import check_kind, read_object
from minitron.files.dtypes import FLOATS
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import StoredTensor
from minitron.files.safetensors_file import read_safetensors_header
from minitron.model.decoder import UNSCALED, LogitScale
from minitron.model.source import Source
from minitron.sources.hub_folder import HubFolder
from minitron.sources.loading import hub_config
from minitron.text.corpus import Corpus, load_ids
from minitron.training.distillation import top_k_loss
from minitron.training.teacher import DistillLoss, FullOutput

FILE, IDS, HEAD = "teacher-cache.json", "ids.npy", "head.safetensors"

_REMEDY = "write the cache again with `minitron teacher-cache`"
_DESCRIPTION = {
    "teacher": {"name": str, "revision?": (str, None), "digest": str},
    "recipe": {"corpus": str, "top_k": (int, None), "samples": (int, None), "seed": int},
    "samples": int,
    "seq_len": int,
    "rows_a_shard": int,
}
_DTYPES = {
    "hidden": (torch.bfloat16,),
    "head": FLOATS,
    "ids": (torch.int32,),
    "log_probabilities": (torch.float16,),
}


@dataclass(frozen=True)
class TeacherCache:
    """A finished cache in its folder."""

    path: Path
    described: Mapping[str, Any]

    @property
    def source(self) -> HubFolder:
        """The teacher without its weights: config and tokenizer."""
        return HubFolder.at(self.path, self.described["teacher"]["name"])

    @property
    def top_k(self) -> int | None:
        """How many tokens are stored at each position; None for all."""
        kept: int | None = self.described["recipe"]["top_k"]
        return kept

    @cached_property
    def corpus(self) -> Corpus:
        """The text on which the teacher ran."""
        ids = load_ids(str(self.path / IDS), seq_len=self.described["seq_len"])
        return Corpus(ids.sequences, self.described["recipe"]["corpus"])

    def check_corpus(self, corpus: Corpus) -> None:
        """Refuse other text. Raises CorpusError."""
        if corpus.digest != self.corpus.digest:
            shape, cached = corpus.sequences.shape, self.corpus.sequences.shape
            raise CorpusError(
                f"{self.path} was made of {cached[0]} sequences of {cached[1]} tokens of "
                f"{self.corpus.name}, and these {shape[0]} of {shape[1]} of {corpus.name} are "
                "others: give the same --corpus, or make another cache"
            )

    def check_teacher(self, source: Source) -> None:
        """Refuse another model than the one that wrote the cache. Raises SourceError."""
        made_by = self.described["teacher"]
        if source.description["digest"] != made_by["digest"]:
            raise SourceError(
                f"{self.path} was made by {made_by['name']}, whose weights {source.name} does not "
                "have: name only the cache, or make another"
            )

    def teacher(self, device: str) -> "CachedTeacher":
        """A teacher whose outputs are read from this cache."""
        return CachedTeacher(self, device)


class CachedTeacher:
    """A teacher whose outputs are read from a cache, row by row."""

    def __init__(self, cache: TeacherCache, device: str) -> None:
        self._rows_a_shard: int = cache.described["rows_a_shard"]
        count = -(-cache.described["samples"] // self._rows_a_shard)
        self._shards = [_read_shard(cache, number) for number in range(count)]
        architecture = cache.source.architecture
        self._path, self._vocab_size = cache.path, architecture.vocab_size
        self._head: Tensor | None = None
        self._logit_scale = LogitScale.of(hub_config(cache.source.config))
        if cache.top_k is None:
            shape = (architecture.vocab_size, architecture.hidden_size)
            head = _read_tensors(cache.path / HEAD, {"head": shape})["head"]
            self._head = head.read().to(device)

    def predict(self, input_ids: Tensor, rows: Tensor) -> "FullOutput | TopKOutput":
        """Read the outputs on the sequences `rows` of the corpus."""
        if self._head is not None:
            hidden = self._read("hidden", rows)
            return FullOutput(hidden, self._head, logit_scale=self._logit_scale)
        ids = self._read("ids", rows).long()
        if int(ids.min()) < 0 or int(ids.max()) >= self._vocab_size:
            raise SourceError(f"{self._path} holds ids outside its vocabulary: {_REMEDY}")
        return TopKOutput(ids, self._read("log_probabilities", rows), self._vocab_size)

    def _read(self, name: str, rows: Tensor) -> Tensor:
        parts = []
        for row in rows.tolist():
            shard, index = divmod(row, self._rows_a_shard)
            parts.append(self._shards[shard][name].read(index, index + 1))
        return torch.cat(parts).flatten(0, 1).to(rows.device)


@dataclass(frozen=True)
class TopKOutput:
    """The likeliest tokens `ids` [tokens, k] and their `log_probabilities` [tokens, k + 1], of a
    teacher with `rows` rows in its output embedding."""

    ids: Tensor
    log_probabilities: Tensor
    rows: int
    inner: tuple[Tensor, ...] = ()

    def loss(
        self,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        options: DistillLoss,
        logit_scale: LogitScale = UNSCALED,
    ) -> Tensor:
        """Forward KL, with all tokens but the k likeliest as one event."""
        return top_k_loss(
            hidden,
            head,
            self.ids,
            self.log_probabilities,
            labels,
            ce_weight=options.ce_weight,
            rows=min(head.shape[0], self.rows),
            logit_scale=logit_scale,
        )


def open_teacher_cache(path: Path) -> TeacherCache:
    """The cache in a folder. Raises SourceError where there is none."""
    name = str(path / FILE)
    try:
        described = read_object(path / FILE, SourceError, _REMEDY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"{path} has no {FILE}: it is no teacher's cache") from error
    check_kind(described, _DESCRIPTION, name, SourceError, _REMEDY)
    for key in ("samples", "seq_len", "rows_a_shard"):
        if described[key] < 1:
            raise SourceError(f"{name} has {key} {described[key]}: it must be above 0: {_REMEDY}")
    cache = TeacherCache(path, described)
    if cache.corpus.sequences.shape != (described["samples"], described["seq_len"]):
        raise SourceError(
            f"{path / IDS} has shape {list(cache.corpus.sequences.shape)}, and {FILE} describes "
            f"{described['samples']} samples of {described['seq_len']}: {_REMEDY}"
        )
    return cache


def _read_shard(cache: TeacherCache, number: int) -> Mapping[str, StoredTensor]:
    """Open a shard; refuses tensors that do not have the shapes of the description."""
    rows, length = cache.described["rows_a_shard"], cache.described["seq_len"] - 1
    rows = min(rows, cache.described["samples"] - number * rows)
    if cache.top_k is None:
        width = cache.source.architecture.hidden_size
        shapes = {"hidden": (rows, length, width)}
    else:
        shapes = {
            "ids": (rows, length, cache.top_k),
            "log_probabilities": (rows, length, cache.top_k + 1),
        }
    return _read_tensors(cache.path / shard_name(number), shapes)


def _read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, StoredTensor]:
    tensors = read_safetensors_header(LocalFile.at(path))
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            seen = list(tensors[name].shape) if name in tensors else "none"
            raise SourceError(f"{path} has {name} of shape {seen}, not {list(shape)}: {_REMEDY}")
        if tensors[name].dtype not in _DTYPES[name]:
            raise SourceError(f"{path} has {name} of {tensors[name].dtype}: {_REMEDY}")
    return tensors


def shard_name(number: int) -> str:
    """The name of a shard's file; shards count from 0."""
    return f"shard-{number:05d}.safetensors"
