"""Inner states: where inside two models a student is compared with its teacher.

Knows the states that the paper compares (arXiv 2407.14679, section 3), in which layers, and which
modules of a running decoder they pass. Their distance is computed in `intermediate_loss`.

    pairs = state_pairs("embedding,hidden", None, ours=student, theirs=teacher)
    with captured_states(Decoder.of(model), [pair.theirs for pair in pairs]) as states:
        model(input_ids)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from minitron.model.decoder import Decoder

# What a person may ask for, and the parts of a layer that give it.
KINDS = {
    "embedding": ("embedding",),
    "hidden": ("hidden",),
    "mlp_input": ("mlp_input",),
    "mlp_output": ("mlp_output",),
    "attention": ("q", "k", "v"),
}
_RELATED = KINDS["attention"]  # compared by how their tokens relate, the others as they are


@dataclass(frozen=True)
class InnerState:
    """One part's states in one layer, [rows, seq_len, width]; layers count from 0."""

    part: str
    layer: int


@dataclass(frozen=True)
class StatePair:
    """One state in both models."""

    ours: InnerState
    theirs: InnerState

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
            compared = [(0, 0)] if part == "embedding" else layers
            pairs += [StatePair(InnerState(part, a), InnerState(part, b)) for a, b in compared]
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
def captured_states(decoder: Decoder, wanted: Sequence[InnerState]) -> Iterator[list[Tensor]]:
    """Collect these states, in their order, from what the decoder runs inside the block.

    States of the residual stream are captured where a norm's output is read, as the paper compares
    them.
    """
    states = [torch.empty(0) for _ in wanted]
    handles = [_hook(decoder, state, states, index) for index, state in enumerate(wanted)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    decoder: Decoder, wanted: InnerState, states: list[Tensor], index: int
) -> RemovableHandle:
    """Let the module that a state passes put it at `index` of `states`."""

    def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states[index] = inputs[0]

    def keep_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if wanted.part in _RELATED:
            output = decoder.output_of(wanted.part, output)
        states[index] = output

    layer, last = wanted.layer, len(decoder.layers) - 1
    match wanted.part:
        case "embedding":
            return decoder.part(layer, "q").register_forward_pre_hook(keep_input)
        case "hidden" if layer == last:
            return decoder.norm.register_forward_hook(keep_output)
        case "hidden":
            return decoder.part(layer + 1, "q").register_forward_pre_hook(keep_input)
        case "mlp_input":
            return decoder.part(layer, "up").register_forward_pre_hook(keep_input)
        case "mlp_output":
            return decoder.part(layer, "mlp").register_forward_hook(keep_output)
    return decoder.part(layer, wanted.part).register_forward_hook(keep_output)
