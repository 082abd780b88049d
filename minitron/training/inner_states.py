"""Inner states: where inside two models a student is compared with its teacher, and how.

Knows the states that the paper compares (arXiv 2407.14679, section 3), in which layers, which
modules of a running decoder they pass, and their distance. That of the logits is in `distillation`.

    pairs = state_pairs("embedding,hidden", None, ours=student, theirs=teacher)
    with captured_states(Decoder.of(model), [pair.theirs for pair in pairs]) as states:
        model(input_ids)
    distance = IntermediateLoss(512, 1024, [(0, 0), (1, 1)])(student_states, states)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from minitron.model.decoder import Decoder
from minitron.training.fused_loss import IGNORED_LABEL

# The kinds that --inner-states accepts, and the parts of a layer that produce them.
KINDS = {
    "embedding": ("embedding",),
    "hidden": ("hidden",),
    "mlp_input": ("mlp_input",),
    "mlp_output": ("mlp_output",),
    "attention": ("q", "k", "v"),
}
_RELATIONAL = KINDS["attention"]  # compared by the relations between tokens, others directly


@dataclass(frozen=True)
class InnerState:
    """The states of one part of one layer, [rows, seq_len, width]; layers count from 0."""

    part: str
    layer: int


@dataclass(frozen=True)
class StatePair:
    """A state of the student and the state of the teacher that it is compared with."""

    ours: InnerState
    theirs: InnerState

    @property
    def compares_relations(self) -> bool:
        """Whether the relations between tokens are compared instead of the states themselves."""
        return self.ours.part in _RELATIONAL


@dataclass(frozen=True)
class InnerStates:
    """Which inner states are compared, and the weight of their distance."""

    pairs: tuple[StatePair, ...] = ()
    relation_heads: int = 1  # into which queries, keys and values are split, in both models
    alpha: float | None = 0.0  # None: dynamic


def state_pairs(
    kinds: str, layer_map: str | None, *, ours: Architecture, theirs: Architecture
) -> tuple[StatePair, ...]:
    """The pairs of states that --inner-states and --layer-map choose.

    Without a map, the third last layers are compared, the paper's best (table 17). Raises
    TargetError for unknown kinds and layers.
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
                "Inner states are compared in the third last layers, and a model has "
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
    """Collect these states, in this order, while the decoder runs in the block.

    States of the residual stream are captured behind the next norm, as the paper compares them.
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
    """Hook the module that reads or computes a state, to store it at `index` of `states`."""

    def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states[index] = inputs[0]

    def keep_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if wanted.part in _RELATIONAL:
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


class IntermediateLoss(nn.Module):
    """The distance of the student's inner states from the teacher's (arXiv 2407.14679, section 3).

    One learned linear map, shared by all states, maps the student's width to the teacher's: train
    its parameters with the student's. `layer_map` pairs indices of the two lists of states that are
    passed to `forward`, (student's, teacher's). The states come from behind a layer norm: outputs
    of the embedding, inputs or outputs of the MLPs. `kind` is "cosine" (1 - cosine similarity, the
    paper's best) or "mse" (mean over the width).

        states = IntermediateLoss(512, 1024, [(0, 0), (14, 30)])
        inner = states(student_states, teacher_states, labels)
        loss = logit_loss + dynamic_weight(logit_loss, inner) * inner
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        layer_map: Sequence[tuple[int, int]],
        *,
        kind: str = "cosine",
    ) -> None:
        super().__init__()
        if kind not in ("cosine", "mse"):
            raise TargetError(f"No intermediate loss is called {kind!r}: choose cosine or mse")
        if not layer_map:
            raise TargetError("The layer map is empty: give pairs of (student's, teacher's) layer")
        self.projection = nn.Linear(student_width, teacher_width, bias=False)
        self.layer_map = tuple(layer_map)
        self.kind = kind

    def forward(
        self,
        student_states: Sequence[Tensor],
        teacher_states: Sequence[Tensor],
        labels: Tensor | None = None,
    ) -> Tensor:
        """The sum over pairs of the mean over tokens; tokens with the label -100 are dropped.

        Raises TargetError for states of different tokens.
        """
        losses = [
            self._pair_loss(student_states[ours], teacher_states[theirs], labels)
            for ours, theirs in self.layer_map
        ]
        return torch.stack(losses).sum()

    def _pair_loss(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if student.shape[:-1] != teacher.shape[:-1]:
            raise TargetError(
                f"The student's inner states are of {list(student.shape[:-1])} tokens, its "
                f"teacher's of {list(teacher.shape[:-1])}: they must be of the same text"
            )
        if labels is not None:
            is_kept = labels != IGNORED_LABEL
            student, teacher = student[is_kept], teacher[is_kept]
        projected: Tensor = self.projection(student)
        wide = torch.promote_types(projected.dtype, torch.float32)
        projected, teacher = projected.to(wide), teacher.detach().to(wide)
        if self.kind == "mse":
            distances = (projected - teacher).square().mean(-1)
        else:
            distances = 1 - F.cosine_similarity(projected, teacher, dim=-1)
        return distances.sum() / max(distances.numel(), 1)


def attention_relation_loss(student: Tensor, teacher: Tensor, *, heads: int) -> Tensor:
    """The distance of the relations between tokens in two models' queries, or keys, or values.

    Both are [rows, seq_len, width] and are split into `heads` parts of equal width. In each part,
    the relations of a token to itself and earlier ones are softmax(x x^T / sqrt(part's width)). The
    loss is the KL divergence of the student's relations from the teacher's, the mean over rows,
    parts and tokens (MiniLMv2, arXiv 2012.15828, section 3.1, with a causal mask). The widths may
    differ, without a projection. Memory: [rows, heads, seq_len, seq_len] for both models.
    """
    with torch.autocast(student.device.type, enabled=False):
        target, guess = _relations(teacher.detach(), heads), _relations(student, heads)
        divergence: Tensor = F.kl_div(guess, target, log_target=True, reduction="none")
        return divergence.sum(-1).mean()


def _relations(states: Tensor, heads: int) -> Tensor:
    """The log-probabilities of each token's relations: (rows, heads, seq_len, seq_len)."""
    wide = torch.promote_types(states.dtype, torch.float32)
    rows, length, width = states.shape
    parts = states.to(wide).reshape(rows, length, heads, width // heads).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / sqrt(width // heads)
    is_future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    # Not -inf: the divergence would subtract it from itself, which is NaN.
    return scores.masked_fill(is_future, torch.finfo(wide).min / 2).log_softmax(-1)


def dynamic_weight(logit_loss: Tensor, intermediate_loss: Tensor) -> Tensor:
    """The paper's alpha, L_logits / L_is, without a gradient; 0 where L_is is 0."""
    weight = logit_loss.detach() / intermediate_loss.detach()
    return weight.where(intermediate_loss.detach() != 0, 0.0)
