"""Texts and prompts as token ids, and generated ids as text.

Tokenizers differ in what they add by themselves: nothing, a begin, an end, or both. A document
always gets one end of text; a prompt gets none, or the model would begin a new text. A `TextStream`
gives each part of a generated text as soon as no later token can change it.

    next(tokenize([Text("It was")], tokenizer)).ids     # [..., end]
    stream = TextStream(tokenizer, prompt_ids("It was", tokenizer))
    print(stream.add(token), end="")
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from minitron.errors import TokenizerError, foreign_parser
from minitron.text.text_row import Text, Tokenizer

TokenIds = npt.NDArray[np.int32]

_BATCH_CHARACTERS = 4_000_000  # tokenized at once: bounds memory, and is enough for all cores
_REMEDY = "it does not fit this text; give the model's own tokenizer"


@dataclass(frozen=True)
class Document:
    """One text as token ids, with its length in bytes of UTF-8."""

    ids: TokenIds  # (tokens,)
    bytes: int | None  # None for a chat, part of which is its template's


def tokenize(texts: Iterable[Text], tokenizer: Tokenizer) -> Iterator[Document]:
    """Each text's ids and one end of text.

    The end is added where neither the tokenizer nor the text's chat template has added one. Blank
    texts are left out. Raises TokenizerError.
    """
    end: int | None = tokenizer.eos_token_id  # type: ignore[attr-defined]
    texts = iter(texts)
    while batch := _next_batch(texts, _BATCH_CHARACTERS):
        for is_complete, group in groupby(batch, key=lambda text: text.has_special_tokens):
            members = list(group)
            encoded = _encode(tokenizer, [text.text for text in members], not is_complete)
            for text, ids in zip(members, encoded, strict=True):
                is_ended = end in (ids if is_complete else ids[-1:])
                ending = [] if end is None or is_ended else [end]
                size = None if is_complete else len(text.text.encode())
                yield Document(np.array([*ids, *ending], np.int32), size)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's ids, with what the tokenizer adds before a text and without what it adds after.

    Raises TokenizerError.
    """
    (whole,) = _encode(tokenizer, [prompt], True)
    (bare,) = _encode(tokenizer, [prompt], False)
    begin = next((n for n in range(len(whole)) if bare and whole[n : n + len(bare)] == bare), None)
    if begin is not None:
        return whole[: begin + len(bare)]
    end = tokenizer.eos_token_id  # type: ignore[attr-defined]
    while whole and whole[-1] == end:
        whole.pop()
    return whole


def _encode(tokenizer: Tokenizer, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    where = f"the tokenizer {getattr(tokenizer, 'name_or_path', '')}".strip()
    options: dict[str, Any] = {} if add_special_tokens else {"add_special_tokens": False}
    with foreign_parser(where, TokenizerError, _REMEDY):
        encoded = tokenizer(texts, return_attention_mask=False, verbose=False, **options)
        ids: list[list[int]] = encoded["input_ids"]
    return ids


def _next_batch(texts: Iterator[Text], characters: int) -> list[Text]:
    """The next texts, until they hold `characters`; blank ones are left out."""
    batch: list[Text] = []
    length = 0
    for text in texts:
        if text.text.strip():
            batch.append(text)
            length += len(text.text)
        if length >= characters:
            break
    return batch


_INCOMPLETE = "\ufffd"  # the end of a text whose last character lacks bytes


class TextStream:
    """Tokens are decoded after those before them, the prompt's included, since many tokenizers drop
    the space before the first token that they decode; special tokens are left out.

    tokenizers' DecodeStream is not used: where sampled bytes are no character it raises ("Invalid
    prefix"), and after a prompt that ends in U+FFFD it returns the prompt again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._before = list(prompt)  # the prompt, then the tokens of the last part
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes, empty while bytes of a character are missing."""
        self._pending.append(token)
        text = self._pending_text()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._before, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """The text of the tokens that no part holds yet, complete or not."""
        text = self._pending_text()
        self._before, self._pending = self._pending, []
        return text

    def _pending_text(self) -> str:
        before = self._decode(self._before)
        return self._decode([*self._before, *self._pending])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
