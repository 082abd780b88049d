"""Comparing: several models continue one prompt at once, each watched by its teacher.

A column is one model's answer as far as it is. Each runs in a thread of its own and takes turns
with everybody else's; whoever reads the columns sees them grow.

    for columns in compared(shelf, family, wish, turns, stop):
        columns[0].text
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron.errors import MinitronError
from minitron.space.jobs.agreement import TeacherCheck, Verdict
from minitron.space.jobs.catalog import Family, Member
from minitron.space.jobs.decoding import Piece, Pieces, Stop, continued
from minitron.space.jobs.errors import VisitorError
from minitron.space.jobs.models import Key, Loaded, Shelf, load_member
from minitron.space.jobs.request import MAX_COLUMNS, MAX_SECONDS, Prompt, Settings
from minitron.space.jobs.semaphore import Turns

_FRAME = 0.1  # seconds between two looks
_AT_ONCE = 8  # tokens that a teacher reads together

MEASURED = {
    "tokens_per_second": "Tokens after the first, divided by the seconds of computing them; "
    "waiting for other visitors is not counted.",
    "seconds_to_first_token": "From the request to the first token, loading the model and waiting "
    "for other visitors included.",
    "parameters": "Numbers in the weights, embeddings included.",
    "weight_bytes": "Memory that the weights take as they are computed with here.",
    "kv_cache_bytes_per_token": "Keys and values that each token leaves in memory, over all "
    "layers, in the precision of the checkpoint.",
    "agreement_with_teacher": "Share of the tokens that the teacher, reading the same text, "
    "finds likeliest itself; of int8 weights, that the model's full weights do.",
}


@dataclass(frozen=True)
class Wish:
    """What a visitor wants compared."""

    keys: tuple[Key, ...]
    prompt: Prompt
    settings: Settings

    @classmethod
    def checked(
        cls, family: Family, models: Any, prompt: Any, settings: Settings, quantization: str | None
    ) -> "Wish":
        """Raises VisitorError for names that are not there, none, or too many."""
        names = [models] if isinstance(models, str) else models
        if not isinstance(names, list) or not names:
            raise VisitorError(f"no model is chosen: choose {' or '.join(family.names)}")
        names = list(dict.fromkeys(family.member(name).name for name in names))
        if len(names) > MAX_COLUMNS:
            raise VisitorError(f"{len(names)} models are chosen: compare {MAX_COLUMNS} at most")
        keys = [Key(name) for name in names]
        if quantization is not None:
            keys = [key for name in names for key in (Key(name), Key(name, quantization))]
        return cls(tuple(keys[: 2 * MAX_COLUMNS]), Prompt.checked(prompt), settings)


@dataclass
class Column:
    """One model's answer as far as it is."""

    key: Key
    teacher: str | None  # who reads along; None where nobody does
    reason: str = ""  # why nobody does
    parameters: int = 0
    weight_bytes: int = 0
    kv_cache_bytes_per_token: int = 0
    prompt_tokens: int = 0
    notices: tuple[str, ...] = ()
    pieces: list[Piece] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    seconds_to_first_token: float | None = None
    seconds: float = 0.0  # of computing the tokens after the first
    is_done: bool = False
    error: str | None = None

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens_per_second(self) -> float | None:
        """None before the second token."""
        return (len(self.tokens) - 1) / self.seconds if self.seconds else None

    @property
    def agreement(self) -> float | None:
        """The share of judged tokens; None where none is."""
        if not self.verdicts:
            return None
        return sum(verdict.agrees for verdict in self.verdicts) / len(self.verdicts)

    def judged(self) -> Iterator[tuple[str, list[Verdict]]]:
        """Each piece of text with what the teacher makes of its tokens, as far as it has read."""
        at = 0
        for piece in list(self.pieces):
            yield piece.text, self.verdicts[at : at + piece.tokens]
            at += piece.tokens

    def to_json(self) -> dict[str, Any]:
        """A column of /compare."""
        differences = [
            {"position": at, "teacher": verdict.choice, "probability": verdict.choice_probability}
            for at, verdict in enumerate(self.verdicts)
            if not verdict.agrees
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


def compared(
    shelf: Shelf, family: Family, wish: Wish, turns: Turns, stop: Stop
) -> Iterator[list[Column]]:
    """The columns, again and again as they grow, until all are done. Raises MinitronError.

    Left early, by an exception or because nobody reads on, the models stop after their step.
    """
    begun = time.perf_counter()
    columns = [Column(key, _teacher_of(family, key)) for key in wish.keys]
    yield columns
    readers = [Key(column.teacher) for column in columns if column.teacher]
    with shelf.lent(*wish.keys, *readers) as lent:
        loaded = {one.key: one for one in lent}
        ended = threading.Event()  # one of them
        how = (loaded, wish, turns, stop, begun, ended)
        threads = [
            threading.Thread(target=_fill, args=(column, *how), daemon=True) for column in columns
        ]
        try:
            for thread in threads:
                thread.start()
            while not all(column.is_done for column in columns):
                ended.wait(_FRAME)
                ended.clear()
                yield columns
        finally:
            stop.say()
            for thread in threads:
                thread.join()
    for column in columns:
        if column.error is not None:
            raise VisitorError(column.error)
    yield columns


def continued_text(
    shelf: Shelf, family: Family, wish: Wish, turns: Turns
) -> tuple[str, tuple[str, ...]]:
    """One model's answer, and what to tell about it, with nobody reading along."""
    stop = Stop(MAX_SECONDS)
    with shelf.lent(wish.keys[0]) as (loaded,):
        column = Column(wish.keys[0], None)
        _answer(column, loaded, None, wish, turns, stop, time.perf_counter())
    return column.text, column.notices


def tried(shelf: Shelf, wish: Wish, folder: Path, turns: Turns, stop: Stop) -> list[Column]:
    """A member's answer beside that of a model made from it, which is loaded for this alone."""
    member = Member(f"{wish.keys[0].name}, pruned", str(folder))
    columns = [Column(wish.keys[0], None), Column(Key(member.name), None)]
    with shelf.lent(wish.keys[0]) as (original,):
        for column, loaded in zip(
            columns, (original, load_member(member, columns[1].key)), strict=True
        ):
            _answer(column, loaded, None, wish, turns, stop, time.perf_counter())
    return columns


def _teacher_of(family: Family, key: Key) -> str | None:
    """Who reads along; of integers, the same model's full weights."""
    return family.member(key.name).teacher if key.quantization is None else key.name


def _fill(
    column: Column,
    loaded: dict[Key, Loaded],
    wish: Wish,
    turns: Turns,
    stop: Stop,
    begun: float,
    ended: threading.Event,
) -> None:
    """The whole answer of one column, in its thread."""
    mine = loaded[column.key]
    teacher = loaded[Key(column.teacher)] if column.teacher else None
    if teacher is not None and teacher.vocabulary != mine.vocabulary:
        column.teacher, column.reason = None, f"{teacher.key.name} has another tokenizer"
        teacher = None
    try:
        _answer(column, mine, teacher, wish, turns, stop, begun)
    except (MinitronError, RuntimeError) as error:  # of torch: too little memory
        column.error = f"{column.key.label}: {error}"
    finally:
        column.is_done = True
        ended.set()


def _answer(
    column: Column,
    mine: Loaded,
    teacher: Loaded | None,
    wish: Wish,
    turns: Turns,
    stop: Stop,
    begun: float,
) -> None:
    inspection = mine.member.inspection
    column.parameters = inspection.parameters
    column.weight_bytes = mine.weight_bytes
    column.kv_cache_bytes_per_token = inspection.kv_cache_bytes_per_token
    ids, column.notices = wish.prompt.fitted(
        mine.ids_of(wish.prompt.text), mine.context, wish.settings.max_new_tokens
    )
    column.prompt_tokens = len(ids)
    pieces = Pieces(mine, ids)
    check = None if teacher is None else TeacherCheck(teacher, ids, turns)
    for token in continued(mine, ids, wish.settings, turns, stop):
        if column.seconds_to_first_token is None:
            column.seconds_to_first_token = time.perf_counter() - begun
        else:
            column.seconds += token.seconds
        column.tokens.append(token.id)
        _add(column, pieces.add(token.id))
        if check is not None and len(column.tokens) - len(column.verdicts) >= _AT_ONCE:
            column.verdicts += check.verdicts(column.tokens[len(column.verdicts) :])
    _add(column, pieces.end())
    if check is not None:
        column.verdicts += check.verdicts(column.tokens[len(column.verdicts) :])


def _add(column: Column, piece: Piece | None) -> None:
    if piece is not None:
        column.pieces.append(piece)
