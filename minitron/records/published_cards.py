"""The cards of the published family, from a file of facts and the template of all cards.

Knows `published_cards.yaml`, and computes every model's parameters from its config. `make cards`
writes `model_cards/` and the zoo's cards again:

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
from minitron.records.card_page import Card, Result, Table, render_page, sizes_table
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
    """A published model: its name and its facts in published_cards.yaml."""

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
        """The model that it was made from."""
        name = self.facts.get("base")
        return members()[name] if name is not None else None


@cache
def read_facts() -> dict[str, Any]:
    """Read the file of facts."""
    text = (resources.files("minitron") / "records" / "published_cards.yaml").read_text(
        encoding="utf-8"
    )
    return dict(yaml.safe_load(text))


def members() -> dict[str, Member]:
    """Name to member, also those without a card."""
    return {name: Member(name, facts) for name, facts in read_facts()["members"].items()}


def members_with_card() -> list[Member]:
    """The members that have a card."""
    return [member for member in members().values() if member.facts.get("card", True)]


def family_card(member: Member) -> str:
    """The whole page of a published model."""
    facts, base = member.facts, member.base
    architecture = member.architecture
    is_cut = base is not None and base.architecture != architecture
    before = (base.name, sizes_of(base.architecture)) if base is not None and is_cut else None
    card = Card(
        name=member.name,
        summary=facts["summary"],
        facts=tuple(_facts(member)),
        sizes=sizes_table(member.name, sizes_of(architecture), before),
        sizes_notes=tuple(facts[key] for key in ("note", "dropped_note") if key in facts),
        training=tuple(_training(facts.get("training"), base)),
        results=_results(member),
        use_note=facts.get("availability"),
        code=_CHAT.format(model=member.repo)
        if facts.get("chat")
        else usage(f'source = "{member.repo}"', "To be or not to be,"),
        prompt_format=_prompt_format() if facts.get("chat") else None,
        limits=tuple(read_facts()["limits"][limit] for limit in facts["limits"]),
        engines=tuple(engine_notes(facts["config"])),
        again="With a text of your own, since the papers' is not public:",
        commands=tuple(_commands(member)),
    )
    return render_page(card, _metadata(member))


def write_cards(folder: Path) -> None:
    """Write the cards of the published models and their index, and the cards in the zoo."""
    folder.mkdir(exist_ok=True)
    for member in members_with_card():
        (folder / f"{member.name}.md").write_text(family_card(member), encoding="utf-8")
    (folder / INDEX).write_text(index(), encoding="utf-8")
    for place in zoo().values():
        write_card(place, overwrite=True)


def index() -> str:
    """The page that lists all cards."""
    rows = [
        f"| [{member.name}]({member.name}.md) | {member.architecture.parameters:,} "
        f"| {member.base.name if member.base is not None else ''} |"
        for member in members_with_card()
    ]
    tiny = [f"- [{name}](../minitron/zoo/{name}/README.md)" for name in zoo()]
    return "\n".join(
        [
            "# Model cards",
            "",
            "Written by `make cards` from `minitron/records/`: one template, and one file of facts",
            "in which each number has its source. `minitron card FOLDER` writes such a card for",
            "your own model.",
            "",
            "| model | parameters | made from |",
            "|---|---:|---|",
            *rows,
            "",
            "The tiny family is part of the package, each model with its card:",
            "",
            *tiny,
            "",
        ]
    )


def cite(source: str) -> str:
    """A source such as `M1 table 2` as a link, and the place in it."""
    key, _, place = source.partition(" ")
    paper = read_facts()["sources"][key.rstrip(",")]
    return f"[{paper['title']}]({paper['url']})" + (f", {place}" if place else "")


def _facts(member: Member) -> list[str]:
    facts = member.facts
    terms = read_facts()["licenses"].get(facts.get("license"))
    lines = ["Developed by NVIDIA" + (f", {facts['dates']}." if "dates" in facts else ".")]
    if terms is None:
        lines.append("License: unknown.")
    else:
        note = f" {facts['license_note']}" if "license_note" in facts else ""
        lines.append(f"License: [{terms['title']}]({terms['url']}).{note}")
    if "use" in facts:
        lines.append(f"Intended use: {facts['use']}")
    if "data_cutoff" in facts:
        lines.append(f"Its training data ends in {facts['data_cutoff']}.")
    counts = facts["parameters"]
    lines.append(
        f"{counts['paper'][0]:g} billion parameters, {counts['paper'][1]:g} without embeddings "
        f"({cite(counts['source'])})."
    )
    lines.append(memory_fact(member.architecture))
    if "speed" in facts:
        speed = facts["speed"]
        lines.append(
            f"{speed['value']:g} times the {speed['measure']} of {speed['of']} "
            f"({cite(speed['source'])})."
        )
    return lines


def _training(training: Mapping[str, Any] | None, base: Member | None) -> list[str]:
    if training is None:
        return []
    tokens = f"{training['tokens'] / 1e9:,.0f} billion tokens"
    if base is None:
        return [f"Trained on {tokens} ({cite(training['source'])})."]
    warmup = f"{training['warmup_steps']} steps of warm-up, " if "warmup_steps" in training else ""
    return [
        f"Distilled on {tokens}: forward KL divergence between the predictions of {base.name} and "
        f"its own, on the logits alone. {training['data']}",
        f"{training['sequences_a_step']:,} sequences of {training['seq_len']:,} tokens a step, "
        f"{warmup}learning rate {training['learning_rate']:g} to "
        f"{training['min_learning_rate']:g} on a cosine; {training['hardware']} "
        f"({cite(training['source'])}).",
        *([training["note"]] if "note" in training else []),
    ]


def _results(member: Member) -> tuple[Result, ...]:
    """The published scores beside those of the model that it was made from."""
    compared = [each for each in (member, member.base) if each is not None and _scores(each)]
    if not _scores(member):
        return ()
    scores = [_scores(each) for each in compared]
    rows = tuple(
        (
            f"{benchmark['name']} ({benchmark['shots']}-shot)",
            *(f"{of[key][0]:.1f}" if key in of else "" for of in scores),
        )
        for key, benchmark in read_facts()["benchmarks"].items()
        if key in scores[0]
    )
    papers = [f"{each.name}: {cite(next(iter(each.facts['scores'])))}" for each in compared]
    measured = f"In percent, as published and not measured by us. {'; '.join(papers)}."
    return (Result(measured, Table(("", *(each.name for each in compared)), rows)),)


def _scores(member: Member) -> dict[str, tuple[float, str]]:
    """Benchmark to its value and the value's source."""
    tables = member.facts.get("scores", {})
    return {key: (value, source) for source, row in tables.items() for key, value in row.items()}


def _commands(member: Member) -> list[str]:
    facts = member.facts
    if "recipe" not in facts:
        return []
    name = member.name.lower().removesuffix("-base")
    return [
        f"minitron prune {facts['prune_from']} {name}-pruned --recipe {facts['recipe']}-prune "
        "--corpus text.jsonl.gz",
        f"minitron distill {name}-pruned {name} --teacher {facts['teacher']} "
        f"--recipe {facts['recipe']}-distill --corpus text.jsonl.gz",
    ]


def _prompt_format() -> str:
    """The chat template, with placeholders for its variable parts."""
    from modeling_nemotron import CHAT_TEMPLATE

    messages = [
        {"role": "system", "content": "{system prompt}"},
        {"role": "user", "content": "{prompt}"},
    ]
    tool = {"name": "{tool}"}
    page = Environment(autoescape=False)
    page.filters["tojson"] = json.dumps  # a tokenizer's does not escape HTML, Jinja's does
    return (
        page.from_string(CHAT_TEMPLATE)
        .render(messages=messages, tools=[tool], contexts=["{passage}"], add_generation_prompt=True)
        .strip()
    )


def _metadata(member: Member) -> dict[str, Any]:
    facts, base = member.facts, member.base
    is_cut = base is not None and base.architecture != member.architecture
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "minitron",
            "nvidia",
            *facts["tags"],
            *(["pruning", "distillation"] if is_cut else []),
        ],
    }
    license = facts.get("license")
    if license is None:
        metadata["license"] = "unknown"
    else:
        metadata |= {
            "license": "other",
            "license_name": license,
            "license_link": read_facts()["licenses"][license]["url"],
        }
    if base is not None:
        metadata |= {"base_model": base.repo, "base_model_relation": "finetune"}
    if "language" in facts:
        metadata["language"] = facts["language"]
    results = _eval_results(member)
    return metadata | ({"model_name": member.name, "eval_results": results} if results else {})


def _eval_results(member: Member) -> list[EvalResult]:
    benchmarks, results = read_facts()["benchmarks"], []
    for key, (value, source) in _scores(member).items():
        benchmark = benchmarks[key]
        if "metric" not in benchmark:
            continue
        paper, _, place = source.partition(" ")
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=benchmark["dataset"],
                dataset_name=benchmark["name"],
                dataset_args={"num_few_shot": benchmark["shots"]},
                metric_type=benchmark["metric"],
                metric_value=value,
                source_name=f"{read_facts()['sources'][paper]['title']}, {place}",
                source_url=read_facts()["sources"][paper]["url"],
            )
        )
    return results


if __name__ == "__main__":
    write_cards(Path(sys.argv[1]))
