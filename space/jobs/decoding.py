"""Decoding: a prompt continued one token at a time, so that it can stop, take turns and be shown.

The tokens are those of `minitron generate` with the same settings; each request has its own random
numbers, whoever else is sampling.

    for token in generate_tokens(loaded, ids, settings, semaphore, stop):
        print(token.id, token.seconds)
"""

import threading
import time
from collections.abc import Iterator
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
        return self._event.is_set() or time.monotonic() > self._deadline


@dataclass(frozen=True)
class GeneratedToken:
    """A token, and the seconds of computing it without the wait for a slot."""

    id: int
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
        yield GeneratedToken(token, seconds)
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
