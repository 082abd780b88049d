"""Recipe: one dataclass for each command. Its fields are the flags, the YAML keys and the record.

A field is written once, here, with its help and its bounds beside it: the command line derives its
flags, a recipe file its keys, the Python verb its arguments, and `minitron.json` what was done.
Imports no torch, so that `--help` answers at once.

    PruneRecipe(source="tiny", out="tiny-half", hidden_size=192, corpus="self")
"""

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from minitron.bounds import bounded, check_bounds, check_unset
from minitron.errors import TargetError, readable_system_errors

Options = ParamSpec("Options")
RecipeT = TypeVar("RecipeT")
Result = TypeVar("Result")

Scores = Literal["paper", "modelopt", "magnitude", "random"]
Target = Literal["hub", "nemo", "nemo2", "trtllm", "onnx"]
DistFormat = Literal["torch_dist", "zarr"]
Space = Literal["default", "paper-8b", "paper-4b"]
DType = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4"]

_DESTINATION = ("out", "push_to_hub", "private")
_TRANSFER_OPTIONS = ("low_disk",)  # how the source is read, which does not change the result
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
    """Turn a function of a recipe into a public verb that takes the recipe's fields."""

    def decorate(run: Callable[[RecipeT], Result]) -> Callable[Options, Result]:
        @wraps(run)
        def public(*args: Options.args, **kwargs: Options.kwargs) -> Result:
            with readable_system_errors():
                return run(recipe_type(*args, **kwargs))

        signature = inspect.signature(recipe_type)
        result = inspect.signature(run).return_annotation
        public.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
        return public

    return decorate


def record_of(recipe: Any) -> dict[str, Any]:
    """A recipe's fields, but for its destination: equal records make equal results."""
    left_out = (*_DESTINATION, *_TRANSFER_OPTIONS)
    return {key: value for key, value in asdict(recipe).items() if key not in left_out}


@dataclass(frozen=True)
class Recipe:
    """The options of a command.

    Raises TargetError for numbers out of their bounds and for options that exclude each other.
    """

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe(Recipe):
    """How importance is measured."""

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
    memory_budget: str | None = None
    """Memory to use, such as 6GiB; most of the free memory unless given. A model that does not fit
    is read layer by layer."""
    compute_dtype: DType | None = None
    """Precision of the forward pass; the checkpoint's own unless given, or float32 where the
    processor only emulates it."""
    seed: int = bounded(0, at_least=0)
    """Seed of everything drawn at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores in ("magnitude", "random"):
            check_unset(self, _OF_ACTIVATIONS, f"with --scores {self.scores}")


@dataclass(frozen=True)
class ImportanceRecipe(CalibrationRecipe):
    """Measure importance once, for many targets."""

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    out: str
    """The safetensors file to write."""
    _: KW_ONLY
    plot: str | None = None
    """Also draw the scores into this picture (.png, .svg or .pdf)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores in ("magnitude", "random"):
            check_unset(self, _OF_TEXT, f"with --scores {self.scores}")


@dataclass(frozen=True, kw_only=True)
class BudgetRecipe(CalibrationRecipe):
    """The resources that a smaller model may use, and how the best such model is chosen."""

    params: str | None = None
    """Parameters to keep, embeddings included, such as 4B or 500M; within 5 %."""
    ratio: float | None = bounded(None, above=0, at_most=1)
    """Share of the parameters to keep, embeddings included; within 5 %."""
    memory: str | None = None
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
    space: Space = "default"
    """The sizes to choose from: around the source's own, or those of the paper for Nemotron-4."""
    multiple_of: int | None = None
    """Hidden and MLP sizes are multiples of this; 64 unless given, less for a narrow model."""
    min_layers: int | None = None
    """Fewest layers to choose; three quarters of the source's unless given."""
    contiguous_layers: bool = False
    """Drop neighbouring layers only."""
    head_residual: bool = False
    """Fold pruned query heads into kept ones of their KV group (the paper's section 2.3)."""
    importance: str | None = None
    """A file that minitron importance wrote, instead of measuring."""
    held_out: str | None = None
    """Text to compare candidates on, as for --corpus; its own last part unless given."""
    eval_tokens: int = bounded(16384, at_least=1)
    """Tokens of the held-out text to compare on."""
    max_candidates: int = bounded(64, at_least=1)
    """Candidates to compare: the nearest to the budget, taken from each depth in turn."""
    compatible: bool | None = None
    """Choose only sizes that llama.cpp, mlx-lm and vLLM can load. By default a budget does so where
    it has such sizes and these engines can load the source; --no-compatible never does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in (("params", "ratio"), ("importance", "corpus")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise TargetError(f"--{one} and --{other} are both given: choose one")
        if self.head_residual and self.scores == "modelopt":
            raise TargetError(
                "--head-residual cannot be combined with --scores modelopt: leave one out"
            )
        if self.importance is not None:
            measuring = ("samples", "scores", "memory_budget", *_OF_ACTIVATIONS)
            check_unset(self, measuring, "with --importance")
        if not self.contiguous_layers:
            check_unset(self, ("block_size",), "without --contiguous-layers")

    @property
    def has_budget(self) -> bool:
        """Whether any budget is given."""
        limits = (self.params, self.ratio, self.memory, self.latency)
        return any(limit is not None for limit in limits)


@dataclass(frozen=True)
class PruneRecipe(BudgetRecipe):
    """Cut a model to a smaller size."""

    source: str
    """The model: a folder, a Hub id (owner/name, owner/name@revision) or a name of the zoo."""
    out: str
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
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
    eval_tokens: int = bounded(2048, at_least=1)
    """Tokens of text to compare candidates on, where a budget is given."""
    max_candidates: int = bounded(8, at_least=1)
    """Candidates to compare, where a budget is given: those near it that keep most of their
    scores."""
    steps: int = bounded(1, at_least=1)
    """Prune in this many steps; each measures the model that the step before it made."""
    low_disk: bool = False
    """Read the weights of a Hub id over the network, again in each pass over them: none is stored
    on this machine, and of the files only the sizes are verified."""
    push_to_hub: str | None = None
    """The model repository to push the result to as well (minitron push)."""
    private: bool = False
    """Create that repository as a private one."""

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
            if self.importance is not None:
                check_unset(self, ("seq_len", "compute_dtype"), "with --importance")
        has_text = self.has_budget and (self.corpus, self.held_out) != (None, None)
        if self.scores in ("magnitude", "random") and not has_text:
            check_unset(self, _OF_TEXT, f"with --scores {self.scores}")
        if self.push_to_hub is None:
            check_unset(self, ("private",), "without --push-to-hub")


@dataclass(frozen=True)
class SearchRecipe(BudgetRecipe):
    """Find the best sizes within a budget."""

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    out: str | None = None
    """The folder to write: table, plans, importance and plot; without it they are only printed."""
    _: KW_ONLY
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
    """Convert a model from any readable format to another."""

    source: str
    """The model: a .nemo file or folder, a folder, a Hub id or a name of the zoo."""
    out: str
    """What to write: a folder, or with --to nemo a file."""
    _: KW_ONLY
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

    scratch: bool = False
    """Start from random weights, with the sizes and the tokenizer of the named model."""
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
    epochs: float = bounded(1.0, above=0)
    """Passes over the corpus, where steps are not given."""
    steps: int | None = bounded(None, at_least=1)
    """Optimizer steps."""
    batch_size: int = bounded(8, at_least=1)
    """Sequences in a step on each device."""
    gradient_accumulation_steps: int = bounded(1, at_least=1)
    """Batches summed before an optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    learning_rate: float = bounded(1e-4, above=0)
    """Peak of the cosine schedule."""
    min_learning_rate: float = bounded(0.0, at_least=0)
    """End of the cosine schedule."""
    warmup_steps: int = bounded(0, at_least=0)
    """Steps of linear warm-up."""
    weight_decay: float = bounded(0.1, at_least=0)
    """AdamW's weight decay, on matrices only."""
    adam_beta2: float = 0.95
    """AdamW's second-moment decay."""
    max_grad_norm: float = bounded(1.0, at_least=0)
    """Gradients are clipped to this norm."""
    autocast: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the matrix products (auto: bfloat16 where the hardware has it); weights and
    optimizer stay in float32."""
    dtype: DType = "bfloat16"
    """Precision of the weights that are written."""
    save_steps: int = bounded(500, at_least=1)
    """Steps between checkpoints; an interrupted run resumes from the last one."""
    report_to: str = "none"
    """Installed trackers to log to: tensorboard, trackio, wandb (several: a,b)."""
    trainer: dict[str, Any] | None = None
    """Any other of transformers' TrainingArguments: --trainer.optim adafactor."""
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
    """Train a causal language model, from scratch or continued."""

    out: str
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    init: str
    """The model to start from: a folder, a Hub id or a name of the zoo."""


@dataclass(frozen=True)
class DistillRecipe(FitRecipe):
    """Train a student to predict what its teacher predicts."""

    student: str
    """The model to train: a folder, a Hub id or a name of the zoo."""
    out: str
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
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
    kind: Literal["forward_kl", "reverse_kl", "jsd", "mse", "cosine"] = "forward_kl"
    """Distance of the student's predictions from the teacher's."""
    temperature: float = bounded(1.0, above=0)
    """Softens both distributions."""
    ce_weight: float = bounded(0.0, at_least=0)
    """Weight of the cross-entropy with the text itself, beside the distance."""
    beta: float = 0.5
    """The teacher's weight in the mixture of jsd."""
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
    """Write a teacher's outputs on a corpus, to distill from without it."""

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
    """Measure loss, perplexity and bits per byte on text, and scores on benchmarks."""

    source: str
    """The model: a .nemo, a folder, a Hub id or a name of the zoo."""
    _: KW_ONLY
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
    batch_size: int = bounded(8, at_least=1)
    """Prompts in a batch."""
    articles: str | None = None
    """Articles for cnn_dailymail: .jsonl or .parquet (or .gz) with columns article and highlights;
    the dataset on the Hub unless given."""
    run_generated_code: bool = False
    """Let tasks such as humaneval run the code that the model writes, on this machine; sets
    HF_ALLOW_CODE_EVAL=1, which evaluate's code_eval requires."""
    dtype: DType | None = None
    """Precision to compute in; the checkpoint's unless given."""
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
    """Continue a prompt."""

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
    """Print what a model is, without reading its weights."""

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""


@dataclass(frozen=True)
class PushRecipe(Recipe):
    """Upload a model folder to the Hub, or the Space that shows models."""

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
    """Write the model card of a folder."""

    folder: str
    """A folder that minitron made."""
    _: KW_ONLY
    overwrite: bool = False
    """Replace a README.md that was written or changed by hand."""


@dataclass(frozen=True)
class RemakeRecipe(Recipe):
    """Build a folder's weights again from its minitron.json."""

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
    """Show models in a browser."""

    sources: list[str] | None = None
    """The models: folders, Hub ids or names of the zoo; the whole zoo unless given."""
    _: KW_ONLY
    port: int | None = bounded(None, at_least=1, at_most=65535)
    """The port to serve on; GRADIO_SERVER_PORT, else the first free one from 7860, unless given."""
    open: bool = False
    """Also open the page in a browser."""


@dataclass(frozen=True)
class QuickstartRecipe(Recipe):
    """Prune, distill and compare the embedded teacher."""

    out: str = "first-student"
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    seed: int = bounded(0, at_least=0)
    """Seed of everything drawn at random."""
