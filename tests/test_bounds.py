"""A number that a command cannot use is refused before anything is opened, in the flag's name."""

from dataclasses import fields

import pytest

import minitron
from minitron import recipe
from minitron.bounds import Bound
from minitron.errors import TargetError

RECIPES = [each for each in vars(recipe).values() if isinstance(each, type)]
COUNTS = ("samples", "batch_size", "steps", "top_k", "limit", "max_new_tokens", "save_steps")


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        (Bound(at_least=1), [1, 2], [0, -1, float("inf"), float("nan")]),
        (Bound(above=0), [1e-9, 1], [0, -1.0, float("inf")]),
        (Bound(above=0, at_most=1), [0.5, 1], [0, 1.01, float("nan")]),
        (Bound(at_least=1, at_most=65535), [1, 65535], [0, 65536]),
    ],
)
def test_a_bound_contains_finite_numbers_between_its_ends(
    bound: Bound, inside: list[float], outside: list[float]
) -> None:
    assert all(map(bound.contains, inside))
    assert not any(map(bound.contains, outside))


@pytest.mark.parametrize(("port", "reason"), [(0, "at least 1"), (65536, "at most 65535")])
def test_the_message_names_the_flag_the_value_and_the_range(port: int, reason: str) -> None:
    with pytest.raises(TargetError, match=f"^--port is {port}: it must be .*{reason}"):
        minitron.demo(port=port)


def test_every_count_of_every_recipe_is_bounded() -> None:
    checked = {
        (each.__name__, field.name)
        for each in RECIPES
        if issubclass(each, recipe.Recipe)
        for field in fields(each)
        if field.name in COUNTS and "bound" not in field.metadata
    }
    assert not checked
