"""Task harness: benchmarks of a loaded model by EleutherAI's lm-eval, in the extra `evals`.

Knows lm-eval: its tasks (its own and those of a folder), which data and code they need, and the
form of its results. Refuses everything that it can before a model is loaded.

    tasks = load_tasks({"hellaswag": 10}, limit=100)
    run_tasks(tasks, model, tokenizer)["hellaswag"].metrics["acc_norm"]
"""

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minitron.errors import CorpusError, MissingExtraError, SourceError, TargetError, foreign_parser
from minitron.files.hub_retry import bounded_waiting
from minitron.records.task_scores import TaskScores

_SEED = 1234  # lm-eval's default, for the examples of a prompt
_RESAMPLES = 1000  # bootstrap, for the standard error of a metric that is not a mean
_STDERR = "_stderr"


@dataclass(frozen=True)
class Tasks:
    """Tasks of lm-eval with their data, ready to run."""

    loaded: Mapping[str, Any]  # lm-eval's: tasks, groups, group_map
    limit: int | None  # documents of each task; None for all
    runs_code: bool


def load_tasks(
    names: Mapping[str, int | None],
    *,
    limit: int | None = None,
    include_path: str | None = None,
    run_generated_code: bool = False,
) -> Tasks:
    """Load tasks, groups or tags of lm-eval by name, or a task's YAML by path, with their data.

    `names` maps each to the number of examples in its prompts; None is the task's default. Raises
    MissingExtraError without lm-eval, TargetError for an unknown name or for a task that runs
    generated code if that is not allowed, CorpusError for data that cannot be loaded.
    """
    if find_spec("lm_eval") is None:
        raise MissingExtraError("lm-eval", "evals")
    if include_path is not None:
        _check_folder(Path(include_path))
    manager = _manager(names, include_path)
    for name in names:
        _check_known(name, manager)
    for name in names:
        _check_allowed(_code_tasks(name, manager), run_generated_code)
    merged: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    with _code_allowed(run_generated_code):
        for name, examples in names.items():
            for kind, found in _load(name, manager).items():
                if kind == "tasks":
                    _set_examples(found, examples)
                merged[kind] |= found
    unsafe = [name for name, task in merged["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    _check_allowed(unsafe, run_generated_code)
    return Tasks(merged, limit, bool(unsafe))


def run_tasks(
    tasks: Tasks,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
) -> dict[str, TaskScores]:
    """The scores of a model on tasks; of a group with its own mean, only this mean.

    Raises SourceError for a context too short to generate in, TargetError for a task whose own
    templates do not fit its data.
    """
    from jinja2 import TemplateError
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    harness_model = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length
    )
    _check_context(tasks, harness_model.max_length, harness_model.max_gen_toks)
    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    with _code_allowed(tasks.runs_code), _environment_variables(DISABLE_MULTIPROC="1"):
        try:
            results = evaluate(
                lm=harness_model,
                task_dict=tasks.loaded,
                limit=tasks.limit,
                bootstrap_iters=_RESAMPLES,
                log_samples=False,
                confirm_run_unsafe_code=tasks.runs_code,
            )
        except TemplateError as error:
            raise TargetError(f"a task's template does not fit its data: {error}") from error
    return _scores(results, tasks)


def _manager(names: Iterable[str], include_path: str | None) -> Any:
    """lm-eval's index of tasks; lists lm-eval's own, which takes seconds, only if needed."""
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=include_path, include_defaults=False)
    groups = (own.task_index[group].cfg or {} for group in own.all_groups)
    members = [member for group in groups for member in group["task"]]
    inside = all(member in own.all_tasks for member in members if isinstance(member, str))
    if inside and all(name in own.all_tasks or Path(name).is_file() for name in names):
        return own
    return _default_manager() if include_path is None else TaskManager(include_path=include_path)


@cache
def _default_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _load(name: str, manager: Any) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    try:
        with bounded_waiting():
            loaded: dict[str, Any] = manager.load([name])
    except (DatasetsError, OSError) as error:
        raise CorpusError(
            f"the data of {name} cannot be loaded ({_first_line(error)}): connect once, or name a "
            "task with data of your own"
        ) from error
    except (TemplateError, KeyError, ValueError, RuntimeError, yaml.YAMLError) as error:
        raise TargetError(f"task {name} cannot be made: {_first_line(error)}") from error
    return loaded


def _set_examples(tasks: Mapping[str, Any], examples: int | None) -> None:
    """Set the number of examples. A task with 0 has them in its own prompt and is not changed."""
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        chosen = own or 0 if examples is None or own == 0 else examples
        task.set_config(key="num_fewshot", value=chosen)
        task.set_fewshot_seed(seed=_SEED)


def _check_folder(folder: Path) -> None:
    """Refuse a path that is no folder, and files in it that lm-eval would skip."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not folder.is_dir():
        raise TargetError(f"--include-path {folder} is no folder: name one with the tasks' YAML")
    for path in sorted(folder.glob("**/*.yaml")):
        try:
            load_yaml(path, resolve_func=False, recursive=True)
        except (yaml.YAMLError, OSError, ValueError) as error:
            raise TargetError(f"{path} is no task: {_first_line(error)}") from error


def _check_known(name: str, manager: Any) -> None:
    from lm_eval.tasks._index import TaskIndex

    if name in manager.all_tasks:
        return
    if Path(name).is_file():
        with foreign_parser(name, TargetError, "write a task as lm-eval's YAML"):
            TaskIndex.entry_from_path(Path(name))
        return
    near = get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
    meant = f"; near it: {', '.join(near)}" if near else ""
    raise TargetError(f"--tasks names {name}, which lm-eval does not have{meant}")


def _check_allowed(code_tasks: Iterable[str], allowed: bool) -> None:
    name = next(iter(code_tasks), None)
    if name is not None and not allowed:
        raise TargetError(
            f"{name} runs the code that the model writes, on this machine and with your rights: "
            "allow it with --run-generated-code, best in a container"
        )


def _code_tasks(name: str, manager: Any) -> Iterator[str]:
    """The tasks under a name that run generated code. Does not build the tasks: the code of some
    runs a first test on import."""
    from lm_eval.tasks._index import Kind, TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index.get(name) or TaskIndex.entry_from_path(Path(name))
    if entry.kind == Kind.TAG:
        members: Any = sorted(entry.tags)
    else:
        config = entry.cfg or load_yaml(entry.yaml_path, resolve_func=False)
        if config.get("unsafe_code"):
            yield name
        members = config["task"] if entry.kind == Kind.GROUP else []
    for member in members if isinstance(members, list) else []:
        named = member if isinstance(member, str) else member.get("task")
        if isinstance(named, str) and named in manager.task_index:
            yield from _code_tasks(named, manager)


def _check_context(tasks: Tasks, max_length: int, default: int) -> None:
    for name, task in tasks.loaded["tasks"].items():
        if task.get_config("output_type") != "generate_until":
            continue
        settings = task.get_config("generation_kwargs") or {}
        answer = int(settings.get("max_gen_toks", default))
        if answer >= max_length:
            raise SourceError(
                f"{name} generates up to {answer} tokens, but the context is {max_length}: leave "
                "it out, or set max_gen_toks in its generation_kwargs"
            )


def _scores(results: Mapping[str, Any], tasks: Tasks) -> dict[str, TaskScores]:
    """The scores of all tasks, except that a group with a mean replaces its tasks."""
    groups = tasks.loaded["groups"]
    means = {name for name, group in groups.items() if group.has_aggregation}
    inside = {task.task_name for name in means for task in groups[name].get_all_tasks()}
    inside |= {group.name for name in means for group in groups[name].get_all_groups()}
    shown = [n for n in results["results"] if n not in inside and (n in means or n not in groups)]
    return {name: _score(name, results, tasks) for name in shown}


def _score(name: str, results: Mapping[str, Any], tasks: Tasks) -> TaskScores:
    found = {_metric(k): v for k, v in results["results"][name].items() if "," in k}
    numbers = {key: float(value) for key, value in found.items() if not isinstance(value, str)}
    groups, all_tasks = tasks.loaded["groups"], tasks.loaded["tasks"]
    members = groups[name].get_all_tasks() if name in groups else [all_tasks[name]]
    datasets = {str(task.get_config("dataset_path")) for task in members}
    on_hub = len(datasets) == 1 and _is_hub_id(next(iter(datasets)))
    return TaskScores(
        name=name,
        metrics={key: value for key, value in numbers.items() if _STDERR not in key},
        errors={k.replace(_STDERR, ""): v for k, v in numbers.items() if _STDERR in k},
        samples=int(results["results"][name]["sample_len"]),
        num_fewshot=_common_value([task.get_config("num_fewshot") for task in members]),
        limited=tasks.limit is not None
        and any(tasks.limit < len(task.eval_docs) for task in members),
        dataset=next(iter(datasets)) if on_hub else None,
        config=_common_value([task.get_config("dataset_name") for task in members])
        if on_hub
        else None,
        split=_common_value([_split(task) for task in members]) if on_hub else None,
        made_by=f"lm-eval {version('lm_eval')}",
    )


def _metric(key: str) -> str:
    """lm-eval's `metric,filter`, without the filter `none`."""
    return key.removesuffix(",none")


def _split(task: Any) -> str | None:
    found = task.get_config("test_split") or task.get_config("validation_split")
    return None if found is None else str(found)


def _is_hub_id(dataset: str) -> bool:
    """Whether it is `owner/name`; json, csv and the like read local files."""
    return dataset.count("/") == 1 and not Path(dataset).exists()


def _common_value(values: list[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else None


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def _code_allowed(allowed: bool) -> Iterator[None]:
    """Set HF_ALLOW_CODE_EVAL=1, which evaluate's metric `code_eval` requires."""
    with _environment_variables(**({"HF_ALLOW_CODE_EVAL": "1"} if allowed else {})):
        yield


@contextmanager
def _environment_variables(**settings: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
