"""Service: what the Space does for visitors and programs, without a page.

Holds what lives as long as the process: the models, the loaded ones, the semaphore, measurements,
results, and a stop signal for each visitor whose comparison runs.

    Service.create(Catalog.read()).plan("tiny", 192, None, None, None)["parameters"]
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron.files.device_memory import total_memory
from minitron.space.jobs import distilling
from minitron.space.jobs.catalog import Catalog
from minitron.space.jobs.comparing import (
    Column,
    Comparison,
    ComparisonRequest,
    columns_before,
    compare,
    continue_prompt,
    continue_pruned,
    model_keys,
)
from minitron.space.jobs.decoding import StopSignal
from minitron.space.jobs.measures import Measurements, cache_folder
from minitron.space.jobs.models import LoadedModel, ModelCache
from minitron.space.jobs.preview import Preview, Sizes, preview
from minitron.space.jobs.pruning import Pruner, PruningResult
from minitron.space.jobs.request import MAX_SECONDS, Settings, VisitorError
from minitron.space.jobs.semaphore import FairSemaphore, compute_semaphore

_SHARE_OF_MEMORY = 0.5  # for loaded weights
SAMPLE_PROMPT = "“I do not believe you,” said the captain."
SAMPLE = Settings(max_new_tokens=60, temperature=0.7, top_p=0.9)


@dataclass
class Service:
    """What a page or an endpoint asks for."""

    catalog: Catalog
    cache: ModelCache
    semaphore: FairSemaphore
    measurements: Measurements
    pruner: Pruner
    _stop_signals: dict[str, StopSignal] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def create(cls, catalog: Catalog, folder: Path | None = None) -> "Service":
        """For this machine; measurements are kept in `folder`."""
        semaphore = compute_semaphore()
        measurements = Measurements(folder or cache_folder(), semaphore)
        cache = ModelCache(catalog, int(total_memory() * _SHARE_OF_MEMORY))
        return cls(catalog, cache, semaphore, measurements, Pruner(measurements, semaphore))

    def generate(
        self,
        model: str,
        prompt: str,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> tuple[str, tuple[str, ...]]:
        """A model's continuation, and notices about the prompt."""
        settings = Settings.checked(max_new_tokens, temperature, top_p, seed)
        request = ComparisonRequest.checked(self.catalog, [model], prompt, settings)
        column = continue_prompt(self.cache, request, self.semaphore, StopSignal(MAX_SECONDS))
        return column.text, column.notices

    def compare(
        self,
        models: list[str],
        prompt: str,
        settings: Settings,
        *,
        quantization: str | None = None,
        visitor: str | None = None,
    ) -> Iterator[list[Column]]:
        """The columns as they grow; a visitor's next comparison stops the one before."""
        request = ComparisonRequest.checked(self.catalog, models, prompt, settings, quantization)
        with self._stop_signal(visitor) as stop:
            yield from compare(self.cache, self.catalog, request, self.semaphore, stop)

    def columns(self, models: list[str], quantization: str | None = None) -> list[Column]:
        """The columns of these models before a comparison, with the numbers known by then."""
        return columns_before(self.catalog, model_keys(self.catalog, models, quantization))

    def stop(self, visitor: str | None) -> None:
        """Stop this visitor's comparison."""
        with self._lock:
            stop = self._stop_signals.get(visitor or "")
        if stop is not None:
            stop.set()

    def stop_distilling(self, visitor: str | None) -> None:
        """Stop this visitor's distillation."""
        self.stop(_distilling(visitor))

    def leave(self, visitor: str | None) -> None:
        """Stop this visitor's comparison, and remove the results some minutes later."""
        self.stop(visitor)
        self.stop_distilling(visitor)
        self.pruner.results.expire(visitor)

    def close(self) -> None:
        """Remove all visitors' files."""
        self.pruner.results.close()

    def preview(self, model: str, *sizes: Any, timed: bool = True) -> tuple[Preview, Sizes]:
        """What would be kept; without `timed`, without a speed that must be measured first."""
        entry = self.catalog.model(model)
        wanted = Sizes.checked(entry, *sizes)
        return preview(entry, wanted, self.measurements, timed=timed), wanted

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
        return self.preview(model, *sizes)[0].to_json()

    def prune(self, model: str, *sizes: Any, visitor: str | None = None) -> Iterator[PruningResult]:
        """Prune step by step; the result is kept for its visitor for a limited time."""
        preview, wanted = self.preview(model, *sizes, timed=False)
        if preview.plan.target == preview.plan.source:
            raise VisitorError("nothing is pruned: choose at least one smaller size")
        self.pruner.check_room(preview)
        yield from self.pruner.run(preview, wanted, visitor)

    def sample(self, result: PruningResult) -> list[Column]:
        """The continuations of one prompt by the model and by its pruned version."""
        assert result.folder is not None
        name = result.preview.entry.name
        request = ComparisonRequest.checked(self.catalog, [name], SAMPLE_PROMPT, SAMPLE)
        stop = StopSignal(MAX_SECONDS)
        return [
            continue_prompt(self.cache, request, self.semaphore, stop),
            continue_pruned(result.folder, request, self.semaphore, stop),
        ]

    def distill(self, folder: str, visitor: str | None = None) -> Iterator[distilling.Lesson]:
        """Distill a visitor's pruned model from its original, for little more than a minute."""
        path = self.pruner.check_folder(folder)
        entry = self.pruner.original(path)
        request = ComparisonRequest.checked(self.catalog, [entry.name], SAMPLE_PROMPT, SAMPLE)

        def write(loaded: LoadedModel) -> Column:
            column = Column(loaded.key)
            Comparison(request, self.semaphore, StopSignal(MAX_SECONDS)).answer(
                column, loaded, None
            )
            return column

        with self._stop_signal(_distilling(visitor), distilling.SECONDS) as stop:
            yield from distilling.distill_live(
                entry, path, self.measurements, self.semaphore, stop, write=write
            )

    @contextmanager
    def _stop_signal(
        self, visitor: str | None, seconds: float = MAX_SECONDS
    ) -> Iterator[StopSignal]:
        """A signal that `stop` finds while the block runs; without a visitor nobody can stop it."""
        stop = StopSignal(seconds)
        if visitor is None:
            yield stop
            return
        self.stop(visitor)
        with self._lock:
            self._stop_signals[visitor] = stop
        try:
            yield stop
        finally:
            stop.set()
            with self._lock:
                if self._stop_signals.get(visitor) is stop:
                    del self._stop_signals[visitor]


def _distilling(visitor: str | None) -> str | None:
    """The name of a visitor's distillation among the stop signals."""
    return None if visitor is None else f"{visitor}, distilling"
