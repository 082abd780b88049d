"""What stands beside a field: bounds, which name the flag; help; and the name that was meant."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minitron
from minitron.errors import TargetError
from minitron.options import Bound, help_of, nearest, parse_bytes, sections_of
from minitron.recipe import Recipe
from minitron.recipes import COMMANDS
from minitron.recipes.conversion import ConvertRecipe
from minitron.recipes.evaluation import EvaluateRecipe
from minitron.recipes.first_steps import GenerateRecipe
from minitron.recipes.importance import ImportanceRecipe
from minitron.recipes.pruning import PruneRecipe, SearchRecipe
from minitron.recipes.training import DistillRecipe, TeacherCacheRecipe, TrainRecipe

RECIPES = [one for group in COMMANDS.values() for one in group]
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
        for field in fields(each)
        if field.name in COUNTS and "bound" not in field.metadata
    }
    assert not checked


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        (PruneRecipe, "num-layers layers n-layers num_layer", "num_hidden_layers"),
        (PruneRecipe, "hidden-dim hiden-size", "hidden_size"),
        (PruneRecipe, "ffn-hidden-size ffn mlp-size", "intermediate_size"),
        (PruneRecipe, "heads num-heads n-heads", "num_attention_heads"),
        (PruneRecipe, "kv-heads num-kv-heads", "num_key_value_heads"),
        (PruneRecipe, "model", "source"),
        (PruneRecipe, "output output-dir", "out"),
        (PruneRecipe, "max-length sequence-length", "seq_len"),
        (TrainRecipe, "lr", "learning_rate"),
        (TrainRecipe, "max-steps", "steps"),
        (TrainRecipe, "data dataset", "corpus"),
        (TrainRecipe, "grad-accum", "gradient_accumulation_steps"),
        (GenerateRecipe, "max-length max-tokens", "max_new_tokens"),
        (DistillRecipe, "teacher-model", "teacher"),
    ],
)
def test_the_option_that_a_name_of_another_tool_means_is_found(
    command: type[Recipe], typed: str, meant: str
) -> None:
    names = [name for section in sections_of(command).values() for name in section]
    assert {name: nearest(name, names) for name in typed.split()} == dict.fromkeys(
        typed.split(), meant
    )


def test_a_name_that_resembles_nothing_suggests_nothing() -> None:
    assert nearest("xyz", ["source", "out"]) is None


@pytest.mark.parametrize("each", RECIPES)
def test_every_field_has_help_and_a_section_and_every_command_has_examples(
    each: type[Recipe],
) -> None:
    names = [field.name for field in fields(each)]
    assert set(names) <= {name for name, text in help_of(each).items() if text}
    assert sorted(name for section in sections_of(each).values() for name in section) == sorted(
        names
    )
    assert "Examples:" in (each.__doc__ or "")


def test_help_of_a_verb_in_python_documents_its_arguments() -> None:
    documentation = minitron.prune.__doc__ or ""
    assert documentation.startswith("Cut a model to smaller sizes by importance")
    assert "\n    hidden_size: Width of the residual stream to keep.\n" in documentation
    assert "\n    corpus: Text to measure on: a .txt" in documentation


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"num_layers": 3},
            r"prune\(\) has no argument num_layers: did you mean num_hidden_layers\?",
        ),
        ({"xyz": 3}, r"^prune\(\) has no argument xyz$"),
        ({}, r"^prune\(\): missing a required argument: 'source'"),
    ],
)
def test_a_wrong_keyword_in_python_names_the_verb(arguments: dict[str, int], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        minitron.prune(**arguments)  # type: ignore[arg-type]


PRUNE = {"source": "tiny", "out": "out", "hidden_size": 192}
SEARCH = {"source": "tiny", "ratio": 0.5, "corpus": "self"}
DISTILL = {"student": "tiny-half", "out": "out", "corpus": "self"}


@pytest.mark.parametrize(
    ("recipe_type", "options", "says"),
    [
        (PruneRecipe, {**PRUNE, "eval_tokens": 9}, "--eval-tokens has no effect without a budget"),
        (PruneRecipe, {**PRUNE, "held_out": "t.txt"}, "--held-out has no effect without a budget"),
        (PruneRecipe, {**PRUNE, "private": True}, "--private has no effect without --push-to-hub"),
        (PruneRecipe, {**PRUNE, "scores": "random", "corpus": "self"}, "--corpus has no effect"),
        (PruneRecipe, {**PRUNE, "scores": "magnitude", "neurons": "before"}, "--neurons has no"),
        (PruneRecipe, {**PRUNE, "importance": "f", "samples": 8}, "--samples has no effect with"),
        (PruneRecipe, {**PRUNE, "importance": "f", "seq_len": 8}, "--seq-len has no effect with"),
        (PruneRecipe, {**PRUNE, "corpus": "self", "block_size": 2}, "without --contiguous-layers"),
        (ImportanceRecipe, {"source": "tiny", "out": "o", "scores": "random", "samples": 8}, "no"),
        (SearchRecipe, {**SEARCH, "top": 2}, "--top has no effect without --latency, --device or"),
        (SearchRecipe, {**SEARCH, "learning_rate": 1.0}, "has no effect without --retrain-steps"),
        (
            TrainRecipe,
            {"out": "o", "init": "tiny", "corpus": "self", "steps": 1, "epochs": 2},
            "no",
        ),
        (DistillRecipe, {**DISTILL, "teacher_cache": "c", "stream_teacher": True}, "--stream-tea"),
        (DistillRecipe, {**DISTILL, "teacher": "tiny", "beta": 0.1}, "no effect with --kind forw"),
        (
            EvaluateRecipe,
            {"source": "tiny", "corpus": "t.txt", "limit": 10},
            "--limit has no effec",
        ),
        (GenerateRecipe, {"source": "tiny", "prompt": "a", "top_p": 0.9}, "at --temperature 0"),
    ],
)
def test_an_option_without_effect_is_refused(
    recipe_type: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(TargetError, match=says):
        recipe_type(**options)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 * 1024**3),
        ("800MB", 800_000_000),
        ("1.5 kib", 1536),
        ("4096", 4096),
        ("2 tb", 2e12),
    ],
)
def test_a_size_is_read_as_it_is_written(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory-budget") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "6 gigs", "1,5GB", "6GiB!"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="--memory-budget is .* write a size such as 6GiB"):
        parse_bytes(text, "--memory-budget")


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("hidden_size", "160", "a whole number"),
        ("hidden_size", True, "a whole number"),
        ("samples", 8.0, "a whole number"),
        ("ratio", "half", "a number"),
        ("dry_run", 1, "True or False"),
        ("corpus", 3, "a text"),
        ("neurons", 3, "one of after, before"),
    ],
)
def test_a_value_of_a_wrong_type_names_the_argument_and_what_is_expected(
    argument: str, value: Any, expected: str
) -> None:
    with pytest.raises(TargetError) as raised:
        minitron.prune("tiny", "out", **{argument: value})
    assert str(raised.value) == f"{argument} is {value!r}: it must be {expected}"


@pytest.mark.parametrize(
    ("recipe_type", "options", "says"),
    [
        (PruneRecipe, {"neurons": "behind"}, "neurons is behind: it must be one of after, before"),
        (
            PruneRecipe,
            {"hidden": 160},
            "hidden is 160: it must be one of auto, select, rotate; did you mean hidden_size?",
        ),
        (ConvertRecipe, {"to": "ggml"}, "to is ggml: it must be one of hub, nemo, nemo2, trtllm, "),
        (TeacherCacheRecipe, {"corpus": "t.txt", "dtype": "half"}, "dtype is half: it must be one"),
        (
            DistillRecipe,
            {"corpus": "t.txt", "alpha": "on"},
            "alpha is on: it must be a number or one of auto, dynamic",
        ),
    ],
)
def test_a_choice_that_does_not_exist_is_refused_in_python(
    recipe_type: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(TargetError) as raised:
        recipe_type("tiny", "out", **options)
    assert str(raised.value).startswith(says)


def test_numbers_of_numpy_and_paths_are_of_the_right_type() -> None:
    PruneRecipe("tiny", Path("out"), hidden_size=np.int64(160))  # type: ignore[arg-type]
    SearchRecipe("tiny", ratio=1)


@pytest.mark.parametrize(
    ("scores", "corpus", "is_reconstructed"),
    [
        ("paper", "books.txt", True),
        ("contribution", "books.txt", True),
        ("contribution", "random", False),
        ("obs", "books.txt", True),
        ("modelopt", "books.txt", False),
    ],
)
def test_what_is_reconstructed_by_default(scores: Any, corpus: str, is_reconstructed: bool) -> None:
    recipe = PruneRecipe(**PRUNE, scores=scores, corpus=corpus)
    assert recipe.is_reconstructed == is_reconstructed
