"""Comparing: several models continue one prompt at the same time, each checked by its teacher.

A column is one model's answer so far. Each column is generated in a thread of its own; the caller
gets the columns again and again as they grow.

    for columns in compare(cache, catalog, request, semaphore, stop):
        columns[0].text
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron.errors import MinitronError
from minitron.space.jobs.catalog import Catalog, CatalogModel
from minitron.space.jobs.decoding import (
    GeneratedToken,
    StopSignal,
    TeacherCheck,
    TokenCheck,
    generate_tokens,
)
from minitron.space.jobs.models import LoadedModel, ModelCache, ModelKey, load_entry
from minitron.space.jobs.request import MAX_COLUMNS, Prompt, Settings, VisitorError
from minitron.space.jobs.semaphore import FairSemaphore
from minitron.text.encoding import TextStream

_FRAME = 0.1  # seconds between two updates of the page
_CHECKED_AT_ONCE = 8  # tokens that a teacher reads in one step

MEASURED = {
    "tokens_per_second": "Tokens after the first, divided by the seconds of computing them; "
    "waiting for other visitors is not counted.",
    "seconds_to_first_token": "From the request to the first token, with loading the model and "
    "waiting for other visitors.",
    "parameters": "Numbers in the weights, embeddings included.",
    "weight_bytes": "Memory of the weights in the precision that this Space computes with.",
    "kv_cache_bytes_per_token": "Memory of each token's keys and values, over all layers, in the "
    "precision of the checkpoint.",
    "agreement_with_teacher": "Share of the answer's tokens in whose place the most likely token "
    "is the same for the model and for its teacher, whatever was sampled there; int8 weights are "
    "compared with the model's own full weights.",
}


@dataclass(frozen=True)
class ComparisonRequest:
    """The models, the prompt and the settings of a comparison."""

    keys: tuple[ModelKey, ...]
    prompt: Prompt
    settings: Settings

    @classmethod
    def checked(
        cls,
        catalog: Catalog,
        models: Any,
        prompt: Any,
        settings: Settings,
        quantization: str | None = None,
    ) -> "ComparisonRequest":
        """Raises VisitorError for unknown names, none, or too many."""
        names = [models] if isinstance(models, str) else models
        if not isinstance(names, list) or not names:
            raise VisitorError(f"no model is chosen: choose {' or '.join(catalog.names)}")
        keys = model_keys(catalog, names, quantization)
        if len({key.name for key in keys}) > MAX_COLUMNS:
            raise VisitorError(f"{len(names)} models are chosen: compare {MAX_COLUMNS} at most")
        return cls(keys, Prompt.checked(prompt), settings)


def model_keys(
    catalog: Catalog, names: list[Any], quantization: str | None = None
) -> tuple[ModelKey, ...]:
    """The models as they are loaded: each one's own weights, and the quantized ones if wanted.

    Raises VisitorError for unknown names.
    """
    unique = dict.fromkeys(catalog.model(name).name for name in names)
    kinds = (None,) if quantization is None else (None, quantization)
    return tuple(ModelKey(name, kind) for name in unique for kind in kinds)


@dataclass(frozen=True)
class TextPart:
    """Text that no later token changes, and the number of its tokens."""

    text: str
    tokens: int


@dataclass
class Column:
    """One model's answer so far."""

    key: ModelKey
    teacher: str | None = None  # the model that checks it
    why_no_teacher: str = ""
    prompt: str = ""
    parameters: int = 0
    weight_bytes: int = 0  # of quantized weights, known once they are loaded
    kv_cache_bytes_per_token: int = 0
    prompt_tokens: int = 0
    notices: tuple[str, ...] = ()
    parts: list[TextPart] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    checks: list[TokenCheck] = field(default_factory=list)  # of the first tokens
    seconds_to_first_token: float | None = None
    seconds: float = 0.0  # of computing the tokens after the first
    is_done: bool = False
    is_at_limit: bool = False  # it has as many tokens as were asked for
    error: str | None = None

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(part.text for part in self.parts)

    @property
    def tokens_per_second(self) -> float | None:
        """None before the second token."""
        return (len(self.tokens) - 1) / self.seconds if self.seconds else None

    @property
    def agreement(self) -> float | None:
        """The share of checked places that agree; None where none is checked."""
        if not self.checks:
            return None
        return sum(check.agrees for check in self.checks) / len(self.checks)

    def checked_parts(self) -> Iterator[tuple[str, list[TokenCheck]]]:
        """Each part of the text with the checks of its tokens, as far as there are any."""
        position = 0
        for part in list(self.parts):
            yield part.text, self.checks[position : position + part.tokens]
            position += part.tokens

    def add_text(self, text: str) -> None:
        """Append a part that holds all tokens since the last part."""
        if text:
            before = sum(part.tokens for part in self.parts)
            self.parts.append(TextPart(text, len(self.tokens) - before))

    def to_json(self) -> dict[str, Any]:
        """A column of /compare."""
        differences = [
            {
                "position": at,
                "model": check.own,
                "teacher": check.choice,
                "probability": check.choice_probability,
            }
            for at, check in enumerate(self.checks)
            if not check.agrees
        ]
        return {
            "model": self.key.name,
            "quantization": self.key.quantization,
            "text": self.text,
            "prompt_tokens": self.prompt_tokens,
            "tokens": len(self.tokens),
            "tokens_per_second": self.tokens_per_second,
            "seconds_to_first_token": self.seconds_to_first_token,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "kv_cache_bytes_per_token": self.kv_cache_bytes_per_token,
            "teacher": self.teacher,
            "agreement_with_teacher": self.agreement,
            "differences": differences,
            "notices": list(self.notices),
        }


@dataclass(frozen=True)
class Comparison:
    """A request while it runs."""

    request: ComparisonRequest
    semaphore: FairSemaphore
    stop: StopSignal
    started: float = field(default_factory=time.perf_counter)
    a_column_ended: threading.Event = field(default_factory=threading.Event)

    def answer(self, column: Column, loaded: LoadedModel, teacher: LoadedModel | None) -> None:
        """Generate one column to its end."""
        inspection, settings = loaded.entry.inspection, self.request.settings
        column.parameters = inspection.parameters
        column.weight_bytes = loaded.weight_bytes
        column.kv_cache_bytes_per_token = inspection.kv_cache_bytes_per_token
        ids, column.notices = self.request.prompt.fit(
            loaded.encode(self.request.prompt.text), loaded.context, settings.max_new_tokens
        )
        column.prompt_tokens = len(ids)
        stream = TextStream(loaded.tokenizer, ids)
        check = None if teacher is None else TeacherCheck(teacher, ids, self.semaphore)
        unchecked: list[GeneratedToken] = []
        for token in generate_tokens(loaded, ids, settings, self.semaphore, self.stop):
            if column.seconds_to_first_token is None:
                column.seconds_to_first_token = time.perf_counter() - self.started
            else:
                column.seconds += token.seconds
            column.tokens.append(token.id)
            column.is_at_limit = len(column.tokens) == settings.max_new_tokens
            with loaded.tokenizer_lock:
                column.add_text(stream.add(token.id))
            unchecked.append(token)
            if check is not None and len(unchecked) == _CHECKED_AT_ONCE:
                column.checks += check.check(unchecked)
                unchecked.clear()
        with loaded.tokenizer_lock:
            column.add_text(stream.finish())
        if check is not None:
            column.checks += check.check(unchecked)

    def answer_in_thread(self, column: Column, loaded: dict[ModelKey, LoadedModel]) -> None:
        """The same; an error is kept in the column."""
        own = loaded[column.key]
        teacher = loaded[ModelKey(column.teacher)] if column.teacher else None
        if teacher is not None and teacher.vocabulary != own.vocabulary:
            column.why_no_teacher = f"{teacher.key.name} has another tokenizer"
            column.teacher = teacher = None
        try:
            self.answer(column, own, teacher)
        except (MinitronError, RuntimeError) as error:  # torch: too little memory
            column.error = f"{column.key.label}: {error}"
        finally:
            column.is_done = True
            self.a_column_ended.set()


def compare(
    cache: ModelCache,
    catalog: Catalog,
    request: ComparisonRequest,
    semaphore: FairSemaphore,
    stop: StopSignal,
) -> Iterator[list[Column]]:
    """The columns, again and again as they grow, until all are done. Raises MinitronError.

    When the caller stops iterating, the models stop after their present step.
    """
    comparison = Comparison(request, semaphore, stop)
    columns = columns_before(catalog, request.keys, request.prompt.text)
    yield columns
    teachers = [ModelKey(column.teacher) for column in columns if column.teacher]
    with cache.acquire(*request.keys, *teachers) as models:
        loaded = {model.key: model for model in models}
        threads = [
            threading.Thread(target=comparison.answer_in_thread, args=(column, loaded), daemon=True)
            for column in columns
        ]
        try:
            for thread in threads:
                thread.start()
            while not all(column.is_done for column in columns):
                comparison.a_column_ended.wait(_FRAME)
                comparison.a_column_ended.clear()
                yield columns
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    for column in columns:
        if column.error is not None:
            raise VisitorError(column.error)
    yield columns


def columns_before(catalog: Catalog, keys: tuple[ModelKey, ...], prompt: str = "") -> list[Column]:
    """The columns before anything runs, with the numbers that the models' files give."""
    columns = []
    for key in keys:
        entry = catalog.model(key.name)
        column = Column(key, _teacher_of(catalog, key), prompt=prompt)
        column.parameters = entry.inspection.parameters
        column.weight_bytes = 0 if key.quantization else entry.loaded_bytes
        column.kv_cache_bytes_per_token = entry.inspection.kv_cache_bytes_per_token
        columns.append(column)
    return columns


def continue_prompt(
    cache: ModelCache, request: ComparisonRequest, semaphore: FairSemaphore, stop: StopSignal
) -> Column:
    """One model's whole answer, without a teacher."""
    column = Column(request.keys[0])
    with cache.acquire(column.key) as (loaded,):
        Comparison(request, semaphore, stop).answer(column, loaded, None)
    return column


def continue_pruned(
    folder: Path, request: ComparisonRequest, semaphore: FairSemaphore, stop: StopSignal
) -> Column:
    """The answer of the pruned model in `folder`, which is loaded for this answer alone."""
    entry = CatalogModel(f"{request.keys[0].name}, pruned", str(folder))
    column = Column(ModelKey(entry.name))
    loaded = load_entry(entry, column.key)
    Comparison(request, semaphore, stop).answer(column, loaded, None)
    return column


def _teacher_of(catalog: Catalog, key: ModelKey) -> str | None:
    """The teacher's name; for int8 weights, the model's own."""
    return catalog.model(key.name).teacher if key.quantization is None else key.name
