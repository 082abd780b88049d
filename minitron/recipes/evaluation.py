"""The options of `minitron evaluate`."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from minitron.errors import TargetError
from minitron.options import bounded, check_unset
from minitron.recipe import OUTPUT, DType, Recipe


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
