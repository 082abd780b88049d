"""A plan keeps the highest scores, group by group, and nothing else decides."""

import pytest
import torch

from minitron.errors import ArchitectureError, ImportanceError, TargetError
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import (
    PruningPlan,
    axes_to_rank,
    choose_plan,
    layers_short_of_scores,
    share_kept,
)

SOURCE = Architecture("nemotron", 10, 14, 3, 6, 2, 4, 21)


def scores(**changed: torch.Tensor) -> Importance:
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "hidden": torch.rand(10, generator=generator),
        "ffn": torch.rand(3, 14, generator=generator),
        "heads": torch.rand(3, 6, generator=generator),
        "layers": torch.rand(3, generator=generator),
        "kv_heads": torch.rand(3, 2, generator=generator),
    }
    return Importance(made_by={}, **{**drawn, **changed})


def test_the_highest_hidden_scores_are_kept_in_ascending_order() -> None:
    hidden = torch.tensor([3.0, 9, 1, 8, 7, 2, 0, 6, 5, 4])
    plan = choose_plan(scores(hidden=hidden), SOURCE, SOURCE.resized(hidden_size=4))
    assert plan.hidden == (1, 3, 4, 7)


def test_ties_break_by_the_lower_index() -> None:
    plan = choose_plan(scores(hidden=torch.ones(10)), SOURCE, SOURCE.resized(hidden_size=3))
    assert plan.hidden == (0, 1, 2)


def test_heads_are_ranked_inside_their_group_and_groups_keep_equally_many() -> None:
    # Group 0 holds heads 0 to 2, group 1 heads 3 to 5; all of group 1 outscores group 0.
    heads = torch.tensor([[1.0, 3, 2, 30, 10, 20]]).repeat(3, 1)
    plan = choose_plan(scores(heads=heads), SOURCE, SOURCE.resized(num_attention_heads=4))
    assert plan.heads == ((1, 2, 3, 5),) * 3


def test_each_layer_ranks_its_own_neurons() -> None:
    ffn = torch.zeros(3, 14)
    ffn[0, [2, 3]] = ffn[1, [0, 13]] = ffn[2, [6, 7]] = 1.0
    plan = choose_plan(scores(ffn=ffn), SOURCE, SOURCE.resized(intermediate_size=2))
    assert plan.ffn == ((2, 3), (0, 13), (6, 7))
    assert layers_short_of_scores(plan, scores(ffn=ffn)) == {}


def test_layers_that_keep_parts_without_a_score_are_counted() -> None:
    ffn = torch.zeros(3, 14)
    ffn[0, [2, 3]] = ffn[1, :] = ffn[2, 6] = 1.0
    target = SOURCE.resized(intermediate_size=3, hidden_size=5)
    plan = choose_plan(scores(ffn=ffn), SOURCE, target)
    assert layers_short_of_scores(plan, scores(ffn=ffn)) == {"ffn": 2}
    without_last = choose_plan(scores(ffn=ffn), SOURCE, target.resized(num_hidden_layers=2))
    assert sum(layers_short_of_scores(without_last, scores(ffn=ffn)).values()) < 3


def test_kept_layers_keep_their_order_and_bring_their_own_neurons() -> None:
    ffn = torch.zeros(3, 14)
    ffn[0, 0] = ffn[1, 5] = ffn[2, 9] = 1.0
    importance = scores(layers=torch.tensor([2.0, 1, 3]), ffn=ffn)
    target = SOURCE.resized(num_hidden_layers=2, intermediate_size=1)
    plan = choose_plan(importance, SOURCE, target)
    assert plan.layers == (0, 2)
    assert plan.ffn == ((0,), (9,))


def test_an_axis_that_is_not_cut_is_kept_whole_without_scores() -> None:
    importance = Importance(made_by={}, hidden=torch.rand(10))
    plan = choose_plan(importance, SOURCE, SOURCE.resized(hidden_size=5))
    assert plan.heads == (tuple(range(6)),) * 3
    assert plan.kept_indices("heads", 0) is None
    assert plan.to_json().keys() == {"hidden"}


def test_kept_indices_are_recorded_as_runs() -> None:
    hidden = torch.tensor([1.0, 1, 1, 0, 0, 1, 0, 1, 1, 0])
    plan = choose_plan(scores(hidden=hidden), SOURCE, SOURCE.resized(hidden_size=6))
    assert plan.to_json() == {"hidden": "0-2,5,7-8"}


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("hidden", [4, 10])
def test_a_plan_is_read_as_it_was_written(layers: int, hidden: int) -> None:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4}
    target = SOURCE.resized(**sizes, intermediate_size=9)
    plan = choose_plan(scores(), SOURCE, target, head_residual=True)
    assert plan.partners is not None
    assert PruningPlan.from_json(plan.to_json(), SOURCE, target) == plan
    with pytest.raises(TargetError, match="kept.ffn must be 9 of the indices below 14"):
        PruningPlan.from_json({**plan.to_json(), "ffn": ["0-8"]}, SOURCE, target)


def test_the_share_kept_counts_only_kept_layers() -> None:
    ffn = torch.zeros(3, 14)
    ffn[0, :4] = ffn[2, :4] = 1.0
    ffn[1] = 100.0
    importance = scores(layers=torch.tensor([2.0, 1, 3]), ffn=ffn)
    plan = choose_plan(importance, SOURCE, SOURCE.resized(num_hidden_layers=2, intermediate_size=3))
    assert share_kept(plan, importance) == pytest.approx({"ffn": 6 / 8, "layers": 5 / 6})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"num_key_value_heads": 3, "num_attention_heads": 9},
            "num_key_value_heads 3 is larger than the source's 2",
        ),
        ({"hidden_size": 11}, "hidden_size 11 is larger than the source's 10"),
        ({"num_hidden_layers": 4}, "num_hidden_layers 4 is larger than the source's 3"),
        ({"vocab_size": 20}, "vocab_size cannot be pruned"),
        ({"head_dim": 2}, "head_dim cannot be pruned"),
    ],
)
def test_a_target_that_is_no_cut_is_refused(target: dict[str, int], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        axes_to_rank(SOURCE, SOURCE.resized(**target))


def test_heads_that_do_not_divide_into_their_groups_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="num_attention_heads is 5: it must be a multiple"):
        SOURCE.resized(num_attention_heads=5)


@pytest.mark.parametrize("axis", ["hidden", "ffn", "heads", "layers"])
def test_scores_of_another_model_are_refused(axis: str) -> None:
    other = scores(**{axis: torch.rand(7)})
    with pytest.raises(ImportanceError, match=f"{axis} scores of shape .* another model"):
        choose_plan(other, SOURCE, SOURCE.resized(hidden_size=5))


def test_an_axis_that_was_not_measured_is_named() -> None:
    with pytest.raises(ImportanceError, match="no ffn scores"):
        choose_plan(Importance(made_by={}), SOURCE, SOURCE.resized(intermediate_size=5))


def test_whole_kv_groups_go_with_their_heads() -> None:
    source = Architecture("nemotron", 10, 14, 2, 8, 4, 4, 21)
    groups = torch.tensor([[1.0, 4, 2, 3], [9, 1, 2, 8]])
    heads = torch.tensor([[8.0, 7, 1, 2, 9, 9, 6, 5], [1, 2, 3, 4, 5, 6, 8, 7]])
    importance = Importance(made_by={}, heads=heads, kv_heads=groups)
    plan = choose_plan(
        importance, source, source.resized(num_key_value_heads=2, num_attention_heads=4)
    )
    assert plan.kv_heads == ((1, 3), (0, 3))
    assert plan.heads == ((2, 3, 6, 7), (0, 1, 6, 7))
    narrower = source.resized(num_key_value_heads=2, num_attention_heads=2)
    assert choose_plan(importance, source, narrower).heads == ((3, 6), (1, 6))


def test_fewer_groups_cannot_have_larger_ones() -> None:
    source = Architecture("nemotron", 10, 14, 2, 8, 4, 4, 21)
    target = source.resized(num_key_value_heads=2, num_attention_heads=8)
    with pytest.raises(TargetError, match="8 heads in 2 KV groups are 4 a group, .* has 2"):
        axes_to_rank(source, target)


@pytest.mark.parametrize(
    ("blocks", "kept"),
    [(None, (0, 1, 4)), ([5.0, 4, 3, 1], (0, 1, 2)), ([0.5, 4, 3, 1], (2, 3, 4))],
)
def test_contiguous_layers_go_as_the_block_that_scores_least(
    blocks: list[float] | None, kept: tuple[int, ...]
) -> None:
    source = Architecture("nemotron", 10, 14, 5, 6, 2, 4, 21)
    importance = Importance(
        made_by={"block_size": 2},
        layers=torch.tensor([0.5, 9, 2, 1, 7]),
        blocks=None if blocks is None else torch.tensor(blocks),
    )
    target = source.resized(num_hidden_layers=3)
    assert choose_plan(importance, source, target, contiguous=True).layers == kept
    assert choose_plan(importance, source, target).layers == (1, 2, 4)


@pytest.mark.parametrize(
    ("heads", "partners"),
    [
        # By rank 4 1 3 0 2. Three stay: rank 2 takes in rank 5, rank 3 takes in rank 4.
        (3, {4: 4, 1: 2, 3: 0}),
        (4, {4: 4, 1: 1, 3: 3, 0: 2}),
        # Two stay: each takes in one, and the last of all takes none.
        (2, {4: 0, 1: 3}),
        (1, {4: 1}),
    ],
)
def test_each_low_kept_head_takes_in_one_pruned_head_of_its_group(
    heads: int, partners: dict[int, int]
) -> None:
    source = Architecture("nemotron", 10, 14, 1, 10, 2, 4, 21)
    scores_of_group = torch.tensor([2.0, 4, 1, 3, 5])
    importance = Importance(made_by={}, heads=torch.cat([scores_of_group] * 2)[None])
    plan = choose_plan(
        importance, source, source.resized(num_attention_heads=2 * heads), head_residual=True
    )
    assert plan.partners is not None
    both = {head + 5 * group: p + 5 * group for group in (0, 1) for head, p in partners.items()}
    assert dict(zip(plan.heads[0], plan.partners[0], strict=True)) == both


def test_two_plans_are_one() -> None:
    middle = SOURCE.resized(
        hidden_size=7, intermediate_size=9, num_attention_heads=4, num_hidden_layers=2
    )
    last = middle.resized(hidden_size=4, intermediate_size=3, num_attention_heads=2)
    first = choose_plan(scores(), SOURCE, middle)
    generator = torch.Generator().manual_seed(1)
    drawn = Importance(
        made_by={},
        hidden=torch.rand(7, generator=generator),
        ffn=torch.rand(2, 9, generator=generator),
        heads=torch.rand(2, 4, generator=generator),
    )
    second = choose_plan(drawn, middle, last)
    both = first.then(second)
    assert (both.source, both.target, both.layers) == (SOURCE, last, first.layers)
    assert both.hidden == tuple(first.hidden[i] for i in second.hidden)
    for layer in range(2):
        assert both.ffn[layer] == tuple(first.ffn[layer][i] for i in second.ffn[layer])
        assert both.heads[layer] == tuple(first.heads[layer][i] for i in second.heads[layer])
