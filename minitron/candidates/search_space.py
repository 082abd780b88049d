"""Search space: the architectures that a search may choose from.

A space is a grid of depths, heads and widths; `default_space` makes one around any source, and
`SPACES` holds the paper's. Knows sizes and counts alone, no scores and no budget.

    source = Architecture.from_config(config)
    for architecture, parameters in counted(default_space(source), source): ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from minitron.architecture import Architecture
from minitron.candidates.budget import TOLERANCE, checked_ratio
from minitron.errors import TargetError

CandidateT = TypeVar("CandidateT")

_PARTS = 12  # a default grid's widths are whole twelfths of the source's
_LARGEST_MULTIPLE = 64  # what matrix kernels like


@dataclass(frozen=True)
class Space:
    """Every combination of these sizes."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]  # hidden_size, intermediate_size

    def inside(self, source: Architecture) -> "Space":
        """The sizes of it that are cuts of `source` and keep its KV groups whole."""
        return Space(
            tuple(n for n in self.layers if n <= source.num_hidden_layers),
            tuple(
                n
                for n in self.heads
                if n <= source.num_attention_heads and not n % source.num_key_value_heads
            ),
            tuple(
                (hidden, ffn)
                for hidden, ffn in self.widths
                if hidden <= source.hidden_size and ffn <= source.intermediate_size
            ),
        )

    @property
    def size(self) -> int:
        """How many architectures it holds."""
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
    source: Architecture, *, multiple_of: int | None = None, min_layers: int | None = None
) -> Space:
    """The space around any source.

    Depths from three quarters of its layers (or `min_layers`) up, heads from half up in steps of
    its KV groups, hidden_size and intermediate_size each in whole twelfths, rounded to
    `multiple_of`, with MLPs from half to twice as wide against the stream as the source's. Raises
    TargetError for numbers that mean nothing.
    """
    layers = source.num_hidden_layers
    fewest = -(-3 * layers // 4) if min_layers is None else min_layers
    if not 1 <= fewest <= layers:
        raise TargetError(f"--min-layers is {fewest}: it must be from 1 to {layers}")
    groups = source.num_key_value_heads
    in_group = source.num_attention_heads // groups
    multiple = checked_multiple(source, multiple_of)
    widths = product(
        _twelfths(source.hidden_size, multiple), _twelfths(source.intermediate_size, multiple)
    )
    own = source.intermediate_size / source.hidden_size
    return Space(
        tuple(range(fewest, layers + 1)),
        tuple(groups * each for each in range(-(-in_group // 2), in_group + 1)),
        tuple(pair for pair in widths if own / 2 <= pair[1] / pair[0] <= 2 * own),
    )


def checked_multiple(source: Architecture, multiple_of: int | None) -> int:
    """What widths are multiples of: as wished, else 64, or less where the model is narrow.

    Raises TargetError where no width of the source could be one.
    """
    if multiple_of is None:
        most = max(1, min(_LARGEST_MULTIPLE, source.hidden_size // 16))
        return 1 << (most.bit_length() - 1)
    if not 1 <= multiple_of <= source.hidden_size:
        raise TargetError(
            f"--multiple-of is {multiple_of}: it must be from 1 to the hidden_size, "
            f"{source.hidden_size}"
        )
    return multiple_of


def counted(space: Space, source: Architecture) -> Iterator[tuple[Architecture, int]]:
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
        shape = source.resized(hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads)
        one, two = (shape.resized(num_hidden_layers=count).parameters for count in (1, 2))
        for layers in sorted(inside.layers, reverse=True):
            parameters = one + (layers - 1) * (two - one)  # all layers are alike
            yield shape.resized(num_hidden_layers=layers), parameters


def thinned(
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


def uniform(
    source: Architecture,
    ratio: float,
    multiple_of: int | None = None,
    *,
    accepts: Callable[[Architecture], bool] = lambda _: True,
) -> Architecture:
    """`source` with hidden_size and intermediate_size scaled by one factor to `ratio` of all
    parameters, embeddings included; heads and layers stay (arXiv 2408.11796, section 4).

    Of all factors that give sizes the family `accepts`, the one nearest to the ratio is taken.
    Where `multiple_of` is left open, it is halved until that is within 5 %. Raises TargetError
    where nothing is.
    """
    wanted = checked_ratio(ratio) * source.parameters
    multiple = checked_multiple(source, multiple_of)
    while True:
        nearest = sorted(_scaled(source, multiple), key=lambda one: abs(one.parameters - wanted))
        chosen = next(filter(accepts, nearest), source)
        if abs(chosen.parameters / wanted - 1) <= TOLERANCE:
            return chosen
        if multiple_of is not None or multiple == 1:
            raise TargetError(
                f"--ratio {ratio:g} is {wanted:,.0f} parameters; the nearest uniform width, "
                f"hidden_size {chosen.hidden_size} and intermediate_size "
                f"{chosen.intermediate_size}, has {chosen.parameters:,}: give a smaller "
                "--multiple-of, or sizes"
            )
        multiple //= 2


def _scaled(source: Architecture, multiple: int) -> list[Architecture]:
    """Both widths by every factor that makes one of them a multiple; the widest first."""
    hidden, ffn = source.hidden_size, source.intermediate_size
    steps = {n * multiple / size for size in (hidden, ffn) for n in range(1, size // multiple + 1)}
    widths = {
        (_rounded(step * hidden, multiple, hidden), _rounded(step * ffn, multiple, ffn))
        for step in steps
    }
    widths.add((hidden, ffn))
    return [
        source.resized(hidden_size=narrow, intermediate_size=inner)
        for narrow, inner in sorted(widths, reverse=True)
    ]


def _twelfths(size: int, multiple: int) -> list[int]:
    parts = {_rounded(size * part / _PARTS, multiple, size) for part in range(1, _PARTS)}
    return sorted({*parts, size})


def _rounded(size: float, multiple: int, most: int) -> int:
    """The nearest multiple, at least one and at most the source's own size."""
    return min(most, max(multiple, round(size / multiple) * multiple))
