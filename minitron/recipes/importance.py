"""The options of `minitron importance`, and of whatever else measures importance."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from minitron.options import bounded, byte_size, check_unset
from minitron.recipe import OUTPUT, DType, Recipe

ByActivations = Literal["paper", "modelopt", "contribution", "obs"]
Scores = Literal[ByActivations, "magnitude", "random"]

# Options that have an effect only where activations are measured, or only on text.
OF_ACTIVATIONS = ("aggregation", "neurons", "layer_scores", "block_size")
OF_TEXT = ("corpus", "samples", "seq_len", "memory_budget", "compute_dtype")


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe(Recipe):
    """How importance is measured."""

    MEASURING: ClassVar = "Measuring importance"
    corpus: str | None = None
    """Text to measure on: a .txt, .jsonl, .json or .parquet file (or .gz), a Hub dataset
    (owner/name:config:split), .npy of token ids, self (the model samples it), or random ids.
    Rows hold text, content, prompt and completion, or chats as messages or conversations, which
    the tokenizer's chat template writes (without one, their contents are joined by line ends)."""
    samples: int | None = bounded(None, at_least=1)
    """Sequences to measure on, drawn at random from the whole text; 1024 as in the paper, of an
    .npy the first (all unless given). Of a Hub dataset they are drawn from its first 100 million
    characters (or 16 times what they need), its files in random order."""
    seq_len: int | None = bounded(None, at_least=1)
    """Tokens in a sequence; the model's context unless given, at most 4096."""
    scores: Scores = "paper"
    """What is ranked by: activations as in the paper (paper) or as in NVIDIA's ModelOpt (modelopt);
    for what is reconstructed, activations times the weights that read them (contribution), or
    neurons and heads in the order in which least is lost if the rest is fitted after each (obs;
    channels as contribution, layers as paper); the magnitude of weights (magnitude); or random
    numbers (random)."""
    aggregation: str = "l2,mean"
    """How activations are reduced to a score, over the batch and over the sequence: two of l2,
    mean, var."""
    neurons: Literal["after", "before"] = "after"
    """Where neurons are scored: after the activation function, or before it as in the paper."""
    layer_scores: Literal["influence", "loss", "logits"] = "influence"
    """What layers are ranked by: block influence, at no extra cost; or the loss, or the squared
    change of the logits, without each layer, at about half a pass over the corpus for each."""
    block_size: int | None = None
    """Also score every block of this many consecutive layers, to be dropped together."""
    seed: int = bounded(0, at_least=0)
    """Seed of everything drawn at random."""
    RESOURCES: ClassVar = "Memory, disk and precision"
    memory_budget: str | None = byte_size(None)
    """Memory to use, such as 6GiB; most of the free memory unless given. A model that does not fit
    is read layer by layer."""
    compute_dtype: DType | None = None
    """Precision of the forward pass; the checkpoint's own unless given, or float32 where the
    processor only emulates it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores in ("magnitude", "random"):
            check_unset(self, OF_ACTIVATIONS, f"with --scores {self.scores}")


@dataclass(frozen=True)
class ImportanceRecipe(CalibrationRecipe):
    r"""Measure importance once, for several prunings: `minitron prune --importance FILE`.

    A model larger than the memory budget is read layer by layer; processes that torchrun launched
    share the corpus. If interrupted, the same command resumes from the
    last finished chunk; where self is being sampled, it begins again.

    Examples:
        minitron importance tiny tiny.safetensors --corpus books.jsonl.gz \
            --samples 256
        minitron importance nvidia/Minitron-8B-Base 8b.safetensors \
            --corpus books.jsonl.gz --memory-budget 6GiB --plot 8b.png
        torchrun --nproc-per-node 8 -m minitron importance \
            nvidia/Minitron-8B-Base 8b.safetensors --corpus books.jsonl.gz
    """

    FLAGS: ClassVar = ("--recipe",)

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    out: str
    """The safetensors file to write."""
    _: KW_ONLY
    WRITING: ClassVar = OUTPUT
    plot: str | None = None
    """Also draw the scores into this picture (.png, .svg or .pdf)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores in ("magnitude", "random"):
            check_unset(self, OF_TEXT, f"with --scores {self.scores}")
