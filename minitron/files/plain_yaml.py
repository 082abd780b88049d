"""YAML of unknown origin as plain values: dicts, lists, strings, numbers, booleans and None.

Reads as OmegaConf does (`1e-5` is a number, a date is text, a key twice is an error). Refuses what
would run code, and what is small on disk and large in memory: tags, merge keys, endless nesting,
aliases of aliases.

    >>> read_yaml("hidden_size: 64\\nlayernorm_epsilon: 1e-5", "model_config.yaml")
    {'hidden_size': 64, 'layernorm_epsilon': 1e-05}
"""

import re
from collections.abc import Hashable
from itertools import count
from typing import Any

import yaml

from minitron.errors import MinitronError, SourceError

LARGEST_TEXT = 2**20  # characters; the longest published ones have some ten thousand
MOST_VALUES = 50_000  # with every alias written out
DEEPEST = 50
LONGEST_NUMBER = 64  # characters

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_WITHOUT_POINT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+")  # 1e-5, which YAML 1.1 calls text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the limits above."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it nests deeper than {DEEPEST} levels")
        if self.nodes > MOST_VALUES:
            raise yaml.YAMLError(f"it has more than {MOST_VALUES} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Merging multiplies pairs before anything can count them, and OmegaConf writes no merges.
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it has a merge key '<<': write its values out")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"it says {key.value!r} twice in one mapping")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > LONGEST_NUMBER:
            raise yaml.YAMLError(f"it has a number of {len(node.value)} characters")
        is_int = node.tag == _INT
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT, _WITHOUT_POINT, list("-+0123456789"))
_Loader.add_constructor(_INT, _Loader.construct_number)
_Loader.add_constructor(_FLOAT, _Loader.construct_number)


def read_yaml(text: str, where: str, error_type: type[MinitronError] = SourceError) -> Any:
    """The value of `text`. Raises `error_type`, naming `where`, for what is no plain YAML."""
    if len(text) > LARGEST_TEXT:
        raise error_type(f"{where} has {len(text)} characters: it is no file of settings")
    try:
        return _written_out(yaml.load(text, _Loader), DEEPEST, count(1))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise error_type(
            f"{where} is not YAML of plain values: {line}{one_line(error.problem)}"
        ) from None
    # PyYAML lets through what Python says of a value that is not of its tag, as in "!!int abc".
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise error_type(f"{where} is not YAML of plain values: {one_line(error)}") from None


def one_line(text: object) -> str:
    """`text` on one line, short enough for an error message."""
    line = " ".join(str(text).split())
    return line if len(line) <= 120 else f"{line[:117]}..."


def short_repr(value: object) -> str:
    """A value for an error message; containers by their kind, since they may be endless."""
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__}"
    return one_line(repr(value))


def _written_out(value: Any, depth: int, counter: "count[int]") -> Any:
    """`value` with a copy for every alias, so that nothing is shared and nothing is endless."""
    if next(counter) > MOST_VALUES:
        raise yaml.YAMLError(f"it has more than {MOST_VALUES} values")
    if depth < 0:
        raise yaml.YAMLError(f"it nests deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        return {key: _written_out(item, depth - 1, counter) for key, item in value.items()}
    if isinstance(value, list):
        return [_written_out(item, depth - 1, counter) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise yaml.YAMLError(f"it has a value of type {type(value).__name__}")
