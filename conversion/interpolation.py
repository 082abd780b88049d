"""OmegaConf's interpolations, resolved: `${.key}`, `${..key}`, `${key}`, `${a.b}`, `${multiply:…}`.

Knows references, relative by their dots and absolute, and NeMo's one resolver, multiply. It runs
nothing else: an environment variable or another resolver is an error, as are cycles.

    >>> resolved({"hidden_size": 6, "ffn": "${multiply:4, ${.hidden_size}}"}, "model_config.yaml")
    {'hidden_size': 6, 'ffn': 24}
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from minitron.errors import SourceError
from minitron.files.plain_yaml import one_line, read_yaml, shown

Place = tuple[str | int, ...]  # keys and indices from the root

LONGEST_CHAIN = 30  # references that lead from one to the next
LONGEST_TEXT = 10_000  # characters of a value that has references, before and after
LARGEST_NUMBER = 2**63
_RESOLVER = re.compile(r"\s*(?P<name>[A-Za-z_][\w.]*)\s*:(?P<arguments>.*)", re.DOTALL)
_REFERENCE = re.compile(r"\s*(?P<dots>\.*)(?P<path>[^.{}$:][^{}$:]*)\s*")


def resolved(
    root: Mapping[str, Any], where: str, may_stay: Callable[[Place], bool] = lambda place: False
) -> dict[str, Any]:
    """`root` with every interpolation replaced by its value.

    Raises SourceError, naming the key, for one that leads nowhere, to itself, or to more than a
    config holds; where `may_stay` says so of a key's place, it stays as text instead.
    """
    try:
        values = _Resolver(root, where, may_stay).value(())
    except RecursionError:
        raise SourceError(f"{where}: its references nest too deep") from None
    assert isinstance(values, dict)
    return values


class _Resolver:
    """The values already found, and those being looked for."""

    def __init__(self, root: Any, where: str, may_stay: Callable[[Place], bool]) -> None:
        self.root = root
        self.where = where
        self.may_stay = may_stay
        self.found: dict[Place, Any] = {}  # each is made once, however often it is referred to
        self.chain: list[Place] = []

    def value(self, place: Place) -> Any:
        """The resolved value at a place that exists."""
        if place in self.found:
            return self.found[place]
        value = self.raw(place)
        if isinstance(value, Mapping):
            value = {key: self.value((*place, key)) for key in value}
        elif isinstance(value, list):
            value = [self.value((*place, index)) for index in range(len(value))]
        elif isinstance(value, str) and "${" in value:
            value = self.interpolated(value, place)
        self.found[place] = value
        return value

    def raw(self, place: Place) -> Any:
        value = self.root
        for key in place:
            value = value[key]
        return value

    def interpolated(self, text: str, place: Place) -> Any:
        if place in self.chain:
            loop = " -> ".join(_dotted(step) for step in (*self.chain, place))
            raise SourceError(f"{self.where}: {one_line(loop)} refers to itself")
        if len(self.chain) >= LONGEST_CHAIN:
            raise self.error(place, f"is more than {LONGEST_CHAIN} references away from its value")
        self.chain.append(place)
        try:
            return self.text(text, place)
        except SourceError:
            if self.may_stay(place):
                return text
            raise
        finally:
            self.chain.pop()

    def text(self, text: str, place: Place, depth: int = 0) -> Any:
        """A string's value: of any type where it is one interpolation, else the parts joined."""
        if depth > LONGEST_CHAIN or len(text) > LONGEST_TEXT:
            raise self.error(place, "is too long or nested for a reference")
        parts: list[Any] = []
        rest = text
        while (start := rest.find("${")) >= 0:
            if rest[:start].endswith("\\"):  # OmegaConf's way of writing a literal "${"
                parts.append(f"{rest[: start - 1]}${{")
                rest = rest[start + 2 :]
                continue
            end = _closing(rest, start + 2)
            if end < 0:
                raise self.error(place, f"has a reference that does not end: {one_line(text)}")
            parts += [rest[:start], self.reference(rest[start + 2 : end], place, depth + 1)]
            rest = rest[end + 1 :]
        parts.append(rest)
        parts = [part for part in parts if part != ""]
        if len(parts) == 1:
            return parts[0]
        if any(isinstance(part, dict | list) for part in parts):
            raise self.error(place, "joins a whole section with text")
        joined = "".join("null" if part is None else str(part) for part in parts)
        if len(joined) > LONGEST_TEXT:
            raise self.error(place, f"is a text of {len(joined)} characters")
        return joined

    def reference(self, inner: str, place: Place, depth: int) -> Any:
        """What stands between `${` and `}`: a call of a resolver, or a key."""
        if call := _RESOLVER.fullmatch(inner):
            if call["name"] != "multiply":
                raise self.error(place, f"calls a resolver that is not known: ${{{inner}}}")
            arguments = [self.number(part, place, depth) for part in _split(call["arguments"])]
            return self.product(arguments, place)
        parsed = _REFERENCE.fullmatch(str(self.text(inner, place, depth)))
        if parsed is None:
            raise self.error(place, f"has a reference that cannot be read: ${{{inner}}}")
        path = re.sub(r"\[([^\[\]]*)\]", r".\1", parsed["path"].strip()).split(".")
        dots = len(parsed["dots"])
        if dots > len(place):
            raise self.error(place, f"refers above the top: ${{{inner}}}")
        target = self.target(place[: len(place) - dots] if dots else (), path)
        if target is None and not dots and path[0] == "model":
            target = self.target((), path[1:])  # the file is the model section alone
        if target is None:
            raise self.error(place, f"refers to a key that is not there: ${{{inner}}}")
        if target == place[: len(target)]:
            raise self.error(place, f"refers to itself: ${{{inner}}}")
        return self.value(target)

    def target(self, start: Place, path: list[str]) -> Place | None:
        """The place that a path leads to; None where there is none."""
        place, value = start, self.raw(start)
        for step in path:
            key: str | int = int(step) if isinstance(value, list) and step.isdecimal() else step
            inside = isinstance(value, Mapping) and key in value
            inside = inside or (isinstance(key, int) and key < len(value))
            if not inside:
                return None
            place, value = (*place, key), value[key]
        return place if path else None

    def number(self, text: str, place: Place, depth: int) -> int | float:
        value = self.text(text.strip(), place, depth)
        if isinstance(value, str):
            value = read_yaml(value, f"{self.where}: {_dotted(place)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(place, f"multiplies {shown(value)}, which is no number")
        return value

    def product(self, arguments: list[int | float], place: Place) -> int | float:
        if len(arguments) != 2:
            raise self.error(place, f"calls multiply with {len(arguments)} values, not 2")
        value = arguments[0] * arguments[1]
        if not abs(value) < LARGEST_NUMBER:
            raise self.error(place, "is a product too large for any size")
        return value

    def error(self, place: Place, reason: str) -> SourceError:
        return SourceError(f"{self.where}: {_dotted(place)} {one_line(reason)}")


def _dotted(place: Place) -> str:
    return one_line(".".join(map(str, place)))


def _closing(text: str, start: int) -> int:
    """Where the brace opened before `start` is closed; -1 if it is not."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return -1


def _split(arguments: str) -> list[str]:
    """The arguments of a call: cut at the commas that stand in no brace."""
    parts, depth = [""], 0
    for character in arguments:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
