"""Recipe: one dataclass a command. Its fields are the flags, the YAML keys and the record.

A field is written once, here, with its help beside it: the command line derives its flags, a
recipe file its keys, the Python verb its arguments, and `minitron.json` what was done. Imports no
torch, so that `--help` answers at once.

    PruneRecipe(source="tiny", out="tiny-half", hidden_size=192, corpus="self")
"""

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

Options = ParamSpec("Options")
RecipeT = TypeVar("RecipeT")
Result = TypeVar("Result")

Scores = Literal["paper", "magnitude", "random"]
Target = Literal["hub", "nemo", "nemo2", "trtllm", "onnx"]
DistFormat = Literal["torch_dist", "zarr"]
DType = Literal["float32", "bfloat16", "float16"]


def verb(
    recipe_type: Callable[Options, RecipeT],
) -> Callable[[Callable[[RecipeT], Result]], Callable[Options, Result]]:
    """Turn a function of a recipe into a public verb that takes the recipe's fields."""

    def decorate(run: Callable[[RecipeT], Result]) -> Callable[Options, Result]:
        @wraps(run)
        def public(*args: Options.args, **kwargs: Options.kwargs) -> Result:
            return run(recipe_type(*args, **kwargs))

        signature = inspect.signature(recipe_type)
        result = inspect.signature(run).return_annotation
        public.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
        return public

    return decorate


def record_of(recipe: Any) -> dict[str, Any]:
    """What a recipe says, without where its result goes: equal records make equal results."""
    return {key: value for key, value in asdict(recipe).items() if key != "out"}


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe:
    """How importance is measured."""

    corpus: str | None = None
    """Text to measure on: a .txt, .jsonl or .parquet file (or .gz), a Hub dataset
    (owner/name:config:split), .npy of token ids, self (the model samples it), or random ids."""
    samples: int | None = None
    """Sequences to measure on; 1024 as in the paper, of an .npy all."""
    seq_len: int | None = None
    """Tokens in a sequence; the model's context unless given, at most 4096."""
    scores: Scores = "paper"
    """What ranks: activations as in the paper, magnitude of weights, or nothing (random)."""
    seed: int = 0
    """Seed of everything drawn at random."""


@dataclass(frozen=True)
class PruneRecipe(CalibrationRecipe):
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
    """Query heads of each layer to keep: a multiple of the KV heads, all of which stay."""
    num_hidden_layers: int | None = None
    """Layers to keep."""
    importance: str | None = None
    """Importance measured before (minitron importance): nothing is measured again."""


@dataclass(frozen=True)
class ImportanceRecipe(CalibrationRecipe):
    """Measure importance once, for many targets."""

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    out: str
    """The safetensors file to write."""


@dataclass(frozen=True)
class ConvertRecipe:
    """Bring a model from any readable format to another."""

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
    max_shard_size: str = "5GB"
    """Largest safetensors file (hub)."""
    tp: int = 1
    """Tensor-parallel ranks (trtllm)."""
    pp: int = 1
    """Pipeline-parallel ranks (trtllm)."""
    dist_format: DistFormat = "torch_dist"
    """How the weights lie in a .nemo; megatron-core reads zarr up to 0.15."""
    keep_vocab_padding: bool = False
    """Keep the rows of a .nemo's vocabulary beyond its tokenizer's size."""
    check: bool = True
    """Refuse NaN and infinity (--no-check: look at no value)."""


@dataclass(frozen=True)
class TrainRecipe:
    """Train a causal language model, from scratch or continued."""

    out: str
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    init: str
    """The model to start from: a folder, a Hub id or a name of the zoo."""
    corpus: str
    """Text to train on: a .txt, .jsonl or .parquet file (or .gz), a Hub dataset, .npy of token
    ids, or self (init samples it)."""
    scratch: bool = False
    """Start from random weights at the sizes of init, with its tokenizer."""
    eval_corpus: str | None = None
    """Held-out text: its loss is measured at the start, with each checkpoint and at the end."""
    samples: int | None = None
    """Sequences to train on, drawn at random; all unless given (of self 256)."""
    seq_len: int | None = None
    """Tokens in a sequence; the model's context unless given, at most 4096."""
    epochs: float = 1.0
    """Passes over the corpus, where steps are not given."""
    steps: int | None = None
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences a step on each device."""
    gradient_accumulation_steps: int = 1
    """Batches summed before an optimizer step."""
    learning_rate: float = 1e-4
    """Peak of the cosine schedule."""
    min_learning_rate: float = 0.0
    """End of the cosine schedule."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """AdamW's weight decay, on matrices only."""
    adam_beta2: float = 0.95
    """AdamW's second-moment decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    autocast: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the matrix products (auto: bfloat16 where the hardware has it); weights and
    optimizer stay in float32."""
    dtype: DType = "bfloat16"
    """Precision of the weights that are written."""
    save_steps: int = 500
    """Steps between checkpoints, from which an interrupted run goes on."""
    seed: int = 0
    """Seed of initial weights and of the order of the data."""


@dataclass(frozen=True)
class EvaluateRecipe:
    """Measure loss, perplexity and bits per byte on text."""

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    _: KW_ONLY
    corpus: str
    """Text: a .txt, .jsonl or .parquet file (or .gz), a Hub dataset, or .npy of token ids."""
    seq_len: int | None = None
    """Tokens of context at most; the model's context unless given, at most 4096."""
    dtype: DType | None = None
    """Precision to compute in; the checkpoint's unless given."""
    record: bool = False
    """Write the result into the folder's minitron.json and model card."""


@dataclass(frozen=True)
class GenerateRecipe:
    """Continue a prompt."""

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""
    prompt: str
    """The text to continue."""
    _: KW_ONLY
    max_new_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher values sample more freely."""
    top_p: float = 1.0
    """Sample only from the likeliest tokens that together reach this probability."""
    seed: int = 0
    """Seed of sampling."""


@dataclass(frozen=True)
class InspectRecipe:
    """Tell what a model is, without reading its weights."""

    source: str
    """The model: a folder, a Hub id or a name of the zoo."""


@dataclass(frozen=True)
class QuickstartRecipe:
    """Prune, retrain and compare the embedded teacher."""

    out: str = "tiny-half"
    """The folder to write, ready for the Hub."""
    _: KW_ONLY
    seed: int = 0
    """Seed of everything drawn at random."""
