"""Card texts: the sentences, tables and commands of a card, from its minitron.json.

States only numbers that were recorded. Reads no file.

    command_of(record, "tiny-half")   # "minitron prune tiny tiny-half --hidden-size 160 ..."
"""

import shlex
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from minitron.errors import visible
from minitron.options import words_of_flag
from minitron.recipes.conversion import ConvertRecipe
from minitron.recipes.first_steps import QuickstartRecipe
from minitron.recipes.pruning import PruneRecipe
from minitron.recipes.training import DistillRecipe, TrainRecipe
from minitron.records.card_page import Result, Table
from minitron.records.minitron_json import TRAINED, Record, record_before_training
from minitron.sources.opening import zoo

RECIPES: Mapping[str, type[Any]] = {
    "convert": ConvertRecipe,
    "prune": PruneRecipe,
    "train": TrainRecipe,
    "distill": DistillRecipe,
    "quickstart": QuickstartRecipe,
}
PRUNED, DISTILLED = ("prune", "quickstart"), ("distill", "quickstart")
MEASURED = ("results", "benchmarks")  # on text, and on lm-eval's tasks
_MADE_BY = {
    "convert": "Converted from `{source}` by `minitron convert`.",
    "prune": "Pruned from `{source}` by `minitron prune`.",
    "train": "Trained by `minitron train`, starting from {start}`{source}`.",
    "distill": "Distilled by `minitron distill`, starting from {start}`{source}`.",
    "quickstart": "Pruned and distilled from `{source}` by `minitron quickstart`.",
}
FITTED_TEXT = (
    "The squared error of each linear on held-out text, before and after its fit, as a share of "
    "the squares of what it shall return; on what the linears before it, fitted already, leave."
)
_BUDGETS = ("params", "ratio", "memory", "latency")
_COMPARING = ("eval_tokens", "max_candidates")
_PAPERS_TOKENS = 94e9  # of Minitron-8B and -4B: 2407.14679, section 4


def escape_markdown(value: Any) -> Any:
    """Replace the characters of a record's texts that would be HTML, links, cells or code.

    A record may come from anybody, and the Hub renders the card. Only `measured`, which holds a
    command, keeps its backquotes.
    """
    if isinstance(value, str):
        return _escape_text(value).replace("`", "'")
    if isinstance(value, list):
        return [escape_markdown(item) for item in value]
    if isinstance(value, Mapping):
        return {
            escape_markdown(key): _escape_text(item)
            if key == "measured" and isinstance(item, str)
            else escape_markdown(item)
            for key, item in value.items()
        }
    return value


def _escape_text(text: str) -> str:
    text = visible(text)
    for mark, replacement in (("<", "‹"), ("|", "¦"), ("](", "] ("), ("```", "'''")):
        text = text.replace(mark, replacement)
    return text


def display_name(source: str) -> str:
    """A source's name without the folders of this machine."""
    return Path(source).name if Path(source).is_absolute() else source


def summary_text(history: Sequence[Record]) -> str:
    """One sentence for each step."""
    return " ".join(
        _MADE_BY[step["command"]].format(
            source=display_name(step["source"]["name"]),
            start="random weights, with the sizes and the tokenizer of "
            if step["recipe"].get("scratch")
            else "",
        )
        for step in history
    )


def size_before(history: Sequence[Record]) -> tuple[str, Mapping[str, int]] | None:
    """Name and sizes of the model before its first pruning; None where nothing was pruned."""
    for step in history:
        if step["source"]["parameters"] != step["target"]["parameters"]:
            return display_name(step["source"]["name"]), step["source"]
    return None


def kept_text(history: Sequence[Record]) -> str:
    """What the picture of the last pruning shows."""
    sources = [step["source"]["name"] for step in history if step.get("kept")]
    of = f" of `{display_name(sources[-1])}`" if sources else ""
    return (
        f"Green: what the last pruning kept{of}. Grey: what it removed. Paler green: kept in part."
    )


def is_fitted(step: Record) -> bool:
    """Whether a step wrote weights that were fitted to a text."""
    return bool(step.get("reconstruction", {}).get("used"))


def keeps_directions(step: Record) -> bool:
    """Whether a pruning kept directions of the residual stream, and no channels."""
    return is_fitted(step) and bool(step["reconstruction"]["hidden"] == "rotate")


def result_tables(history: Sequence[Record], name: str) -> tuple[Result, ...]:
    """The recorded results of the model, then of those that it was made from."""
    results = []
    for step, folder in zip(reversed(history), _folder_names(history, name)[::-1], strict=True):
        for entry in (step[key] for key in MEASURED if key in step):
            rows = ((row["name"], *map(str, row["values"])) for row in entry["rows"])
            before = "" if step is history[-1] else f"Before, as `{folder}`: "
            table = Table(("", *entry["columns"]), tuple(rows))
            results.append(Result(before + entry["measured"], table))
    return tuple(results)


def limit_texts(history: Sequence[Record], name: str) -> tuple[str, ...]:
    """The limits that a user of the model should know."""
    last = history[-1]
    changes = [step for step in history if _changes_weights(step)] or [last]
    made = changes[-1]
    limits = [
        "Trained from random weights: it knows its training text and nothing else."
        if _is_trained_from_scratch(changes)
        else "A derived model: it has the limits and the license of the model that it was made "
        "from."
    ]
    trained = [step["training"].get("tokens") for step in history if "training" in step]
    if made["command"] == "prune" and _changes_weights(made):
        limits.append(_pruned_limit(made))
    elif made["command"] == "distill" and all(trained) and sum(trained) < _PAPERS_TOKENS:
        limits.append(
            f"Trained on {sum(trained):,} tokens since; the papers use {_PAPERS_TOKENS:,.0f}."
        )
    if not any(key in last for key in MEASURED):
        measured = (
            "Its loss was measured on the held-out text of its training only"
            if last["recipe"].get("eval_corpus")
            else "It was not evaluated yet"
        )
        limits.append(
            f"{measured}: `minitron evaluate {shlex.quote(name)} --corpus HELD-OUT --record`."
        )
    return tuple(limits)


def _changes_weights(step: Record) -> bool:
    """Whether a step did more than copy: a conversion does not, nor a pruning that cuts nothing."""
    if step["command"] == "prune":
        return bool(step.get("kept")) or is_fitted(step)
    return bool(step["command"] != "convert")


def _is_trained_from_scratch(changes: Sequence[Record]) -> bool:
    """Whether training on text made the weights, and nothing but that."""
    for step in reversed(changes):
        if step["command"] != "train" or step["recipe"].get("scratch"):
            return bool(step["command"] == "train")
    return False


def _pruned_limit(pruning: Record) -> str:
    """What a pruned model that was not trained since has lost: by number where it was measured."""
    measured = pruning.get("reconstruction")
    if measured is None:
        return (
            "Pruned and not trained since: its loss was not compared with that of "
            f"`{display_name(pruning['source']['name'])}`. `minitron distill` trains it."
        )
    shown = loss_texts(measured["losses"])
    own = shown["reconstructed" if measured["used"] else "pruned"]
    decimals = len(own.partition(".")[2])
    above = float(own) - float(shown["source"])
    side = "above" if above > 0 else "below"
    distance = f"{abs(above):.{decimals}f} nats a token {side} " if own != shown["source"] else ""
    return (
        f"Pruned and not trained since: its loss is {distance}that of "
        f"`{display_name(pruning['source']['name'])}` on the held-out part of its calibration "
        "text. `minitron distill` trains it."
    )


def loss_texts(losses: Mapping[str, float]) -> dict[str, str]:
    """Losses with three decimals, or with as many more as show which of them differ."""
    for decimals in range(3, 7):  # six are recorded
        shown = {name: f"{loss:.{decimals}f}" for name, loss in losses.items()}
        if len({*shown.values()}) == len({*losses.values()}):
            break
    return shown


def again_text(history: Sequence[Record], name: str) -> str:
    """How the model is made again: by `minitron remake`, and what of it needs training."""
    steps = "step by step, with texts and folders under your own paths:"
    folder = shlex.quote(name)
    if history[-1]["command"] == "quickstart":
        return "This command prunes the model and distills it again:"
    if history[-1]["command"] not in TRAINED and is_fitted(history[-1]):
        return (
            f"`minitron remake {folder} again` fits the same weights again to the same text, whose "
            "digest is in `minitron.json`, and prints the largest difference from these: bytes may "
            f"depend on the processor. The same {steps}"
        )
    if history[-1]["command"] not in TRAINED:
        return (
            f"`minitron remake {folder} again` builds the same weights from `minitron.json` and "
            f"the source, without any text. The same {steps}"
        )
    if record_before_training(history[-1]) is None:
        return f"Training has to run again. The commands, {steps}"
    last = max(i for i, step in enumerate(history) if step["command"] not in TRAINED)
    start = shlex.quote(_outputs(history, name)[last])
    of = "without any text"
    if is_fitted(history[last]):
        text = display_name(history[last]["reconstruction"]["corpus"])
        of = "fitted to the same text again"
        if text not in ("self", "random"):
            of = f"fitted to `{text}` again (`--corpus` names it where it has moved)"
    return (
        f"`minitron remake {folder} {start} --before-training` builds the model that training "
        f"began with, {of}; the training has to run again. All of it, {steps}"
    )


def commands_of(history: Sequence[Record], name: str) -> tuple[str, ...]:
    """The command of every step, each with the output that the next one reads.

    A `quickstart` needs no text of the reader's, so it is run as it is printed: its output has a
    name of its own, as the folder of the card exists.
    """
    outputs = _outputs(history, name)
    if history[-1]["command"] == "quickstart":
        outputs[-1] += "-again"
    return tuple(map(command_of, history, outputs))


def command_of(record: Record, out: str) -> str:
    """The command line of a recipe, without default settings.

    Without a budget no candidates were compared: the settings of the comparison are left out.
    """
    parameters = signature(RECIPES[record["command"]]).parameters
    words = ["minitron", record["command"]]
    flags: list[str] = []
    has_budget = any(record["recipe"].get(key) is not None for key in _BUDGETS)
    for key, parameter in parameters.items():
        if key in _COMPARING and not has_budget:
            continue
        value = out if key == "out" else record["recipe"].get(key, parameter.default)
        value = display_name(value) if isinstance(value, str) else value
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
            words.append(str(value))
        elif value != parameter.default and value is not None:
            flags += words_of_flag(key, value)
    return visible(shlex.join([*words, *flags]))


def _folder_names(history: Sequence[Record], name: str) -> list[str]:
    """The name of each step's output folder."""
    return [*(display_name(step["source"]["name"]) for step in history[1:]), name]


def _outputs(history: Sequence[Record], name: str) -> list[str]:
    """The same as commands write them, which refuse the bare name of an embedded model."""
    embedded = zoo()
    return [f"./{one}" if one in embedded else one for one in _folder_names(history, name)]
