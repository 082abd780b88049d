"""Service: what the Space does for a visitor, without a page: four questions and their answers.

Holds what lives as long as the process: the family, its loaded models, whose turn it is, what was
measured, and who may be told to stop.

    Service.of(Family.read()).plan("tiny", 192, None, None, None)["parameters"]
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron.files.device_memory import total_memory
from minitron.space.jobs.catalog import Family
from minitron.space.jobs.comparing import Column, Wish, compared, continued_text, tried
from minitron.space.jobs.decoding import Stop
from minitron.space.jobs.errors import VisitorError
from minitron.space.jobs.measures import Measures, cache_folder
from minitron.space.jobs.models import Shelf
from minitron.space.jobs.preview import Cut, Sizes, planned
from minitron.space.jobs.pruning import Result, Workshop
from minitron.space.jobs.request import MAX_SECONDS, Settings
from minitron.space.jobs.semaphore import Turns, turns_of_this_machine

_SHARE_OF_MEMORY = 0.5  # that loaded weights may take
TRY_PROMPT = "It was the best of times,"
TRY_TOKENS = 40


@dataclass
class Service:
    """Everything a page or an endpoint asks."""

    family: Family
    shelf: Shelf
    turns: Turns
    measures: Measures
    workshop: Workshop
    _stops: dict[str, Stop] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, family: Family, cache: Path | None = None) -> "Service":
        """For this machine; measures are kept in `cache`."""
        turns = turns_of_this_machine()
        measures = Measures(cache or cache_folder(), turns)
        limit = int(total_memory() * _SHARE_OF_MEMORY)
        return cls(family, Shelf(family, limit), turns, measures, Workshop(measures, turns))

    def generate(
        self,
        model: str,
        prompt: str,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> tuple[str, tuple[str, ...]]:
        """What a model goes on with, and what to tell about the prompt."""
        settings = Settings.checked(max_new_tokens, temperature, top_p, seed)
        wish = Wish.checked(self.family, [model], prompt, settings, None)
        return continued_text(self.shelf, self.family, wish, self.turns)

    def compare(
        self,
        models: list[str],
        prompt: str,
        settings: Settings,
        *,
        quantization: str | None = None,
        visitor: str | None = None,
    ) -> Iterator[list[Column]]:
        """The columns as they grow; a visitor's next comparison ends the one before."""
        wish = Wish.checked(self.family, models, prompt, settings, quantization)
        with self._stoppable(visitor) as stop:
            yield from compared(self.shelf, self.family, wish, self.turns, stop)

    def leave(self, visitor: str | None) -> None:
        """Let go of all that this visitor has here: what is running, and soon its results."""
        self.stop(visitor)
        self.workshop.results.leave(visitor)

    def close(self) -> None:
        """Remove every visitor's files."""
        self.workshop.results.close()

    def stop(self, visitor: str | None) -> None:
        """Let go of what this visitor has running."""
        with self._lock:
            stop = self._stops.get(visitor or "")
        if stop is not None:
            stop.say()

    def cut(self, model: str, *sizes: Any) -> tuple[Cut, Sizes]:
        """What would be kept."""
        member = self.family.member(model)
        wanted = Sizes.checked(member, *sizes)
        return planned(member, wanted, self.measures), wanted

    def plan(
        self,
        model: str,
        hidden_size: int | None,
        intermediate_size: int | None,
        num_attention_heads: int | None,
        num_hidden_layers: int | None,
    ) -> dict[str, Any]:
        """The same as JSON."""
        sizes = (hidden_size, intermediate_size, num_attention_heads, num_hidden_layers)
        return self.cut(model, *sizes)[0].to_json()

    def prune(self, model: str, *sizes: Any, visitor: str | None = None) -> Iterator[Result]:
        """Cut for real, step by step; the result is kept for its visitor for a while."""
        cut, wanted = self.cut(model, *sizes)
        if cut.target == cut.plan.source:
            raise VisitorError("nothing is cut: choose at least one smaller size")
        yield from self.workshop.pruned(cut, wanted, visitor)

    def tried(self, result: Result) -> list[Column]:
        """The member and its cut, both asked to go on with the same words."""
        assert result.folder is not None
        settings = Settings(max_new_tokens=TRY_TOKENS)
        member = result.cut.member
        wish = Wish.checked(self.family, [member.name], TRY_PROMPT, settings, None)
        return tried(self.shelf, wish, result.folder, self.turns, Stop(MAX_SECONDS))

    @contextmanager
    def _stoppable(self, visitor: str | None) -> Iterator[Stop]:
        stop = Stop(MAX_SECONDS)
        if visitor is None:
            yield stop
            return
        self.stop(visitor)
        with self._lock:
            self._stops[visitor] = stop
        try:
            yield stop
        finally:
            stop.say()
            with self._lock:
                if self._stops.get(visitor) is stop:
                    del self._stops[visitor]
