"""The options of `minitron prune` and `minitron search`, which share a budget."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from minitron.errors import TargetError
from minitron.options import bounded, byte_size, check_unset
from minitron.recipe import OUTPUT
from minitron.recipes.importance import OF_ACTIVATIONS, OF_TEXT, CalibrationRecipe

Space = Literal["default", "paper-8b", "paper-4b"]
Hidden = Literal["auto", "select", "rotate"]

# Options of a pruning that have an effect only within a budget.
_OF_BUDGET = (
    *("batch", "context", "device", "space", "multiple_of", "min_layers"),
    *("held_out", "eval_tokens", "max_candidates"),
)
_RECONSTRUCTED = ("paper", "contribution", "obs")  # scores of what is fitted unless it is refused


def fits_by_default(scores: str, corpus: str | None) -> bool:
    """Whether minitron prune fits the smaller model to its source unless asked otherwise.

    Where importance is the paper's or made for it: other scores are for comparisons with plain
    pruning. Random ids are no text to fit to.
    """
    return scores in _RECONSTRUCTED and corpus not in (None, "random")


@dataclass(frozen=True, kw_only=True)
class BudgetRecipe(CalibrationRecipe):
    """The resources that a smaller model may use, and how the best such model is chosen."""

    BUDGET: ClassVar = "Budget"
    params: str | int | None = None
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
    RECONSTRUCTION: ClassVar = "Reconstruction"
    reconstruct: Literal["auto", "none"] | None = None
    hidden: Hidden = "auto"
    """How hidden_size is cut where the model is reconstructed: channels are kept (select), or the
    directions that carry most of the residual stream (rotate, which unties tied embeddings). auto
    rotates where that costs no parameters."""

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
            measuring = ("scores", *OF_ACTIVATIONS)
            check_unset(self, measuring, "with --importance")
            if self.corpus is None:
                check_unset(self, ("samples", "memory_budget"), "with --importance")
        if not self.contiguous_layers:
            check_unset(self, ("block_size",), "without --contiguous-layers")
        if self.reconstruct == "auto" and self.corpus is None:
            raise TargetError("--reconstruct auto needs text: give --corpus")
        if not self.is_reconstructed:
            check_unset(self, ("hidden",), "without --reconstruct auto")

    @property
    def is_reconstructed(self) -> bool:
        """Whether smaller models are fitted to their source."""
        if self.reconstruct is None:
            return fits_by_default(self.scores, self.corpus)
        return self.reconstruct == "auto"

    @property
    def _exclusive(self) -> tuple[tuple[str, str], ...]:
        """Options of which only one may be given: text beside an importance is to fit to."""
        pairs = (("params", "ratio"), ("importance", "corpus"))
        return pairs[:1] if self.is_reconstructed else pairs

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
    FITTING: ClassVar = BudgetRecipe.RECONSTRUCTION
    reconstruct: Literal["auto", "none"] | None = None
    """Fit every linear of the smaller model to the source by least squares on the calibration
    text (auto), or leave the weights as they are cut (none). A twentieth of the sequences is held
    out: what does not help there is not used. auto where a text is named with --scores paper,
    contribution or obs or with --importance, else none."""
    eval_tokens: int = bounded(2048, at_least=1)
    """Tokens of text to compare candidates on, where a budget is given."""
    max_candidates: int = bounded(8, at_least=1)
    """Candidates to compare, where a budget is given: those near it that keep most of their
    scores. They are compared as the result is made: reconstructed, or as they are cut."""
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
            check_unset(self, OF_TEXT, f"with --scores {self.scores}")
        if self.push_to_hub is None:
            check_unset(self, ("private",), "without --push-to-hub")


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
    FITTING: ClassVar = BudgetRecipe.RECONSTRUCTION
    reconstruct: Literal["auto", "none"] | None = None
    """Rank candidates by their loss once they are reconstructed on calibration text (auto), or as
    they are cut (none), which takes less time but ranks worse: docs/family.md. auto where minitron
    prune reconstructs: where a text is named with --scores paper, contribution or obs or with
    --importance, else none."""
    RETRAINING: ClassVar = "Timing and retraining the best"
    top: int = bounded(3, at_least=1)
    """How many of the best candidates to time end to end (with --latency) and to retrain (with
    --retrain-steps)."""
    retrain_steps: int = bounded(0, at_least=0)
    """Optimizer steps to retrain each of the best candidates before they are ranked again."""
    retrain_corpus: str | None = None
    """Text to retrain on; the calibration text unless given."""
    retrain_on: Literal["text", "teacher"] = "text"
    """What retraining learns to predict: the text, or the source's predictions of it (teacher), as
    minitron distill does."""
    batch_size: int = bounded(8, at_least=1)
    """Sequences in a step of retraining."""
    learning_rate: float = bounded(1e-4, above=0)
    """Peak of retraining's cosine schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.retrain_steps:
            retraining = ("retrain_corpus", "retrain_on", "batch_size", "learning_rate")
            check_unset(self, retraining, "without --retrain-steps")
            if self.latency is None and self.device is None:
                check_unset(self, ("top",), "without --latency, --device or --retrain-steps")
