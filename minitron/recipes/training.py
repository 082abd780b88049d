"""The options of `minitron train`, `minitron distill` and `minitron teacher-cache`."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from minitron.errors import TargetError
from minitron.options import bounded, check_unset
from minitron.recipe import OUTPUT, DType, Recipe


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
