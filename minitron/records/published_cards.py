"""The family's cards: the published models, from the file of facts, through the template of all.

Knows `cards/family.yaml` and that every member's parameters follow from its config. `make cards`
writes `model_cards/` and the zoo's cards anew:

    python -m minitron.records.published_cards model_cards
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from jinja2 import Environment

from minitron.model.architecture import Architecture
from minitron.model.engines import engine_notes
from minitron.records.card_page import Card, Result, Table, rendered, sizes_table
from minitron.records.model_card import memory_fact, usage, write_card
from minitron.records.record_writer import sizes_of
from minitron.sources.opening import zoo

INDEX = "README.md"
_CHAT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model_id = "{model}"
tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForCausalLM.from_pretrained(model_id, dtype="auto")
messages = [
    {{"role": "system", "content": "You are the keeper of a lighthouse."}},
    {{"role": "user", "content": "Who goes there?"}},
]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<extra_id_1>")]
answer = model.generate(**prompt, max_new_tokens=100, eos_token_id=ends)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))"""


@dataclass(frozen=True)
class Member:
    """One published model: its name and what family.yaml says of it."""

    name: str
    facts: Mapping[str, Any]

    @property
    def repo(self) -> str:
        """Its id on the Hub."""
        return f"{self.facts['owner']}/{self.name}"

    @property
    def architecture(self) -> Architecture:
        """Its sizes."""
        return Architecture.from_config(self.facts["config"])

    @property
    def base(self) -> "Member | None":
        """What it was made from."""
        name = self.facts.get("base")
        return members()[name] if name is not None else None


@cache
def facts() -> dict[str, Any]:
    """The file of facts."""
    text = (resources.files("minitron") / "records" / "published_cards.yaml").read_text(
        encoding="utf-8"
    )
    return dict(yaml.safe_load(text))


def members() -> dict[str, Member]:
    """Name to member, models without a card included."""
    return {name: Member(name, told) for name, told in facts()["members"].items()}


def carded() -> list[Member]:
    """The members that have a card."""
    return [member for member in members().values() if member.facts.get("card", True)]


def family_card(member: Member) -> str:
    """The whole page of a published model."""
    told, base = member.facts, member.base
    architecture = member.architecture
    is_cut = base is not None and base.architecture != architecture
    before = (base.name, sizes_of(base.architecture)) if base is not None and is_cut else None
    card = Card(
        name=member.name,
        summary=told["summary"],
        facts=tuple(_facts(member)),
        sizes=sizes_table(member.name, sizes_of(architecture), before),
        sizes_notes=tuple(told[key] for key in ("note", "dropped_note") if key in told),
        training=tuple(_training(told.get("training"), base)),
        results=_results(member),
        use_note=told.get("availability"),
        code=_CHAT.format(model=member.repo)
        if told.get("chat")
        else usage(f'source = "{member.repo}"', "To be or not to be,"),
        prompt_format=_prompt_format() if told.get("chat") else None,
        limits=tuple(facts()["limits"][limit] for limit in told["limits"]),
        engines=tuple(engine_notes(told["config"])),
        again="With a text of your own, since the papers' is not public:",
        commands=tuple(_commands(member)),
    )
    return rendered(card, _metadata(member))


def write_cards(folder: Path) -> None:
    """Write every published member's card and the index, and the zoo's cards where they lie."""
    folder.mkdir(exist_ok=True)
    for member in carded():
        (folder / f"{member.name}.md").write_text(family_card(member), encoding="utf-8")
    (folder / INDEX).write_text(index(), encoding="utf-8")
    for place in zoo().values():
        write_card(place, overwrite=True)


def index() -> str:
    """The page that lists all cards."""
    rows = [
        f"| [{member.name}]({member.name}.md) | {member.architecture.parameters:,} "
        f"| {member.base.name if member.base is not None else ''} |"
        for member in carded()
    ]
    tiny = [f"- [{name}](../minitron/zoo/{name}/README.md)" for name in zoo()]
    return "\n".join(
        [
            "# Model cards",
            "",
            "Written by `make cards` from `minitron/cards/`: one template, and one file of facts",
            "in which each number has its source. `minitron card FOLDER` writes the same for a",
            "model of your own.",
            "",
            "| model | parameters | made from |",
            "|---|---:|---|",
            *rows,
            "",
            "The tiny family lies in the package, each with its card:",
            "",
            *tiny,
            "",
        ]
    )


def cited(source: str) -> str:
    """A source such as `M1 table 2` as a link and the place in it."""
    key, _, place = source.partition(" ")
    paper = facts()["sources"][key.rstrip(",")]
    return f"[{paper['title']}]({paper['url']})" + (f", {place}" if place else "")


def _facts(member: Member) -> list[str]:
    told = member.facts
    terms = facts()["licenses"].get(told.get("license"))
    lines = ["Developed by NVIDIA" + (f", {told['dates']}." if "dates" in told else ".")]
    if terms is None:
        lines.append("License: not known to us.")
    else:
        note = f" {told['license_note']}" if "license_note" in told else ""
        lines.append(f"License: [{terms['title']}]({terms['url']}).{note}")
    if "use" in told:
        lines.append(f"Intended use: {told['use']}")
    if "data_cutoff" in told:
        lines.append(f"Its training data ends in {told['data_cutoff']}.")
    counts = told["parameters"]
    lines.append(
        f"{counts['paper'][0]:g} billion parameters, {counts['paper'][1]:g} without embeddings "
        f"({cited(counts['source'])})."
    )
    lines.append(memory_fact(member.architecture))
    if "speed" in told:
        speed = told["speed"]
        lines.append(
            f"{speed['value']:g} times the {speed['told']} of {speed['of']} "
            f"({cited(speed['source'])})."
        )
    return lines


def _training(training: Mapping[str, Any] | None, base: Member | None) -> list[str]:
    if training is None:
        return []
    tokens = f"{training['tokens'] / 1e9:,.0f} billion tokens"
    if base is None:
        return [f"Trained on {tokens} ({cited(training['source'])})."]
    warmup = f"{training['warmup_steps']} steps of warm-up, " if "warmup_steps" in training else ""
    return [
        f"Distilled on {tokens}: forward KL divergence between the predictions of {base.name} and "
        f"its own, on the logits alone. {training['data']}",
        f"{training['sequences_a_step']:,} sequences of {training['seq_len']:,} tokens a step, "
        f"{warmup}learning rate {training['learning_rate']:g} to "
        f"{training['min_learning_rate']:g} on a cosine; {training['hardware']} "
        f"({cited(training['source'])}).",
        *([training["note"]] if "note" in training else []),
    ]


def _results(member: Member) -> tuple[Result, ...]:
    """Its published scores beside those of the model it was made from."""
    compared = [each for each in (member, member.base) if each is not None and _scores(each)]
    if not _scores(member):
        return ()
    scores = [_scores(each) for each in compared]
    rows = tuple(
        (
            f"{told['name']} ({told['shots']}-shot)",
            *(f"{of[key][0]:.1f}" if key in of else "" for of in scores),
        )
        for key, told in facts()["benchmarks"].items()
        if key in scores[0]
    )
    papers = [f"{each.name}: {cited(next(iter(each.facts['scores'])))}" for each in compared]
    measured = f"In percent, as published and not measured by us. {'; '.join(papers)}."
    return (Result(measured, Table(("", *(each.name for each in compared)), rows)),)


def _scores(member: Member) -> dict[str, tuple[float, str]]:
    """Benchmark to its value and where that stands."""
    tables = member.facts.get("scores", {})
    return {key: (value, source) for source, row in tables.items() for key, value in row.items()}


def _commands(member: Member) -> list[str]:
    told = member.facts
    if "recipe" not in told:
        return []
    name = member.name.lower().removesuffix("-base")
    return [
        f"minitron prune {told['prune_from']} {name}-pruned --recipe {told['recipe']}-prune "
        "--corpus text.jsonl.gz",
        f"minitron distill {name}-pruned {name} --teacher {told['teacher']} "
        f"--recipe {told['recipe']}-distill --corpus text.jsonl.gz",
    ]


def _prompt_format() -> str:
    """The chat template with its blanks named."""
    from modeling_nemotron import CHAT_TEMPLATE

    messages = [
        {"role": "system", "content": "{system prompt}"},
        {"role": "user", "content": "{prompt}"},
    ]
    tool = {"name": "{tool}"}
    page = Environment(autoescape=False)
    page.filters["tojson"] = json.dumps  # Jinja's own escapes for HTML; a tokenizer's does not
    return (
        page.from_string(CHAT_TEMPLATE)
        .render(messages=messages, tools=[tool], contexts=["{passage}"], add_generation_prompt=True)
        .strip()
    )


def _metadata(member: Member) -> dict[str, Any]:
    told, base = member.facts, member.base
    is_cut = base is not None and base.architecture != member.architecture
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "minitron",
            "nvidia",
            *told["tags"],
            *(["pruning", "distillation"] if is_cut else []),
        ],
    }
    license = told.get("license")
    if license is None:
        found["license"] = "unknown"
    else:
        found |= {
            "license": "other",
            "license_name": license,
            "license_link": facts()["licenses"][license]["url"],
        }
    if base is not None:
        found |= {"base_model": base.repo, "base_model_relation": "finetune"}
    if "language" in told:
        found["language"] = told["language"]
    results = _eval_results(member)
    return found | ({"model_name": member.name, "eval_results": results} if results else {})


def _eval_results(member: Member) -> list[EvalResult]:
    benchmarks, found = facts()["benchmarks"], []
    for key, (value, source) in _scores(member).items():
        told = benchmarks[key]
        if "metric" not in told:
            continue
        paper, _, place = source.partition(" ")
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=told["dataset"],
                dataset_name=told["name"],
                dataset_args={"num_few_shot": told["shots"]},
                metric_type=told["metric"],
                metric_value=value,
                source_name=f"{facts()['sources'][paper]['title']}, {place}",
                source_url=facts()["sources"][paper]["url"],
            )
        )
    return found


if __name__ == "__main__":
    write_cards(Path(sys.argv[1]))
