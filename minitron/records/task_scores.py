"""Task scores: what a model reached on a benchmark, and how the Hub wants to be told.

Knows the rows of a card, its `model-index` and the files of `.eval_results/`; measures nothing.
Values are as lm-eval gives them: shares from 0 to 1. Where people read them, they are percent.

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
# Metrics that are shares of 1; others, such as perplexity and bleu, are shown as they are.
_SHARES = ("acc", "exact_match", "em", "f1", "pass@", "pass_at", "rouge")
_FIRST = ("acc_norm", "acc")  # what papers report where there are several


@dataclass(frozen=True)
class TaskScores:
    """The metrics of one task, or of a group's mean."""

    name: str
    metrics: Mapping[str, float]
    samples: int  # documents that were asked
    num_fewshot: int | None  # examples in the prompt; None where a group's tasks differ
    errors: Mapping[str, float] = field(default_factory=dict)  # standard error of a metric
    limited: bool = False  # not all documents of the task
    dataset: str | None = None  # on the Hub; None for data of one's own
    config: str | None = None
    split: str | None = None
    made_by: str | None = None  # what measured it, with its version
    tokens_per_second: float | None = None  # generated; a fact of the machine, never recorded

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
    """What minitron.json holds under `benchmarks`."""
    known = {one.name for one in fields(TaskScores)}
    return [
        TaskScores(**{"num_fewshot": None, **{key: entry[key] for key in known & entry.keys()}})
        for entry in record["scores"]
    ]


def record_of_scores(scores: Sequence[TaskScores], command: str) -> dict[str, Any]:
    """What minitron.json holds under `benchmarks`: a table as `results` has one, and the scores."""
    makers = sorted({score.made_by for score in scores if score.made_by is not None})
    by = f" by {' and '.join(makers)}" if makers else ""
    return {
        "measured": f"Benchmarks, measured{by}: percent where not told otherwise. `{command}`",
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
            metric_value=_published(metric, value),
        )
        for score in scores
        for metric, value in score.metrics.items()
    ]
    return list(eval_results_to_model_index(name, results))


def write_eval_results(folder: Path, scores: Sequence[TaskScores]) -> None:
    """Write `.eval_results/TASK.yaml` for every task whose data the Hub has, asked in full.

    The Hub shows these beside the scores of other models: a part of a task, or data of one's own,
    would not compare there. Files of an earlier evaluation of other tasks go.
    """
    place = folder / EVAL_RESULTS
    written = []
    for score in scores:
        if score.dataset is None or score.limited:
            continue
        metric = next((m for m in _FIRST if m in score.metrics), next(iter(score.metrics)))
        entry = EvalResultEntry(
            dataset_id=score.dataset,
            task_id=score.config or score.name,
            value=_published(metric, score.metrics[metric]),
            notes=_notes(score, metric),
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        written.append((f"{score.name.replace('/', '_')}.yaml", text))
    if written:
        place.mkdir(exist_ok=True)
    for name, text in written:
        replace_file(place / name, text.encode())
    for path in place.glob("*") if place.is_dir() else ():
        if path.is_file() and path.name not in dict(written):
            path.unlink()
    if place.is_dir() and not written:
        place.rmdir()


def _rows(score: TaskScores) -> list[dict[str, Any]]:
    few = "" if score.num_fewshot is None else str(score.num_fewshot)
    first = f"first {score.samples:,}" if score.limited else f"{score.samples:,}"
    return [
        {"name": f"{score.name}, {metric}", "values": [few, first, _with_error(score, metric)]}
        for metric in score.metrics
    ]


def _with_error(score: TaskScores, metric: str) -> str:
    value, error = score.metrics[metric], score.errors.get(metric)
    digits = ".1f" if _is_share(metric) else ".4g"
    beside = "" if error is None else f" ± {_shown(metric, error):{digits}}"
    return f"{_shown(metric, value):{digits}}{beside}"


def _settings(score: TaskScores) -> dict[str, int] | None:
    told = {} if score.num_fewshot is None else {"num_few_shot": score.num_fewshot}
    return {**told, **({"limit": score.samples} if score.limited else {})} or None


def _notes(score: TaskScores, metric: str) -> str:
    few = [] if score.num_fewshot is None else [f"{score.num_fewshot}-shot"]
    by = [] if score.made_by is None else [score.made_by]
    return ", ".join([*few, metric, score.name, *by])


def _is_share(metric: str) -> bool:
    return metric.startswith(_SHARES)


def _published(metric: str, value: float) -> float:
    return round(_shown(metric, value), 2) if _is_share(metric) else value


def _shown(metric: str, value: float) -> float:
    """Percent of a share."""
    return 100 * value if _is_share(metric) else value
