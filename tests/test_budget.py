"""A budget is read as a person writes it and met within 5 %; memory is what a model holds."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minitron.candidates.budget import (
    Budget,
    Cost,
    Use,
    budget_of,
    memory_needed,
    parse_parameters,
    parse_seconds,
)
from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from minitron.recipes.pruning import SearchRecipe
from modeling_nemotron import CACHE_NAME
from tests.tiny import FAMILIES, SIZES, tiny_model

WHOLE = Architecture("nemotron", **SIZES)


def asked(**options: object) -> Budget:
    return budget_of(SearchRecipe("tiny", **options), WHOLE)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4B", 4_000_000_000),
        ("4b", 4_000_000_000),
        ("8.27B", 8_270_000_000),
        ("500M", 500_000_000),
        (" 12 k ", 12_000),
        ("4190509056", 4_190_509_056),
        ("4,190,509,056", 4_190_509_056),
        ("1T", 10**12),
    ],
)
def test_parameters_are_read_as_written(text: str, count: int) -> None:
    assert parse_parameters(text) == count


@pytest.mark.parametrize("text", ["", "B", "4GB", "four", "-4B", "1.2.3B", "4B5"])
def test_what_is_no_number_of_parameters_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="--params is .*: write a number such as 4B"):
        parse_parameters(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("20ms", 0.02), ("0.02s", 0.02), ("800us", 0.0008), ("1.5 MS", 0.0015)]
)
def test_a_time_is_read_as_written(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["20", "ms", "20 min", "0ms", "-1ms"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="--latency is .*: write a time such as 20ms"):
        parse_seconds(text)


def test_a_recipe_becomes_a_budget() -> None:
    assert asked(params="4B", memory="8GiB", latency="20ms") == Budget(4 * 10**9, 8 << 30, 0.02)
    assert asked(params=4_000_000_000).parameters == 4 * 10**9
    assert asked(ratio=0.5).parameters == round(WHOLE.parameters / 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "no budget is given: name --params, --ratio, --memory or --latency"),
        ({"params": "4B", "ratio": 0.5}, "--params and --ratio are both given"),
        ({"params": "0"}, "--params is '0': it must be above 0"),
        ({"params": "0B"}, "--params is '0B': it must be above 0"),
        ({"ratio": 0.0}, "--ratio is 0: it must be above 0 and at most 1"),
        ({"ratio": 1.01}, "--ratio is 1.01"),
        ({"ratio": float("nan")}, "--ratio is nan"),
        ({"memory": "8 apples"}, "--memory is '8 apples'"),
        ({"memory": "0GiB"}, "--memory is '0GiB': it must be above 0"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(TargetError, match=says):
        asked(**options)


@pytest.mark.parametrize(
    ("parameters", "is_met"), [(949, False), (950, True), (1000, True), (1050, True), (1051, False)]
)
def test_parameters_are_met_within_five_percent(parameters: int, is_met: bool) -> None:
    assert Budget(parameters=1000).is_met_by(Cost(parameters, memory=1)) is is_met


@pytest.mark.parametrize(
    ("memory", "is_met"), [(949, False), (950, True), (1050, True), (1051, False)]
)
def test_a_limit_alone_is_to_be_used_and_kept(memory: int, is_met: bool) -> None:
    assert Budget(memory=1000).is_met_by(Cost(7, memory)) is is_met
    assert Budget(latency=1.0).is_met_by(Cost(7, 7, memory / 1000)) is is_met


def test_beside_parameters_a_limit_is_only_to_be_kept() -> None:
    budget = Budget(parameters=1000, memory=500, latency=0.1)
    assert budget.is_met_by(Cost(1000, 3, 0.001))
    assert not budget.is_met_by(Cost(1000, 526, 0.001))
    assert not budget.is_met_by(Cost(1000, 3, 0.1051))
    assert not budget.is_met_by(Cost(900, 500, 0.1))


def test_of_two_limits_the_tighter_one_is_to_be_used() -> None:
    budget = Budget(memory=1000, latency=1.0)
    assert budget.is_met_by(Cost(7, 1000, 0.2))
    assert budget.is_met_by(Cost(7, 200, 1.0))
    assert not budget.is_met_by(Cost(7, 900, 0.9))
    assert not budget.is_met_by(Cost(7, 1000, 1.2))


def test_the_nearest_is_the_one_that_misses_least() -> None:
    budget = Budget(parameters=1000, memory=100)
    assert budget.miss(Cost(1100, 100)) == pytest.approx(0.1)
    assert budget.miss(Cost(1100, 130)) == pytest.approx(0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_cache_are_those_of_the_real_model(family: str) -> None:
    model = tiny_model(family)
    architecture = Architecture.from_config(model.config.to_dict())
    batch, context = 2, 4  # within every sliding window
    with torch.inference_mode():
        cache = model(torch.ones(batch, context, dtype=torch.long))[CACHE_NAME]
    held = sum(p.nbytes for p in model.parameters())
    held += sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    width = max(4 * 6 * 8 + 4 * 2 * 8, 3 * 66)
    activations = batch * context * (4 * 42 + width) * 4 + batch * 101 * 4
    assert memory_needed(architecture, Use(batch, context, 4)) == held + activations


class LiveBytes(TorchDispatchMode):
    """Counts what tensors hold that were made inside, and the most of it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._alive.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


@pytest.mark.parametrize(
    ("family", "ffn", "heads"), [("nemotron", 512, 4), ("llama", 448, 4), ("qwen3", 48, 16)]
)
def test_a_prompt_holds_about_what_is_stated(family: str, ffn: int, heads: int) -> None:
    model = tiny_model(
        family, hidden_size=128, intermediate_size=ffn, num_attention_heads=heads, head_dim=40
    )
    architecture = Architecture.from_config(model.config.to_dict())
    with torch.inference_mode(), LiveBytes() as live:
        model(input_ids=torch.ones(2, 256, dtype=torch.long), logits_to_keep=1)
    message = memory_needed(architecture, Use(2, 256, 4)) - 4 * architecture.parameters
    assert 0.9 < message / live.peak < 1.25


def test_a_long_prompt_runs_in_pieces() -> None:
    short, long = (memory_needed(WHOLE, Use(1, context, 2)) for context in (8192, 16384))
    assert long - short == 8192 * WHOLE.kv_cache_elements_per_token * 2
