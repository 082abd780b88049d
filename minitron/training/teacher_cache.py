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

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron.corpus import Corpus, load_ids
from minitron.errors import CorpusError, SourceError
from minitron.hub.folder import HubFolder
from minitron.source import Source
from minitron.tensors.model_digest import description_of
from minitron.tensors.safetensors_file import read_safetensors_header
from minitron.training.teacher import DistillLoss, FullLesson
from minitron.training.top_k_loss import top_k_loss

FILE, IDS, HEAD = "teacher-cache.json", "ids.npy", "head.safetensors"


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
        if description_of(source)["digest"] != made_by["digest"]:
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
        self._shards = [read_safetensors_header(cache.path / shard_name(i)) for i in range(count)]
        self._head: Tensor | None = None
        if cache.top_k is None:
            head = read_safetensors_header(cache.path / HEAD)["head"]
            self._head = head.read().to(device)

    def lesson(self, input_ids: Tensor, rows: Tensor) -> "FullLesson | TopKLesson":
        """What was written on these rows of the corpus."""
        if self._head is not None:
            return FullLesson(self._read("hidden", rows), self._head)
        return TopKLesson(self._read("ids", rows).long(), self._read("log_probabilities", rows))

    def _read(self, name: str, rows: Tensor) -> Tensor:
        parts = []
        for row in rows.tolist():
            shard, place = divmod(row, self._rows_a_shard)
            parts.append(self._shards[shard][name].read(place, place + 1))
        return torch.cat(parts).flatten(0, 1).to(rows.device)


@dataclass(frozen=True)
class TopKLesson:
    """The likeliest tokens `ids` [tokens, k] and their `log_probabilities` [tokens, k + 1]."""

    ids: Tensor
    log_probabilities: Tensor
    inner: tuple[Tensor, ...] = ()

    def loss(self, hidden: Tensor, head: Tensor, labels: Tensor, how: DistillLoss) -> Tensor:
        """Forward KL, all but the k likeliest taken together."""
        return top_k_loss(
            hidden, head, self.ids, self.log_probabilities, labels, ce_weight=how.ce_weight
        )


def open_teacher_cache(path: Path) -> TeacherCache:
    """The cache in a folder. Raises SourceError where there is none."""
    try:
        described = json.loads((path / FILE).read_text(encoding="utf-8"))
        return TeacherCache(path, described)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} has no readable {FILE}: it is no teacher's cache") from error


def shard_name(number: int) -> str:
    """The file of so many-th few samples."""
    return f"shard-{number:05d}.safetensors"
