"""A space holds what its grid says, counted exactly; the paper's spaces hold the paper's models."""

from itertools import product

import pytest

from minitron.candidates.space import (
    SPACES,
    Space,
    default_space,
    enumerate_space,
    nearest_per_depth,
    scale_widths,
    width_multiple,
)
from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from minitron.model.families import FAMILIES
from tests.tiny import SIZES

WHOLE = Architecture("nemotron", **SIZES)
NEMOTRON_15B = Architecture("nemotron", 6144, 24576, 32, 48, 8, 128, 256_000)
MINITRON_8B = Architecture("nemotron", 4096, 16384, 32, 48, 8, 128, 256_000)
TEACHER = Architecture("nemotron", 256, 1024, 6, 8, 2, 48, 4096)  # minitron's zoo: tiny

# The candidates that the paper lists for 8B: layers, heads, ffn, hidden (2407.14679, table 19).
_WIDE = [(32, 12800, 5120), (32, 16128, 4608), (48, 13824, 4608), (48, 16384, 4096)]
PRINTED_8B = {
    *((32, *of) for of in [(32, 12800, 5120), (32, 13824, 4608), (48, 11520, 4608)]),
    (32, 48, 16384, 4096),
    *((31, *of) for of in _WIDE),
    *((30, *of) for of in _WIDE),
    *((29, *of) for of in _WIDE[:3]),
}


def within(name: str, source: Architecture, target: float) -> set[tuple[int, int, int, int]]:
    return {
        (a.num_hidden_layers, a.num_attention_heads, a.intermediate_size, a.hidden_size)
        for a, parameters in enumerate_space(SPACES[name], source)
        if abs(parameters / target - 1) <= 0.05
    }


def test_the_papers_fifteen_candidates_for_8b_are_among_ours() -> None:
    assert len(PRINTED_8B) == 15
    ours = within("paper-8b", NEMOTRON_15B, 8.27e9)
    assert ours >= PRINTED_8B
    assert len(ours) == 20


@pytest.mark.parametrize(
    ("space", "source", "target", "count"),
    [
        ("paper-8b", NEMOTRON_15B, 8_271_699_968, 20),
        ("paper-8b", NEMOTRON_15B, 8.0e9, 18),
        ("paper-4b", NEMOTRON_15B, 4_190_509_056, 16),
        ("paper-4b", NEMOTRON_15B, 4.0e9, 18),
        ("paper-4b", MINITRON_8B, 4.0e9, 18),
    ],
)
def test_the_papers_spaces_hold_these_many_within_five_percent(
    space: str, source: Architecture, target: float, count: int
) -> None:
    assert len(within(space, source, target)) == count


@pytest.mark.parametrize(
    ("space", "sizes", "parameters"),
    [
        ("paper-8b", (32, 48, 16384, 4096), 8_271_699_968),
        ("paper-8b", (32, 48, 24576, 6144), 15_628_775_424),
        ("paper-4b", (32, 24, 9216, 3072), 4_190_509_056),
    ],
)
def test_counts_are_those_of_the_published_models(
    space: str, sizes: tuple[int, ...], parameters: int
) -> None:
    found = {
        (a.num_hidden_layers, a.num_attention_heads, a.intermediate_size, a.hidden_size): count
        for a, count in enumerate_space(SPACES[space], NEMOTRON_15B)
    }
    assert found[sizes] == parameters


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flags", [frozenset(), frozenset({"tie_word_embeddings"})])
def test_enumeration_equals_brute_force(family: str, flags: frozenset[str]) -> None:
    whole = Architecture(family, **SIZES, flags=flags)
    layers, heads, widths = (2, 4, 5), (2, 3, 4, 6, 8), ((42, 66), (36, 50), (43, 50), (30, 67))
    brute = {
        (depth, head, hidden, ffn): whole.resized(
            num_hidden_layers=depth,
            num_attention_heads=head,
            hidden_size=hidden,
            intermediate_size=ffn,
        ).parameters
        for depth, head, (hidden, ffn) in product(layers, heads, widths)
        if depth <= 4 and head <= 6 and head % 2 == 0 and hidden <= 42 and ffn <= 66
    }
    found = [
        ((a.num_hidden_layers, a.num_attention_heads, a.hidden_size, a.intermediate_size), count)
        for a, count in enumerate_space(Space(layers, heads, widths), whole)
    ]
    assert len(found) == len(brute) == 12
    assert dict(found) == brute


def test_a_space_of_which_nothing_is_a_cut_is_refused() -> None:
    with pytest.raises(
        TargetError, match="nothing of this space is smaller than 6 layers, 8 heads"
    ):
        list(enumerate_space(SPACES["paper-8b"], TEACHER))


@pytest.mark.parametrize("whole", [NEMOTRON_15B, TEACHER, WHOLE])
def test_the_default_space_holds_even_cuts_and_the_source(whole: Architecture) -> None:
    space, multiple = default_space(whole), width_multiple(whole, None)
    assert space.inside(whole) == space
    assert (whole.hidden_size, whole.intermediate_size) in space.widths
    assert max(space.layers) == whole.num_hidden_layers
    assert min(space.layers) >= 0.75 * whole.num_hidden_layers
    assert max(space.heads) == whole.num_attention_heads
    assert 2 * min(space.heads) >= whole.num_attention_heads
    assert all(heads % whole.num_key_value_heads == 0 for heads in space.heads)
    for hidden, ffn in space.widths:
        assert hidden % multiple == 0 or hidden == whole.hidden_size
        assert ffn % multiple == 0 or ffn == whole.intermediate_size
        own = whole.intermediate_size / whole.hidden_size
        assert own / 2 <= ffn / hidden <= 2 * own
    assert len(set(space.widths)) == len(space.widths)


def test_the_default_space_takes_multiples_and_depths_as_asked() -> None:
    space = default_space(NEMOTRON_15B, multiple_of=1000, min_layers=31)
    assert space.layers == (31, 32)
    assert {hidden for hidden, _ in space.widths} == {1000, 2000, 3000, 4000, 5000, 6000, 6144}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"multiple_of": 0}, "--multiple-of is 0: it must be from 1 to the hidden_size, 42"),
        ({"multiple_of": 43}, "--multiple-of is 43"),
        ({"min_layers": 0}, "--min-layers is 0: it must be from 1 to 4"),
        ({"min_layers": 5}, "--min-layers is 5"),
    ],
)
def test_a_space_that_means_nothing_is_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(TargetError, match=says):
        default_space(WHOLE, **options)


def llama(hidden: int, ffn: int, heads: int, groups: int) -> Architecture:
    return Architecture("llama", hidden, ffn, 30, heads, groups, 64, 49_152)


@pytest.mark.parametrize(
    ("whole", "widths"),
    [
        (Architecture("qwen2", 896, 4864, 24, 14, 2, 64, 151_936), 10),
        (Architecture("mistral", 576, 1536, 30, 9, 3, 64, 49_152), 8),
        (llama(512, 2048, 8, 4), 8),
        (llama(3584, 18_944, 28, 4), 8),
    ],
)
def test_widths_are_multiples_of_64_where_there_are_enough(
    whole: Architecture, widths: int
) -> None:
    space = default_space(whole)
    hidden = {size for size, _ in space.widths}
    assert len(hidden) >= widths
    assert all(size % 64 == 0 for pair in space.widths for size in pair)


@pytest.mark.parametrize(
    ("whole", "least"),
    [(llama(576, 1536, 9, 3), 10), (llama(2560, 6912, 20, 20), 8), (llama(960, 2560, 15, 5), 8)],
)
@pytest.mark.parametrize("is_fine", [False, True])
def test_every_number_of_heads_has_hidden_sizes_that_llama_takes(
    whole: Architecture, least: int, is_fine: bool
) -> None:
    space = default_space(whole, is_fine=is_fine)
    for heads in space.heads:
        hidden = {size for size, _ in space.widths if size % heads == 0}
        assert len(hidden) >= least, (heads, hidden)


def test_heads_that_share_no_kv_head_go_by_eighths() -> None:
    assert default_space(llama(4096, 11_008, 32, 32)).heads == (16, 20, 24, 28, 32)
    whole = llama(576, 1536, 9, 9)
    assert default_space(whole).heads == (5, 6, 7, 8, 9)
    found = [at for at, _ in enumerate_space(default_space(whole), whole)]
    assert all(at.num_key_value_heads == at.num_attention_heads for at in found)


@pytest.mark.parametrize("ratio", [0.9, 0.75, 0.6, 0.5, 0.3])
@pytest.mark.parametrize("heads", [(9, 3), (12, 12), (7, 1)])
def test_a_uniform_cut_of_a_llama_comes_near_by_sizes_that_it_takes(
    ratio: float, heads: tuple[int, int]
) -> None:
    whole = llama(64 * heads[0], 1536, *heads)
    cut = scale_widths(whole, ratio, accepts=lambda one: one.is_accepted)
    assert cut.is_accepted
    assert abs(cut.parameters / whole.parameters / ratio - 1) <= 0.02
    factors = cut.hidden_size / whole.hidden_size, cut.intermediate_size / whole.intermediate_size
    assert abs(factors[0] - factors[1]) <= 0.07


def test_too_many_are_thinned_depths_in_turn_to_those_nearest() -> None:
    depths = [4, 4, 4, 3, 3, 2]
    misses = [0.04, 0.01, 0.02, 0.03, 0.00, 0.05]

    def kept(count: int) -> list[int]:
        return nearest_per_depth(range(6), count, depth=depths.__getitem__, miss=misses.__getitem__)

    assert kept(1) == [1]
    assert kept(2) == [1, 4]
    assert kept(3) == [1, 4, 5]
    assert kept(4) == [1, 2, 4, 5]
    assert kept(5) == [1, 2, 3, 4, 5]
    assert kept(9) == [0, 1, 2, 3, 4, 5]


def test_half_of_the_teacher_is_what_quickstart_takes() -> None:
    half = scale_widths(TEACHER, 0.5)
    assert (half.hidden_size, half.intermediate_size) == (160, 608)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ratio", [1.0, 0.75, 0.5, 0.33, 0.2])
def test_a_uniform_cut_scales_both_widths_by_one_factor(family: str, ratio: float) -> None:
    whole = Architecture(family, 1536, 4224, 6, 12, 4, 96, 32_003)
    cut = scale_widths(whole, ratio, 16)
    assert abs(cut.parameters / whole.parameters / ratio - 1) <= 0.05
    assert cut == whole.resized(
        hidden_size=cut.hidden_size, intermediate_size=cut.intermediate_size
    )
    assert cut.hidden_size % 16 == cut.intermediate_size % 16 == 0
    factors = cut.hidden_size / whole.hidden_size, cut.intermediate_size / whole.intermediate_size
    assert abs(factors[0] - factors[1]) <= 8 / 1536 + 8 / 4224


def test_a_uniform_cut_takes_no_sizes_that_the_family_refuses() -> None:
    def accepts(one: Architecture) -> bool:
        return one.hidden_size % 12 == 0

    whole = Architecture("llama", 1536, 4224, 6, 12, 4, 96, 32_003)
    assert scale_widths(whole, 0.5, 4).hidden_size % 12 != 0
    assert scale_widths(whole, 0.5, 4, accepts=accepts).hidden_size % 12 == 0


def test_a_narrow_model_takes_finer_steps_where_the_ratio_needs_them() -> None:
    assert scale_widths(TEACHER, 0.3).hidden_size % 16
    with pytest.raises(TargetError, match="the nearest uniform width, hidden_size 112 and inter"):
        scale_widths(TEACHER, 0.3, 16)
