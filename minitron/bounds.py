"""Bounds: the numbers that a field of a recipe may hold, and fields that have no effect.

@dataclass(frozen=True)
class Recipe:
    samples: int = bounded(1024, at_least=1)

check_bounds(Recipe(samples=0))   # TargetError: --samples is 0: it must be at least 1
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

from minitron.errors import TargetError

_KEY = "bound"  # in a field's metadata


@dataclass(frozen=True)
class Bound:
    """A range of finite numbers; None leaves an end open."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    def contains(self, value: float) -> bool:
        """Whether a number is in the range."""
        return (
            isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        ends = {"at least": self.at_least, "above": self.above, "at most": self.at_most}
        return " and ".join(f"{words} {end}" for words, end in ends.items() if end is not None)


def bounded(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field with a default, and the numbers that it may hold beside None."""
    return field(default=default, metadata={_KEY: Bound(at_least, above, at_most)})


def check_bounds(recipe: Any) -> None:
    """Raise TargetError, in the flag's name, for a number that is out of its field's range."""
    for each in fields(recipe):
        bound, value = each.metadata.get(_KEY), getattr(recipe, each.name)
        if bound is not None and value is not None and not bound.contains(value):
            number = f"{value:g}" if isinstance(value, float) else value
            finite = "" if isfinite(value) or bound.at_most is not None else " and finite"
            flag = each.name.replace("_", "-")
            raise TargetError(f"--{flag} is {number}: it must be {bound}{finite}")


def check_unset(recipe: Any, names: Sequence[str], reason: str) -> None:
    """Raise TargetError for the first field that is set and has no effect, for `reason`."""
    defaults = {each.name: each.default for each in fields(recipe)}
    for name in names:
        if getattr(recipe, name) != defaults[name]:
            raise TargetError(f"--{name.replace('_', '-')} has no effect {reason}: leave it out")
