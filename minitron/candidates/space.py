"""Search space: the architectures that a search may choose from.

A space is a grid of depths, heads and widths; `default_space` makes one around any source, in steps
that its family takes, and `SPACES` holds the paper's. Knows sizes and counts alone, no scores and
no budget.

    source = Architecture.from_config(config)
    for architecture, parameters in enumerate_space(default_space(source), source): ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm
from typing import TypeVar

from minitron.candidates.budget import TOLERANCE
from minitron.errors import TargetError
from minitron.model.architecture import Architecture

CandidateT = TypeVar("CandidateT")

_PARTS = 12  # a default grid's widths are whole twelfths of the source's
_FINE_PARTS, _FINE_DEPTHS = 48, 8  # of MLPs and layers, where few shapes are to meet a budget
_EVEN_PARTS = 8  # heads that share no KV head go by whole eighths
# Matrix kernels like it, and bitsandbytes' NF4 has its fast product for such inputs alone.
_LARGEST_MULTIPLE = 64
_NEAR = 0.02  # of a ratio that one factor is to meet, where the steps are open


@dataclass(frozen=True)
class Space:
    """Every combination of these sizes."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]  # hidden_size, intermediate_size

    def inside(self, source: Architecture) -> "Space":
        """The sizes of it that are cuts of `source` and keep its KV groups whole."""
        groups = source.num_key_value_heads if source.has_groups else 1
        return Space(
            tuple(n for n in self.layers if n <= source.num_hidden_layers),
            tuple(n for n in self.heads if n <= source.num_attention_heads and not n % groups),
            tuple(
                (hidden, ffn)
                for hidden, ffn in self.widths
                if hidden <= source.hidden_size and ffn <= source.intermediate_size
            ),
        )

    @property
    def size(self) -> int:
        """How many combinations it holds."""
        return len(self.layers) * len(self.heads) * len(self.widths)


def _paper(heads: tuple[int, ...], hidden: tuple[int, ...]) -> Space:
    """29 to 32 layers, and MLPs 2.5 to 4 times as wide as the stream (2407.14679, table 9)."""
    widths = tuple((size, size * halves // 2) for size in hidden for halves in (5, 6, 7, 8))
    return Space((29, 30, 31, 32), heads, widths)


# For Nemotron-4 15B. The paper prints 4680 among the widths of 8B; its table 19 has 4608.
SPACES: Mapping[str, Space] = {
    "paper-8b": _paper((32, 48), (4096, 4608, 5120, 5632, 6144)),
    "paper-4b": _paper((24, 32, 48), (2560, 3072, 3584, 4096, 4608)),
}


def default_space(
    source: Architecture,
    *,
    multiple_of: int | None = None,
    min_layers: int | None = None,
    is_fine: bool = False,
) -> Space:
    """The space around any source.

    Depths from three quarters of its layers (or `min_layers`) up, heads from half up in steps of
    its KV groups (in eighths where each has its own KV head), hidden_size and intermediate_size
    each in whole twelfths, rounded to `multiple_of` and what the family asks, with MLPs from half
    to twice as wide against the stream as the source's. `is_fine` takes MLPs in 48 parts, so that
    a budget is met closely, and no more than 8 depths. Raises TargetError for numbers that mean
    nothing.
    """
    layers = source.num_hidden_layers
    fewest = -(-3 * layers // 4) if min_layers is None else min_layers
    if not 1 <= fewest <= layers:
        raise TargetError(f"--min-layers is {fewest}: it must be from 1 to {layers}")
    depths = range(fewest, layers + 1)
    heads = _head_counts(source)
    multiple = width_multiple(source, multiple_of)
    hidden = {
        size
        for count in heads
        for size in _hidden_sizes(source.with_heads(count), multiple_of, source.hidden_size)
    }
    if source.family.engine_limits:  # which such a hidden size keeps to
        squares = (source.head_dim * count for count in heads)
        fitting = (size for size in squares if not size % (multiple_of or 1))
        hidden |= {size for size in fitting if size <= source.hidden_size}
    ffn = _parts(source.intermediate_size, multiple, _FINE_PARTS if is_fine else _PARTS)
    own = source.intermediate_size / source.hidden_size
    return Space(
        tuple(_spread(depths, _FINE_DEPTHS) if is_fine else depths),
        heads,
        tuple(
            pair for pair in product(sorted(hidden), ffn) if own / 2 <= pair[1] / pair[0] <= 2 * own
        ),
    )


def width_multiple(source: Architecture, multiple_of: int | None) -> int:
    """The number that widths are multiples of: 64 unless given, less where the model is narrow.

    Raises TargetError where no width of the source could be one.
    """
    if multiple_of is None:
        return _fitting(source.hidden_size, 1)
    if not 1 <= multiple_of <= source.hidden_size:
        raise TargetError(
            f"--multiple-of is {multiple_of}: it must be from 1 to the hidden_size, "
            f"{source.hidden_size}"
        )
    return multiple_of


def enumerate_space(space: Space, source: Architecture) -> Iterator[tuple[Architecture, int]]:
    """Every architecture of the space with its parameters: deep before shallow, wide before narrow.

    Raises TargetError where nothing of the space is a cut of `source`.
    """
    inside = space.inside(source)
    if not inside.size:
        raise TargetError(
            f"nothing of this space is smaller than {source.num_hidden_layers} layers, "
            f"{source.num_attention_heads} heads, hidden_size {source.hidden_size} and "
            f"intermediate_size {source.intermediate_size}: choose another --space"
        )
    widths = sorted(inside.widths, reverse=True)
    for heads, (hidden, ffn) in product(sorted(inside.heads, reverse=True), widths):
        shape = source.with_heads(heads).resized(hidden_size=hidden, intermediate_size=ffn)
        one, two = (shape.resized(num_hidden_layers=count).parameters for count in (1, 2))
        for layers in sorted(inside.layers, reverse=True):
            parameters = one + (layers - 1) * (two - one)  # all layers are alike
            yield shape.resized(num_hidden_layers=layers), parameters


def nearest_per_depth(
    candidates: Sequence[CandidateT],
    count: int,
    *,
    depth: Callable[[CandidateT], int],
    miss: Callable[[CandidateT], float],
) -> list[CandidateT]:
    """At most `count` of them, in their order: depths take turns, the deepest first, and each
    gives the one of it that misses the budget least; ties go to the earlier one."""
    by_depth: dict[int, list[int]] = {}
    for index in sorted(range(len(candidates)), key=lambda i: (miss(candidates[i]), i)):
        by_depth.setdefault(depth(candidates[index]), []).append(index)
    turns = [by_depth[key] for key in sorted(by_depth, reverse=True)]
    kept: list[int] = []
    for rank in range(max(map(len, turns), default=0)):
        kept.extend(turn[rank] for turn in turns if rank < len(turn))
    return [candidates[index] for index in sorted(kept[:count])]


def scale_widths(
    source: Architecture,
    ratio: float,
    multiple_of: int | None = None,
    *,
    accepts: Callable[[Architecture], bool] = lambda _: True,
) -> Architecture:
    """`source` with hidden_size and intermediate_size scaled by one factor to `ratio` of all
    parameters, embeddings included; heads and layers stay (arXiv 2408.11796, section 4).

    Of all factors that give sizes the family `accepts`, the one nearest to the ratio is chosen.
    Where `multiple_of` is left open, it is halved until that is within 2 %, or 1 is reached. Raises
    TargetError where nothing is within 5 %.
    """
    wanted = ratio * source.parameters
    multiple = width_multiple(source, multiple_of)
    while True:
        nearest = sorted(_scalings(source, multiple), key=lambda one: abs(one.parameters - wanted))
        chosen = next(filter(accepts, nearest), source)
        miss = abs(chosen.parameters / wanted - 1)
        is_last = multiple_of is not None or multiple == 1
        if miss <= (TOLERANCE if is_last else _NEAR):
            return chosen
        if is_last:
            raise TargetError(
                f"--ratio {ratio:g} is {wanted:,.0f} parameters; the nearest uniform width, "
                f"hidden_size {chosen.hidden_size} and intermediate_size "
                f"{chosen.intermediate_size}, has {chosen.parameters:,}: give a smaller "
                "--multiple-of, or sizes"
            )
        multiple //= 2


def _scalings(source: Architecture, multiple: int) -> list[Architecture]:
    """Both widths by every factor that makes one of them a multiple; the widest first.

    Hidden sizes are multiples of `multiple`, and those that the family takes at these heads.
    """
    hidden, ffn = source.hidden_size, source.intermediate_size
    fitting = min(multiple, _fitting(hidden, source.hidden_step))
    widths = {(hidden, ffn)}
    for step in (multiple, lcm(fitting, source.hidden_step)):
        factors = {n * step / hidden for n in range(1, hidden // step + 1)}
        factors |= {n * multiple / ffn for n in range(1, ffn // multiple + 1)}
        widths |= {
            (_round_to(factor * hidden, step, hidden), _round_to(factor * ffn, multiple, ffn))
            for factor in factors
        }
    return [
        source.resized(hidden_size=narrow, intermediate_size=inner)
        for narrow, inner in sorted(widths, reverse=True)
    ]


def _head_counts(source: Architecture) -> tuple[int, ...]:
    """From half of the heads up: every even cut of their KV groups; eighths of heads without."""
    heads, groups = source.num_attention_heads, source.num_key_value_heads
    if source.has_groups:
        each = source.heads_per_group
        return tuple(groups * count for count in range(-(-each // 2), each + 1))
    eighths = range(_EVEN_PARTS // 2, _EVEN_PARTS + 1)
    return tuple(sorted({-(-heads * part // _EVEN_PARTS) for part in eighths}))


def _hidden_sizes(at: Architecture, multiple_of: int | None, most: int) -> list[int]:
    """The hidden sizes of a default grid with these heads: multiples, and what the family takes."""
    multiple = _fitting(most, at.hidden_step) if multiple_of is None else multiple_of
    sizes = _parts(most, lcm(multiple, at.hidden_step), _PARTS)
    return [size for size in sizes if not size % at.hidden_step]


def _fitting(size: int, step: int) -> int:
    """The largest power of two up to 64 whose common multiples with `step` a width has enough of:
    8 of 64, since that is what kernels and formats are made for, else 16."""
    multiple = _LARGEST_MULTIPLE
    if size // lcm(multiple, step) >= 8:
        return multiple
    while multiple > 1 and size // lcm(multiple, step) < 16:
        multiple //= 2
    return multiple


def _spread(sizes: range, count: int) -> list[int]:
    """At most `count` of them, evenly, both ends among them."""
    if len(sizes) <= count:
        return list(sizes)
    return sorted({sizes[round(i * (len(sizes) - 1) / (count - 1))] for i in range(count)})


def _parts(size: int, multiple: int, parts: int) -> list[int]:
    rounded = {_round_to(size * part / parts, multiple, size) for part in range(1, parts)}
    return sorted({*rounded, size})


def _round_to(size: float, multiple: int, most: int) -> int:
    """The nearest multiple, at least one and at most the source's own size."""
    return min(most, max(multiple, round(size / multiple) * multiple))
