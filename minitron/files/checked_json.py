"""JSON from files of unknown origin, refused unless its values are of the expected kinds.

A kind is written as the value would be: `str`, `int`, `float` (a finite number, whole or not),
`Number` (any), `bool`, `None`, `object` (anything), `[kind]` for a list, `{key: kind}` for an
object in which "key?" need not be there and other keys are free, `Each(kind)` for an object of any
keys, and a tuple of kinds for one of them. Knows no file by name.

    record = read_object(Path("minitron.json"), SourceError)
    check_kind(record, {"source": {"name": str, "revision?": (str, None)}}, "minitron.json", ...)
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron.errors import MinitronError

Kind = Any  # as the module's docstring lists them
LARGEST_FILE = 1 << 28  # bytes
_LARGEST_NUMBER = 1 << 63
_DEEPEST = 100  # json itself stops at about a thousand, other readers earlier


@dataclass(frozen=True)
class Each:
    """An object of any keys, whose values are all of one kind."""

    kind: Kind


class Number:
    """A kind: a number that may also be infinite or NaN, as a measured one."""


class Unreadable(ValueError):
    """Why a file or a value is not as expected, in words for an error message."""


def read_object(
    path: Path, error: type[MinitronError], remedy: str, *, called: str | None = None
) -> dict[str, Any]:
    """The JSON object in a file of UTF-8, whose text can be written again; errors name `called`.

    Raises `error` for anything else, FileNotFoundError or NotADirectoryError where there is none.
    """
    name = called or str(path)
    try:
        return parse_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as cause:
        raise error(f"{name} cannot be read: {cause.strerror}") from cause
    except Unreadable as cause:
        raise error(f"{name} {cause}: {remedy}") from cause


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`. Raises Unreadable."""
    if len(content) > LARGEST_FILE:
        raise Unreadable(f"is too large ({len(content):,} bytes)")
    try:
        value = json.loads(content.decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate cannot be written again
    except RecursionError as cause:
        raise Unreadable("is not JSON (it nests too deeply)") from cause
    except ValueError as cause:
        raise Unreadable(f"is not JSON ({cause})") from cause
    if not isinstance(value, dict):
        raise Unreadable("holds no JSON object")
    return value


def not_finite(value: object, key: str = "it") -> str | None:
    """The first infinite number or NaN in a JSON value, as "key is inf"; None where there is none.

    Raises nothing: `value` nests no deeper than JSON that was read.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key} is {value}"
    if isinstance(value, dict):
        parts = [not_finite(part, str(name)) for name, part in value.items()]
    else:
        parts = [not_finite(part, key) for part in value] if isinstance(value, list) else []
    return next((found for found in parts if found is not None), None)


def check_kind(
    value: object, kind: Kind, file: str, error: type[MinitronError], remedy: str
) -> None:
    """Refuse a value that is not of `kind`: `error` names the key, the value seen and the kind."""
    if (found := _mismatch(value, kind, "", _DEEPEST)) is not None:
        raise error(f"{file} {found}: {remedy}")


_NAMES: dict[Kind, str] = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    Number: "a number",
    bool: "true or false",
    None: "null",
}


def _mismatch(value: object, kind: Kind, key: str, depth: int) -> str | None:
    """What is wrong with a value, in words; None where nothing is."""
    if depth < 0:
        return "nests too deeply"
    if isinstance(kind, tuple):
        found = [_mismatch(value, one, key, depth) for one in kind]
        if None in found:
            return None
        # Of several kinds, the one with the same container is the one that was meant.
        inner = [one for one, meant in zip(found, kind, strict=True) if _is_alike(value, meant)]
        return inner[0] if inner else _wrong_kind(value, kind, key)
    if not _is_alike(value, kind):
        return _wrong_kind(value, kind, key)
    items: list[tuple[object, Kind, str]] = []
    if isinstance(kind, Each) and isinstance(value, Mapping):
        items = [(item, kind.kind, f"{key}.{name}") for name, item in value.items()]
    elif isinstance(kind, Mapping) and isinstance(value, Mapping):
        for name, inner_kind in kind.items():
            plain = name.removesuffix("?")
            if plain in value:
                items.append((value[plain], inner_kind, f"{key}.{plain}"))
            elif plain == name:
                return f"has no {f'{key}.{plain}'.lstrip('.')}"
    elif isinstance(kind, list) and isinstance(value, list):
        items = [(item, kind[0], f"{key}[{index}]") for index, item in enumerate(value)]
    found_inside = (_mismatch(*item, depth - 1) for item in items)
    return next((one for one in found_inside if one is not None), None)


def _is_alike(value: object, kind: Kind) -> bool:
    """Whether a value is of a kind, apart from the values inside it."""
    if isinstance(kind, tuple):
        return any(_is_alike(value, one) for one in kind)
    if kind is object:
        return True
    if kind is None:
        return value is None
    if isinstance(kind, Each | Mapping):
        return isinstance(value, Mapping)
    if isinstance(kind, list):
        return isinstance(value, list)
    if isinstance(value, bool):
        return kind is bool
    if kind is Number:
        return isinstance(value, float) or _is_alike(value, int)
    if kind is int:
        return isinstance(value, int) and abs(value) < _LARGEST_NUMBER
    if kind is float:
        return (
            isinstance(value, int | float) and math.isfinite(value) and abs(value) < _LARGEST_NUMBER
        )
    return isinstance(value, kind)


def _wrong_kind(value: object, kind: Kind, key: str) -> str:
    shown = type(value).__name__ if isinstance(value, dict | list) else repr(value)[:80]
    return f"says {key.lstrip('.') or 'at its top'}: {shown}; it must be {_name(kind)}"


def _name(kind: Kind) -> str:
    if isinstance(kind, tuple):
        return " or ".join(map(_name, kind))
    if isinstance(kind, list):
        return "a list"
    return "an object" if isinstance(kind, Each | Mapping) else _NAMES[kind]
