"""Text as token ids: a corpus of packed sequences, and held-out text in windows.

Packs texts read by `minitron.text.texts`, and loads token ids from `.npy`. Knows no model: token
ids that a model samples itself come from `minitron.text.sampling`.

Every token of a held-out text is predicted once, from at most `seq_len` tokens before it, in
windows that overlap by `seq_len - stride`. A separator is before each text; separators are context
and are not counted, so bits per byte are comparable between tokenizers.

    corpus = load_corpus("books.jsonl.gz", tokenizer, seq_len=512, samples=1024)
    corpus.sequences.shape   # (1024, 512)
    held_out_text("books.jsonl.gz", tokenizer, seq_len=512, stride=256)
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
from numpy.lib.stride_tricks import sliding_window_view
from transformers import PreTrainedTokenizerBase

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
            f"{name} holds {tokens:,} tokens, fewer than one sequence of {seq_len:,}: "
            "give more text or a smaller --seq-len"
        )
    if samples is not None and rows < samples:
        logger.info(
            "%s holds %s sequences of %s tokens, not %s",
            name,
            *(f"{number:,}" for number in (rows, seq_len, samples)),
        )
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


UNCOUNTED = -100  # a target that is not scored


@dataclass(frozen=True)
class HeldOut:
    """Inputs and targets of a loss, the same for every model that is compared."""

    inputs: tuple[TokenIds, ...]  # each (windows, tokens)
    targets: tuple[TokenIds, ...]  # the same shapes; -100 where nothing is counted
    bytes: int | None  # of the text; None for ids, and where some texts are chats

    @property
    def digest(self) -> str:
        """sha256 of the tokens."""
        digest = hashlib.sha256()
        for ids in (*self.inputs, *self.targets):
            digest.update(f"{ids.shape}".encode() + np.ascontiguousarray(ids).tobytes())
        return digest.hexdigest()


def held_out_text(
    name: str, tokenizer: PreTrainedTokenizerBase, seq_len: int, stride: int | None = None
) -> HeldOut:
    """The text of a file or a Hub dataset, packed into windows of `seq_len` tokens.

    Each window predicts its last `stride` tokens (all of them unless given), the first one all.
    """
    documents = list(tokenize(read_texts(name, tokenizer), tokenizer))
    separators = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    start = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream = np.concatenate([np.array(start, np.int32), *(d.ids for d in documents)])
    inputs, targets = stream[:-1], stream[1:].copy()
    targets[np.isin(targets, separators)] = UNCOUNTED
    if not (targets != UNCOUNTED).any():
        raise CorpusError(f"{name} holds no text: there is nothing to predict")
    windows = _windows(inputs, targets, seq_len, stride or seq_len)
    sizes = [document.bytes for document in documents if document.bytes is not None]
    return HeldOut(
        tuple(inputs for inputs, _ in windows),
        tuple(targets for _, targets in windows),
        sum(sizes) if len(sizes) == len(documents) else None,
    )


def held_out_ids(name: str, seq_len: int) -> HeldOut:
    """The rows of an `.npy` of ids, each predicted from its second token on."""
    ids = load_ids(name, seq_len=seq_len + 1).sequences
    if ids.shape[1] < 2:
        raise CorpusError(f"{name} holds sequences of one token: there is nothing to predict")
    return HeldOut((ids[:, :-1],), (ids[:, 1:],), None)


def _windows(
    inputs: TokenIds, targets: TokenIds, seq_len: int, stride: int
) -> list[tuple[TokenIds, TokenIds]]:
    """Windows of `seq_len`, one every `stride`, and a shorter last one; each (windows, tokens).

    Targets that an earlier window has counted are UNCOUNTED in later ones.
    """
    found, begin, counted = [], 0, 0
    if len(inputs) >= seq_len:
        whole = [sliding_window_view(ids, seq_len)[::stride].copy() for ids in (inputs, targets)]
        whole[1][1:, : seq_len - stride] = UNCOUNTED
        found.append((whole[0], whole[1]))
        begin = len(whole[0]) * stride
        counted = begin - stride + seq_len
    if counted < len(inputs):
        rest = targets[begin:].copy()
        rest[: counted - begin] = UNCOUNTED
        found.append((inputs[None, begin:], rest[None]))
    return found
