"""Target sizes: what a source can be cut to, and the nearest sizes where it cannot.

Knows how query heads, KV heads and the rule of a family depend on each other; no scores and no
weights.

    target_of(source, {"num_attention_heads": 24, "hidden_size": 3072})
"""

from collections.abc import Iterable, Mapping
from itertools import product

from minitron.errors import ArchitectureError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.engines import engines_closed_to, unsupported_engines
from minitron.model.family import AXIS_KEYS
from minitron.model.plan import axes_to_rank


def target_of(source: Architecture, wanted: Mapping[str, int]) -> Architecture:
    """`source` at the sizes that `wanted` names in config words; the others stay.

    Query heads that share no KV head are cut together with their own, and KV heads together with
    their query heads. Raises ArchitectureError or TargetError, which name the nearest possible
    sizes, for sizes that are no cut of the source or that its family refuses.
    """
    sizes = dict(wanted)
    heads, kv_heads = sizes.get("num_attention_heads"), sizes.get("num_key_value_heads")
    if heads is None and kv_heads is not None:
        sizes["num_attention_heads"] = kv_heads * source.heads_per_group
    elif heads is not None:
        if kv_heads is None:
            kv_heads = source.num_key_value_heads if source.has_groups else heads
        _check_even(source, heads, kv_heads)
        sizes["num_key_value_heads"] = kv_heads
    target = source.resized(**sizes)
    axes_to_rank(source, target)
    _check_accepted(source, target)
    return target


def check_opened(target: Architecture, source: Architecture) -> None:
    """Refuse sizes that other engines cannot open. Raises TargetError, with sizes that they can."""
    closed = engines_closed_to(target, source, strictly=True)
    if not closed:
        return
    reasons = unsupported_engines(target)
    heads, wide = target.num_attention_heads, target.head_dim
    ways = [f"--hidden-size {heads * wide}"] if heads * wide <= source.hidden_size else []
    step = target.num_key_value_heads if source.has_groups else 1
    counts = range(step, source.num_attention_heads + 1, step)
    others = [n for n in counts if n != heads and n * wide <= source.hidden_size]
    if target.hidden_size in (n * wide for n in others):
        ways.append(f"--num-attention-heads {target.hidden_size // wide}")
    elif not ways and others:
        near = min(others, key=lambda n: abs(n * wide - target.hidden_size))
        ways.append(f"--hidden-size {near * wide} --num-attention-heads {near}")
    remedy = f"{' or '.join(ways)}, or --no-compatible" if ways else "--no-compatible"
    raise TargetError(
        f"{', '.join(sorted(closed))} cannot open hidden_size {target.hidden_size} with {heads} "
        f"heads of {wide} ({reasons[min(closed)]}): give {remedy}"
    )


def between(
    source: Architecture,
    target: Architecture,
    share: float,
    before: Architecture | None = None,
) -> Architecture:
    """Sizes on the way to a target, by equal factors, that the family takes.

    KV heads keep equally many query heads, and no size is larger than that of `before`, the step
    that came last.
    """
    before = source if before is None else before

    def size(axis: str) -> int:
        have, want = source.size(axis), target.size(axis)
        return max(want, min(before.size(axis), round(have * float((want / have) ** share))))

    groups = size("kv_heads")
    sizes = {AXIS_KEYS[axis]: size(axis) for axis in ("hidden", "ffn", "layers")}
    most = min(source.heads_per_group, before.heads_per_group)
    each = max(target.heads_per_group, min(most, -(-size("heads") // groups)))
    wanted = source.resized(**sizes, num_key_value_heads=groups, num_attention_heads=each * groups)
    return wanted if wanted.is_accepted else _nearest_accepted(wanted, target, before)


def hidden_sizes_near(at: Architecture, least: int, most: int) -> list[int]:
    """The nearest hidden sizes, below and above, that the family takes with these heads."""
    return _around(at.hidden_size, range(0, most + 1, at.hidden_step), max(1, least))


def _nearest_accepted(
    wanted: Architecture, least: Architecture, most: Architecture
) -> Architecture:
    """The sizes nearest to `wanted` that the family takes: heads first, then hidden_size.

    `least` and `most` are accepted themselves, so that there are always some.
    """
    groups = range(least.num_key_value_heads, most.num_key_value_heads + 1)
    each = range(least.heads_per_group, most.heads_per_group + 1)

    def distance(pair: tuple[int, int]) -> tuple[int, int]:
        heads = pair[0] * pair[1]
        return (
            abs(heads - wanted.num_attention_heads),
            abs(pair[0] - wanted.num_key_value_heads),
        )

    for kv_heads, in_group in sorted(product(groups, each), key=distance):
        shape = wanted.resized(
            num_key_value_heads=kv_heads, num_attention_heads=kv_heads * in_group
        )
        near = hidden_sizes_near(shape, least.hidden_size, most.hidden_size)
        if near:
            hidden = min(near, key=lambda size: abs(size - wanted.hidden_size))
            return shape.resized(hidden_size=hidden)
    raise AssertionError("neither end is accepted")


def _check_even(source: Architecture, heads: int, kv_heads: int) -> None:
    """Refuse query heads that do not divide into their KV heads. Raises TargetError."""
    if not 1 <= kv_heads <= source.num_key_value_heads or heads < 1 or not heads % kv_heads:
        return  # even, or refused in words of its own
    most = min(source.num_attention_heads, kv_heads * source.heads_per_group)
    near = _either(_around(heads, range(0, most + 1, kv_heads), 1))
    fewer = [
        groups
        for groups in range(kv_heads - 1, 0, -1)
        if not heads % groups and heads // groups <= source.heads_per_group
    ]
    other = f", or {heads} with --num-key-value-heads {fewer[0]}" if fewer else ""
    raise TargetError(
        f"num_attention_heads is {heads}: it must be a multiple of num_key_value_heads, "
        f"{kv_heads}, of which each keeps equally many: give --num-attention-heads {near}{other}"
    )


def _check_accepted(source: Architecture, target: Architecture) -> None:
    """Refuse a hidden size that the family does not take. Raises ArchitectureError."""
    if target.is_accepted:
        return
    hidden, heads = target.hidden_size, target.num_attention_heads
    ways = []
    if near := hidden_sizes_near(target, 1, source.hidden_size):
        ways.append(f"--hidden-size {_either(near)}")
    step, most = 1, source.num_attention_heads
    if source.has_groups:  # KV heads stay, and each keeps some of its own query heads
        step = target.num_key_value_heads
        most = step * source.heads_per_group
    dividing = [n for n in range(step, most + 1, step) if not hidden % n]
    if near := _around(heads, dividing, 1):
        ways.append(f"--num-attention-heads {_either(near)} with hidden_size {hidden}")
    raise ArchitectureError(
        f"{target.model_type} refuses this config: the hidden size ({hidden}) is not a multiple of "
        f"the number of attention heads ({heads}): give {', or '.join(ways)}"
    )


def _around(size: int, possible: Iterable[int], least: int) -> list[int]:
    """The nearest of `possible` below and above `size`, from `least` up."""
    inside = [one for one in possible if one >= least]
    below = max((one for one in inside if one <= size), default=None)
    above = min((one for one in inside if one >= size), default=None)
    return sorted({one for one in (below, above) if one is not None})


def _either(sizes: list[int]) -> str:
    return " or ".join(map(str, sizes))
