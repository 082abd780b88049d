"""Timings add up: parts at corners, between them a line, by a clock that the tests hold."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from minitron.candidates import decode_step
from minitron.candidates.decode_step import Conditions, DecodeStep, random_model, seconds_of
from minitron.candidates.latency import (
    Corners,
    LatencyTable,
    available_device,
    measure_table,
    measured_step,
)
from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from modeling_nemotron import CACHE_NAME
from tests.tiny import SIZES, VARIANTS, tiny_config

AT = Conditions("cpu", torch.float32, batch=2, context=7)
WHOLE = Architecture("nemotron", **SIZES)
TABLE = LatencyTable(
    corners=Corners(hidden=(10, 30), heads=(2, 6), ffn=(40, 80)),
    attention=((1.0, 2.0), (3.0, 6.0)),
    mlp=((0.1, 0.2), (0.3, 0.6)),
    head=(50.0, 70.0),
    rest=1000.0,
)


class Clock:
    """Time that passes only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def config_of(variant: str) -> dict[str, Any]:
    return tiny_config(variant).to_dict()


def test_the_median_of_runs_after_warm_up_is_taken() -> None:
    clock, runs = Clock(), 0

    def step() -> None:
        nonlocal runs
        runs += 1
        slow = runs <= decode_step.WARM_UP or runs % 5 == 0
        clock.now += 100.0 if slow else 3.0

    assert seconds_of([step], "cpu", clock) == [3.0]
    assert runs == decode_step.WARM_UP + decode_step.LEAST


def test_a_quick_step_is_run_more_often() -> None:
    clock, runs = Clock(), 0

    def step() -> None:
        nonlocal runs
        runs += 1
        clock.now += 1e-3

    seconds_of([step], "cpu", clock)
    assert runs == decode_step.WARM_UP + decode_step.MOST


def test_steps_take_turns_so_that_both_see_a_busy_machine() -> None:
    clock, order = Clock(), ""

    def step(name: str, seconds: float) -> None:
        nonlocal order
        order += name
        clock.now += seconds

    timed = seconds_of([lambda: step("a", 1.0), lambda: step("b", 2.0)], "cpu", clock)
    assert timed == [1.0, 2.0]
    assert order.endswith("ab" * decode_step.LEAST)


@pytest.mark.parametrize(
    ("sizes", "layer", "head"),
    [
        ((10, 40, 2), 1.0 + 0.1, 50.0),
        ((30, 80, 6), 6.0 + 0.6, 70.0),
        ((20, 60, 4), 3.0 + 0.3, 60.0),  # the middle: the mean of four corners
        ((20, 40, 6), 4.0 + 0.2, 60.0),
        ((40, 80, 6), 8.0 + 0.8, 80.0),  # beyond them the lines go on
    ],
)
def test_a_prediction_is_the_sum_of_interpolated_parts(
    sizes: tuple[int, int, int], layer: float, head: float
) -> None:
    hidden, ffn, heads = sizes
    for layers in (1, 3):
        architecture = WHOLE.resized(
            hidden_size=hidden,
            intermediate_size=ffn,
            num_attention_heads=heads,
            num_hidden_layers=layers,
        )
        assert TABLE.predict(architecture) == pytest.approx(layers * layer + head + 1000.0)


def test_a_table_is_the_same_after_a_file() -> None:
    assert LatencyTable.from_json(TABLE.to_json()) == TABLE


def test_corners_are_the_ends_of_a_space() -> None:
    space = [WHOLE.resized(hidden_size=h, num_attention_heads=n) for h, n in ((42, 6), (23, 4))]
    assert Corners.around(space) == Corners(hidden=(24, 48), heads=(4, 6), ffn=(66,))


def test_what_each_corner_takes_is_what_its_parts_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose layers take 1 + hidden x heads, MLPs hidden x ffn, heads hidden."""
    clock = Clock()

    def cost(step: DecodeStep) -> tuple[int, int, int]:
        config = step._model.config
        layers, hidden = config.num_hidden_layers, config.hidden_size
        mlps = layers * hidden * config.intermediate_size
        return layers * (1 + hidden * config.num_attention_heads) + mlps, mlps, 5

    def whole(step: DecodeStep) -> None:
        clock.now += cost(step)[0] + cost(step)[2]

    def layers(step: DecodeStep) -> None:
        clock.now += cost(step)[0]

    def mlps(step: DecodeStep) -> None:
        clock.now += cost(step)[1]

    def linear(states: torch.Tensor, weight: torch.Tensor) -> None:
        clock.now += weight.shape[1]

    monkeypatch.setattr(
        DecodeStep, "__init__", lambda step, model, _: setattr(step, "_model", model)
    )
    monkeypatch.setattr(DecodeStep, "whole", whole)
    monkeypatch.setattr(DecodeStep, "layers", layers)
    monkeypatch.setattr(DecodeStep, "mlps", mlps)
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    corners = Corners(hidden=(24, 48), heads=(4, 6), ffn=(50, 66))
    table = measure_table(config_of("nemotron"), corners, AT, clock=clock)
    for hidden, heads, ffn, depth in ((24, 4, 50, 4), (48, 6, 50, 3), (36, 6, 60, 2)):
        architecture = WHOLE.resized(
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=ffn,
            num_hidden_layers=depth,
        )
        wanted = depth * (1 + hidden * heads + hidden * ffn) + hidden + 5
        assert table.predict(architecture) == pytest.approx(wanted)


@pytest.fixture(params=VARIANTS)
def step(request: pytest.FixtureRequest) -> Iterator[DecodeStep]:
    with torch.inference_mode():
        yield DecodeStep(random_model(config_of(request.param), AT), AT)


def test_each_step_finds_the_cache_as_the_first_one_did(step: DecodeStep) -> None:
    seen = []
    step._model.register_forward_hook(lambda _, __, output: seen.append(output.logits))
    for run in (step.whole, step.layers, step.mlps, step.whole):
        run()
    first, last = seen
    assert first.shape == (2, 1, SIZES["vocab_size"])
    assert first.isfinite().all()
    assert torch.equal(first, last)
    assert step._cache.get_seq_length() == AT.context


def test_a_step_is_made_of_a_config_that_leaves_head_dim_to_hidden_size() -> None:
    config = config_of("qwen2")
    del config["head_dim"]
    made = DecodeStep(random_model({**config, "hidden_size": 48}, AT), AT)
    assert made._cache.layers[0].keys.shape[-1] == 8


def test_a_step_adds_its_token_to_a_full_cache(
    step: DecodeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_restore", lambda: None)
    step.whole()
    seen = {step._cache.get_seq_length(layer) for layer in range(len(step._decoder.layers))}
    assert seen == {AT.context + 1}


def test_the_layers_of_a_step_are_run_as_the_model_runs_them(step: DecodeStep) -> None:
    states, call = step._calls[1]
    wanted = step._calls[2][0]
    assert torch.equal(step._decoder.layers[1](states, **call), wanted)
    step._restore()
    assert call[CACHE_NAME] is step._cache


def test_a_whole_model_is_timed_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    run = DecodeStep.whole

    def whole(step: DecodeStep) -> None:
        run(step)
        clock.now += 0.25

    monkeypatch.setattr(DecodeStep, "whole", whole)
    assert measured_step(config_of("llama"), AT, clock=clock) == 0.25


def test_real_timings_are_above_zero() -> None:
    corners = Corners.around([WHOLE, WHOLE.resized(hidden_size=24, intermediate_size=50)])
    table = measure_table(config_of("nemotron"), corners, AT)
    assert table.predict(WHOLE) > 0
    assert all(seconds > 0 for row in table.mlp for seconds in row)


@pytest.mark.parametrize("name", ["cuda:97", "tpu", "cuda:-1", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(TargetError, match=f"--device is {name}: this machine has cpu"):
        available_device(name)


def test_the_cpu_is_there() -> None:
    assert available_device("cpu") == "cpu"
