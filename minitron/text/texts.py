"""The texts of a file or a Hub dataset: all of them in order, or passages drawn from them.

next(read_texts("books.jsonl.gz", tokenizer)).text
draw_texts("books.txt", tokenizer, seq_len=512, samples=1024, seed=0)
"""

import heapq
import logging
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np

from minitron.errors import CorpusError
from minitron.text.rows import file_rows, hub_rows, kind_of_file
from minitron.text.text_file import read_parts
from minitron.text.text_row import CHOICES, Text, Tokenizer, text_of_row

HUB_CHARACTERS = 100_000_000  # read of a Hub dataset to draw samples from, at least
_HUB_SURPLUS = 16  # and at least this many times what the samples need
_CHARACTERS_PER_TOKEN = 4  # about
_DRAW_SURPLUS = 2  # so that text with more characters a token still fills the samples
_PASSAGE_SEQUENCES = 2  # the length of a passage, in sequences
MADE_BY_MODEL = ("self", "random")  # names of a corpus that is sampled or drawn, not read
_END_CHARACTERS = 4  # what the end of a text counts as: about a token

logger = logging.getLogger(__name__)


def read_texts(
    name: str,
    tokenizer: Tokenizer,
    *,
    longest: int | None = None,
    shuffle_seed: int | None = None,
) -> Iterator[Text]:
    """The texts of a file (a .txt is one text; others have one a row) or a Hub dataset, in order.

    A Hub dataset is written `owner/name`, `owner/name:config` or `owner/name:config:split`
    (`train` unless given) and is streamed; with `shuffle_seed`, its files come in random order.
    Texts longer than twice `longest` characters are split into passages. Raises CorpusError.
    """
    kind = kind_of_file(name)
    if kind == ".txt":
        parts = read_parts(name)
        return _split_parts(parts, longest) if longest else iter([Text("".join(parts))])
    if kind is None and name in MADE_BY_MODEL:
        raise CorpusError(
            f"{name} cannot be given here, where text is read: name a file, or a Hub dataset as "
            "owner/name:config:split"
        )
    if kind is None:
        rows = hub_rows(name, CHOICES, shuffle_seed=shuffle_seed)
    else:
        rows = file_rows(name, CHOICES)
    texts = _report_joined_chats((text_of_row(row, tokenizer) for row in rows), name)
    if longest is None:
        return texts
    return chain.from_iterable(split_text(text, longest) for text in texts)


def draw_texts(
    name: str, tokenizer: Tokenizer, *, seq_len: int, samples: int, seed: int
) -> list[Text]:
    """Random passages that fill `samples` sequences; every passage is equally likely.

    They are drawn from the whole of a file; of a Hub dataset from its first 100 million characters
    (more where samples need more), with its files in random order. A passage is a document, or a
    part of about two sequences of a longer one.
    """
    characters = seq_len * _CHARACTERS_PER_TOKEN
    texts = read_texts(name, tokenizer, longest=_PASSAGE_SEQUENCES * characters, shuffle_seed=seed)
    if kind_of_file(name) is None:
        limit = max(HUB_CHARACTERS, _HUB_SURPLUS * samples * characters)
        texts = _first_texts(texts, limit, name)
    return draw_passages(texts, _DRAW_SURPLUS * samples * characters, seed)


def split_text(text: Text, characters: int) -> Iterator[Text]:
    """A text as passages of `characters` up to twice as many; the last may be shorter.

    Splits after a line end where there is one, else before a blank, else anywhere.
    """
    whole, start = text.text, 0
    while len(whole) - start > 2 * characters:
        most = start + 2 * characters
        end = whole.find("\n", start + characters - 1, most) + 1
        if not end:
            blank = whole.find(" ", start + characters, most)
            end = blank if blank > 0 else most
        yield Text(whole[start:end], text.origin)
        start = end
    yield Text(whole[start:], text.origin) if start else text


def draw_passages(passages: Iterable[Text], characters: int, seed: int) -> list[Text]:
    """Random passages that hold `characters` together; all passages where there are fewer.

    Every passage is equally likely, and so is every character; blank passages are left out. Memory
    holds the passages drawn so far and one more: each gets a random key, and those with the lowest
    keys are kept and returned in the order of their keys.
    """
    keys = np.random.default_rng(seed)
    kept: list[tuple[float, int, Text]] = []  # a heap by negated key: the highest key comes first
    total = 0
    for number, passage in enumerate(passages):
        if not passage.text.strip():
            continue
        entry = (-keys.random(), number, passage)
        heapq.heappush(kept, entry)
        total += len(passage.text) + _END_CHARACTERS
        while total - (highest := len(kept[0][2].text) + _END_CHARACTERS) >= characters:
            heapq.heappop(kept)
            total -= highest
    return [passage for _, _, passage in sorted(kept, reverse=True)]


def _split_parts(parts: Iterable[str], characters: int) -> Iterator[Text]:
    """The passages of one text that is read in parts."""
    rest = ""
    for part in parts:
        *passages, last = split_text(Text(rest + part), characters)
        yield from passages
        rest = last.text
    yield Text(rest)


def _report_joined_chats(texts: Iterable[Text], name: str) -> Iterator[Text]:
    """The same texts; the first chat without a chat template is logged."""
    is_reported = False
    for text in texts:
        if text.origin == "joined messages" and not is_reported:
            logger.info(
                "%s holds chats and the tokenizer has no chat template: their messages are joined "
                "by line ends, without roles",
                name,
            )
            is_reported = True
        yield text


def _first_texts(texts: Iterable[Text], characters: int, name: str) -> Iterator[Text]:
    """The first texts, until they hold `characters`; it is logged where more follow."""
    total = 0
    for text in texts:
        if total >= characters:
            logger.info(
                "%s is longer than %s characters: samples are drawn from so many of them, "
                "with its files in random order",
                name,
                f"{characters:,}",
            )
            return
        total += len(text.text)
        yield text
