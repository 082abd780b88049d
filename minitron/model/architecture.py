"""Architecture: a config seen as a table of tensors and their named axes.

Knows sizes, names, shapes and counts of every family in `families`; reads no file and holds no
weight. Everything that must know a tensor's axes (surgery, conversion, parameter counts, memory
estimates) asks here.

    Architecture.from_config(json.loads(Path("config.json").read_text())).parameters
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

from minitron.errors import ArchitectureError
from minitron.model.families import FAMILIES
from minitron.model.family import AXIS_KEYS, Family, Row, Run

_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
# Bounds of what a config may say, far above any model: a listing of all tensors must fit memory.
MAX_LAYERS = 10_000
MAX_SIZE = 2**24
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias")


@dataclass(frozen=True)
class Slot:
    """One tensor of a model: its name, its row in the family's table, its layer and shape."""

    name: str
    row: Row
    layer: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A model's family and sizes, under the words of the Hub's config.json."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    flags: frozenset[str] = frozenset()  # those that the config sets

    def __post_init__(self) -> None:
        for key in AXIS_KEYS.values():
            if getattr(self, key) < 1:
                raise ArchitectureError(f"{key} is {getattr(self, key)}: it must be at least 1")
            largest = MAX_LAYERS if key == "num_hidden_layers" else MAX_SIZE
            if getattr(self, key) > largest:
                raise ArchitectureError(
                    f"{key} is {getattr(self, key)}: no model has more than {largest}"
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ArchitectureError(
                f"num_attention_heads is {self.num_attention_heads}: it must be a multiple of "
                f"num_key_value_heads, {self.num_key_value_heads}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Read a config.json, under earlier key names too.

        Raises ArchitectureError for a family that is not known, a size that is missing or no
        positive whole number, and heads that do not divide into their KV groups.
        """
        family = family_of(config)
        config = modern_config(config, family)
        missing = [key for key in _REQUIRED if config.get(key) is None]
        if missing:
            raise ArchitectureError(f"config.json has no {', '.join(missing)}: add it")
        sizes = {key: _size(config, key) for key in _REQUIRED}
        heads = sizes["num_attention_heads"]
        kv_default = family.absent.get("num_key_value_heads", heads)
        sizes["num_key_value_heads"] = (
            _size(config, "num_key_value_heads", heads)
            if "num_key_value_heads" in config
            else kv_default
        )
        if not heads:
            raise ArchitectureError("num_attention_heads is 0: it must be at least 1")
        derived = sizes["hidden_size"] // heads
        sizes["head_dim"] = (
            _size(config, "head_dim", derived)
            if "head_dim" in config
            else family.absent.get("head_dim", derived)
        )
        flags = {flag for flag in (*_FLAGS, *family.bias_flags) if config.get(flag)}
        flags |= {flag for flag in family.true_if_absent if config.get(flag) is None}
        return cls(model_type=family.model_type, flags=frozenset(flags), **sizes)

    @property
    def family(self) -> Family:
        """The table this architecture is read from."""
        return FAMILIES[self.model_type]

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the output embedding is the input embedding."""
        return "tie_word_embeddings" in self.flags

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key and value."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def has_groups(self) -> bool:
        """Whether several query heads share a key and value; else each has its own."""
        return self.heads_per_group > 1

    @property
    def hidden_step(self) -> int:
        """What the family wants hidden_size to be a multiple of, at this number of heads."""
        return self.num_attention_heads if self.family.hidden_divides_by_heads else 1

    @property
    def is_accepted(self) -> bool:
        """Whether the family takes these sizes together."""
        return self.hidden_size % self.hidden_step == 0

    def with_heads(self, heads: int) -> "Architecture":
        """The same at so many query heads, each with its key and value where none are shared."""
        kv_heads = self.num_key_value_heads if self.has_groups else heads
        return self.resized(num_attention_heads=heads, num_key_value_heads=kv_heads)

    def size(self, axis: str) -> int:
        """The length of a named axis."""
        return int(getattr(self, AXIS_KEYS[axis]))

    def resized(self, **sizes: int) -> "Architecture":
        """The same family and flags at other sizes (config words)."""
        return replace(self, **sizes)  # type: ignore[arg-type]  # sizes are the int fields

    def rows(self) -> tuple[Row, ...]:
        """The rows of the family's table that this config's flags select."""
        return tuple(row for row in self.family.rows if self._has(row))

    def slots(self) -> Iterator[Slot]:
        """Every tensor of the model in its canonical order: embedding, layers, norm, head."""
        rows = self.rows()
        layered = [row for row in rows if row.per_layer]
        first = rows.index(layered[0])
        for row in rows[:first]:
            yield self._slot(row, None)
        for layer in range(self.num_hidden_layers):
            for row in layered:
                yield self._slot(row, layer)
        for row in rows[first + len(layered) :]:
            yield self._slot(row, None)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name to shape, in canonical order."""
        return {slot.name: slot.shape for slot in self.slots()}

    @property
    def parameters(self) -> int:
        """How many numbers the model holds; a tied output embedding is counted once."""
        return sum(prod(slot.shape) for slot in self.slots())

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without the input and the output embedding (2407.14679, table 2)."""
        return sum(prod(slot.shape) for slot in self.slots() if not slot.row.has_vocabulary)

    @property
    def kv_cache_elements_per_token(self) -> int:
        """Keys and values a token leaves in the cache, over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    @property
    def layer_activations(self) -> int:
        """Numbers that a token takes inside a layer, as transformers computes it: the stream and
        its norm, and the more of what attention and the MLP hold at once."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        inside = max(4 * queries + 4 * keys, 3 * self.intermediate_size)
        return 4 * self.hidden_size + inside

    def run_slices(self, row: Row) -> dict[str, slice]:
        """Each part of a tensor and its rows."""
        ends = list(accumulate(map(self._length, row.dimensions[0]), initial=0))
        return {part: slice(*ends[i : i + 2]) for i, part in enumerate(row.parts)}

    def _has(self, row: Row) -> bool:
        if row.when is None:
            return True
        flag = row.when.removeprefix("not ")
        return (flag in self.flags) != row.when.startswith("not ")

    def _slot(self, row: Row, layer: int | None) -> Slot:
        shape = tuple(sum(map(self._length, dimension)) for dimension in row.dimensions)
        return Slot(row.name(layer), row, layer, shape)

    def _length(self, run: Run) -> int:
        return prod(self.size(axis) for axis in run)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family a config.json names; ArchitectureError where it is none of ours."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ArchitectureError(
            f"config.json says model_type {model_type!r}; known families: {', '.join(FAMILIES)} "
            "(CONTRIBUTING.md says how to add one)"
        )
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise ArchitectureError(
            f"config.json has a quantization_config ({method}): start from the unquantized model"
        )
    return FAMILIES[model_type]


def likeness(names: Iterable[str]) -> str:
    """Which family's tensors these names are nearest to, and what differs, in words."""
    stored = {re.sub(r"\.\d+\.", ".{layer}.", name) for name in names}
    found = []
    for family in FAMILIES.values():
        known = {row.template for row in family.rows}
        absent = {row.template for row in family.rows if row.when is None} - stored
        found.append((len(absent) + len(stored - known), family.model_type, absent, stored - known))
    _, model_type, absent, others = min(found, key=lambda one: one[0])
    parts = [f"without {', '.join(sorted(absent))}"] if absent else []
    parts += [f"with {', '.join(sorted(others))}"] if others else []
    return f"its tensors are named as a {model_type}'s" + "".join(f", {part}" for part in parts)


def modern_config(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """`config` under today's key names. Raises ArchitectureError where two names disagree."""
    modern = {key: value for key, value in config.items() if key not in family.old_keys}
    for old, new in family.old_keys.items():
        if (value := config.get(old)) is None:
            continue
        if modern.get(new) not in (None, value):
            raise ArchitectureError(
                f"config.json says {new} {modern[new]!r}, but {old} {value!r}: keep the right one"
            )
        modern[new] = value
    return modern


def _size(config: Mapping[str, Any], key: str, default: int = 0) -> int:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArchitectureError(f"config.json says {key}: {value!r}; it must be a whole number")
    return value
