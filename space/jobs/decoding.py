"""Decoding: a prompt continued one token at a time, so that it can stop, take turns and be shown;
and checked by a teacher, which reads the same text.

The tokens are those of `minitron generate` with the same settings; each request has its own random
numbers, whoever else is sampling. The teacher reads several tokens in one step, so that checking
costs far less than generating.

    teacher = TeacherCheck(loaded_teacher, ids, semaphore)
    for token in generate_tokens(loaded, ids, settings, semaphore, stop):
        teacher.check([token])
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from minitron.space.jobs.models import LoadedModel
from minitron.space.jobs.request import Settings
from minitron.space.jobs.semaphore import FairSemaphore
from modeling_nemotron import CACHE_NAME


class StopSignal:
    """Set when a visitor stops or leaves; also set once the time of the request is over."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._event = threading.Event()

    def set(self) -> None:
        """Stop after the present step."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether to compute no further step."""
        return self._event.is_set() or self.is_late

    @property
    def is_late(self) -> bool:
        """Whether the time of the request is over."""
        return time.monotonic() > self._deadline


@dataclass(frozen=True)
class GeneratedToken:
    """A token, and the seconds of computing it without the wait for a slot."""

    id: int
    likeliest: int  # the model's most likely token here; a sampled token may be another
    seconds: float


def generate_tokens(
    loaded: LoadedModel,
    ids: list[int],
    settings: Settings,
    semaphore: FairSemaphore,
    stop: StopSignal,
) -> Iterator[GeneratedToken]:
    """The tokens after `ids`, until the text ends, enough are generated or `stop` is set."""
    generator = torch.Generator(loaded.model.device).manual_seed(settings.seed)
    cache = DynamicCache(config=loaded.model.config)
    unread = ids
    for _ in range(settings.max_new_tokens):
        if stop.is_set:
            return
        with semaphore.slot():
            started = time.perf_counter()
            logits = next_logits(loaded, unread, cache)[-1:]
            token = _choose_token(logits, settings, generator)
            seconds = time.perf_counter() - started
        if token in loaded.end_tokens:
            return
        yield GeneratedToken(token, int(logits.argmax()), seconds)
        unread = [token]


def next_logits(
    loaded: LoadedModel, ids: list[int], cache: DynamicCache, last: int = 1
) -> torch.Tensor:
    """The logits after each of the `last` of `ids`, which follow the cache: (last, vocab)."""
    with torch.inference_mode():
        out = loaded.model(
            input_ids=torch.tensor([ids], device=loaded.model.device),
            use_cache=True,
            logits_to_keep=last,
            **{CACHE_NAME: cache},
        )
        return torch.as_tensor(out.logits[0].float())


def _choose_token(logits: torch.Tensor, settings: Settings, generator: torch.Generator) -> int:
    """The most likely token, or a sampled one; `logits` (1, vocab)."""
    if settings.temperature == 0:
        return int(logits.argmax())
    no_ids = torch.empty(1, 0, dtype=torch.long)
    with torch.inference_mode():
        scores = TemperatureLogitsWarper(settings.temperature)(no_ids, logits)
        if settings.top_p < 1:
            scores = TopPLogitsWarper(settings.top_p)(no_ids, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


@dataclass(frozen=True)
class TokenCheck:
    """The most likely tokens of student and teacher at one place of the student's answer."""

    agrees: bool  # they are the same
    own: str  # the student's
    probability: float  # that the teacher gives it
    choice: str  # the teacher's
    choice_probability: float


class TeacherCheck:
    """A teacher that has read the prompt and the tokens checked so far."""

    def __init__(self, teacher: LoadedModel, prompt: list[int], semaphore: FairSemaphore) -> None:
        self._teacher, self._semaphore = teacher, semaphore
        self._cache = DynamicCache(config=teacher.model.config)
        self._prompt = prompt
        self._next: torch.Tensor | None = None  # (vocab,) logits after all that was read

    def check(self, tokens: Sequence[GeneratedToken]) -> list[TokenCheck]:
        """One check per token; the tokens follow those of the calls before."""
        if not tokens:
            return []
        if self._next is None:
            self._next = self._read(self._prompt, 1)[-1]
        after = self._read([token.id for token in tokens], len(tokens))
        expected = torch.cat([self._next[None], after[:-1]]).softmax(-1)  # (tokens, vocab)
        self._next = after[-1]
        own = [token.likeliest for token in tokens]
        own_probabilities = expected[torch.arange(len(own)), torch.tensor(own)]
        probabilities, choices = expected.max(-1)
        columns = (own, own_probabilities.tolist(), choices.tolist(), probabilities.tolist())
        return [
            TokenCheck(one == other, self._readable(one), p, self._readable(other), q)
            for one, p, other, q in zip(*columns, strict=True)
        ]

    def _read(self, ids: list[int], last: int) -> torch.Tensor:
        with self._semaphore.slot():
            return next_logits(self._teacher, ids, self._cache, last)

    def _readable(self, token: int) -> str:
        """A token with its space; the end of a text in words."""
        if token in self._teacher.end_tokens:
            return "the end of the text"
        raw = str(self._teacher.tokenizer.convert_ids_to_tokens(token))
        return raw.replace("\u2581", " ").replace("\u0120", " ").replace("\u010a", "\n")
