"""Request: what a visitor may ask of a model, checked before anything computes.

Settings.checked(max_new_tokens=64, temperature=0.8, top_p=0.95, seed=3)
"""

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

from minitron.space.jobs.errors import VisitorError

MAX_NEW_TOKENS = 256
MAX_SECONDS = 60.0  # of one request, waiting for turns included
MAX_CHARACTERS = 8_000  # of a prompt, its end
MAX_TEMPERATURE = 5.0
MAX_SEED = 2**32 - 1
MAX_COLUMNS = 4


@dataclass(frozen=True)
class Settings:
    """How a text is continued."""

    max_new_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @classmethod
    def checked(cls, max_new_tokens: Any, temperature: Any, top_p: Any, seed: Any) -> "Settings":
        """The same, or VisitorError that tells which value means nothing and which would."""
        settings = cls(
            max_new_tokens=whole(max_new_tokens, "max_new_tokens", 1, MAX_NEW_TOKENS),
            temperature=number(temperature, "temperature", 0, MAX_TEMPERATURE),
            top_p=number(top_p, "top_p", 0, 1),
            seed=whole(seed, "seed", 0, MAX_SEED),
        )
        if settings.top_p == 0:
            raise VisitorError("top_p is 0: give a number above 0 and at most 1")
        return settings


@dataclass(frozen=True)
class Prompt:
    """Text to continue, and what was done to it that its writer should know."""

    text: str
    notices: tuple[str, ...] = ()

    @classmethod
    def checked(cls, text: Any) -> "Prompt":
        """A prompt of a size that this machine continues. Raises VisitorError for none at all."""
        if not isinstance(text, str):
            raise VisitorError(f"the prompt is {text!r:.40}: give text")
        unprintable = next((c for c in text if _is_control(c)), None)
        if unprintable is not None:
            at = text.index(unprintable)
            raise VisitorError(
                f"the prompt has a control character, U+{ord(unprintable):04X}, at {at}: remove it"
            )
        if not text.strip():
            raise VisitorError("the prompt is empty: write a few words to go on from")
        if len(text) <= MAX_CHARACTERS:
            return cls(text)
        told = (
            f"The prompt has {len(text):,} characters; only its last {MAX_CHARACTERS:,} are read."
        )
        return cls(text[-MAX_CHARACTERS:], (told,))

    def fitted(
        self, ids: list[int], context: int, wished: int
    ) -> tuple[list[int], tuple[str, ...]]:
        """The last tokens that leave room for an answer, and what to tell."""
        room = max(1, context - wished)
        if len(ids) <= room:
            return ids, self.notices
        told = f"The prompt has {len(ids):,} tokens; only the last {room:,} fit before the answer."
        return ids[-room:], (*self.notices, told)


def whole(value: Any, name: str, least: int, most: int) -> int:
    """A whole number within bounds, 8.0 included. Raises VisitorError."""
    found = number(value, name, least, most)
    if found != int(found):
        raise VisitorError(f"{name} is {value}: give a whole number from {least:,} to {most:,}")
    return int(found)


def number(value: Any, name: str, least: float, most: float) -> float:
    """A number within bounds. Raises VisitorError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        raise VisitorError(f"{name} is {value!r:.40}: give a number from {least:,} to {most:,}")
    return float(value)


def _is_control(character: str) -> bool:
    return character not in "\n\t\r" and unicodedata.category(character) in ("Cc", "Cs")
