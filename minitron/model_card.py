"""The model card: README.md of a folder, from its minitron.json and config.

Knows the Hub's metadata (through huggingface_hub) and what a reader wants first: what was removed,
what it scores, how to load it, how to make it again. States only numbers that were recorded.

    write_card(Path("tiny-half"))
"""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from minitron.engines import engine_notes
from minitron.provenance import read_provenance

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "parameters",
)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MADE_BY = {
    "convert": "Converted from `{source}` by `minitron convert`.",
    "prune": "Pruned from `{source}` by `minitron prune`.",
    "train": "Trained by `minitron train`, beginning with `{source}`.",
    "distill": "Distilled by `minitron distill`, beginning with `{source}`.",
    "quickstart": "Pruned and distilled from `{source}` by `minitron quickstart`.",
}
_PRUNE = ("prune", "quickstart")
_DISTANCES = {
    "forward_kl": "forward KL divergence",
    "reverse_kl": "reverse KL divergence",
    "jsd": "Jensen-Shannon divergence",
    "mse": "squared error of the logits",
    "cosine": "cosine distance of the logits",
}


def write_card(folder: Path) -> None:
    """Write README.md for a folder that holds a minitron.json.

    License and language are those of the source's own card, where it has one.
    """
    record = read_provenance(folder)
    data = _metadata(record)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(folder, record)}")
    card.save(folder / "README.md")


def _shown(source: str) -> str:
    """A source's name without the folders of the machine it was read on."""
    return Path(source).name if Path(source).is_absolute() else source


def _metadata(record: dict[str, Any]) -> ModelCardData:
    name = record["source"]["name"]
    repo = name.partition(":")[0]  # of a .nemo in a repository
    base = {"base_model": repo} if _HUB_ID.fullmatch(repo) else {}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["minitron", *(["pruning"] if record["command"] in _PRUNE else [])],
        **base,
        **record["source"]["metadata"],
    )


def _text(folder: Path, record: dict[str, Any]) -> str:
    name = folder.name.removesuffix(".partial")
    parts = [
        f"# {name}",
        _MADE_BY[record["command"]].format(source=_shown(record["source"]["name"])),
    ]
    parts.append(_sizes_table(record, name))
    if "teacher" in record:
        parts.append(_teacher_text(record))
    if "training" in record:
        parts.append(_training_text(record))
        if (folder / "loss.png").exists():
            parts.append("![loss curve](loss.png)")
    if "importance" in record:
        parts.append(_importance_text(record))
    if "results" in record:
        parts.append(_results_table(record["results"]))
    parts.append(_usage())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if notes := engine_notes(config):
        parts.append("## In other engines\n\n" + "\n".join(f"- {note}" for note in notes))
    parts.append(
        "## How it was made\n\n`minitron.json` in this folder holds the whole recipe, with the "
        "versions and, where something was pruned, every index that was kept:\n\n```json\n"
        + json.dumps({"command": record["command"], "recipe": record["recipe"]}, indent=2)
        + "\n```"
    )
    return "\n\n".join(parts) + "\n"


def _sizes_table(record: dict[str, Any], name: str) -> str:
    before, after = record["source"], record["target"]
    if before["parameters"] == after["parameters"]:
        rows = [f"| {key} | {after[key]:,} |" for key in _SIZES]
        return "\n".join(["| | size |", "|---|---:|", *rows])
    rows = [
        f"| {key} | {before[key]:,} | {after[key]:,} | {after[key] / before[key]:.0%} |"
        for key in _SIZES
    ]
    header = f"| | {_shown(before['name'])} | {name} | kept |"
    return "\n".join([header, "|---|---:|---:|---:|", *rows])


def _importance_text(record: dict[str, Any]) -> str:
    made_by, shares = record["importance"], record["share_of_importance_kept"]
    on = f" on {made_by['tokens']:,} tokens of {made_by['corpus']}" if "tokens" in made_by else ""
    told = ", ".join(f"{share:.1%} of {axis}" for axis, share in shares.items())
    method = made_by.get("scores", "given")
    return f"Ranked by {method} scores{on}. Share of the score that is kept: {told}."


def _training_text(record: dict[str, Any]) -> str:
    training, recipe = record["training"], record["recipe"]
    start = "random weights" if recipe["scratch"] else "its weights"
    passes, tokens = training["epochs"], training["corpus_tokens"]
    return (
        f"From {start}, {passes:.2g} times over {tokens:,} tokens of "
        f"`{recipe['corpus']}`, {training['steps']:,} steps, peak learning rate "
        f"{recipe['learning_rate']:g}. The loss curve is in `training.jsonl`."
    )


def _teacher_text(record: dict[str, Any]) -> str:
    teacher, recipe = record["teacher"], record["recipe"]
    temperature, ce_weight = recipe["temperature"], recipe["ce_weight"]
    softened = "" if temperature == 1 else f" at temperature {temperature:g}"
    beside = f", plus {ce_weight:g} times cross-entropy with the text" if ce_weight else ""
    return (
        f"Taught by `{_shown(teacher['name'])}` ({teacher['parameters']:,} parameters): "
        f"{_DISTANCES[recipe['kind']]} between the predictions of both{softened}{beside}."
    )


def _results_table(results: dict[str, Any]) -> str:
    columns = results["columns"]
    head = ["| " + " | ".join(["", *columns]) + " |", "|---|" + "---:|" * len(columns)]
    rows = [
        f"| {row['name']} | " + " | ".join(str(value) for value in row["values"]) + " |"
        for row in results["rows"]
    ]
    return "\n".join([f"## Results\n\n{results['measured']}\n", *head, *rows])


def _usage() -> str:
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # this folder, or its id on the Hub\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'ids = tokenizer("It was the best of times,", return_tensors="pt").input_ids\n'
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))\n```"
    )
