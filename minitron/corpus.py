"""Corpus: text as packed token ids, with a digest that tells one corpus from another.

Reads .txt, .jsonl and .parquet files (gzipped too) and Hub datasets through `datasets`, and ids
made elsewhere from `.npy`. Knows no model: ids a model sampled itself come from `sampling`.

    corpus = load_corpus("books.jsonl.gz", tokenizer, seq_len=512, samples=1024)
    corpus.sequences.shape   # (1024, 512)
"""

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minitron.errors import CorpusError

TokenIds = npt.NDArray[np.int32]
Tokenizer = Callable[..., Any]  # a transformers tokenizer: texts in, {"input_ids": [[...]]} out

PAPER_SAMPLES = 1024  # calibration sequences, 2407.14679 section 4
_READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_BATCH_CHARACTERS = 4_000_000  # tokenized at once: bounds memory, keeps all cores busy
_POOL = 16  # samples are drawn from at most this many times the text they need
_CHARACTERS_PER_TOKEN = 4

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
        """Refuse ids that a model has no embedding for; CorpusError tells the one seen."""
        low, high = int(self.sequences.min()), int(self.sequences.max())
        if low < 0 or high >= vocab_size:
            raise CorpusError(
                f"{self.name} holds token id {low if low < 0 else high}, outside the model's "
                f"vocabulary of {vocab_size}: was it made with another tokenizer?"
            )


@dataclass(frozen=True)
class Document:
    """One text as token ids, with its length in bytes of UTF-8."""

    ids: TokenIds  # (tokens,)
    bytes: int


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
    a rest shorter than a sequence is dropped. `samples` are packed from passages (documents cut at
    line ends) drawn at random by `seed`; None takes all documents, in order. Raises CorpusError
    for text that is missing, unreadable, empty or shorter than one sequence.
    """
    if samples is None:
        texts: Iterable[str] = read_documents(name)
    else:
        needed = samples * seq_len * _CHARACTERS_PER_TOKEN
        passages = _passages(read_documents(name), 8 * seq_len * _CHARACTERS_PER_TOKEN)
        pool = _up_to(passages, _POOL * needed)
        order = np.random.default_rng(seed).permutation(len(pool))
        texts = _up_to((pool[index] for index in order), 3 * needed)
    ids = [document.ids for document in tokenize(texts, tokenizer)]
    stream = np.concatenate(ids) if ids else np.empty(0, np.int32)
    rows = min(len(stream) // seq_len, samples or len(stream))
    if not rows:
        raise CorpusError(
            f"{name} holds {len(stream)} tokens, fewer than one sequence of {seq_len}: "
            "give more text or a smaller --seq-len"
        )
    if samples is not None and rows < samples:
        logger.info("%s holds %d sequences of %d tokens, not %d", name, rows, seq_len, samples)
    return Corpus(stream[: rows * seq_len].reshape(rows, seq_len), name)


def load_ids(name: str, *, seq_len: int, samples: int | None = None) -> Corpus:
    """The ids of a `.npy` [samples, length]: its first `samples` rows (all for None), each cut to
    at most `seq_len`. Raises CorpusError for a file that holds anything else."""
    try:
        ids = np.load(name, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError as error:
        raise CorpusError(f"{name} does not exist") from error
    except (OSError, ValueError, EOFError) as error:
        raise CorpusError(f"{name} is not a .npy of numbers: {error}") from error
    if not isinstance(ids, np.ndarray):
        raise CorpusError(f"{name} is an .npz of several arrays: save one with numpy.save")
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
        raise CorpusError(
            f"{name} holds {ids.dtype} of shape {ids.shape}: "
            "it must hold whole numbers [samples, length]"
        )
    if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise CorpusError(f"{name} holds {ids.min()} to {ids.max()}: those are no token ids")
    return Corpus(np.array(ids[:samples, :seq_len], np.int32), name)


def random_corpus(vocab_size: int, *, seq_len: int, samples: int, seed: int) -> Corpus:
    """Ids drawn uniformly from the vocabulary: a control, not a calibration set."""
    drawn = np.random.default_rng(seed).integers(vocab_size, size=(samples, seq_len))
    return Corpus(drawn.astype(np.int32), "random")


def read_documents(name: str) -> Iterator[str]:
    """The texts of a file (.txt is one text; else the column `text`) or of a Hub dataset.

    A Hub dataset is written `owner/name`, `owner/name:config` or `owner/name:config:split`
    (`train` unless given) and is streamed. Raises CorpusError.
    """
    path = Path(name)
    kind = _READERS.get(Path(name.removesuffix(".gz")).suffix)
    if path.is_dir():
        raise CorpusError(f"{name} is a folder: name a .txt, .jsonl, .parquet or .npy file")
    if path.exists() and kind is None:
        raise CorpusError(f"{name} is of no known kind: use .txt, .jsonl, .parquet (.gz) or .npy")
    if kind is not None and not path.exists():
        raise CorpusError(f"{name} does not exist")
    from datasets import load_dataset  # seconds to import
    from datasets.exceptions import DatasetsError

    try:
        if kind is not None:
            options = {"sample_by": "document"} if kind == "text" else {}
            rows = load_dataset(
                kind, data_files=str(path.absolute()), split="train", streaming=True, **options
            )
        else:
            repository, _, rest = name.partition(":")
            config, _, split = rest.partition(":")
            rows = load_dataset(repository, config or None, split=split or "train", streaming=True)
        for row in rows:
            yield _text_of(row, name)
    except StopIteration:  # how `datasets` meets a file of no rows
        return
    except (DatasetsError, OSError, ValueError, RuntimeError, EOFError, zlib.error) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = "is no file here, and no Hub dataset" if kind is None else "cannot be read as text"
        raise CorpusError(f"{name} {what}: {first_line}") from error


def tokenize(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[Document]:
    """Each text's ids as the tokenizer gives them, closed by its end-of-sequence id."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]  # type: ignore[attr-defined]
    texts = iter(texts)
    while batch := _up_to(texts, _BATCH_CHARACTERS):
        encoded = tokenizer(batch, return_attention_mask=False, verbose=False)["input_ids"]
        for text, ids in zip(batch, encoded, strict=True):
            yield Document(np.array([*ids, *end], np.int32), len(text.encode()))


def _text_of(row: dict[str, Any], name: str) -> str:
    text = row.get("text")
    if "text" not in row:
        raise CorpusError(f"{name} has no text column, only {', '.join(row)}: rename one to text")
    if not isinstance(text, str):
        raise CorpusError(f"{name} has {text!r:.60} in its text column: it must hold only text")
    return text


def _passages(documents: Iterable[str], characters: int) -> Iterator[str]:
    """Documents cut at line ends into passages of about `characters`."""
    for document in documents:
        passage: list[str] = []
        length = 0
        for line in document.splitlines(keepends=True):
            passage.append(line)
            length += len(line)
            if length >= characters:
                yield "".join(passage)
                passage, length = [], 0
        if passage:
            yield "".join(passage)


def _up_to(texts: Iterable[str], characters: int) -> list[str]:
    """The first texts, until they hold `characters`; empty ones are left out."""
    taken: list[str] = []
    length = 0
    for text in texts:
        if text.strip():
            taken.append(text)
            length += len(text)
        if length >= characters:
            break
    return taken
