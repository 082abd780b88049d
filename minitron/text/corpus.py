"""Corpus: text as packed token ids, with a digest that tells one corpus from another.

Packs the texts of files and Hub datasets, read by `minitron.text`, and ids made elsewhere from
`.npy`. Knows no model: ids a model sampled itself come from `sampling`.

    corpus = load_corpus("books.jsonl.gz", tokenizer, seq_len=512, samples=1024)
    corpus.sequences.shape   # (1024, 512)
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from minitron.errors import CorpusError
from minitron.text.encoding import TokenIds, tokenize
from minitron.text.npy_file import open_npy
from minitron.text.passages import cut, draw
from minitron.text.rows import file_rows, hub_rows, kind_of_file
from minitron.text.text_file import read_parts
from minitron.text.text_row import CHOICES, Text, Tokenizer, text_of_row

PAPER_SAMPLES = 1024  # calibration sequences, 2407.14679 section 4
HUB_CHARACTERS = 100_000_000  # of a Hub dataset that are looked at to draw samples, at least
_HUB_POOL = 16  # and at least so many times what they need
_CHARACTERS_PER_TOKEN = 4
_DRAWN = 2  # times the characters that samples need, for tokens of more characters
_PASSAGE_SEQUENCES = 2  # sequences that a drawn passage fills, about

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
    a rest shorter than a sequence is dropped. `samples` are packed from passages drawn at random
    by `seed` from the whole text (of a Hub dataset: see `drawn_texts`); None takes all documents,
    in order. Raises CorpusError for text that is missing, unreadable, empty or shorter than one
    sequence.
    """
    if samples is None:
        texts: Iterable[Text] = read_texts(name, tokenizer)
    else:
        texts = drawn_texts(name, tokenizer, seq_len=seq_len, samples=samples, seed=seed)
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


def drawn_texts(
    name: str, tokenizer: Tokenizer, *, seq_len: int, samples: int, seed: int
) -> list[Text]:
    """Passages that fill `samples` sequences, each as likely drawn as any other.

    They are drawn from the whole of a file; of a Hub dataset from its first 100 million characters
    (more where samples need more), its files in random order. Passages are documents, cut where
    they are longer than two sequences or so.
    """
    characters = seq_len * _CHARACTERS_PER_TOKEN
    texts = read_texts(name, tokenizer, longest=_PASSAGE_SEQUENCES * characters, shuffle_seed=seed)
    if kind_of_file(name) is None:
        texts = _first(texts, max(HUB_CHARACTERS, _HUB_POOL * samples * characters), name)
    return draw(texts, _DRAWN * samples * characters, seed)


def load_ids(name: str, *, seq_len: int, samples: int | None = None) -> Corpus:
    """The ids of a `.npy` [samples, length]: its first `samples` rows (all for None), each cut to
    at most `seq_len`. Raises CorpusError for a file that holds anything else."""
    ids = open_npy(name)
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


def read_texts(
    name: str,
    tokenizer: Tokenizer,
    *,
    longest: int | None = None,
    shuffle_seed: int | None = None,
) -> Iterator[Text]:
    """The texts of a file (.txt is one text; else one a row) or of a Hub dataset, in order.

    A Hub dataset is written `owner/name`, `owner/name:config` or `owner/name:config:split`
    (`train` unless given) and is streamed, its files in random order by `shuffle_seed`. Texts that
    are longer than twice `longest` characters come in passages. Raises CorpusError.
    """
    kind = kind_of_file(name)
    if kind == ".txt":
        parts = read_parts(name)
        return _cut_parts(parts, longest) if longest else iter([Text("".join(parts))])
    if kind is None:
        rows = hub_rows(name, CHOICES, shuffle_seed=shuffle_seed)
    else:
        rows = file_rows(name, CHOICES)
    texts = _told_once((text_of_row(row, tokenizer) for row in rows), name)
    return chain.from_iterable(cut(text, longest) for text in texts) if longest else texts


def _cut_parts(parts: Iterable[str], characters: int) -> Iterator[Text]:
    """The passages of one text that comes in parts."""
    rest = ""
    for part in parts:
        *passages, last = cut(Text(rest + part), characters)
        yield from passages
        rest = last.text
    yield Text(rest)


def _told_once(texts: Iterable[Text], name: str) -> Iterator[Text]:
    """The same texts; of chats without a chat template, a line is logged."""
    is_told = False
    for text in texts:
        if text.origin == "joined messages" and not is_told:
            logger.info(
                "%s holds chats and the tokenizer has no chat template: their messages are joined "
                "by line ends, without roles",
                name,
            )
            is_told = True
        yield text


def _first(texts: Iterable[Text], characters: int, name: str) -> Iterator[Text]:
    """The first texts until they hold `characters`, which a line says where others follow."""
    held = 0
    for text in texts:
        if held >= characters:
            logger.info(
                "%s is longer than %s characters: samples are drawn from as many, its files in "
                "random order",
                name,
                f"{characters:,}",
            )
            return
        held += len(text.text)
        yield text
