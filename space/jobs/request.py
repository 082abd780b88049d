"""Request: what a visitor may ask of a model, checked before anything computes.

Settings.checked(max_new_tokens=64, temperature=0.8, top_p=0.95, seed=3)
"""

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

from minitron.errors import MinitronError

MAX_NEW_TOKENS = 256
MAX_SECONDS = 60.0  # of one request, waiting for others included
MAX_CHARACTERS = 8_000  # of a prompt; of a longer one, its end
MAX_TEMPERATURE = 5.0
MAX_SEED = 2**32 - 1
MAX_COLUMNS = 4


class VisitorError(MinitronError):
    """A request that this Space refuses; its text states what the visitor may change."""


class BusyError(MinitronError):
    """More at once than this machine holds; the visitor may ask again."""


@dataclass(frozen=True)
class Settings:
    """How a text is sampled."""

    max_new_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @classmethod
    def checked(cls, max_new_tokens: Any, temperature: Any, top_p: Any, seed: Any) -> "Settings":
        """Settings within the bounds. Raises VisitorError, which names the value and the bounds."""
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
    """Text to continue, and notices about how it was shortened."""

    text: str
    notices: tuple[str, ...] = ()

    @classmethod
    def checked(cls, text: Any) -> "Prompt":
        """A prompt of at most MAX_CHARACTERS. Raises VisitorError for one that is no text."""
        if not isinstance(text, str):
            raise VisitorError(f"the prompt is {text!r:.40}: give text")
        control = next((c for c in text if _is_control(c)), None)
        if control is not None:
            code, position = f"U+{ord(control):04X}", text.index(control)
            raise VisitorError(
                f"the prompt has a control character, {code}, at {position}: remove it"
            )
        if not text.strip():
            raise VisitorError("the prompt is empty: write a few words for the model to continue")
        if len(text) <= MAX_CHARACTERS:
            return cls(text)
        notice = (
            f"The prompt has {len(text):,} characters; only the last {MAX_CHARACTERS:,} are used."
        )
        return cls(text[-MAX_CHARACTERS:], (notice,))

    def fit(
        self, ids: list[int], context: int, new_tokens: int
    ) -> tuple[list[int], tuple[str, ...]]:
        """The last tokens that leave room for an answer, and one notice where the rest is cut."""
        room = max(1, context - new_tokens)
        if len(ids) <= room:
            return ids, self.notices
        notice = f"The prompt is cut: only its last {room:,} tokens fit before the answer."
        return ids[-room:], (notice,)


def whole(value: Any, name: str, least: int, most: int) -> int:
    """A whole number within bounds, 8.0 included. Raises VisitorError."""
    checked = number(value, name, least, most)
    if checked != int(checked):
        raise VisitorError(f"{name} is {value}: give a whole number from {least:,} to {most:,}")
    return int(checked)


def number(value: Any, name: str, least: float, most: float) -> float:
    """A number within bounds. Raises VisitorError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        raise VisitorError(f"{name} is {value!r:.40}: give a number from {least:,} to {most:,}")
    return float(value)


def _is_control(character: str) -> bool:
    return character not in "\n\t\r" and unicodedata.category(character) in ("Cc", "Cs")
