"""Card texts: what a minitron.json tells, as the sentences, tables and commands of a card.

Knows the record's keys, and that a folder made of a folder carries that one's record within its
own. States only numbers that were recorded; knows no file.

    command_of(record, "tiny-half")   # "minitron prune tiny tiny-half --hidden-size 160 ..."
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from minitron.errors import visible
from minitron.recipe import (
    ConvertRecipe,
    DistillRecipe,
    PruneRecipe,
    QuickstartRecipe,
    TrainRecipe,
)
from minitron.records.card_page import Result, Table
from minitron.records.minitron_json import Record

RECIPES: Mapping[str, type[Any]] = {
    "convert": ConvertRecipe,
    "prune": PruneRecipe,
    "train": TrainRecipe,
    "distill": DistillRecipe,
    "quickstart": QuickstartRecipe,
}
PRUNED, DISTILLED = ("prune", "quickstart"), ("distill", "quickstart")
MEASURED = ("results", "benchmarks")  # of text, and of lm-eval's tasks
_MADE_BY = {
    "convert": "Converted from `{source}` by `minitron convert`.",
    "prune": "Pruned from `{source}` by `minitron prune`.",
    "train": "Trained by `minitron train`, beginning with `{source}`.",
    "distill": "Distilled by `minitron distill`, beginning with `{source}`.",
    "quickstart": "Pruned and distilled from `{source}` by `minitron quickstart`.",
}
_DISTANCES = {
    "forward_kl": "forward KL divergence",
    "reverse_kl": "reverse KL divergence",
    "jsd": "Jensen-Shannon divergence",
    "mse": "squared error of the logits",
    "cosine": "cosine distance of the logits",
}
_BUDGETS = ("params", "ratio", "memory", "latency")
_COMPARING = ("eval_tokens", "max_candidates")
_PAPERS_TOKENS = 94e9  # of Minitron-8B and -4B: 2407.14679, section 4


def escaped(value: Any) -> Any:
    """A record whose texts are text in Markdown too: no HTML, no link, no cell or code of theirs.

    A record may come from anybody, and the Hub shows what is made of it. Names are changed by it
    where they hold such characters; what is measured may keep its marks of code.
    """
    if isinstance(value, str):
        return _plain(value).replace("`", "'")
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, Mapping):
        return {
            escaped(key): _plain(item)
            if key == "measured" and isinstance(item, str)
            else escaped(item)
            for key, item in value.items()
        }
    return value


def _plain(text: str) -> str:
    text = visible(text)
    for mark, alike in (("<", "‹"), ("|", "¦"), ("](", "] ("), ("```", "'''")):
        text = text.replace(mark, alike)
    return text


def shown(source: str) -> str:
    """A source's name without the folders of the machine it was read on."""
    return Path(source).name if Path(source).is_absolute() else source


def summary_text(history: Sequence[Record]) -> str:
    """One sentence a step."""
    return " ".join(
        _MADE_BY[step["command"]].format(source=shown(step["source"]["name"])) for step in history
    )


def size_before(history: Sequence[Record]) -> tuple[str, Mapping[str, int]] | None:
    """The model before its first cut: name and sizes; None where nothing was cut."""
    for step in history:
        if step["source"]["parameters"] != step["target"]["parameters"]:
            return shown(step["source"]["name"]), step["source"]
    return None


def training_texts(
    history: Sequence[Record], curve: Sequence[Mapping[str, float]]
) -> tuple[str, ...]:
    """How it was pruned and trained, paragraph by paragraph."""
    paragraphs = []
    for step in history:
        if reason := step.get("search", {}).get("reason"):
            paragraphs.append(f"Sizes: `minitron {step['command']}` {reason}.")
        if "importance" in step:
            paragraphs.append(_importance(step))
        if "teacher" in step:
            paragraphs.append(_teacher(step))
        if "training" in step:
            paragraphs.append(_fit(step))
    losses = [point["eval_loss"] for point in curve if "eval_loss" in point]
    if len(losses) > 1:
        paragraphs.append(
            f"Loss on held-out text: {losses[0]:.3f} nats a token at the start, "
            f"{losses[-1]:.3f} at the end."
        )
    return tuple(paragraphs)


def result_tables(history: Sequence[Record], name: str) -> tuple[Result, ...]:
    """What was measured of it, and of what it was made from."""
    found = []
    for step, called in zip(reversed(history), _names(history, name)[::-1], strict=True):
        for told in (step[key] for key in MEASURED if key in step):
            rows = ((row["name"], *map(str, row["values"])) for row in told["rows"])
            before = "" if step is history[-1] else f"Before, as `{called}`: "
            table = Table(("", *told["columns"]), tuple(rows))
            found.append(Result(before + told["measured"], table))
    return tuple(found)


def limit_texts(history: Sequence[Record], name: str) -> tuple[str, ...]:
    """What a reader must not expect."""
    last = history[-1]
    told = [
        "A derived model: it has the limits of what it was made from, and its license."
        if last["command"] != "train" or not last["recipe"].get("scratch")
        else "Trained from random weights: it knows its training text and nothing else."
    ]
    trained = [step["training"].get("tokens") for step in history if "training" in step]
    if last["command"] == "prune":
        told.append(
            "Pruned and not trained since: far from its source until it is distilled "
            "(`minitron distill`)."
        )
    elif last["command"] == "distill" and all(trained) and sum(trained) < _PAPERS_TOKENS:
        told.append(
            f"Trained on {sum(trained):,} tokens since; the papers use {_PAPERS_TOKENS:,.0f}."
        )
    if not any(key in last for key in MEASURED):
        told.append(
            "Nothing was measured of it yet: "
            f"`minitron evaluate {shlex.quote(name)} --corpus HELD-OUT --record`."
        )
    return tuple(told)


def commands_of(history: Sequence[Record], name: str) -> tuple[str, ...]:
    """The command of every step, each writing what the next one reads."""
    pairs = zip(history, _names(history, name), strict=True)
    return tuple(command_of(step, called) for step, called in pairs)


def command_of(record: Record, out: str) -> str:
    """The command line that a recipe stands for: its settings that are not the defaults.

    How shapes are compared is left out where no budget had any compared.
    """
    parameters = signature(RECIPES[record["command"]]).parameters
    words = ["minitron", record["command"]]
    flags: list[str] = []
    has_budget = any(record["recipe"].get(key) is not None for key in _BUDGETS)
    for key, parameter in parameters.items():
        if key in _COMPARING and not has_budget:
            continue
        value = out if key == "out" else record["recipe"].get(key, parameter.default)
        value = shown(value) if isinstance(value, str) else value
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
            words.append(str(value))
        elif value != parameter.default and value is not None:
            flags += _flags(key.replace("_", "-"), value)
    return visible(shlex.join([*words, *flags]))


def _flags(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, Mapping):
        return [
            word
            for key, entry in value.items()
            for word in (f"--{flag}.{key}", entry if isinstance(entry, str) else json.dumps(entry))
        ]
    return [f"--{flag}", str(value)]


def _names(history: Sequence[Record], name: str) -> list[str]:
    """What each step's folder is called."""
    return [*(shown(step["source"]["name"]) for step in history[1:]), name]


def _importance(record: Record) -> str:
    made_by, shares = record["importance"], record.get("share_of_importance_kept")
    if not shares:
        return "Nothing was cut."
    on = (
        f" on {made_by['tokens']:,} tokens of {shown(made_by['corpus'])}"
        if "tokens" in made_by and made_by.get("corpus") is not None
        else ""
    )
    told = ", ".join(f"{share:.1%} of {axis}" for axis, share in shares.items())
    method = made_by.get("scores", "given")
    return f"Ranked by {method} scores{on}. Share of the score that is kept: {told}."


def _fit(record: Record) -> str:
    training, recipe = record["training"], record["recipe"]
    start = "random weights" if recipe.get("scratch") else "its weights"
    passes, tokens = training["epochs"], training["corpus_tokens"]
    seen = f"{training['tokens']:,} tokens in all, " if "tokens" in training else ""
    return (
        f"From {start}, {passes:.2g} times over {tokens:,} tokens of "
        f"`{shown(recipe['corpus'])}`, {seen}{training['steps']:,} steps, peak learning rate "
        f"{recipe['learning_rate']:g}. The loss curve is in `training.jsonl`."
    )


def _teacher(record: Record) -> str:
    teacher, recipe = record["teacher"], record["recipe"]
    temperature, ce_weight = recipe["temperature"], recipe["ce_weight"]
    softened = "" if temperature == 1 else f" at temperature {temperature:g}"
    beside = f", plus {ce_weight:g} times cross-entropy with the text" if ce_weight else ""
    distance = _DISTANCES.get(recipe["kind"], recipe["kind"])
    return (
        f"Taught by `{shown(teacher['name'])}` ({teacher['parameters']:,} parameters): "
        f"{distance} between the predictions of both{softened}{beside}."
    )
