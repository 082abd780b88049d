"""The teacher's cache: what a teacher says on a corpus, written once, to distill from without it.

Knows the folder. `teacher-cache.json` says what it was made of; `config.json` and the tokenizer are
the teacher's; `ids.npy` [samples, seq_len] is the text; `shard-*.safetensors` hold a few samples
each, on all their positions but the last:

| kept  | tensors of a shard                                                                     |
|-------|----------------------------------------------------------------------------------------|
| exact | `hidden` [samples, seq_len - 1, width] bfloat16; `head.safetensors` makes them logits  |
| top-k | `ids` [..., k] int32, `log_probabilities` [..., k + 1] float16, last that of the rest  |

Written by `teacher_writing`.

    open_teacher_cache(Path("tiny-says")).teacher("cpu")
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
from minitron.files.file import LocalFile
from minitron.files.finite import FLOATS
from minitron.files.safetensors_file import read_safetensors_header
from minitron.files.stored_tensor import StoredTensor
from minitron.model.source import Source
from minitron.sources.hub_folder import HubFolder
from minitron.text.corpus import Corpus, load_ids
from minitron.training.distillation import top_k_loss
from minitron.training.teacher import DistillLoss, FullLesson

FILE, IDS, HEAD = "teacher-cache.json", "ids.npy", "head.safetensors"

_REMEDY = "write the cache again with `minitron teacher-cache`"
_DESCRIBED = {
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
        """How many tokens are kept; None for all."""
        kept: int | None = self.described["recipe"]["top_k"]
        return kept

    @cached_property
    def corpus(self) -> Corpus:
        """The text that the teacher saw."""
        ids = load_ids(str(self.path / IDS), seq_len=self.described["seq_len"])
        return Corpus(ids.sequences, self.described["recipe"]["corpus"])

    def check_corpus(self, corpus: Corpus) -> None:
        """Refuse text that the teacher did not see. Raises CorpusError."""
        if corpus.digest != self.corpus.digest:
            shape, seen = corpus.sequences.shape, self.corpus.sequences.shape
            raise CorpusError(
                f"{self.path} was made of {seen[0]} sequences of {seen[1]} tokens of "
                f"{self.corpus.name}, and these {shape[0]} of {shape[1]} of {corpus.name} are "
                "others: give the same --corpus, or make another cache"
            )

    def check_teacher(self, source: Source) -> None:
        """Refuse another model than the one that was written down. Raises SourceError."""
        made_by = self.described["teacher"]
        if source.description["digest"] != made_by["digest"]:
            raise SourceError(
                f"{self.path} was made by {made_by['name']}, whose weights {source.name} does not "
                "have: name only the cache, or make another"
            )

    def teacher(self, device: str) -> "CachedTeacher":
        """A teacher that reads its lessons here."""
        return CachedTeacher(self, device)


class CachedTeacher:
    """Lessons that were written down, read row by row."""

    def __init__(self, cache: TeacherCache, device: str) -> None:
        self._rows_a_shard: int = cache.described["rows_a_shard"]
        count = -(-cache.described["samples"] // self._rows_a_shard)
        self._shards = [_read_shard(cache, number) for number in range(count)]
        architecture = cache.source.architecture
        self._path, self._vocab_size = cache.path, architecture.vocab_size
        self._head: Tensor | None = None
        if cache.top_k is None:
            shape = (architecture.vocab_size, architecture.hidden_size)
            head = _checked(cache.path / HEAD, {"head": shape})["head"]
            self._head = head.read().to(device)

    def lesson(self, input_ids: Tensor, rows: Tensor) -> "FullLesson | TopKLesson":
        """What was written on these rows of the corpus."""
        if self._head is not None:
            return FullLesson(self._read("hidden", rows), self._head)
        ids = self._read("ids", rows).long()
        if int(ids.min()) < 0 or int(ids.max()) >= self._vocab_size:
            raise SourceError(f"{self._path} holds ids outside its vocabulary: {_REMEDY}")
        return TopKLesson(ids, self._read("log_probabilities", rows), self._vocab_size)

    def _read(self, name: str, rows: Tensor) -> Tensor:
        parts = []
        for row in rows.tolist():
            shard, place = divmod(row, self._rows_a_shard)
            parts.append(self._shards[shard][name].read(place, place + 1))
        return torch.cat(parts).flatten(0, 1).to(rows.device)


@dataclass(frozen=True)
class TopKLesson:
    """The likeliest tokens `ids` [tokens, k] and their `log_probabilities` [tokens, k + 1], of a
    teacher whose output embedding has so many `rows`."""

    ids: Tensor
    log_probabilities: Tensor
    rows: int
    inner: tuple[Tensor, ...] = ()

    def loss(self, hidden: Tensor, head: Tensor, labels: Tensor, how: DistillLoss) -> Tensor:
        """Forward KL, all but the k likeliest taken together."""
        return top_k_loss(
            hidden,
            head,
            self.ids,
            self.log_probabilities,
            labels,
            ce_weight=how.ce_weight,
            rows=min(head.shape[0], self.rows),
        )


def open_teacher_cache(path: Path) -> TeacherCache:
    """The cache in a folder. Raises SourceError where there is none."""
    name = str(path / FILE)
    try:
        described = read_object(path / FILE, SourceError, _REMEDY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"{path} has no {FILE}: it is no teacher's cache") from error
    check_kind(described, _DESCRIBED, name, SourceError, _REMEDY)
    for key in ("samples", "seq_len", "rows_a_shard"):
        if described[key] < 1:
            raise SourceError(f"{name} says {key}: {described[key]}; it must be above 0: {_REMEDY}")
    cache = TeacherCache(path, described)
    if cache.corpus.sequences.shape != (described["samples"], described["seq_len"]):
        raise SourceError(
            f"{path / IDS} is of shape {list(cache.corpus.sequences.shape)}, and {FILE} says "
            f"{described['samples']} samples of {described['seq_len']}: {_REMEDY}"
        )
    return cache


def _read_shard(cache: TeacherCache, number: int) -> Mapping[str, StoredTensor]:
    """One shard's tensors, refused where they are not of the shapes that the description gives."""
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
    return _checked(cache.path / shard_name(number), shapes)


def _checked(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, StoredTensor]:
    tensors = read_safetensors_header(LocalFile.at(path))
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            seen = list(tensors[name].shape) if name in tensors else "none"
            raise SourceError(f"{path} has {name} of shape {seen}, not {list(shape)}: {_REMEDY}")
        if tensors[name].dtype not in _DTYPES[name]:
            raise SourceError(f"{path} has {name} of {tensors[name].dtype}: {_REMEDY}")
    return tensors


def shard_name(number: int) -> str:
    """The file of so many-th few samples."""
    return f"shard-{number:05d}.safetensors"
