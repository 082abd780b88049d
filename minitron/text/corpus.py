"""Corpus: text as packed token ids, with a digest that identifies it.

Packs texts read by `minitron.text.texts`, and loads token ids from `.npy`. Knows no model: token
ids that a model samples itself come from `minitron.text.sampling`.

    corpus = load_corpus("books.jsonl.gz", tokenizer, seq_len=512, samples=1024)
    corpus.sequences.shape   # (1024, 512)
"""

import hashlib
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from minitron.errors import CorpusError, foreign_parser
from minitron.text.encoding import TokenIds, tokenize
from minitron.text.text_file import check_regular_file
from minitron.text.text_row import Text, Tokenizer
from minitron.text.texts import draw_texts, read_texts

PAPER_SAMPLES = 1024  # calibration sequences, 2407.14679 section 4
_MAX_NPY_HEADER = 10_000  # bytes; numpy's own limit
_NPY_REMEDY = "save an array of whole numbers with numpy.save"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Sequences of equal length, without padding."""

    sequences: TokenIds  # (samples, seq_len)
    name: str

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return int(self.sequences.size)

    @cached_property
    def digest(self) -> str:
        """sha256 of the shape and the ids."""
        ids = np.ascontiguousarray(self.sequences, dtype="<i4")
        return hashlib.sha256(str(ids.shape).encode() + ids.tobytes()).hexdigest()

    def check_fits(self, vocab_size: int) -> None:
        """Raise CorpusError for a token id that the model has no embedding for."""
        low, high = int(self.sequences.min()), int(self.sequences.max())
        if low < 0 or high >= vocab_size:
            raise CorpusError(
                f"{self.name} holds token id {low if low < 0 else high}, outside the model's "
                f"vocabulary of {vocab_size}: was it made with another tokenizer?"
            )


def load_corpus(
    name: str,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    samples: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Sequences of `seq_len` tokens from the text of a file or a Hub dataset.

    Documents are packed one after the other, each followed by the tokenizer's end-of-sequence id;
    a remainder shorter than a sequence is dropped. With `samples`, so many sequences are packed
    from random passages of the whole text (see `draw_texts`); without, all documents in order.
    Raises CorpusError for text that is missing, unreadable, empty or shorter than one sequence.
    """
    if samples is None:
        texts: Iterable[Text] = read_texts(name, tokenizer)
    else:
        texts = draw_texts(name, tokenizer, seq_len=seq_len, samples=samples, seed=seed)
    ids: list[TokenIds] = []
    tokens = 0
    for document in tokenize(texts, tokenizer):
        ids.append(document.ids)
        tokens += len(document.ids)
        if samples is not None and tokens >= samples * seq_len:
            break
    rows = min(tokens // seq_len, samples or tokens)
    if not rows:
        raise CorpusError(
            f"{name} holds {tokens} tokens, fewer than one sequence of {seq_len}: "
            "give more text or a smaller --seq-len"
        )
    if samples is not None and rows < samples:
        logger.info("%s holds %d sequences of %d tokens, not %d", name, rows, seq_len, samples)
    stream = np.concatenate(ids)
    return Corpus(stream[: rows * seq_len].reshape(rows, seq_len), name)


def load_ids(name: str, *, seq_len: int, samples: int | None = None) -> Corpus:
    """Token ids from a `.npy` of shape [samples, length]: its first `samples` rows (None: all).

    Each row is cut to at most `seq_len`. Raises CorpusError for a file that holds anything else.
    """
    ids = _open_npy(name)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
        raise CorpusError(
            f"{name} holds {ids.dtype} of shape {ids.shape}: "
            "it must hold whole numbers [samples, length]"
        )
    if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise CorpusError(f"{name} holds {ids.min()} to {ids.max()}: those are not token ids")
    return Corpus(np.array(ids[:samples, :seq_len], np.int32), name)


def random_corpus(vocab_size: int, *, seq_len: int, samples: int, seed: int) -> Corpus:
    """Ids drawn uniformly from the vocabulary: a control, not a calibration set."""
    drawn = np.random.default_rng(seed).integers(vocab_size, size=(samples, seq_len))
    return Corpus(drawn.astype(np.int32), "random")


def _open_npy(name: str) -> npt.NDArray[Any]:
    """The array of a `.npy`, memory-mapped. Pickles are never run. Raises CorpusError."""
    check_regular_file(name)
    size = Path(name).stat().st_size
    with foreign_parser(name, CorpusError, _NPY_REMEDY):
        with Path(name).open("rb") as file:
            _check_npy_header(file, name, size)
        array: npt.NDArray[Any] = np.load(name, allow_pickle=False, mmap_mode="r")
    return array


def _check_npy_header(file: BinaryIO, name: str, size: int) -> None:
    """Refuse a header that claims more than the file holds, before numpy allocates for it."""
    head = file.read(12)
    if head.startswith(b"PK"):
        raise CorpusError(f"{name} is an .npz of several arrays: save one with numpy.save")
    if not head.startswith(npy.MAGIC_PREFIX):
        raise CorpusError(f"{name} is not a .npy: {_NPY_REMEDY}")
    file.seek(0)
    version = npy.read_magic(file)
    length = int.from_bytes(head[8:10] if version == (1, 0) else head[8:12], "little")
    if length > min(_MAX_NPY_HEADER, size):
        raise CorpusError(f"{name} is damaged: its header claims {length:,} bytes: {_NPY_REMEDY}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise CorpusError(f"{name} holds Python objects, which are not read: {_NPY_REMEDY}")
    if any(count < 0 for count in shape):
        raise CorpusError(f"{name} is damaged: its shape is {shape}: {_NPY_REMEDY}")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != size - file.tell():
        raise CorpusError(
            f"{name} is damaged: its header claims {claimed:,} bytes of shape {str(shape):.60}, "
            f"and {size - file.tell():,} follow: {_NPY_REMEDY}"
        )
