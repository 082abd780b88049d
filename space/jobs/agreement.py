"""Agreement: where a teacher, reading a child's text, would have said something else.

The teacher reads the same prompt and then the child's tokens, and before each is asked for its own
likeliest. It reads several at once, so that watching costs far less than generating.

    check = TeacherCheck(teacher, ids, turns)
    check.verdicts([311, 40])   # one of each token
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache

from minitron.space.jobs.decoding import next_logits
from minitron.space.jobs.models import Loaded
from minitron.space.jobs.semaphore import Turns


@dataclass(frozen=True)
class Verdict:
    """What the teacher makes of one token of the child."""

    agrees: bool  # it is the teacher's likeliest
    choice: str  # what that is
    choice_probability: float
    probability: float  # that the teacher gives the child's token


class TeacherCheck:
    """A teacher that reads along."""

    def __init__(self, teacher: Loaded, prompt: list[int], turns: Turns) -> None:
        self._teacher, self._turns = teacher, turns
        self._cache = DynamicCache(config=teacher.model.config)
        self._unread = prompt
        self._expected: torch.Tensor | None = None  # (vocab,), after all that is read

    def verdicts(self, tokens: list[int]) -> list[Verdict]:
        """One of each of the tokens, which follow those given before."""
        if not tokens:
            return []
        if self._expected is None:
            self._expected = self._read(self._unread, 1)[-1]
        with self._turns.turn():
            after = next_logits(self._teacher, tokens, self._cache, len(tokens))
            expected = torch.cat([self._expected[None], after[:-1]]).softmax(-1)
            chosen, choices = expected.max(-1)
            own = expected[torch.arange(len(tokens)), torch.tensor(tokens)]
        self._expected = after[-1]
        rows = zip(tokens, choices.tolist(), chosen.tolist(), own.tolist(), strict=True)
        return [
            Verdict(token == choice, self._said(choice), likely, probability)
            for token, choice, likely, probability in rows
        ]

    def _read(self, ids: list[int], last: int) -> torch.Tensor:
        with self._turns.turn():
            return next_logits(self._teacher, ids, self._cache, last)

    def _said(self, token: int) -> str:
        """A token as it would read after others, its space included; its end in words."""
        if token in self._teacher.ends:
            return "the end of the text"
        raw = str(self._teacher.tokenizer.convert_ids_to_tokens(token))
        return raw.replace("\u2581", " ").replace("\u0120", " ").replace("\u010a", "\n")
