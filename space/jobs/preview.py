"""Preview: a model at smaller sizes, before anything is pruned.

The sizes, the kept parts and the estimates; the plan is the one that `minitron prune` makes from
the same importance.

    preview(entry, Sizes.of_share(entry, 0.5), measurements).to_json()["parameters"]
"""

import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from minitron.candidates.space import width_multiple
from minitron.files.dtypes import dtype_named
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import PruningPlan, choose_plan, share_kept
from minitron.model.target_sizes import target_of
from minitron.sources.loading import hub_config, takes_sizes
from minitron.space.jobs.catalog import CatalogModel
from minitron.space.jobs.measures import SAMPLES, Measurements, Timings
from minitron.space.jobs.request import number, whole

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
SMALL = 50_000_000  # parameters: such models learn fast, and a Space can distill them
_HALF_PERCENT = 0.005
LABELS = dict(zip(SIZES, ("Hidden size", "MLP neurons", "Query heads", "Layers"), strict=True))


@dataclass(frozen=True)
class Sizes:
    """The sizes that a visitor wants."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int

    @classmethod
    def checked(cls, entry: CatalogModel, *values: Any) -> "Sizes":
        """Sizes up to the model's own; None keeps its own. Raises VisitorError."""
        sizes = {}
        for name, value in zip(SIZES, values, strict=True):
            most = getattr(entry.inspection, name)
            sizes[name] = most if value is None else whole(value, name, 1, most)
        return cls(**sizes)

    @classmethod
    def full(cls, entry: CatalogModel) -> "Sizes":
        """The model's own sizes."""
        return cls.checked(entry, *[None] * len(SIZES))

    @classmethod
    def of_share(cls, entry: CatalogModel, share: Any) -> "Sizes":
        """The widths of the sliders with this share in whole percent, or the nearest to it.

        Of several, those nearest to the model's own ratio of the widths. Heads and layers stay.
        """
        ratio, source = number(share, "the share of parameters", 0.01, 1), entry.open()
        whole = source.architecture
        own = whole.intermediate_size / whole.hidden_size

        def order(target: Architecture) -> tuple[float, float]:
            miss = abs(target.parameters / whole.parameters - ratio)
            change = abs(math.log(target.intermediate_size / target.hidden_size / own))
            return (0.0 if miss < _HALF_PERCENT else miss), change

        found = sorted(_widths(entry, ratio * whole.parameters), key=order)
        chosen = next((target for target in found if takes_sizes(source, target)), whole)
        return cls(*(getattr(chosen, name) for name in SIZES))

    @classmethod
    def on_sliders(cls, entry: CatalogModel, *values: Any) -> "Sizes":
        """The nearest sizes that the sliders can show; None is the model's own.

        Raises VisitorError for what is no number.
        """
        sizes = {}
        for (name, among), value in zip(slider_ranges(entry).items(), values, strict=True):
            size = among.maximum if value is None else number(value, name, -math.inf, math.inf)
            sizes[name] = among.nearest(size)
        return cls(**sizes)

    def smaller_than(self, entry: CatalogModel) -> dict[str, int]:
        """The sizes below the model's own."""
        sizes = asdict(self).items()
        return {name: value for name, value in sizes if value != getattr(entry.inspection, name)}

    def share_of(self, entry: CatalogModel) -> float:
        """The parameters at these sizes as a share of the model's."""
        whole = entry.open().architecture
        return target_of(whole, asdict(self)).parameters / whole.parameters

    def folder_name(self, entry: CatalogModel) -> str:
        """The name of the pruned model's folder."""
        sizes = zip("hfal", asdict(self).values(), strict=True)
        name = "-".join([entry.name, *(f"{letter}{size}" for letter, size in sizes)])
        return name.replace(" ", "-")


@dataclass(frozen=True)
class SliderRange:
    """The values of a slider."""

    minimum: int
    maximum: int
    step: int

    def nearest(self, value: float) -> int:
        """The nearest of its values."""
        steps = math.floor((value - self.minimum) / self.step + 0.5)
        return min(self.maximum, max(self.minimum, self.minimum + steps * self.step))

    @property
    def values(self) -> range:
        """All its values."""
        return range(self.minimum, self.maximum + 1, self.step)


@dataclass(frozen=True)
class Preview:
    """What would be kept, and the estimated cost of that model."""

    entry: CatalogModel
    plan: PruningPlan
    importance: Importance
    shares: dict[str, float]  # of the importance that is kept, by pruned axis
    timings: Timings | None  # None where they are not known

    @property
    def share(self) -> float:
        """The share of the parameters that is kept."""
        return self.plan.target.parameters / self.plan.source.parameters

    def to_json(self) -> dict[str, Any]:
        """The keys of inspect, the share of importance kept, and `before`, the full model's."""
        target, inspection = self.plan.target, self.entry.inspection.to_json()
        itemsize = dtype_named(self.entry.inspection.dtype).itemsize
        return {
            **inspection,
            "format": "hub",
            "layout": "safetensors",
            **{key: value for key, value in asdict(target).items() if key in inspection},
            "parameters": target.parameters,
            "non_embedding_parameters": target.non_embedding_parameters,
            "bytes": target.parameters * itemsize,
            "kv_cache_bytes_per_token": target.kv_cache_elements_per_token * itemsize,
            "share_of_importance_kept": self.shares,
            "tokens_per_second_estimated": self._tokens_per_second(target),
            "kept": self.plan.to_json(),
            "before": {
                **inspection,
                "tokens_per_second_estimated": self._tokens_per_second(self.plan.source),
            },
        }

    def _tokens_per_second(self, architecture: Architecture) -> float | None:
        return None if self.timings is None else self.timings.tokens_per_second(architecture)


def preview(
    entry: CatalogModel, sizes: Sizes, measurements: Measurements, *, timed: bool = True
) -> Preview:
    """The plan for these sizes. Raises MinitronError for sizes that the family does not allow.

    Without `timed`, the speed is left out where it must be measured first.
    """
    source = entry.open()
    target = target_of(source.architecture, asdict(sizes))
    hub_config(source.config_at(target))  # raises where the family has no model of these sizes
    importance = measurements.importance(entry)
    plan = choose_plan(importance, source.architecture, target)
    shares = share_kept(plan, importance)
    timings = measurements.timings(entry) if timed else measurements.known_timings(entry)
    return Preview(entry, plan, importance, shares, timings)


def slider_ranges(entry: CatalogModel) -> dict[str, SliderRange]:
    """The sizes to offer: multiples that GPU kernels prefer, whole KV groups, any depth."""
    sizes = entry.open().architecture
    multiple = width_multiple(sizes, None)
    groups = sizes.num_key_value_heads if sizes.has_groups else 1
    return {
        "hidden_size": _slider_range(sizes.hidden_size, multiple),
        "intermediate_size": _slider_range(sizes.intermediate_size, multiple),
        "num_attention_heads": SliderRange(groups, sizes.num_attention_heads, groups),
        "num_hidden_layers": SliderRange(1, sizes.num_hidden_layers, 1),
    }


@dataclass(frozen=True)
class Command:
    """A command line as the parts that a page keeps on one line each."""

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.parts)


def command(entry: CatalogModel, sizes: Sizes, out: str, seq_len: int) -> Command:
    """The command line that writes the same model."""
    names = ["minitron prune", shlex.quote(entry.source), shlex.quote(out)]
    flags = [f"--{k.replace('_', '-')} {v}" for k, v in sizes.smaller_than(entry).items()]
    corpus = ["--corpus self", f"--samples {SAMPLES}", f"--seq-len {seq_len}"]
    return Command((*names, *flags, *corpus, "--reconstruct none"))


def next_command(entry: CatalogModel, out: str, seq_len: int) -> Command:
    """The command line that distills the pruned model from its original."""
    names = ["minitron distill", shlex.quote(out), shlex.quote(f"{out}-distilled")]
    flags = [f"--teacher {shlex.quote(entry.source)}", "--corpus self", f"--seq-len {seq_len}"]
    if entry.inspection.parameters <= SMALL:
        flags += ["--learning-rate 2e-3", "--warmup-steps 5"]
    return Command((*names, *flags))


def python_lines(entry: CatalogModel, sizes: Sizes, out: str, seq_len: int) -> str:
    """The same in Python."""
    lines = [f"    {name}={value}," for name, value in sizes.smaller_than(entry).items()]
    return "\n".join(
        [
            "import minitron",
            "",
            "folder = minitron.prune(",
            f'    "{entry.source}",',
            f'    "{out}",',
            *lines,
            '    corpus="self",',
            f"    samples={SAMPLES},",
            f"    seq_len={seq_len},",
            '    reconstruct="none",',
            ")",
        ]
    )


def _widths(entry: CatalogModel, parameters: float) -> Iterator[Architecture]:
    """For each hidden size of the sliders, the MLP size that comes nearest to so many parameters.

    All layers are alike, so parameters grow linearly with the size of the MLP.
    """
    ranges, whole = slider_ranges(entry), entry.open().architecture
    ffn = ranges["intermediate_size"]
    for hidden in ranges["hidden_size"].values:
        least = whole.resized(hidden_size=hidden, intermediate_size=ffn.minimum)
        most = whole.resized(hidden_size=hidden, intermediate_size=ffn.maximum)
        slope = (most.parameters - least.parameters) / max(1, ffn.maximum - ffn.minimum)
        wanted = ffn.minimum + (parameters - least.parameters) / max(slope, 1e-9)
        yield whole.resized(hidden_size=hidden, intermediate_size=ffn.nearest(wanted))


def _slider_range(size: int, multiple: int) -> SliderRange:
    step = math.gcd(multiple, size)
    return SliderRange(max(step, size // 8 // step * step), size, step)
