"""Options: what stands beside the fields of a recipe: help, section, bounds, and a near name.

@dataclass(frozen=True)
class Recipe:
    TEXT: ClassVar = "Text"                 # begins a section of `--help`
    samples: int = bounded(1024, at_least=1)
    \"\"\"Sequences to measure on.\"\"\"

check_bounds(Recipe(samples=0))   # TargetError: --samples is 0: it must be at least 1
help_of(Recipe)["samples"]        # "Sequences to measure on."
sections_of(Recipe)               # {"Text": ["samples"]}
nearest("num_layers", ["num_hidden_layers", "min_layers"])   # "num_hidden_layers"
"""

import ast
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from math import isfinite
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from minitron.errors import TargetError

_BOUND, _BYTES = "bound", "bytes"  # in a field's metadata
_TYPO, _LIKE = 0.9, 0.6  # similarity of a name with a slip, and of a name that is at all like it
_PREFIX = 3  # letters that words share: `layer` and `layers`, `output` and `out`
# Words that other tools use for ours.
_SYNONYMS = {
    "data": ["corpus"],
    "dataset": ["corpus"],
    "dim": ["size"],
    "ffn": ["intermediate"],
    "mlp": ["intermediate"],
    "kv": ["key", "value"],
    "heads": ["num", "attention", "heads"],
    "layer": ["num", "hidden", "layers"],
    "layers": ["num", "hidden", "layers"],
    "length": ["seq", "len"],
    "lr": ["learning", "rate"],
    "model": ["source", "init", "folder"],
    "n": ["num"],
}


_EXPECTED: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a name and a value, --NAME.KEY VALUE",
    list: "a list",
}
_IN_PYTHON = {**_EXPECTED, bool: "True or False", dict: "a dict"}
# What is accepted in Python: a number of numpy, and a path where a text names a file.
_ACCEPTED: dict[type, Any] = {int: Integral, float: Real, str: (str, PathLike)}

_UNITS = {
    "": 1,
    "b": 1,
    "bytes": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


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
    return field(default=default, metadata={_BOUND: Bound(at_least, above, at_most)})


def byte_size(default: str | None) -> Any:
    """A dataclass field for a size in bytes as people write it, such as 6GiB."""
    return field(default=default, metadata={_BYTES: True})


def parse_bytes(text: str, flag: str) -> int:
    """Read "6GiB", "800 MB" or a number of bytes. Raises TargetError, naming `flag`."""
    parsed = _SIZE.fullmatch(text)
    unit = parsed[2].lower() if parsed else None
    if parsed is None or unit not in _UNITS:
        raise TargetError(f"{flag} is {text!r}: write a size such as 6GiB, 800MB or 4096")
    return int(float(parsed[1]) * _UNITS[unit])


def flag_of(name: str) -> str:
    """The flag of a field: `--hidden-size` of `hidden_size`."""
    return f"--{name.replace('_', '-')}"


def flags_given(recipe: Any, names: Iterable[str]) -> list[str]:
    """The flags, with their values, of those fields that differ from their defaults."""
    given = [each for each in fields(recipe) if each.name in names]
    words = []
    for each in given:
        value = getattr(recipe, each.name)
        if value is not None and value != each.default:
            words += words_of_flag(each.name, value)
    return words


def words_of_flag(name: str, value: Any) -> list[str]:
    """A field with its value, as words of a command line."""
    if isinstance(value, bool):
        return [flag_of(name if value else f"no_{name}")]
    if isinstance(value, Mapping):
        return [
            word
            for key, one in value.items()
            for word in (f"{flag_of(name)}.{key}", one if isinstance(one, str) else json.dumps(one))
        ]
    return [flag_of(name), str(value)]


def check_bounds(recipe: Any) -> None:
    """Raise TargetError, in the flag's name, for a number out of its field's range, or no size."""
    for each in fields(recipe):
        bound, value = each.metadata.get(_BOUND), getattr(recipe, each.name)
        if bound is not None and value is not None and not bound.contains(value):
            number = f"{value:g}" if isinstance(value, float) else value
            finite = "" if isfinite(value) or bound.at_most is not None else " and finite"
            raise TargetError(f"{flag_of(each.name)} is {number}: it must be {bound}{finite}")
        if value is not None and each.metadata.get(_BYTES):
            parse_bytes(value, flag_of(each.name))


def check_types(recipe: Any) -> None:
    """Raise TargetError, in the argument's name, for a value that is not of its field's type."""
    for name, annotation in _types_of(type(recipe)).items():
        value = getattr(recipe, name)
        if not any(_is_a(value, part) for part in types_in(annotation)):
            kind = expected_words(annotation, _IN_PYTHON)
            shown = value if isinstance(value, str) and _has_choices(annotation) else repr(value)
            hint = longer_name(name, str(value), _types_of(type(recipe)))
            raise TargetError(
                f"{name} is {shown:.80}: it must be {kind}"
                + (f"; did you mean {hint}?" if hint else "")
            )


def _types_of(recipe_type: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(recipe_type)
    return {each.name: hints[each.name] for each in fields(recipe_type)}


def _is_a(value: Any, part: Any) -> bool:
    """Whether a value is of a type, or one of the choices of a Literal; True is no number."""
    if isinstance(part, tuple):
        return isinstance(value, str) and value in part
    if isinstance(value, bool):
        return part is bool
    return isinstance(value, _ACCEPTED.get(part, part))


def _has_choices(annotation: Any) -> bool:
    return any(isinstance(part, tuple) for part in types_in(annotation))


def longer_name(name: str, value: str, names: Iterable[str]) -> str | None:
    """The option that a number is meant for where `name` takes none: hidden_size, of hidden."""
    longer = [one for one in names if one.startswith(f"{name}_")]
    return longer[0] if value.isdigit() and longer else None


def expected_words(annotation: Any, words_of: Mapping[type, str] = _EXPECTED) -> str:
    """What a value of a type is, in words."""
    words = []
    for part in types_in(annotation):
        if isinstance(part, tuple):
            words.append(f"{'one of ' if len(part) > 1 else ''}{', '.join(map(str, part))}")
        elif part is not NoneType:
            words.append(words_of.get(part, "a path"))
    return " or ".join(words)


def types_in(annotation: Any) -> list[Any]:
    """The types of a union; for a Literal the tuple of its choices; a list without its elements."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return [part for one in get_args(annotation) for part in types_in(one)]
    if origin is Literal:
        return [get_args(annotation)]
    return [origin or annotation]


def check_unset(recipe: Any, names: Sequence[str], reason: str) -> None:
    """Raise TargetError for the first field that is set and has no effect, for `reason`."""
    defaults = {each.name: each.default for each in fields(recipe)}
    for name in names:
        if getattr(recipe, name) != defaults[name]:
            raise TargetError(f"{flag_of(name)} has no effect {reason}: leave it out")


def help_of(recipe_type: type[Any]) -> dict[str, str]:
    """The help of each field: the string below it, of the last class that declares it."""
    found: dict[str, str] = {}
    for base in reversed(recipe_type.__mro__):
        found |= _strings_below_fields(base.__module__).get(base.__name__, {})
    return found


@cache
def _strings_below_fields(module: str) -> dict[str, dict[str, str]]:
    """Class to field to the string below it, read from the source, where Python leaves it."""
    if module == "builtins":
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        one.name: {
            field.target.id: " ".join(str(string.value.value).split())
            for field, string in zip(one.body, one.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(string, ast.Expr)
            and isinstance(string.value, ast.Constant)
        }
        for one in tree.body
        if isinstance(one, ast.ClassDef)
    }


def sections_of(recipe_type: type[Any]) -> dict[str, list[str]]:
    """The titles of sections and the fields of each, the class's own sections first.

    A field is in the section of the class that first declares it: a new default does not move it.
    """
    bases = [base for base in recipe_type.__mro__ if base is not object]
    names = {one.name for one in fields(recipe_type)}
    found: dict[str, list[str]] = {}
    for base in bases:
        title = ""
        inherited = {name for one in base.__mro__[1:] for name in inspect.get_annotations(one)}
        for name in inspect.get_annotations(base):
            value = getattr(base, name, None)
            if name.isupper() and isinstance(value, str):
                title = value
                found.setdefault(title, [])
            elif name in names - inherited:
                found.setdefault(title, []).append(name)
    return found


def nearest(name: str, options: Sequence[str]) -> str | None:
    """The option that a wrong name means, the first of several that are as near; None if none is.

    A slip of the pen, else the most words that both share, else letters.
    """
    name = name.lstrip("-").replace("-", "_").lower()
    if slips := get_close_matches(name, options, 1, _TYPO):
        return slips[0]
    words = {word for part in name.split("_") for word in _SYNONYMS.get(part, [part])}
    known = Counter(part for option in options for part in set(option.split("_")))
    scores: dict[str, tuple[float, ...]] = {}
    for option in options:
        parts = option.split("_")
        shared = [part for part in parts if any(_are_one_word(part, word) for word in words)]
        rarity = sum(1 / known[part] for part in shared)
        scores[option] = (len(shared), len(shared) / len(parts), rarity)
    best = max(scores, key=lambda option: scores[option], default=None)
    if best is not None and scores[best][0]:
        return best
    return next(iter(get_close_matches(name, options, 1, _LIKE)), None)


def _are_one_word(one: str, other: str) -> bool:
    """Whether two words are equal, or one begins with the other."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) >= _PREFIX and long.startswith(short))
