"""Decode step: the next token of some sequences, run and timed repeatedly.

A step leaves the full cache unchanged, so that it can be repeated. Weights are random: the time of
a product does not depend on them.

    step = DecodeStep(random_model(config, conditions), conditions)
    seconds_of([step.whole], "cpu")   # [0.0213]
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from minitron.model.decoder import Decoder
from minitron.model.family import EMBEDDING, HEAD
from minitron.sources.empty_weights import empty_weights
from minitron.sources.loading import hub_config, new_model
from modeling_nemotron import CACHE_NAME

Clock = Callable[[], float]
Step = Callable[[], object]

WARM_UP = 5
LEAST, MOST, SECONDS = 7, 31, 5.0  # rounds: at least 7, then until 31 or five seconds
_NOISE = 1 << 20  # random numbers, repeated


@dataclass(frozen=True)
class Conditions:
    """Where and how a decode step is timed."""

    device: str
    dtype: torch.dtype
    batch: int
    context: int


def seconds_of(steps: Sequence[Step], device: str, clock: Clock = time.perf_counter) -> list[float]:
    """The median of each step's repeated runs after some to warm up, each waited for.

    Steps take turns, so that a machine that is busy for a while is busy for all of them.
    """
    for step in steps:
        for _ in range(WARM_UP):
            step()
    rounds: list[list[float]] = []
    while len(rounds) < LEAST or (len(rounds) < MOST and sum(map(sum, rounds)) < SECONDS):
        rounds.append([_seconds_of_step(step, device, clock) for step in steps])
    return [median(samples) for samples in zip(*rounds, strict=True)]


def _seconds_of_step(step: Step, device: str, clock: Clock) -> float:
    _wait_for(device)
    begun = clock()
    step()
    _wait_for(device)
    return clock() - begun


class DecodeStep:
    """A model with a full cache: whole steps and parts of one, as often as wanted."""

    def __init__(self, model: PreTrainedModel, conditions: Conditions) -> None:
        self._model: Any = model
        self._decoder = Decoder.of(model)
        layers = range(len(self._decoder.layers))
        self._mlps = [self._decoder.mlp_branch(layer) for layer in layers]
        config, sizes = model.config, self._decoder.architecture
        self._ids = torch.zeros(conditions.batch, 1, dtype=torch.long, device=conditions.device)
        self._cache = DynamicCache(config=config)
        for index in range(sizes.num_hidden_layers):
            keys, values = (
                noise(
                    (
                        conditions.batch,
                        sizes.num_key_value_heads,
                        conditions.context,
                        sizes.head_dim,
                    ),
                    conditions,
                )
                for _ in range(2)
            )
            self._cache.update(keys, values, index)
        self._full = [dict(vars(layer)) for layer in self._cache.layers]
        self._calls = self._seen_calls()

    def whole(self) -> None:
        """The next token's logits."""
        self._model(input_ids=self._ids, use_cache=True, **{CACHE_NAME: self._cache})
        self._restore()

    def layers(self) -> None:
        """Every layer, one after the other."""
        for layer, (states, call) in zip(self._decoder.layers, self._calls, strict=True):
            layer(states, **call)
        self._restore()

    def mlps(self) -> None:
        """The MLP of every layer, with its norm."""
        for branch, (states, _) in zip(self._mlps, self._calls, strict=True):
            output = states
            for module in branch:
                output = module(output)
            states + output

    def _seen_calls(self) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        """What the model itself calls each layer with."""
        calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

        def note(_: nn.Module, args: tuple[torch.Tensor, ...], call: dict[str, Any]) -> None:
            calls.append((args[0], call))

        hooks = [x.register_forward_pre_hook(note, with_kwargs=True) for x in self._decoder.layers]
        self.whole()
        for hook in hooks:
            hook.remove()
        return calls

    def _restore(self) -> None:
        """The cache as it was: a step replaces its tensors and changes none."""
        for layer, full in zip(self._cache.layers, self._full, strict=True):
            vars(layer).update(full)


def random_model(config: Mapping[str, Any], conditions: Conditions) -> PreTrainedModel:
    """A model of random weights, made where it is to run."""
    with empty_weights():
        model = new_model(hub_config(config))
    weights = {name: noise(like.shape, conditions) for name, like in model.named_parameters()}
    if model.config.tie_word_embeddings:
        weights[HEAD] = weights[EMBEDDING]
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.to(torch.device(conditions.device))  # type: ignore[arg-type]  # wrapped without types
    model.eval()
    return model


def noise(shape: tuple[int, ...] | torch.Size, conditions: Conditions) -> torch.Tensor:
    """Random numbers of the size of weights; drawn once and repeated, as drawing takes long."""
    drawn = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)) * 0.02
    drawn = drawn.to(conditions.device, conditions.dtype)
    tensor = torch.empty(shape, dtype=conditions.dtype, device=conditions.device)
    for part in tensor.view(-1).split(_NOISE):
        part.copy_(drawn[: len(part)])
    return tensor


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(torch.device(device))
