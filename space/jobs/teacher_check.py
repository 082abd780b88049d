"""Teacher check: whether a teacher, reading a student's text, finds the same tokens most likely.

The teacher reads the prompt and then the student's tokens. It reads several tokens in one step, so
that checking costs far less than generating.

    teacher = TeacherCheck(loaded, ids, semaphore)
    teacher.check([311, 40])   # one TokenCheck per token
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache

from minitron.space.jobs.decoding import next_logits
from minitron.space.jobs.models import LoadedModel
from minitron.space.jobs.semaphore import FairSemaphore


@dataclass(frozen=True)
class TokenCheck:
    """One token of the student, as the teacher sees it."""

    agrees: bool  # it is the teacher's most likely token
    choice: str  # the teacher's most likely token
    choice_probability: float
    probability: float  # that the teacher gives the student's token


class TeacherCheck:
    """A teacher that has read the prompt and the tokens checked so far."""

    def __init__(self, teacher: LoadedModel, prompt: list[int], semaphore: FairSemaphore) -> None:
        self._teacher, self._semaphore = teacher, semaphore
        self._cache = DynamicCache(config=teacher.model.config)
        self._prompt = prompt
        self._next: torch.Tensor | None = None  # (vocab,) logits after all that was read

    def check(self, tokens: list[int]) -> list[TokenCheck]:
        """One check per token; the tokens follow those of the calls before."""
        if not tokens:
            return []
        if self._next is None:
            self._next = self._read(self._prompt, 1)[-1]
        after = self._read(tokens, len(tokens))
        expected = torch.cat([self._next[None], after[:-1]]).softmax(-1)  # (tokens, vocab)
        self._next = after[-1]
        likely, choices = expected.max(-1)
        own = expected[torch.arange(len(tokens)), torch.tensor(tokens)]
        rows = zip(tokens, choices.tolist(), likely.tolist(), own.tolist(), strict=True)
        return [
            TokenCheck(token == choice, self._readable(choice), choice_probability, probability)
            for token, choice, choice_probability, probability in rows
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
