"""Task scores: a model's scores on benchmarks, and the formats in which the Hub reads them.

Knows the rows of a card, its `model-index` and the files of `.eval_results/`; measures nothing.
Values are those of lm-eval: shares from 0 to 1. Cards and the Hub get them in percent.

    TaskScores("hellaswag", {"acc": 0.25, "acc_norm": 0.27}, samples=10042, num_fewshot=10)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    eval_result_entries_to_yaml,
)
from huggingface_hub.repocard_data import eval_results_to_model_index

from minitron.files.atomic_file import replace_file

EVAL_RESULTS = ".eval_results"
# Metrics that are shares of 1; others, such as perplexity and bleu, are not changed to percent.
_SHARES = ("acc", "exact_match", "em", "f1", "pass@", "pass_at", "rouge")
_FIRST = ("acc_norm", "acc")  # of several metrics, the one that papers report


@dataclass(frozen=True)
class TaskScores:
    """The metrics of one task, or of a group's mean."""

    name: str
    metrics: Mapping[str, float]
    samples: int  # documents
    num_fewshot: int | None  # examples in the prompt; None where a group's tasks differ
    errors: Mapping[str, float] = field(default_factory=dict)  # standard error of a metric
    limited: bool = False  # not all documents of the task
    dataset: str | None = None  # on the Hub; None for local data
    config: str | None = None
    split: str | None = None
    made_by: str | None = None  # the package that measured it, with its version
    tokens_per_second: float | None = None  # generated; depends on the machine, never recorded

    def to_json(self) -> dict[str, object]:
        """The entry of a task in `minitron evaluate --json`."""
        errors = {f"{metric}_stderr": value for metric, value in self.errors.items()}
        numbers = {**self.metrics, **errors}
        if self.tokens_per_second is not None:
            numbers["tokens_per_second"] = self.tokens_per_second
        return {
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "samples": self.samples,
            "num_fewshot": self.num_fewshot,
        }

    def to_record(self) -> dict[str, Any]:
        """The entry in minitron.json: the same inputs give the same record on any machine."""
        return {key: value for key, value in asdict(self).items() if key != "tokens_per_second"}


def from_record(record: Mapping[str, Any]) -> list[TaskScores]:
    """Read the scores from `benchmarks` of minitron.json."""
    known = {one.name for one in fields(TaskScores)}
    return [
        TaskScores(**{"num_fewshot": None, **{key: entry[key] for key in known & entry.keys()}})
        for entry in record["scores"]
    ]


def record_of_scores(scores: Sequence[TaskScores], command: str) -> dict[str, Any]:
    """`benchmarks` of minitron.json: a table like that of `results`, and the scores."""
    makers = sorted({score.made_by for score in scores if score.made_by is not None})
    by = f" by {' and '.join(makers)}" if makers else ""
    return {
        "measured": f"Benchmarks, measured{by}: shares in percent. `{command}`",
        "columns": ["examples", "documents", "score"],
        "rows": [row for score in scores for row in _rows(score)],
        "scores": [score.to_record() for score in scores],
    }


def model_index(scores: Sequence[TaskScores], name: str) -> list[dict[str, Any]]:
    """The card metadata's `model-index`, every metric of every task."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.dataset or score.name,
            dataset_name=score.name,
            dataset_config=score.config,
            dataset_split=score.split,
            dataset_args=_settings(score),
            metric_type=metric.partition(",")[0],
            metric_name=metric,
            metric_value=_hub_value(metric, value),
        )
        for score in scores
        for metric, value in score.metrics.items()
    ]
    return list(eval_results_to_model_index(name, results))


def write_eval_results(folder: Path, scores: Sequence[TaskScores]) -> None:
    """Write `.eval_results/TASK.yaml` for every task that was run in full on data of the Hub.

    The Hub shows them beside the scores of other models, with which a part of a task or local data
    cannot be compared. Removes the files of earlier evaluations.
    """
    results = folder / EVAL_RESULTS
    written = []
    for score in scores:
        if score.dataset is None or score.limited:
            continue
        metric = next((m for m in _FIRST if m in score.metrics), next(iter(score.metrics)))
        entry = EvalResultEntry(
            dataset_id=score.dataset,
            task_id=score.config or score.name,
            value=_hub_value(metric, score.metrics[metric]),
            notes=_notes(score, metric),
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        written.append((f"{score.name.replace('/', '_')}.yaml", text))
    if written:
        results.mkdir(exist_ok=True)
    for name, text in written:
        replace_file(results / name, text.encode())
    for path in results.glob("*") if results.is_dir() else ():
        if path.is_file() and path.name not in dict(written):
            path.unlink()
    if results.is_dir() and not written:
        results.rmdir()


def _rows(score: TaskScores) -> list[dict[str, Any]]:
    examples = "" if score.num_fewshot is None else str(score.num_fewshot)
    documents = f"first {score.samples:,}" if score.limited else f"{score.samples:,}"
    return [
        {
            "name": f"{score.name}, {metric}",
            "values": [examples, documents, _value_text(score, metric)],
        }
        for metric in score.metrics
    ]


def _value_text(score: TaskScores, metric: str) -> str:
    value, error = score.metrics[metric], score.errors.get(metric)
    digits = ".1f" if _is_share(metric) else ".4g"
    beside = "" if error is None else f" ± {_in_percent(metric, error):{digits}}"
    return f"{_in_percent(metric, value):{digits}}{beside}"


def _settings(score: TaskScores) -> dict[str, int] | None:
    examples = {} if score.num_fewshot is None else {"num_few_shot": score.num_fewshot}
    return {**examples, **({"limit": score.samples} if score.limited else {})} or None


def _notes(score: TaskScores, metric: str) -> str:
    few = [] if score.num_fewshot is None else [f"{score.num_fewshot}-shot"]
    by = [] if score.made_by is None else [score.made_by]
    return ", ".join([*few, metric, score.name, *by])


def _is_share(metric: str) -> bool:
    return metric.startswith(_SHARES)


def _hub_value(metric: str, value: float) -> float:
    return round(_in_percent(metric, value), 2) if _is_share(metric) else value


def _in_percent(metric: str, value: float) -> float:
    """A share in percent; other values unchanged."""
    return 100 * value if _is_share(metric) else value
