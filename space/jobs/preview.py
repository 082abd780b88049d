"""Cuts: what a member would be at other sizes, before anything is cut.

Knows sizes, what is kept and what it takes; the decision is `minitron prune`'s own, from the same
importance.

    cut = planned(member, sizes, measures)
    cut.to_json()["parameters"]
"""

from dataclasses import asdict, dataclass
from typing import Any

from minitron.candidates.space import checked_multiple, uniform
from minitron.files.dtypes import dtype_named
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.model.plan import PruningPlan, choose_plan, share_kept
from minitron.model.target_sizes import target_of
from minitron.sources.loading import hub_config, takes_sizes
from minitron.space.jobs.catalog import Member
from minitron.space.jobs.measures import SAMPLES, Measures, Timings
from minitron.space.jobs.request import number, whole

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
WORDS = {
    "hidden_size": "Hidden size",
    "intermediate_size": "MLP neurons",
    "num_attention_heads": "Query heads",
    "num_hidden_layers": "Layers",
}


@dataclass(frozen=True)
class Sizes:
    """What a visitor wants kept."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int

    @classmethod
    def checked(cls, member: Member, *values: Any) -> "Sizes":
        """Sizes no larger than the member's; None keeps its own. Raises VisitorError."""
        kept = {}
        for name, value in zip(SIZES, values, strict=True):
            most = getattr(member.inspection, name)
            kept[name] = most if value is None else whole(value, name, 1, most)
        return cls(**kept)

    @classmethod
    def of_share(cls, member: Member, share: Any) -> "Sizes":
        """One factor for both widths, as `minitron prune --ratio` where no text is named."""
        ratio = number(share, "the share of parameters", 0.01, 1)
        found = uniform(
            architecture_of(member), ratio, accepts=lambda one: is_accepted(member, one)
        )
        return cls(*(getattr(found, name) for name in SIZES))

    @property
    def short(self) -> str:
        """For a folder's name."""
        return "-".join(
            f"{letter}{getattr(self, name)}" for letter, name in zip("hfal", SIZES, strict=True)
        )


@dataclass(frozen=True)
class Step:
    """The sizes a slider may take."""

    least: int
    most: int
    step: int


@dataclass(frozen=True)
class Cut:
    """What would be kept, and what that model would take."""

    member: Member
    plan: PruningPlan
    importance: Importance
    shares: dict[str, float]  # of the importance, by axis that is cut
    timings: Timings

    @property
    def target(self) -> Architecture:
        """The sizes after."""
        return self.plan.target

    @property
    def itemsize(self) -> int:
        """Bytes of a number, as the member's weights are stored."""
        return int(dtype_named(self.member.inspection.dtype).itemsize)

    def to_json(self) -> dict[str, Any]:
        """inspect's keys, the share of importance kept, and what the member is now."""
        target = self.target
        sizes = {
            key: value
            for key, value in asdict(target).items()
            if key in self.member.inspection.to_json()
        }
        counted = {
            "parameters": target.parameters,
            "non_embedding_parameters": target.non_embedding_parameters,
            "bytes": target.parameters * self.itemsize,
            "kv_cache_bytes_per_token": target.kv_cache_elements_per_token * self.itemsize,
        }
        return {
            **self.member.inspection.to_json(),
            "format": "hub",
            "layout": "safetensors",
            **sizes,
            **counted,
            "share_of_importance_kept": self.shares,
            "tokens_per_second_estimated": self.timings.tokens_per_second(target),
            "kept": self.plan.to_json(),
            "before": {
                **self.member.inspection.to_json(),
                "tokens_per_second_estimated": self.timings.tokens_per_second(self.plan.source),
            },
        }


def architecture_of(member: Member) -> Architecture:
    """Its sizes as the rest of minitron speaks of them."""
    return member.open().architecture


def steps_of(member: Member) -> dict[str, Step]:
    """The sizes worth offering: multiples that kernels like, whole KV groups, any depth."""
    sizes = architecture_of(member)
    multiple = checked_multiple(sizes, None)
    groups = sizes.num_key_value_heads if sizes.has_groups else 1
    return {
        "hidden_size": _step(sizes.hidden_size, multiple),
        "intermediate_size": _step(sizes.intermediate_size, multiple * 2),
        "num_attention_heads": Step(groups, sizes.num_attention_heads, groups),
        "num_hidden_layers": Step(1, sizes.num_hidden_layers, 1),
    }


def planned(member: Member, sizes: Sizes, measures: Measures) -> Cut:
    """The cut that `minitron prune` would make. Raises MinitronError for sizes that do not go."""
    source = architecture_of(member)
    target = target_of(source, asdict(sizes))
    hub_config(member.open().config_at(target))
    importance = measures.importance(member)
    plan = choose_plan(importance, source, target)
    return Cut(member, plan, importance, share_kept(plan, importance), measures.timings(member))


def is_accepted(member: Member, target: Architecture) -> bool:
    """Whether the family has models of these sizes."""
    return takes_sizes(member.open(), target)


def command(member: Member, sizes: Sizes, out: str, seq_len: int) -> str:
    """The command line that writes the same model."""
    flags = " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in _smaller(member, sizes).items()
    )
    return (
        f"minitron prune {member.source} {out} {flags} "
        f"--corpus self --samples {SAMPLES} --seq-len {seq_len}"
    ).replace("  ", " ")


def python_lines(member: Member, sizes: Sizes, out: str, seq_len: int) -> str:
    """The same in Python."""
    arguments = "".join(f"    {name}={value},\n" for name, value in _smaller(member, sizes).items())
    return (
        "import minitron\n\nfolder = minitron.prune(\n"
        f'    "{member.source}",\n    "{out}",\n{arguments}'
        f'    corpus="self",\n    samples={SAMPLES},\n    seq_len={seq_len},\n)'
    )


def out_name(member: Member, sizes: Sizes) -> str:
    """What the folder is called."""
    return f"{member.name}-{sizes.short}".replace(" ", "-")


def _smaller(member: Member, sizes: Sizes) -> dict[str, int]:
    """What is cut."""
    return {
        name: value
        for name, value in asdict(sizes).items()
        if value != getattr(member.inspection, name)
    }


def _step(size: int, multiple: int) -> Step:
    step = multiple if not size % multiple else 1
    return Step(max(step, size // 8 // step * step), size, step)
