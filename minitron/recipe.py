"""Recipe: one dataclass for each command. Its fields are the flags, the YAML keys and the record.

A field is written once, here, with its help and its bounds beside it: the command line derives its
flags, a recipe file its keys, the Python verb its arguments, and `minitron.json` what was done. A
name in capitals is the title of the section of `--help` that the fields below it are in. A
command's docstring is its help, with its examples. Imports no torch, so that `--help` answers at
once.

    PruneRecipe(source="tiny", out="tiny-half", hidden_size=192, corpus="self")
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from functools import wraps
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar

from minitron.errors import TargetError, readable_system_errors
from minitron.options import (
    bounded,
    byte_size,
    check_bounds,
    check_types,
    check_unset,
    help_of,
    nearest,
)

Options = ParamSpec("Options")
RecipeT = TypeVar("RecipeT")
Result = TypeVar("Result")

Scores = Literal["paper", "modelopt", "magnitude", "random"]
Target = Literal["hub", "nemo", "nemo2", "trtllm", "onnx"]
DistFormat = Literal["torch_dist", "zarr"]
Space = Literal["default", "paper-8b", "paper-4b"]
DType = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4"]
Hidden = Literal["auto", "select", "rotate"]

OUTPUT = "Output"  # the title of the last section

# How the source is read and where the result is written: neither changes the result.
_NOT_RECORDED = ("out", "push_to_hub", "private", "low_disk", "dry_run")
# Options that have an effect only where activations are measured, on text, or within a budget.
_OF_ACTIVATIONS = ("aggregation", "neurons", "layer_scores", "block_size")
_OF_TEXT = ("corpus", "samples", "seq_len", "memory_budget", "compute_dtype")
_OF_BUDGET = (
    *("batch", "context", "device", "space", "multiple_of", "min_layers"),
    *("held_out", "eval_tokens", "max_candidates"),
)


def verb(
    recipe_type: Callable[Options, RecipeT],
) -> Callable[[Callable[[RecipeT], Result]], Callable[Options, Result]]:
    """Turn a function of a recipe into a public verb that takes the recipe's fields.

    Its docstring is followed by the help of each field.
    """
    assert isinstance(recipe_type, type)
    signature, help = inspect.signature(recipe_type), help_of(recipe_type)

    def decorate(run: Callable[[RecipeT], Result]) -> Callable[Options, Result]:
        @wraps(run)
        def public(*args: Options.args, **kwargs: Options.kwargs) -> Result:
            _check_arguments(run.__name__, signature, args, kwargs)
            with readable_system_errors():
                return run(recipe_type(*args, **kwargs))

        result = inspect.signature(run).return_annotation
        public.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
        arguments = "\n".join(f"    {name}: {help[name]}" for name in signature.parameters)
        public.__doc__ = f"{inspect.cleandoc(run.__doc__ or '')}\n\nArguments:\n{arguments}\n"
        return public

    return decorate


def _check_arguments(
    verb: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Raise TypeError, in the verb's name, for arguments that it does not have."""
    for name in kwargs:
        if name not in signature.parameters:
            near = nearest(name, list(signature.parameters))
            hint = "" if near is None else f": did you mean {near}?"
            raise TypeError(f"{verb}() has no argument {name}{hint}")
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{verb}(): {error}") from None


def record_of(recipe: Any) -> dict[str, Any]:
    """A recipe's fields, but for its destination: equal records make equal results."""
    return {key: value for key, value in asdict(recipe).items() if key not in _NOT_RECORDED}


@dataclass(frozen=True)
class Recipe:
    """The options of a command.

    Raises TargetError for values of a wrong type, for numbers out of their bounds and for options
    that exclude each other.
    """

    FLAGS: ClassVar[tuple[str, ...]] = ()  # of the command line only: --json, --recipe

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)

    @classmethod
    def command(cls) -> str:
        """The name of its command: `teacher-cache` of TeacherCacheRecipe."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__.removesuffix("Recipe")).lower()


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
    """What is ranked by: activations as in the paper (paper) or as in NVIDIA's ModelOpt (modelopt),
    the magnitude of weights (magnitude), or random numbers (random)."""
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
            check_unset(self, _OF_ACTIVATIONS, f"with --scores {self.scores}")


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
            check_unset(self, _OF_TEXT, f"with --scores {self.scores}")


@dataclass(frozen=True, kw_only=True)
class BudgetRecipe(CalibrationRecipe):
    """The resources that a smaller model may use, and how the best such model is chosen."""

    BUDGET: ClassVar = "Budget"
    params: str | None = None
    """Parameters to keep, embeddings included, such as 4B or 500M; within 5 %."""
    ratio: float | None = bounded(None, above=0, at_most=1)
    """Share of the parameters to keep, embeddings included; within 5 %."""
    memory: str | None = byte_size(None)
    """Memory to run in, such as 8GiB, within 5 % (above it too): weights, KV cache at --batch and
    --context, activations."""
    latency: str | None = None
    """Time of a decode step at --batch and --context, such as 20ms, within 5 %, measured on
    --device."""
    batch: int = bounded(1, at_least=1)
    """Sequences in a batch, for memory and latency."""
    context: int | None = bounded(None, at_least=1)
    """Tokens of each sequence, for memory and latency; the model's context unless given, at most
    4096."""
    device: str | None = None
    """The device that latency is measured on, such as cuda:1; the GPU where there is one. Given
    without --latency, latency is reported but not limited."""
    CHOICE: ClassVar = "Choosing sizes within the budget"
    space: Space = "default"
    """The sizes to choose from: around the source's own, or those of the paper for Nemotron-4."""
    multiple_of: int | None = None
    """Hidden and MLP sizes are multiples of this; 64 unless given, less for a narrow model."""
    min_layers: int | None = None
    """Fewest layers to choose; three quarters of the source's unless given."""
    held_out: str | None = None
    """Text to compare candidates on, as for --corpus; its own last part unless given."""
    eval_tokens: int = bounded(16384, at_least=1)
    """Tokens of the held-out text to compare on."""
    max_candidates: int = bounded(64, at_least=1)
    """Candidates to compare: the nearest to the budget, taken from each depth in turn."""
    compatible: bool | None = None
    """Choose only sizes that llama.cpp, mlx-lm and vLLM can load. By default a budget does so where
    it has such sizes and these engines can load the source; --no-compatible never does."""
    CUTTING: ClassVar = "Cutting layers and heads"
    contiguous_layers: bool = False
    """Drop neighbouring layers only."""
    head_residual: bool = False
    """Fold pruned query heads into kept ones of their KV group (the paper's section 2.3)."""
    SCORES: ClassVar = CalibrationRecipe.MEASURING
    importance: str | None = None
    """A file that minitron importance wrote, instead of measuring."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in self._exclusive:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise TargetError(f"--{one} and --{other} are both given: choose one")
        if self.head_residual and self.scores == "modelopt":
            raise TargetError(
                "--head-residual cannot be combined with --scores modelopt: leave one out"
            )
        if self.importance is not None:
            measuring = ("scores", "memory_budget", *_OF_ACTIVATIONS)
            check_unset(self, measuring, "with --importance")
            if self.corpus is None:
                check_unset(self, ("samples",), "with --importance")
        if not self.contiguous_layers:
            check_unset(self, ("block_size",), "without --contiguous-layers")

    @property
    def _exclusive(self) -> tuple[tuple[str, str], ...]:
        """Options of which only one may be given."""
        return (("params", "ratio"), ("importance", "corpus"))

    @property
    def has_budget(self) -> bool:
        """Whether any budget is given."""
        limits = (self.params, self.ratio, self.memory, self.latency)
        return any(limit is not None for limit in limits)


@dataclass(frozen=True)
class PruneRecipe(BudgetRecipe):
    r"""Cut a model to a smaller size, ranked by importance, into a Hub-ready folder.

    Examples:
        minitron prune tiny half --hidden-size 160 --intermediate-size 608 \
            --corpus self
        minitron prune nvidia/Minitron-8B-Base 4b --hidden-size 3072 \
            --intermediate-size 9216 --num-attention-heads 24 \
            --corpus books.jsonl.gz --samples 64
        minitron prune tiny tiny-shallow --num-hidden-layers 4 \
            --importance tiny.safetensors
        minitron prune tiny smaller --ratio 0.6 --corpus self --samples 64 --dry-run
    """

    FLAGS: ClassVar = ("--json", "--recipe")

    source: str
    """The model: a folder, a Hub id (owner/name, owner/name@revision) or a name of the zoo."""
    out: str
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    SIZES: ClassVar = "Sizes to keep"
    hidden_size: int | None = None
    """Width of the residual stream to keep."""
    intermediate_size: int | None = None
    """Neurons of each MLP to keep."""
    num_attention_heads: int | None = None
    """Query heads of each layer to keep: a multiple of the KV heads; where none is shared, each is
    cut with its own KV head."""
    num_key_value_heads: int | None = None
    """KV heads of each layer to keep, with their query heads; all of them unless given."""
    num_hidden_layers: int | None = None
    """Layers to keep."""
    RECONSTRUCTION: ClassVar = "Reconstruction"
    reconstruct: Literal["auto", "none"] = "none"
    """Fit every linear of the smaller model to the source by least squares on the calibration
    text (auto), or leave the weights as they are cut (none). A twentieth of the sequences is held
    out: what does not help there is not used."""
    hidden: Hidden = "auto"
    """How hidden_size is cut where the model is reconstructed: channels are kept (select), or the
    directions that carry most of the residual stream (rotate, which unties tied embeddings). auto
    rotates where that costs no parameters."""
    eval_tokens: int = bounded(2048, at_least=1)
    """Tokens of text to compare candidates on, where a budget is given."""
    max_candidates: int = bounded(8, at_least=1)
    """Candidates to compare, where a budget is given: those near it that keep most of their
    scores."""
    LIMITS: ClassVar = BudgetRecipe.BUDGET
    SCORES: ClassVar = BudgetRecipe.MEASURING
    SPACE: ClassVar = BudgetRecipe.CHOICE
    STEPS: ClassVar = BudgetRecipe.CUTTING
    steps: int = bounded(1, at_least=1)
    """Prune in this many steps; each measures the model that the step before it made."""
    DISK: ClassVar = CalibrationRecipe.RESOURCES
    low_disk: bool = False
    """Read the weights of a Hub id over the network, again in each pass over them: none is stored
    on this machine, and of the files only the sizes are verified."""
    WRITING: ClassVar = OUTPUT
    push_to_hub: str | None = None
    """The model repository to push the result to as well (minitron push)."""
    private: bool = False
    """Create that repository as a private one."""
    dry_run: bool = False
    """Print the sizes and what would be kept; write and push nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps > 1 and (self.head_residual or self.importance is not None):
            raise TargetError(
                f"--steps is {self.steps}: above 1 it cannot be combined with --head-residual or "
                "--importance, which need a single measurement"
            )
        if not self.has_budget:
            without = "without a budget: --ratio, --params, --memory or --latency"
            check_unset(self, _OF_BUDGET, without)
            if self.importance is not None and self.corpus is None:
                check_unset(self, ("seq_len", "compute_dtype"), "with --importance")
        has_text = self.has_budget and (self.corpus, self.held_out) != (None, None)
        has_text = has_text or self.is_reconstructed
        if self.scores in ("magnitude", "random") and not has_text:
            check_unset(self, _OF_TEXT, f"with --scores {self.scores}")
        if self.reconstruct == "none":
            check_unset(self, ("hidden",), "without --reconstruct auto")
        elif self.corpus is None:
            raise TargetError("--reconstruct auto needs text: give --corpus")
        if self.push_to_hub is None:
            check_unset(self, ("private",), "without --push-to-hub")

    @property
    def is_reconstructed(self) -> bool:
        """Whether the smaller model is fitted to its source."""
        return self.reconstruct == "auto" and self.corpus is not None

    @property
    def _exclusive(self) -> tuple[tuple[str, str], ...]:
        pairs = super()._exclusive
        return pairs[:1] if self.is_reconstructed and not self.has_budget else pairs


@dataclass(frozen=True)
class SearchRecipe(BudgetRecipe):
    r"""Find the best sizes within a budget of parameters, memory or latency, by held-out loss.

    If interrupted, the same command resumes where it stopped; without OUT, or while self is being
    sampled, it begins again.

    Examples:
        minitron search tiny --ratio 0.5 --corpus self --samples 64
        minitron search nvidia/Minitron-8B-Base found --params 4B --memory 12GiB \
            --context 8192 --corpus books.jsonl.gz --samples 256 \
            --held-out held-out.jsonl.gz
        minitron search tiny found --memory 10MiB --device cpu \
            --importance tiny.safetensors --held-out held-out.txt \
            --retrain-steps 50 --retrain-corpus books.jsonl.gz
    """

    FLAGS: ClassVar = ("--json", "--recipe")

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    out: str | None = None
    """The folder to write: table, plans, importance and plot; without it they are only printed."""
    _: KW_ONLY
    LIMITS: ClassVar = BudgetRecipe.BUDGET
    SPACE: ClassVar = BudgetRecipe.CHOICE
    RETRAINING: ClassVar = "Timing and retraining the best"
    top: int = bounded(3, at_least=1)
    """How many of the best candidates to time end to end (with --latency) and to retrain (with
    --retrain-steps)."""
    retrain_steps: int = bounded(0, at_least=0)
    """Optimizer steps to retrain each of the best candidates before they are ranked again."""
    retrain_corpus: str | None = None
    """Text to retrain on; the calibration text unless given."""
    batch_size: int = bounded(8, at_least=1)
    """Sequences in a step of retraining."""
    learning_rate: float = bounded(1e-4, above=0)
    """Peak of retraining's cosine schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.retrain_steps:
            retraining = ("retrain_corpus", "batch_size", "learning_rate")
            check_unset(self, retraining, "without --retrain-steps")
            if self.latency is None and self.device is None:
                check_unset(self, ("top",), "without --latency, --device or --retrain-steps")


@dataclass(frozen=True)
class ConvertRecipe(Recipe):
    r"""Convert a model to another format: .nemo, NeMo 2, Hub, TensorRT-LLM, ONNX.

    Examples:
        minitron convert minitron-8b-base.nemo minitron-8b-base
        minitron convert nvidia/Minitron-8B-Base minitron-8b-base --dtype bfloat16
        minitron convert minitron-8b-base.nemo engine --to trtllm --tp 2 \
            --dtype bfloat16
        minitron convert tiny tiny.nemo --to nemo
    """

    FLAGS: ClassVar = ("--recipe",)

    source: str
    """The model: a .nemo file or folder, a folder, a Hub id or a name of the zoo."""
    out: str
    """What to write: a folder, or with --to nemo a file."""
    _: KW_ONLY
    FORMAT: ClassVar = "Format"
    to: Target = "hub"
    """hub: config.json, safetensors and tokenizer; nemo: one .nemo file; nemo2: a NeMo 2 folder;
    trtllm: a TensorRT-LLM checkpoint; onnx: a graph with its KV cache."""
    dtype: DType | None = None
    """Precision of the weights; as they are stored unless given."""
    max_shard_size: str = "2GB"
    """Largest safetensors file (hub)."""
    tp: int = bounded(1, at_least=1)
    """Tensor-parallel ranks (trtllm)."""
    pp: int = bounded(1, at_least=1)
    """Pipeline-parallel ranks (trtllm)."""
    dist_format: DistFormat = "torch_dist"
    """Storage format of the weights in a .nemo; megatron-core up to 0.15 reads zarr."""
    READING: ClassVar = "Reading"
    keep_vocab_padding: bool = False
    """Keep the embedding rows of a .nemo beyond its tokenizer's size."""
    check: bool = True
    """Refuse NaN and infinity (--no-check: do not read the values)."""
    low_disk: bool = False
    """Read the weights of a Hub id over the network while they are written: none is stored on this
    machine, and of the files only the sizes are verified."""


@dataclass(frozen=True, kw_only=True)
class FitRecipe(Recipe):
    """How a model is trained."""

    MODEL: ClassVar = "Model"
    scratch: bool = False
    """Start from random weights, with the sizes and the tokenizer of the named model."""
    TEXT: ClassVar = "Text"
    corpus: str
    """Text to train on: a .txt, .jsonl, .json or .parquet file (or .gz), a Hub dataset
    (owner/name:config:split), .npy of token ids, or self (init, or the teacher, samples it).
    Rows hold text, content, prompt and completion, or chats as messages or conversations, which
    the tokenizer's chat template writes (without one, their contents are joined by line ends)."""
    eval_corpus: str | None = None
    """Held-out text: its loss is measured at the start, with each checkpoint and at the end."""
    samples: int | None = bounded(None, at_least=1)
    """Sequences to train on, drawn at random from the whole text (of a Hub dataset from its first
    100 million characters, or 16 times what they need, its files in random order; of an .npy the
    first); all unless given (of self 256)."""
    seq_len: int | None = bounded(None, at_least=2)
    """Tokens in a sequence; the model's context unless given, at most 4096."""
    STEPS: ClassVar = "Steps"
    epochs: float = bounded(1.0, above=0)
    """Passes over the corpus, where steps are not given."""
    steps: int | None = bounded(None, at_least=1)
    """Optimizer steps."""
    batch_size: int = bounded(8, at_least=1)
    """Sequences in a step on each device."""
    gradient_accumulation_steps: int = bounded(1, at_least=1)
    """Batches summed before an optimizer step."""
    OPTIMIZER: ClassVar = "Optimizer"
    learning_rate: float = bounded(1e-4, above=0)
    """Peak of the cosine schedule."""
    min_learning_rate: float = bounded(0.0, at_least=0)
    """End of the cosine schedule."""
    warmup_steps: int = bounded(0, at_least=0)
    """Steps of linear warm-up."""
    weight_decay: float = bounded(0.1, at_least=0)
    """AdamW's weight decay, on matrices only."""
    adam_beta2: float = bounded(0.95, at_least=0, at_most=1)
    """AdamW's second-moment decay."""
    max_grad_norm: float = bounded(1.0, at_least=0)
    """Gradients are clipped to this norm."""
    trainer: dict[str, Any] | None = None
    """Any other of transformers' TrainingArguments: --trainer.optim adafactor."""
    RESOURCES: ClassVar = "Memory and precision"
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    autocast: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the matrix products (auto: bfloat16 where the hardware has it); weights and
    optimizer stay in float32."""
    dtype: DType = "bfloat16"
    """Precision of the weights that are written."""
    WRITING: ClassVar = OUTPUT
    save_steps: int = bounded(500, at_least=1)
    """Steps between checkpoints; an interrupted run resumes from the last one."""
    report_to: str = "none"
    """Installed trackers to log to: tensorboard, trackio, wandb (several: a,b)."""
    SEED: ClassVar = STEPS  # not beside them: cards show flags in the order of fields
    seed: int = bounded(0, at_least=0)
    """Seed of initial weights and of the order of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_learning_rate > self.learning_rate:
            raise TargetError(
                f"--min-learning-rate is {self.min_learning_rate:g}: it must be at most "
                f"--learning-rate, {self.learning_rate:g}"
            )
        if self.steps is not None:
            check_unset(self, ("epochs",), "with --steps")


@dataclass(frozen=True)
class TrainRecipe(FitRecipe):
    r"""Train a causal language model, from scratch or further, into a Hub-ready folder.

    If interrupted, the same command resumes from the last checkpoint.

    Examples:
        minitron train retrained --init tiny-half --corpus books.jsonl.gz --steps 500
        minitron train tiny-again --recipe tiny --corpus books.jsonl.gz
        minitron train retrained --init tiny-half --corpus books.jsonl.gz \
            --trainer.optim adafactor
    """

    FLAGS: ClassVar = ("--recipe",)

    out: str
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    START: ClassVar = FitRecipe.MODEL
    init: str
    """The model to start from: a folder, a Hub id or a name of the zoo."""


@dataclass(frozen=True)
class DistillRecipe(FitRecipe):
    r"""Train a student on its teacher's predictions, into a Hub-ready folder.

    If interrupted, the same command resumes from the last checkpoint.

    Examples:
        minitron distill tiny-half tiny-student --teacher tiny \
            --corpus books.jsonl.gz
        minitron distill 4b 4b-student --teacher nvidia/Minitron-8B-Base \
            --corpus books.jsonl.gz --seq-len 4096 --gradient-checkpointing \
            --eval-corpus held-out.jsonl.gz
        minitron distill tiny-half tiny-student --teacher-cache tiny-cache \
            --corpus books.jsonl.gz
        torchrun --nproc-per-node 8 -m minitron distill 4b 4b-student \
            --recipe distill-8-gpus --teacher nvidia/Minitron-8B-Base \
            --corpus books.jsonl.gz
    """

    FLAGS: ClassVar = ("--recipe",)

    student: str
    """The model to train: a folder, a Hub id or a name of the zoo."""
    out: str
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    TEACHER: ClassVar = "Teacher"
    teacher: str | None = None
    """The model to learn from, with the same vocabulary; best is the model before pruning."""
    teacher_cache: str | None = None
    """The teacher's outputs on this corpus (minitron teacher-cache), instead of a teacher."""
    stream_teacher: bool | None = None
    """Read the teacher layer by layer at every batch; the default is to do so where it does not fit
    into memory beside the training."""
    teacher_dtype: DType | None = None
    """Precision the teacher computes in; its checkpoint's own unless given, or float32 where the
    processor only emulates it."""
    TRAINING: ClassVar = FitRecipe.TEXT
    LOSS: ClassVar = "Loss"
    kind: Literal["forward_kl", "reverse_kl", "jsd", "mse", "cosine"] = "forward_kl"
    """Distance of the student's predictions from the teacher's."""
    temperature: float = bounded(1.0, above=0)
    """Softens both distributions."""
    ce_weight: float = bounded(0.0, at_least=0)
    """Weight of the cross-entropy with the text itself, beside the distance."""
    beta: float = 0.5
    """The teacher's weight in the mixture of jsd."""
    STATES: ClassVar = "States between layers"
    alpha: float | Literal["auto", "dynamic"] = "auto"
    """Weight of the distance between hidden states; dynamic: scaled to the distance of the
    predictions; auto: dynamic where at least half of the teacher's layers are cut, else 0."""
    inner_states: str = "embedding,hidden"
    """States that alpha weighs (several: a,b): embedding, hidden (a layer's output), mlp_input,
    mlp_output, attention (relations of queries, keys and values)."""
    layer_map: str | None = None
    """Layers whose states are compared, teacher's:student's, counted from 0 (several: a:b,c:d); the
    third last ones unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_cache is not None:
            check_unset(self, ("stream_teacher", "teacher_dtype"), "with --teacher-cache")
        if self.kind != "jsd":
            check_unset(self, ("beta",), f"with --kind {self.kind}")


@dataclass(frozen=True)
class TeacherCacheRecipe(Recipe):
    r"""Write a teacher's outputs on a corpus, to distill from without it.

    If interrupted, the same command resumes with the missing shards; while self is being sampled,
    it begins again.

    Examples:
        minitron teacher-cache tiny tiny-cache --corpus books.jsonl.gz
        minitron teacher-cache nvidia/Minitron-8B-Base 8b-cache \
            --corpus books.jsonl.gz --top-k 64
    """

    FLAGS: ClassVar = ("--recipe",)

    teacher: str
    """The model: a folder, a Hub id or a name of the zoo."""
    out: str
    """The folder to write."""
    _: KW_ONLY
    corpus: str
    """The text to distill on, as for minitron distill; self (the teacher samples it)."""
    samples: int | None = bounded(None, at_least=1)
    """Sequences, drawn at random as for minitron distill; all unless given (of self 256)."""
    seq_len: int | None = bounded(None, at_least=2)
    """Tokens in a sequence; the teacher's context unless given, at most 4096."""
    top_k: int | None = bounded(None, at_least=1)
    """Keep the probabilities of the k most probable tokens and the sum of all others; the default
    is to keep the last hidden states, which give every probability exactly."""
    dtype: DType | None = None
    """Precision to compute in; the checkpoint's own unless given, or float32 where the processor
    only emulates it."""
    batch_size: int = bounded(8, at_least=1)
    """Sequences in a batch."""
    seed: int = bounded(0, at_least=0)
    """Seed of everything drawn at random."""


@dataclass(frozen=True)
class EvaluateRecipe(Recipe):
    r"""Measure loss (nats a token), perplexity and bits per byte on text, or scores on benchmarks.

    Benchmarks are lm-eval's, ROUGE of summaries is rouge-score's: pip install 'minitron[evals]'.

    Examples:
        minitron evaluate tiny --corpus held-out.txt
        minitron evaluate tiny-half --corpus held-out.jsonl.gz --seq-len 512 \
            --stride 256 --json
        minitron evaluate nvidia/Minitron-4B-Base --tasks hellaswag,arc_challenge \
            --limit 100
        minitron evaluate 4b-student --preset minitron --record
        minitron evaluate nvidia/Minitron-4B-Base --preset cnn_dailymail
        minitron evaluate tiny --tasks my_quiz --include-path my-tasks \
            --num-fewshot 2
    """

    FLAGS: ClassVar = ("--json",)

    source: str
    """The model: a .nemo, a folder, a Hub id or a name of the zoo."""
    _: KW_ONLY
    TEXT: ClassVar = "Text"
    corpus: str | None = None
    """Text: a .txt, .jsonl, .json or .parquet file (or .gz), a Hub dataset
    (owner/name:config:split), or .npy of token ids. Rows hold text, content, prompt and
    completion, or chats as messages or conversations, which the tokenizer's chat template writes
    (without one, their contents are joined by line ends)."""
    seq_len: int | None = bounded(None, at_least=1)
    """Tokens of context at most; the model's context unless given, of text at most 4096."""
    stride: int | None = None
    """Tokens that each window of text predicts, from at least seq_len - stride before them; as
    many as seq_len unless given, so that windows do not overlap."""
    BENCHMARKS: ClassVar = "Benchmarks"
    tasks: str | None = None
    """Benchmarks of lm-eval, its groups, or a task's YAML (several: a,b)."""
    include_path: str | None = None
    """A folder of tasks of your own, as lm-eval's YAML; functions that they name are run."""
    preset: str | None = None
    """minitron (the papers' benchmarks and numbers of examples) or cnn_dailymail (summaries)."""
    num_fewshot: int | None = bounded(None, at_least=0)
    """Examples in each prompt of the tasks; as each task has it unless given."""
    limit: int | None = bounded(None, at_least=1)
    """Documents of each task, or articles; all unless given (of cnn_dailymail 20)."""
    articles: str | None = None
    """Articles for cnn_dailymail: .jsonl or .parquet (or .gz) with columns article and highlights;
    the dataset on the Hub unless given."""
    run_generated_code: bool = False
    """Let tasks such as humaneval run the code that the model writes, on this machine; sets
    HF_ALLOW_CODE_EVAL=1, which evaluate's code_eval requires."""
    COMPUTING: ClassVar = "Computing"
    batch_size: int = bounded(8, at_least=1)
    """Prompts in a batch."""
    dtype: DType | None = None
    """Precision to compute in; the checkpoint's unless given."""
    WRITING: ClassVar = OUTPUT
    record: bool = False
    """Add the result to the folder's minitron.json, model card and .eval_results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corpus is None and self.tasks is None and self.preset is None:
            raise TargetError("nothing to evaluate on: give --corpus, --tasks or --preset")
        if self.stride is not None and (self.corpus is None or self.corpus.endswith(".npy")):
            raise TargetError("--stride is for --corpus with text: rows of ids stand alone")
        if self.tasks is None and self.preset is None:
            of_tasks = ("include_path", "num_fewshot", "limit", "batch_size", "run_generated_code")
            check_unset(self, of_tasks, "without --tasks or --preset")


@dataclass(frozen=True)
class GenerateRecipe(Recipe):
    """Continue a prompt, and print the text while it is generated.

    Examples:
        minitron generate tiny "It was the best of times,"
        minitron generate tiny "Call me" --temperature 0.8 --seed 3
    """

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    prompt: str
    """The text to continue."""
    _: KW_ONLY
    max_new_tokens: int = bounded(128, at_least=1)
    """Tokens to generate at most."""
    temperature: float = bounded(0.0, at_least=0)
    """0 takes the most probable token; higher values sample more freely."""
    top_p: float = bounded(1.0, above=0, at_most=1)
    """Sample only from the most probable tokens that together reach this probability."""
    seed: int = bounded(0, at_least=0)
    """Seed of sampling."""
    quantize: Quantization | None = None
    """Quantize the layers' weights to 8- or 4-bit integers first: less memory, and slightly
    different text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature:
            greedy = "at --temperature 0, which takes the most probable token"
            check_unset(self, ("top_p",), greedy)


@dataclass(frozen=True)
class InspectRecipe(Recipe):
    """Print a model's sizes, parameters, bytes and layout. Reads no weights.

    Examples:
        minitron inspect tiny
        minitron inspect nvidia/Minitron-8B-Base --json
    """

    FLAGS: ClassVar = ("--json",)

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""


@dataclass(frozen=True)
class PushRecipe(Recipe):
    r"""Upload a model folder to the Hub, in one commit: only one that loads, and no pickles.

    With --space, upload the Space that `minitron demo` shows, with minitron itself, instead.
    If interrupted, the same command sends only the missing files.

    Examples:
        minitron push tiny-half me/tiny-half --private
        minitron push tiny-half me/tiny-half --branch distilled --tag v2
        minitron push 4b nvidia/Minitron-4B-Base --create-pr \
            --commit-message 'Add safetensors'
        minitron push --space me/minitron-demo
        minitron push --space me/minitron-demo nvidia/Minitron-8B-Base me/tiny-half
    """

    folder: str | None = None
    """The folder to upload, or a name of the zoo; with --space the first model to show."""
    repo: str | None = None
    """The model repository: owner/name, or a name of your own account; created if missing."""
    models: list[str] | None = None
    """With --space: the models to show, each a Hub id or a name of the zoo; the whole zoo unless
    given."""
    _: KW_ONLY
    space: str | None = None
    """Upload the Space instead, to this repository, owner/name; created if missing."""
    private: bool = False
    """Create the repository as a private one."""
    create_pr: bool = False
    """Open a pull request instead of committing."""
    branch: str | None = None
    """The branch to commit to, created if missing; main unless given."""
    tag: str | None = None
    """Also tag the commit."""
    commit_message: str | None = None
    """The commit's title; made from minitron.json unless given."""
    collection: str | None = None
    """Also add the model to a collection: its title (created if missing) or its slug."""


@dataclass(frozen=True)
class CardRecipe(Recipe):
    """Write a folder's model card: sizes removed, training, scores, use, and how to remake it.

    A README.md that was written or changed by hand is kept, unless --overwrite is given.

    Examples:
        minitron card half
        minitron card half --overwrite
    """

    folder: str
    """A folder that minitron made."""
    _: KW_ONLY
    overwrite: bool = False
    """Replace a README.md that was written or changed by hand."""


@dataclass(frozen=True)
class RemakeRecipe(Recipe):
    """Build a pruned or converted folder's weights again: the same bytes, without any text.

    Examples:
        minitron remake half half-again
        minitron remake me/minitron-4b minitron-4b
        minitron remake half half-again --source elsewhere/tiny
        minitron remake tiny-half start --before-training
    """

    folder: str
    """The folder, or its Hub id; its minitron.json is enough."""
    out: str
    """The folder to write."""
    _: KW_ONLY
    source: str | None = None
    """The model that it was made from, if it has moved; the one in minitron.json unless given."""
    before_training: bool = False
    """For a trained folder, build the model that its training began with."""
    low_disk: bool = False
    """Read the weights of a Hub id over the network; none is stored on this machine."""


@dataclass(frozen=True)
class DemoRecipe(Recipe):
    """Show models in a browser: compare them, prune one, see measured results.

    Examples:
        minitron demo
        minitron demo tiny tiny-half --port 8000
    """

    sources: list[str] | None = None
    """The models: folders, Hub ids or names of the zoo; the whole zoo unless given."""
    _: KW_ONLY
    port: int | None = bounded(None, at_least=1, at_most=65535)
    """The port to serve on; GRADIO_SERVER_PORT, else the first free one from 7860, unless given."""
    open: bool = False
    """Also open the page in a browser."""


@dataclass(frozen=True)
class QuickstartRecipe(Recipe):
    """Prune, distill and compare the embedded teacher: minutes on two cores, no network.

    Examples:
        minitron quickstart
        minitron quickstart my-first-student --seed 1
    """

    out: str = "first-student"
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    seed: int = bounded(0, at_least=0)
    """Seed of everything drawn at random."""


# The commands in groups, both in the order of work.
COMMANDS: Mapping[str, tuple[type[Recipe], ...]] = {
    "First steps": (QuickstartRecipe, InspectRecipe, GenerateRecipe, DemoRecipe),
    "Make a model smaller": (PruneRecipe, SearchRecipe, ImportanceRecipe),
    "Train it": (DistillRecipe, TeacherCacheRecipe, TrainRecipe),
    "Measure and publish it": (EvaluateRecipe, CardRecipe, PushRecipe, RemakeRecipe),
    "Other formats": (ConvertRecipe,),
}
