"""Sizes that a source can be cut to are found; for others the nearest that it can are named."""

from math import prod

import pytest

from minitron.errors import MinitronError
from minitron.model.architecture import Architecture
from minitron.model.families import FAMILIES
from minitron.model.plan import axes_to_rank
from minitron.model.target_sizes import between, check_opened, target_of
from minitron.sources.loading import hub_config
from tests.tiny import SIZES

SMOL = Architecture("llama", 576, 1536, 30, 9, 3, 64, 49_152)
EVEN = Architecture("llama", 96, 160, 6, 12, 12, 8, 101)  # each query head has its own KV head
GROUPED = Architecture("qwen2", 42, 66, 4, 24, 8, 8, 101)


def test_query_heads_that_share_nothing_are_cut_with_their_kv_heads() -> None:
    target = target_of(EVEN, {"num_attention_heads": 8})
    assert (target.num_attention_heads, target.num_key_value_heads) == (8, 8)
    shared = target_of(GROUPED, {"num_attention_heads": 16})
    assert (shared.num_attention_heads, shared.num_key_value_heads) == (16, 8)
    groups = target_of(GROUPED, {"num_key_value_heads": 5})
    assert (groups.num_attention_heads, groups.num_key_value_heads) == (15, 5)


@pytest.mark.parametrize(
    ("source", "wished", "says"),
    [
        (
            GROUPED,
            {"num_attention_heads": 21},
            r"num_attention_heads is 21: it must be a multiple of num_key_value_heads, 8, .*: give "
            r"--num-attention-heads 16 or 24, or 21 with --num-key-value-heads 7$",
        ),
        (GROUPED, {"num_attention_heads": 20}, r"--num-attention-heads 16 or 24$"),
        (GROUPED, {"num_attention_heads": 5}, r"--num-attention-heads 8, or 5 with .*-heads 5$"),
        (
            GROUPED,
            {"num_attention_heads": 10, "num_key_value_heads": 6},
            r"--num-attention-heads 6 or 12, or 10 with --num-key-value-heads 5$",
        ),
        (
            EVEN,
            {"num_attention_heads": 8, "num_key_value_heads": 4},
            r"8 heads in 4 KV groups are 2 a group, and the source has 1: give "
            r"--num-attention-heads 4 or fewer$",
        ),
        (GROUPED, {"num_attention_heads": 25}, "num_attention_heads is 25|larger than"),
        (EVEN, {"num_attention_heads": 13}, "num_attention_heads 13 is larger than"),
        (EVEN, {"num_attention_heads": 0}, "num_attention_heads is 0: it must be at least 1"),
        (
            SMOL,
            {"hidden_size": 500},
            r"the hidden size \(500\) is not a multiple of the number of attention heads \(9\): "
            r"give --hidden-size 495 or 504$",
        ),
        (
            SMOL,
            {"hidden_size": 570},
            r"give --hidden-size 567 or 576, or --num-attention-heads 6 with hidden_size 570$",
        ),
        (SMOL, {"hidden_size": 4}, r"give --hidden-size 9$"),
        (SMOL, {"hidden_size": 400, "num_attention_heads": 3}, r"give --hidden-size 399 or 402$"),
        (SMOL, {"hidden_size": 575, "num_key_value_heads": 2}, r"give --hidden-size 570 or 576$"),
        (
            EVEN,
            {"num_attention_heads": 10},
            r"\(96\) .* \(10\): give --hidden-size 90, or --num-attention-heads 8 or 12 with "
            r"hidden_size 96$",
        ),
    ],
)
def test_sizes_that_cannot_be_name_the_nearest_that_can(
    source: Architecture, wished: dict[str, int], says: str
) -> None:
    with pytest.raises(MinitronError, match=says):
        target_of(source, wished)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hidden", [40, 42])
def test_a_family_takes_the_hidden_sizes_that_its_config_class_takes(
    family: str, hidden: int
) -> None:
    at = Architecture(family, **{**SIZES, "hidden_size": hidden})
    config = {"model_type": family, **{**SIZES, "hidden_size": hidden}}
    if at.is_accepted:
        assert hub_config(config).hidden_size == hidden
        return
    with pytest.raises(MinitronError, match="not a multiple"):
        hub_config(config)


@pytest.mark.parametrize(
    ("source", "wished"),
    [
        (SMOL, {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 20}),
        (SMOL, {"hidden_size": 450, "intermediate_size": 700}),
        (SMOL, {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}),
        (EVEN, {"hidden_size": 90, "num_attention_heads": 5}),
        (EVEN, {"num_attention_heads": 3}),
        (GROUPED, {"hidden_size": 31, "num_attention_heads": 4, "num_key_value_heads": 2}),
        (Architecture("nemotron", **SIZES), {"hidden_size": 19, "num_attention_heads": 2}),
    ],
)
@pytest.mark.parametrize("steps", [2, 3, 5, 7])
def test_every_step_is_a_cut_of_the_last_one_that_the_family_takes(
    source: Architecture, wished: dict[str, int], steps: int
) -> None:
    target = target_of(source, wished)
    before = source
    for step in range(1, steps):
        after = between(source, target, step / steps, before)
        assert after.is_accepted
        axes_to_rank(before, after)
        axes_to_rank(after, target)
        before = after
    half = between(source, target, 0.5)
    sizes = [
        (one.parameters, prod((one.hidden_size, one.num_attention_heads)))
        for one in (source, half, target)
    ]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("heads", "hidden", "says"),
    [
        (8, 160, "--hidden-size 192 --num-attention-heads 4, or --no-compatible"),
        (4, 160, "--hidden-size 192, or --no-compatible"),
        (8, 96, "--num-attention-heads 2, or --no-compatible"),
    ],
)
def test_sizes_that_engines_take_are_named_where_the_heads_are_wider_than_the_source(
    heads: int, hidden: int, says: str
) -> None:
    tiny = Architecture("nemotron", 256, 1024, 6, 8, 2, 48, 4096)
    target = target_of(tiny, {"hidden_size": hidden, "num_attention_heads": heads})
    with pytest.raises(MinitronError, match=f"give {says}$"):
        check_opened(target, tiny)
