"""A score is what the formula says, for every pair of aggregations, however values are cut."""

import pytest
import torch

from minitron.errors import TargetError
from minitron.scores import aggregation
from minitron.scores.aggregation import KINDS, Aggregation, batch_score, sequence_scores, sums_of

PAIRS = [(batch, sequence) for batch in KINDS for sequence in KINDS]
# Two sequences of three tokens of two units.
BY_HAND = torch.tensor(
    [[[3.0, 0.0], [-4.0, 1.0], [1.0, 2.0]], [[2.0, -2.0], [2.0, 4.0], [2.0, 1.0]]]
)
OF_SEQUENCES = {
    "mean": [[8 / 3, 1.0], [2.0, 7 / 3]],
    "l2": [[26**0.5, 5**0.5], [12**0.5, 21**0.5]],
    "var": [[26 / 3, 2 / 3], [0.0, 6.0]],
}


def by_hand(batch: str, scores: list[list[float]]) -> list[float]:
    combined = []
    for a, b in zip(*scores, strict=True):
        mean = (a + b) / 2
        combined.append(
            {
                "mean": mean,
                "l2": (a * a + b * b) ** 0.5,
                "var": ((a - mean) ** 2 + (b - mean) ** 2) / 2,
            }[batch]
        )
    return combined


@pytest.mark.parametrize(("batch", "sequence"), PAIRS)
def test_every_pair_equals_a_hand_computation(batch: str, sequence: str) -> None:
    scores = sequence_scores(BY_HAND, sequence)
    torch.testing.assert_close(scores, torch.tensor(OF_SEQUENCES[sequence]))
    wanted = torch.tensor(by_hand(batch, OF_SEQUENCES[sequence])).double()
    torch.testing.assert_close(batch_score(sums_of(scores), 2, batch), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 18])
@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_blocks_does_not_change_scores(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 11, 7) + 3
    wanted = {
        "mean": values.abs().mean(1),
        "l2": values.norm(dim=1),
        "var": values.var(1, correction=0),
    }[kind]
    monkeypatch.setattr(aggregation, "_CPU_BLOCK", size)
    torch.testing.assert_close(sequence_scores(values, kind), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_overflow_half_precision_when_summed_do_not(kind: str) -> None:
    values = torch.full((1, 3000, 2), 60000.0, dtype=torch.float16)
    values[:, ::2, 1] = 0
    wanted = {
        "mean": [60000.0, 30000.0],
        "l2": [60000 * 3000**0.5, 60000 * 1500**0.5],
        "var": [0.0, 30000.0**2],
    }
    torch.testing.assert_close(sequence_scores(values, kind), torch.tensor([wanted[kind]]))


def test_bfloat16_is_summed_without_its_rounding() -> None:
    values = torch.full((1, 10_000, 1), 1.0078125, dtype=torch.bfloat16)
    assert sequence_scores(values, "mean").item() == pytest.approx(1.0078125, rel=1e-6)


def test_a_small_variance_beside_a_large_mean_is_not_lost() -> None:
    values = 1000 + torch.tensor([0.0, 0.5]).repeat(500)[None, :, None]
    assert sequence_scores(values, "var").item() == pytest.approx(1 / 16, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_units_made_of_values_are_scored(kind: str, dtype: torch.dtype) -> None:
    values = torch.randn(3, 7, 6).to(dtype)
    norms = values.float().unflatten(-1, (2, 3)).norm(dim=-1)
    scores = sequence_scores(
        values, kind, lambda block: block.unflatten(-1, (2, 3)).norm(dim=-1), is_positive=True
    )
    torch.testing.assert_close(scores, sequence_scores(norms, kind))


def test_the_values_themselves_are_left_alone() -> None:
    values = torch.randn(2, 5, 3)
    before = values.clone()
    for kind in KINDS:
        sequence_scores(values, kind)
    assert torch.equal(values, before)


def test_an_aggregation_is_read_as_it_is_written() -> None:
    assert Aggregation.parse("l2,mean") == Aggregation()
    assert Aggregation.parse(" Mean , var ") == Aggregation("mean", "var")


@pytest.mark.parametrize("text", ["", "l2", "l2,max", "l2,mean,var", "l2 mean"])
def test_what_is_no_aggregation_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="must be two of l2, mean, var"):
        Aggregation.parse(text)
