"""Inner states: where inside two models a student is compared with its teacher.

Knows the states that the paper compares (arXiv 2407.14679, section 3), in which layers, and how
they are taken from a decoder that runs. Does not know their distance: that is `intermediate_loss`.

    pairs = state_pairs("embedding,hidden", None, ours=student, theirs=teacher)
    with taken(decoder.layers, decoder.norm, [pair.theirs for pair in pairs]) as states:
        decoder(input_ids)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minitron.errors import TargetError
from minitron.model.architecture import Architecture

# What a person may ask for, and the parts of a layer that give it.
KINDS = {
    "embedding": ("embedding",),
    "hidden": ("hidden",),
    "mlp_input": ("mlp_input",),
    "mlp_output": ("mlp_output",),
    "attention": ("q_proj", "k_proj", "v_proj"),
}
_RELATED = KINDS["attention"]  # compared by how their tokens relate, the others as they are


@dataclass(frozen=True)
class Place:
    """What one part of one layer gives, [rows, seq_len, width]; layers count from 0."""

    part: str
    layer: int


@dataclass(frozen=True)
class StatePair:
    """One state in both models."""

    ours: Place
    theirs: Place

    @property
    def is_related(self) -> bool:
        """Whether the relations of its tokens are compared, and not the states themselves."""
        return self.ours.part in _RELATED


@dataclass(frozen=True)
class InnerStates:
    """Which inner states are compared, and what their distance weighs."""

    pairs: tuple[StatePair, ...] = ()
    relation_heads: int = 1  # parts that queries, keys and values are cut into, equal in both
    alpha: float | None = 0.0  # None: dynamic


def state_pairs(
    kinds: str, layer_map: str | None, *, ours: Architecture, theirs: Architecture
) -> tuple[StatePair, ...]:
    """The pairs of states of these kinds, as --inner-states and --layer-map name them.

    The map defaults to the third last layers, the paper's best (table 17). Raises TargetError for
    words and layers that do not exist.
    """
    layers = _layer_pairs(layer_map, ours.num_hidden_layers, theirs.num_hidden_layers)
    pairs: list[StatePair] = []
    for kind in kinds.split(","):
        if kind not in KINDS:
            raise TargetError(
                f"--inner-states has {kind!r}: choose among {', '.join(KINDS)}, with commas between"
            )
        for part in KINDS[kind]:
            places = [(0, 0)] if part == "embedding" else layers
            pairs += [StatePair(Place(part, a), Place(part, b)) for a, b in places]
    return tuple(dict.fromkeys(pairs))


def _layer_pairs(layer_map: str | None, ours: int, theirs: int) -> list[tuple[int, int]]:
    """(student's, teacher's) layers."""
    if layer_map is None:
        if min(ours, theirs) < 3:
            raise TargetError(
                "Inner states are compared in the third last layers, a model has "
                f"{min(ours, theirs)}: give --layer-map, or --alpha 0"
            )
        return [(ours - 3, theirs - 3)]
    pairs = []
    for text in layer_map.split(","):
        their_layer, colon, our_layer = text.partition(":")
        if not (colon and their_layer.strip().isdecimal() and our_layer.strip().isdecimal()):
            raise TargetError(
                f"--layer-map has {text!r}: write TEACHER'S:STUDENT'S layer, as 29:13, with commas "
                "between pairs"
            )
        pair = int(our_layer), int(their_layer)
        for owner, layer, count in (("student", pair[0], ours), ("teacher", pair[1], theirs)):
            if layer >= count:
                raise TargetError(
                    f"--layer-map has {text!r}: the {owner}'s layers are 0 to {count - 1}"
                )
        pairs.append(pair)
    return pairs


@contextmanager
def taken(layers: Sequence[Any], norm: Any, places: Sequence[Place]) -> Iterator[list[Tensor]]:
    """Collect the states at these places, in their order, while the block lasts.

    `layers` and the last `norm` are a decoder's. Residual states are taken after the norm that
    reads them, as the paper compares them.
    """
    states = [torch.empty(0) for _ in places]

    def noting(index: int) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            states[index] = output

        return hook

    handles = [
        _module(layers, norm, place).register_forward_hook(noting(index))
        for index, place in enumerate(places)
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _module(layers: Sequence[Any], norm: Any, place: Place) -> Any:
    """The part of a decoder whose output the state is."""
    layer = layers[place.layer]
    match place.part:
        case "embedding":
            return layer.input_layernorm
        case "hidden":
            is_last = place.layer + 1 == len(layers)
            return norm if is_last else layers[place.layer + 1].input_layernorm
        case "mlp_input":
            return layer.post_attention_layernorm
        case "mlp_output":
            return layer.mlp
    return getattr(layer.self_attn, place.part)
