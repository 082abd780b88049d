"""Latency: seconds of a decode step, measured on this machine by the family's own classes.

A decode step makes the next token of each of `batch` sequences that have `context` tokens in the
cache. A `LatencyTable` holds real timings of layers and output embeddings at the corners of a
space; between corners a part's time follows the bytes it reads, so each is interpolated linearly
in either size, and a model's time is the sum of its parts. `measured_step` times a model whole.
Knows no budget.

    table = measure_table(config, corners, conditions)
    table.predict(architecture)   # 0.0213
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import lcm
from statistics import median
from typing import Any

import torch
from torch import nn

from minitron.candidates.decode_step import (
    Clock,
    Conditions,
    DecodeStep,
    noise,
    random_model,
    seconds_of,
)
from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from minitron.model.config_json import resized_config
from minitron.progress import Progress

_CACHE_BYTES = 256 << 20  # layers that take turns hold more, so that none is found in a cache
_VOCABULARY = 32  # of the models whose layers are timed


@dataclass(frozen=True)
class Corners:
    """The sizes at which parts are timed: ascending, one or two of each axis."""

    hidden: tuple[int, ...]
    heads: tuple[int, ...]
    ffn: tuple[int, ...]

    @classmethod
    def around(cls, architectures: list[Architecture]) -> "Corners":
        """The least and the largest sizes; hidden to multiples of the heads, as Llama asks."""
        heads = _ends(a.num_attention_heads for a in architectures)
        step = lcm(*heads)
        return cls(
            _ends(max(step, round(a.hidden_size / step) * step) for a in architectures),
            heads,
            _ends(a.intermediate_size for a in architectures),
        )


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of the parts of a decode step at the corners of a space."""

    corners: Corners
    attention: tuple[tuple[float, ...], ...]  # (hidden, heads): a layer without its MLP
    mlp: tuple[tuple[float, ...], ...]  # (hidden, ffn)
    head: tuple[float, ...]  # (hidden,): the output embedding
    rest: float  # of a step, whatever the sizes

    def predict(self, architecture: Architecture) -> float:
        """Seconds of a decode step of these sizes."""
        at = self.corners
        hidden = architecture.hidden_size
        attention = _plane(
            (hidden, architecture.num_attention_heads), (at.hidden, at.heads), self.attention
        )
        mlp = _plane((hidden, architecture.intermediate_size), (at.hidden, at.ffn), self.mlp)
        layers = architecture.num_hidden_layers * (attention + mlp)
        return layers + _line(hidden, at.hidden, self.head) + self.rest

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "LatencyTable":
        """A table as it was measured before."""
        corners = {axis: tuple(sizes) for axis, sizes in record["corners"].items()}
        planes = {name: tuple(map(tuple, record[name])) for name in ("attention", "mlp")}
        return cls(Corners(**corners), **planes, head=tuple(record["head"]), rest=record["rest"])


def available_device(name: str) -> str:
    """A device that is there. Raises TargetError, which names those that are."""
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    known = [*there, *(["cuda"] if len(there) > 1 else [])]
    if name not in known:
        raise TargetError(f"--device is {name}: this machine has {', '.join(known)}")
    return name


def measure_table(
    config: Mapping[str, Any],
    corners: Corners,
    conditions: Conditions,
    *,
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """Time layers and output embeddings of the family of `config` at every corner."""
    source = Architecture.from_config(config)
    parts = max(len(corners.heads), len(corners.ffn))
    attention: list[list[float]] = []
    mlp: list[list[float]] = []
    head, rests = [], []
    total = len(corners.hidden) * (parts + 1)
    with torch.inference_mode(), Progress("latency", total=total, unit="shape") as progress:
        for hidden in corners.hidden:
            attention.append([])
            mlp.append([])
            for part in range(parts):
                heads = corners.heads[min(part, len(corners.heads) - 1)]
                at = source.with_heads(heads).resized(
                    hidden_size=hidden,
                    intermediate_size=corners.ffn[min(part, len(corners.ffn) - 1)],
                )
                timed = _LayerTimes.of(config, at, conditions, clock)
                attention[-1].append(timed.attention)
                mlp[-1].append(timed.mlp)
                rests.append(timed.rest)
                progress.advance()
            head.append(_head_seconds(config, source, hidden, conditions, clock))
            progress.advance()
    return LatencyTable(
        corners=corners,
        attention=tuple(tuple(row[: len(corners.heads)]) for row in attention),
        mlp=tuple(tuple(row[: len(corners.ffn)]) for row in mlp),
        head=tuple(head),
        rest=max(0.0, median(rests)),
    )


def measured_step(
    config: Mapping[str, Any], conditions: Conditions, *, clock: Clock = time.perf_counter
) -> float:
    """Seconds of a whole decode step of the model of `config`."""
    with torch.inference_mode():
        step = DecodeStep(random_model(config, conditions), conditions)
        return seconds_of([step.whole], conditions.device, clock)[0]


@dataclass(frozen=True)
class _LayerTimes:
    """Seconds of a layer's parts, and of what a step does beside its layers."""

    attention: float
    mlp: float
    rest: float

    @classmethod
    def of(
        cls, config: Mapping[str, Any], at: Architecture, conditions: Conditions, clock: Clock
    ) -> "_LayerTimes":
        """Timed on as many layers as outgrow the caches, no more than the model has."""
        one = at.resized(num_hidden_layers=1, vocab_size=1).parameters * conditions.dtype.itemsize
        count = min(at.num_hidden_layers, 1 + _CACHE_BYTES // one)
        few = at.resized(num_hidden_layers=count, vocab_size=_VOCABULARY)
        step = DecodeStep(random_model(_config_of(config, few), conditions), conditions)
        timed = [step.whole, step.layers, step.mlps]
        whole, layers, mlps = seconds_of(timed, conditions.device, clock)
        return cls((layers - mlps) / count, mlps / count, whole - layers)


def _head_seconds(
    config: Mapping[str, Any],
    source: Architecture,
    hidden: int,
    conditions: Conditions,
    clock: Clock,
) -> float:
    """Seconds of the output embedding."""
    weight = noise((source.vocab_size, hidden), conditions)
    states = noise((conditions.batch, 1, hidden), conditions)
    product = partial(nn.functional.linear, states, weight)
    return seconds_of([product], conditions.device, clock)[0]


def _config_of(config: Mapping[str, Any], at: Architecture) -> dict[str, Any]:
    """`config` at other sizes; ids beyond the small vocabulary are left out."""
    ids = {key: None for key in config if key.endswith("_token_id")}
    return {**resized_config(config, at), **ids}


def _ends(sizes: Any) -> tuple[int, ...]:
    """The least and the largest; one where they are equal."""
    found = set(sizes)
    return tuple(sorted({min(found), max(found)}))


def _plane(
    point: tuple[int, int],
    corners: tuple[tuple[int, ...], tuple[int, ...]],
    values: tuple[tuple[float, ...], ...],
) -> float:
    """Linear in either size."""
    rows = tuple(_line(point[1], corners[1], row) for row in values)
    return _line(point[0], corners[0], rows)


def _line(size: int, ends: tuple[int, ...], values: tuple[float, ...]) -> float:
    """The value at `size` of the line through two ends; of one end, its value."""
    if len(ends) == 1:
        return values[0]
    return values[0] + (values[1] - values[0]) * (size - ends[0]) / (ends[1] - ends[0])
