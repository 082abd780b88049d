"""Decoding: a prompt continued one token at a time, so that it can stop, take turns, be watched.

The tokens are those of `minitron generate` with the same settings; the random numbers are this
request's own, whoever else is sampling. Knows no teacher and no page.

    for token in continued(loaded, ids, settings, turns, stop):
        piece = pieces.add(token)
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from minitron.space.jobs.models import Loaded
from minitron.space.jobs.request import Settings
from minitron.space.jobs.semaphore import Turns
from modeling_nemotron import CACHE_NAME

_INCOMPLETE = "\ufffd"  # what bytes decode to that are no whole character yet


class Stop:
    """When to leave a request: its visitor said so or has gone, or its time is over."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._said = threading.Event()

    def say(self) -> None:
        """Stop after the step that is on."""
        self._said.set()

    @property
    def is_said(self) -> bool:
        """Whether to go no further."""
        return self._said.is_set() or self.is_over

    @property
    def is_over(self) -> bool:
        """Whether it was time that ran out."""
        return time.monotonic() > self._deadline


@dataclass(frozen=True)
class Token:
    """A token and the seconds of computing it, without waiting for a turn."""

    id: int
    seconds: float


def continued(
    loaded: Loaded, ids: list[int], settings: Settings, turns: Turns, stop: Stop
) -> Iterator[Token]:
    """The tokens that follow `ids`, until one ends the text, enough are made or `stop` is said."""
    generator = torch.Generator(loaded.model.device).manual_seed(settings.seed)
    cache = DynamicCache(config=loaded.model.config)
    feed = ids
    for _ in range(settings.max_new_tokens):
        if stop.is_said:
            return
        with turns.turn():
            begun = time.perf_counter()
            logits = next_logits(loaded, feed, cache)[-1:]
            token = _chosen(logits, settings, generator)
            seconds = time.perf_counter() - begun
        if token in loaded.ends:
            return
        yield Token(token, seconds)
        feed = [token]


def next_logits(
    loaded: Loaded, feed: list[int], cache: DynamicCache, last: int = 1
) -> torch.Tensor:
    """What follows each of the `last` of `feed`, after all that is in the cache: (last, vocab)."""
    with torch.inference_mode():
        out = loaded.model(
            input_ids=torch.tensor([feed], device=loaded.model.device),
            use_cache=True,
            logits_to_keep=last,
            **{CACHE_NAME: cache},
        )
        return torch.as_tensor(out.logits[0].float())


def _chosen(logits: torch.Tensor, settings: Settings, generator: torch.Generator) -> int:
    """The likeliest token, or one drawn; `logits` (1, vocab)."""
    if settings.temperature == 0:
        return int(logits.argmax())
    none = torch.empty(1, 0, dtype=torch.long)
    with torch.inference_mode():
        scores = TemperatureLogitsWarper(settings.temperature)(none, logits)
        if settings.top_p < 1:
            scores = TopPLogitsWarper(settings.top_p)(none, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


@dataclass(frozen=True)
class Piece:
    """Text that no later token changes, and how many tokens it is made of."""

    text: str
    tokens: int


class Pieces:
    """Tokens as text, each with those before it: bytes of one character may come apart, and many
    tokenizers drop the space before the first token they decode."""

    def __init__(self, loaded: Loaded, prompt: list[int]) -> None:
        self._loaded = loaded
        self._ids = prompt[-16:]  # enough to know what the first token follows
        self._context, self._pending = 0, len(self._ids)

    def add(self, token: int) -> Piece | None:
        """The text that has become certain."""
        self._ids.append(token)
        return self._next(only_certain=True)

    def end(self) -> Piece | None:
        """What is left, whole or not."""
        return self._next(only_certain=False)

    def _next(self, *, only_certain: bool) -> Piece | None:
        count = len(self._ids) - self._pending
        if not count:
            return None
        known = self._loaded.text_of(self._ids[self._context : self._pending])
        text = self._loaded.text_of(self._ids[self._context :])[len(known) :]
        if only_certain and (not text or text.endswith(_INCOMPLETE)):
            return None
        self._ids = self._ids[self._pending :]
        self._context, self._pending = 0, len(self._ids)
        return Piece(text, count)
