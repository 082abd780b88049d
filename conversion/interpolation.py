"""Resolves OmegaConf's interpolations: `${.key}`, `${..key}`, `${key}`, `${a.b}`, `${multiply:…}`.

Knows relative references (with dots), absolute ones, and NeMo's only resolver, multiply. Cycles,
environment variables and other resolvers are errors.

    >>> resolve({"hidden_size": 6, "ffn": "${multiply:4, ${.hidden_size}}"}, "model_config.yaml")
    {'hidden_size': 6, 'ffn': 24}
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from minitron.errors import SourceError
from minitron.files.plain_yaml import one_line, read_yaml, short_repr

KeyPath = tuple[str | int, ...]  # keys and indices from the root

LONGEST_CHAIN = 30  # references to values that are references
LONGEST_TEXT = 10_000  # characters of a value with references, before and after they are resolved
LARGEST_NUMBER = 2**63
_RESOLVER = re.compile(r"\s*(?P<name>[A-Za-z_][\w.]*)\s*:(?P<arguments>.*)", re.DOTALL)
_REFERENCE = re.compile(r"\s*(?P<dots>\.*)(?P<path>[^.{}$:][^{}$:]*)\s*")


def resolve(
    root: Mapping[str, Any], where: str, may_fail: Callable[[KeyPath], bool] = lambda path: False
) -> dict[str, Any]:
    """`root` with every interpolation replaced by its value.

    Raises SourceError that names the key, for a reference without a target, to itself, or to a
    value too large for a config; where `may_fail` is true of the key, it stays as text instead.
    """
    try:
        values = _Resolver(root, where, may_fail).value(())
    except RecursionError:
        raise SourceError(f"{where}: its references nest too deep") from None
    assert isinstance(values, dict)
    return values


class _Resolver:
    """The values that are resolved so far, and the chain of those being resolved."""

    def __init__(self, root: Any, where: str, may_fail: Callable[[KeyPath], bool]) -> None:
        self.root = root
        self.where = where
        self.may_fail = may_fail
        self.values: dict[KeyPath, Any] = {}  # each is resolved once
        self.chain: list[KeyPath] = []

    def value(self, path: KeyPath) -> Any:
        """The resolved value at an existing path."""
        if path in self.values:
            return self.values[path]
        value = self.raw(path)
        if isinstance(value, Mapping):
            value = {key: self.value((*path, key)) for key in value}
        elif isinstance(value, list):
            value = [self.value((*path, index)) for index in range(len(value))]
        elif isinstance(value, str) and "${" in value:
            value = self.follow(value, path)
        self.values[path] = value
        return value

    def raw(self, path: KeyPath) -> Any:
        value = self.root
        for key in path:
            value = value[key]
        return value

    def follow(self, text: str, path: KeyPath) -> Any:
        if path in self.chain:
            loop = " -> ".join(_dotted(step) for step in (*self.chain, path))
            raise SourceError(f"{self.where}: {one_line(loop)} refers to itself")
        if len(self.chain) >= LONGEST_CHAIN:
            raise self.error(path, f"is more than {LONGEST_CHAIN} references away from its value")
        self.chain.append(path)
        try:
            return self.text(text, path)
        except SourceError:
            if self.may_fail(path):
                return text
            raise
        finally:
            self.chain.pop()

    def text(self, text: str, path: KeyPath, depth: int = 0) -> Any:
        """The value of a string: of any type for one interpolation, else its parts joined."""
        if depth > LONGEST_CHAIN or len(text) > LONGEST_TEXT:
            raise self.error(path, "is too long or nested for a reference")
        parts: list[Any] = []
        rest = text
        while (start := rest.find("${")) >= 0:
            if rest[:start].endswith("\\"):  # in OmegaConf a backslash makes "${" literal
                parts.append(f"{rest[: start - 1]}${{")
                rest = rest[start + 2 :]
                continue
            end = _closing(rest, start + 2)
            if end < 0:
                raise self.error(path, f"has a reference that does not end: {one_line(text)}")
            parts += [rest[:start], self.reference(rest[start + 2 : end], path, depth + 1)]
            rest = rest[end + 1 :]
        parts.append(rest)
        parts = [part for part in parts if part != ""]
        if len(parts) == 1:
            return parts[0]
        if any(isinstance(part, dict | list) for part in parts):
            raise self.error(path, "joins a whole section with text")
        joined = "".join("null" if part is None else str(part) for part in parts)
        if len(joined) > LONGEST_TEXT:
            raise self.error(path, f"is a text of {len(joined)} characters")
        return joined

    def reference(self, inner: str, path: KeyPath, depth: int) -> Any:
        """The value of the text between `${` and `}`: a call of a resolver, or a key."""
        if call := _RESOLVER.fullmatch(inner):
            if call["name"] != "multiply":
                raise self.error(path, f"calls a resolver that is not known: ${{{inner}}}")
            arguments = [self.number(part, path, depth) for part in _split(call["arguments"])]
            return self.product(arguments, path)
        parsed = _REFERENCE.fullmatch(str(self.text(inner, path, depth)))
        if parsed is None:
            raise self.error(path, f"has a reference that cannot be read: ${{{inner}}}")
        steps = re.sub(r"\[([^\[\]]*)\]", r".\1", parsed["path"].strip()).split(".")
        dots = len(parsed["dots"])
        if dots > len(path):
            raise self.error(path, f"refers above the top: ${{{inner}}}")
        target = self.target(path[: len(path) - dots] if dots else (), steps)
        if target is None and not dots and steps[0] == "model":
            target = self.target((), steps[1:])  # the file is the model section alone
        if target is None:
            raise self.error(path, f"refers to a key that is not there: ${{{inner}}}")
        if target == path[: len(target)]:
            raise self.error(path, f"refers to itself: ${{{inner}}}")
        return self.value(target)

    def target(self, start: KeyPath, steps: list[str]) -> KeyPath | None:
        """The path that the steps lead to; None where there is no value."""
        path, value = start, self.raw(start)
        for step in steps:
            key: str | int = int(step) if isinstance(value, list) and step.isdecimal() else step
            inside = isinstance(value, Mapping) and key in value
            inside = inside or (isinstance(key, int) and key < len(value))
            if not inside:
                return None
            path, value = (*path, key), value[key]
        return path if steps else None

    def number(self, text: str, path: KeyPath, depth: int) -> int | float:
        value = self.text(text.strip(), path, depth)
        if isinstance(value, str):
            value = read_yaml(value, f"{self.where}: {_dotted(path)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(path, f"multiplies {short_repr(value)}, which is not a number")
        return value

    def product(self, arguments: list[int | float], path: KeyPath) -> int | float:
        if len(arguments) != 2:
            raise self.error(path, f"calls multiply with {len(arguments)} values, not 2")
        value = arguments[0] * arguments[1]
        if not abs(value) < LARGEST_NUMBER:
            raise self.error(path, "is a product too large for any size")
        return value

    def error(self, path: KeyPath, reason: str) -> SourceError:
        return SourceError(f"{self.where}: {_dotted(path)} {one_line(reason)}")


def _dotted(path: KeyPath) -> str:
    return one_line(".".join(map(str, path)))


def _closing(text: str, start: int) -> int:
    """Where the brace opened before `start` is closed; -1 if it is not."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return -1


def _split(arguments: str) -> list[str]:
    """The arguments of a call: split at the commas outside of braces."""
    parts, depth = [""], 0
    for character in arguments:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
