"""`minitron evaluate`: loss, perplexity and bits per byte of a model, and its benchmarks.

evaluate(source="tiny", corpus="books.jsonl.gz").bits_per_byte
evaluate(source="tiny", tasks="hellaswag", num_fewshot=10).tasks["hellaswag"].metrics["acc"]
"""

import logging
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from minitron.errors import TargetError
from minitron.evaluation.loss import Evaluation, TextLoss, evaluate_text
from minitron.evaluation.preset import Preset, read_preset
from minitron.evaluation.summaries import Articles, read_articles, summarize
from minitron.evaluation.task_harness import Tasks, load_tasks, run_tasks
from minitron.files.dtypes import dtype_named
from minitron.model.source import Source
from minitron.options import check_unset, flags_given
from minitron.printing import print_json, print_record, print_table, readable
from minitron.recipe import verb
from minitron.recipes.evaluation import EvaluateRecipe
from minitron.records.minitron_json import FILE, check_record, read_record
from minitron.records.model_card import write_card
from minitron.records.record_writer import add_measurements
from minitron.records.task_scores import TaskScores, record_of_scores, write_eval_results
from minitron.sources.loading import (
    default_device,
    load_model,
    load_tokenizer,
    sequence_length,
    warn_beyond_context,
)
from minitron.sources.opening import open_source, zoo
from minitron.text.corpus import HeldOut, held_out_ids, held_out_text

# Options that change the scores of tasks; a command for them holds those that were given.
_OF_TASKS = (
    *("tasks", "include_path", "preset", "num_fewshot", "limit", "articles"),
    *("run_generated_code", "batch_size"),
)
_FEW_TOKENS = 500  # with fewer, the loss is of these words rather than of the model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Measurements:
    """Texts and tasks to measure a model on, read before the model is."""

    held_out: HeldOut | None
    tasks: Tasks | None
    articles: Articles | None
    preset: Preset


@verb(EvaluateRecipe)
def evaluate(recipe: EvaluateRecipe) -> Evaluation:
    """Loss (nats a token), perplexity and bits per byte of a model on text, and its benchmarks.

    At least one of `corpus`, `tasks` and `preset` must be given. Raises SourceError,
    TokenizerError, CorpusError for text or data that is missing, empty or not of the model's
    vocabulary, TargetError for options and tasks that do not exist, MissingExtraError where
    benchmarks are to run without the extra `evals`.
    """
    evaluation = measure(recipe)
    if recipe.record:
        record_evaluation(evaluation, recipe)
    return evaluation


def command(recipe: EvaluateRecipe, *, as_json: bool) -> None:
    """What the command line runs and prints."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about intended options
    evaluation = measure(recipe)
    _print(evaluation.to_json(), recipe, as_json=as_json)
    if recipe.record:  # hours of work are printed before anything is written
        record_evaluation(evaluation, recipe)


def _print(evaluation: dict[str, Any], recipe: EvaluateRecipe, *, as_json: bool) -> None:
    """What was measured, as JSON or as tables."""
    if as_json:
        print_json(evaluation)
        return
    tasks: Any = evaluation.pop("tasks")
    if recipe.corpus is not None:
        print_record(evaluation)
    rows = [[name, m, readable(v)] for name, task in tasks.items() for m, v in task.items()]
    if rows:
        print_table(["task", "", "score"], [row for row in rows if row[2] != "None"])
    sys.stdout.flush()


def measure(recipe: EvaluateRecipe) -> Evaluation:
    """The same, but nothing is written; a folder without a record to add to is refused."""
    preset = _preset_of(recipe)
    source = open_source(recipe.source)
    seq_len = recipe.seq_len or sequence_length(source, None)
    warn_beyond_context(source, seq_len, "--seq-len is")
    if recipe.record:
        folder = Path(recipe.source)  # refused where it has no record to add to
        if recipe.source in zoo() and not folder.exists():
            raise TargetError(
                f"--record adds to a folder of yours, and {recipe.source} is an embedded model: "
                f"minitron convert {recipe.source} COPY makes such a folder"
            )
        check_record(read_record(folder), str(folder / FILE))
    measurements = _measurements(recipe, preset, source, seq_len)
    dtype = dtype_named(recipe.dtype)
    model = load_model(source, dtype=dtype, device=default_device())
    held_out = measurements.held_out
    text = None if held_out is None else evaluate_text(model, held_out)
    if text is not None and text.tokens < _FEW_TOKENS:
        logger.warning(
            "%s has %d tokens to predict: another text of so few gives quite another loss",
            *(recipe.corpus, text.tokens),
        )
    return Evaluation(text, _task_scores(recipe, measurements, model, source))


def _preset_of(recipe: EvaluateRecipe) -> Preset:
    """The preset, an empty one where none is named. Raises TargetError for wrong options."""
    preset = Preset() if recipe.preset is None else read_preset(recipe.preset)
    if recipe.num_fewshot is not None and preset.tasks:
        raise TargetError(
            f"--preset {recipe.preset} sets the examples of its tasks: leave --num-fewshot out"
        )
    if recipe.articles is not None and preset.summaries is None:
        raise TargetError("--articles is for --preset cnn_dailymail: give that too")
    if not (recipe.tasks or preset.tasks or preset.code_tasks):
        check_unset(
            recipe,
            ("include_path", "num_fewshot", "run_generated_code"),
            "without --tasks or --preset minitron",
        )
        if recipe.corpus is None:
            check_unset(recipe, ("seq_len",), f"with --preset {recipe.preset}")
    return preset


def _measurements(
    recipe: EvaluateRecipe, preset: Preset, source: Source, seq_len: int
) -> _Measurements:
    held_out = None
    if recipe.corpus is not None:
        held_out = _held_out(recipe, recipe.corpus, source, seq_len)
    names: dict[str, int | None] = {**preset.tasks}
    if recipe.run_generated_code:
        names |= preset.code_tasks
    elif preset.code_tasks:
        logger.info(
            "%s are left out: they run the code that the model writes, on this machine and with "
            "your rights (--run-generated-code)",
            " and ".join(preset.code_tasks),
        )
    names |= {name: recipe.num_fewshot for name in (recipe.tasks or "").split(",") if name}
    tasks = articles = None
    if names:
        tasks = load_tasks(
            names,
            limit=recipe.limit,
            include_path=recipe.include_path,
            run_generated_code=recipe.run_generated_code,
        )
    if preset.summaries is not None:
        articles = read_articles(recipe.articles, preset.summaries, limit=recipe.limit)
    return _Measurements(held_out, tasks, articles, preset)


def _held_out(recipe: EvaluateRecipe, corpus: str, source: Source, seq_len: int) -> HeldOut:
    if corpus.endswith(".npy"):
        return held_out_ids(corpus, seq_len)
    if recipe.stride is not None and not 1 <= recipe.stride <= seq_len:
        raise TargetError(f"--stride is {recipe.stride}: it must be 1 to {seq_len}, the --seq-len")
    return held_out_text(corpus, load_tokenizer(source), seq_len, recipe.stride)


def _task_scores(
    recipe: EvaluateRecipe, measurements: _Measurements, model: PreTrainedModel, source: Source
) -> dict[str, TaskScores]:
    scores: dict[str, TaskScores] = {}
    if measurements.tasks is not None:
        scores |= run_tasks(
            measurements.tasks,
            model,
            load_tokenizer(source),
            batch_size=recipe.batch_size,
            max_length=recipe.seq_len,
        )
    settings = measurements.preset.summaries
    if measurements.articles is not None and settings is not None:
        summed = summarize(
            measurements.articles,
            model,
            load_tokenizer(source),
            settings,
            batch_size=recipe.batch_size,
        )
        scores[summed.name] = summed
    return scores


def record_evaluation(evaluation: Evaluation, recipe: EvaluateRecipe) -> None:
    """Write what was measured into the folder, beside what was measured of it before.

    Raises OutputError; minitron.json is then as it was, or whole.
    """
    folder = Path(recipe.source)
    scores = list(evaluation.tasks.values())
    results = {}
    if recipe.corpus is not None and evaluation.text is not None:
        seq_len = recipe.seq_len or sequence_length(open_source(recipe.source), None)
        results["results"] = _results(evaluation.text, recipe, recipe.corpus, seq_len)
    if scores:
        results["benchmarks"] = record_of_scores(scores, _command(recipe, _OF_TASKS))
    add_measurements(folder, **results)
    if scores:
        write_eval_results(folder, scores)
    write_card(folder)


def _command(recipe: EvaluateRecipe, names: tuple[str, ...]) -> str:
    """The command that measures the same, of the options `names` and those of every measurement.

    Options with their default values are left out, and so are the folders of this machine.
    """
    shown = replace(
        recipe,
        corpus=_without_folders(recipe.corpus),
        include_path=_without_folders(recipe.include_path),
        articles=_without_folders(recipe.articles),
    )
    flags = flags_given(shown, (*names, "seq_len", "dtype"))
    return shlex.join(["minitron", "evaluate", _name_of(recipe), *flags])


def _name_of(recipe: EvaluateRecipe) -> str:
    return Path(recipe.source).resolve().name


def _without_folders(text: str | None) -> str | None:
    """The name of a file or folder of this machine; the Hub id of a dataset as it is."""
    return text if text is None or not Path(text).exists() else Path(text).resolve().name


def _results(text: TextLoss, recipe: EvaluateRecipe, corpus: str, seq_len: int) -> dict[str, Any]:
    """The loss on text as minitron.json and the card hold it."""
    bits = text.bits_per_byte
    in_bits = "" if bits is None else f"{bits:.3f} bits per byte on "
    least = "" if recipe.stride is None else f"at least {seq_len - recipe.stride} and "
    return {
        "measured": f"{in_bits}{_without_folders(corpus)}: {text.tokens:,} tokens, each "
        f"predicted from {least}at most {seq_len} before it. "
        f"`{_command(recipe, ('corpus', 'stride'))}`",
        "columns": ["loss (nats a token)", "perplexity"],
        "rows": [
            {"name": _name_of(recipe), "values": [f"{text.loss:.4f}", f"{text.perplexity:.2f}"]}
        ],
    }
