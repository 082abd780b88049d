"""The published family: facts, cards and recipes agree, and what they show runs."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import minitron
from minitron import cli
from minitron.model.architecture import Architecture
from minitron.model.config_json import resized_config
from minitron.model.family import AXIS_KEYS
from minitron.model.importance import Importance, score_shapes
from minitron.model.plan import choose_plan, indices_of
from minitron.recipe_file import read_recipe_file
from minitron.recipes.pruning import PruneRecipe
from minitron.recipes.training import DistillRecipe
from minitron.records.published_cards import (
    Member,
    family_card,
    index,
    members,
    members_with_card,
    read_facts,
    write_cards,
)
from minitron.sources.loading import hub_config
from minitron.sources.opening import zoo
from minitron.verbs.prune import target_architecture
from modeling_nemotron import CHAT_TEMPLATE

ROOT = Path(__file__).parent.parent
CARDS = ROOT / "model_cards"
RECIPES = Path(minitron.__file__).parent / "recipes"
MEMBERS = list(members().values())
CARDED = members_with_card()
CUT = [member for member in MEMBERS if "recipe" in member.facts]


def name_of(member: Member) -> str:
    return member.name


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def recipe_of(member: Member, verb: str) -> dict[str, Any]:
    text = (RECIPES / f"{member.facts['recipe']}-{verb}.yaml").read_text()
    return dict(yaml.safe_load(text))


@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_parameters_are_those_that_the_config_makes_and_the_papers_print(member: Member) -> None:
    counted, architecture = member.facts["parameters"], member.architecture
    counts = (architecture.parameters, architecture.non_embedding_parameters)
    assert counts == (counted["total"], counted["non_embedding"])
    for count, printed in zip(counts, counted["paper"], strict=True):
        decimals = len(str(printed).partition(".")[2])
        assert round(count / 1e9, decimals) == printed


@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_every_number_names_a_source_that_is_listed(member: Member) -> None:
    facts = member.facts
    sources = [facts["parameters"]["source"], *facts.get("scores", {})]
    sources += [facts[key]["source"] for key in ("training", "speed") if key in facts]
    assert {source.split()[0].rstrip(",") for source in sources} <= read_facts()["sources"].keys()
    for row in facts.get("scores", {}).values():
        assert row.keys() <= read_facts()["benchmarks"].keys()


@pytest.mark.parametrize("member", CARDED, ids=name_of)
def test_the_card_in_the_repository_is_the_facts_rendered(member: Member) -> None:
    text = (CARDS / f"{member.name}.md").read_text()
    assert text == family_card(member), "run make cards"


def test_the_index_lists_every_card_and_no_file_is_left_over() -> None:
    assert (CARDS / "README.md").read_text() == index(), "run make cards"
    names = {f"{member.name}.md" for member in CARDED} | {"README.md"}
    assert {path.name for path in CARDS.iterdir()} == names
    assert all(f"zoo/{name}/README.md" in index() for name in zoo())


def test_the_cards_are_made_again_by_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.records.published_cards.zoo", dict)
    write_cards(tmp_path / "cards")
    made = {path.name for path in (tmp_path / "cards").iterdir()}
    assert made == {f"{member.name}.md" for member in CARDED} | {"README.md"}


@pytest.mark.parametrize("member", CARDED, ids=name_of)
def test_metadata_is_what_the_hub_reads(member: Member) -> None:
    data = ModelCard.load(CARDS / f"{member.name}.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert "minitron" in data.tags
    if member.name == "Nemotron-4-15B":  # no terms of its own are known
        assert data.license == "unknown"
        assert data.base_model is None
    else:
        assert data.license == "other"
        assert data.license_link.startswith("https://")
        assert data.license_name == member.facts["license"]
        assert data.to_dict()["base_model_relation"] == "finetune"
        assert data.base_model == members()[member.facts["base"]].repo
    scores = {key: v for row in member.facts.get("scores", {}).values() for key, v in row.items()}
    published = {key: v for key, v in scores.items() if "metric" in read_facts()["benchmarks"][key]}
    results = data.eval_results or []
    assert [result.metric_value for result in results] == list(published.values())
    assert all(result.source_url.startswith("https://arxiv.org/") for result in results)
    assert all(result.dataset_type.count("/") == 1 for result in results)


@pytest.mark.parametrize("member", CARDED, ids=name_of)
def test_the_card_says_size_license_use_and_limits(member: Member) -> None:
    text = (CARDS / f"{member.name}.md").read_text()
    assert f"{member.architecture.parameters:,}" in text
    assert "## Limits\n\n- " in text
    assert "License: " in text
    if member.name in ("Minitron-8B-Base", "Minitron-4B-Base"):
        assert "For research and development only." in text
    for row in member.facts.get("scores", {}).values():
        for value in row.values():
            assert f"| {value:.1f} |" in text


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the family's chat template."""
    folder = tmp_path_factory.mktemp("model") / "chat"
    shutil.copytree(zoo()["tiny"], folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.mark.parametrize("member", CARDED, ids=name_of)
def test_a_python_block_runs_on_the_tiny_model(
    member: Member, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(family_card(member), "python")
    assert f'"{member.repo}"' in code
    code = code.replace(f'"{member.repo}"', repr(str(stand_in)))
    torch.manual_seed(0)
    exec(compile(code.replace("=100", "=8").replace("=40", "=8"), member.name, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_prompt_format_is_the_chat_template() -> None:
    (shown,) = re.findall(
        r"## Prompt format.*?```\n(.*?)```",
        family_card(members()["Nemotron-Mini-4B-Instruct"]),
        re.DOTALL,
    )
    assert shown == (
        "<extra_id_0>System\n{system prompt}\n\n"
        '<tool> {"name": "{tool}"} </tool>\n<context> {passage} </context>\n\n'
        "<extra_id_1>User\n{prompt}\n<extra_id_1>Assistant\n"
    )


@pytest.mark.parametrize("member", CUT, ids=name_of)
def test_the_commands_parse_with_their_recipes(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "minitron").symlink_to(RECIPES.parent)  # as in the repository, from any folder
    monkeypatch.chdir(tmp_path)
    (shell,) = blocks(family_card(member), "sh")
    parsed = {}
    for line in shell.splitlines():
        tokens = shlex.split(line)[1:]
        cli.app.config, mapped = read_recipe_file(tokens, [*cli.app])
        try:
            _, bound, _ = cli.app.parse_args(
                [*tokens, *mapped], exit_on_error=False, print_error=False
            )
        finally:
            cli.app.config = ()
        parsed[tokens[0]] = bound.arguments
    assert parsed["prune"]["source"] == member.facts["prune_from"]
    for key in ("hidden_size", "num_hidden_layers"):
        if key in recipe_of(member, "prune"):
            assert parsed["prune"][key] == member.facts["config"][key]
    assert parsed["distill"]["student"] == parsed["prune"]["out"]
    assert parsed["distill"]["steps"] == recipe_of(member, "distill")["steps"]


def sizes_after(recipe: Mapping[str, Any], source: Architecture) -> Architecture:
    pruning = PruneRecipe(source="whole", out="cut", corpus="text.jsonl", **recipe)
    return target_architecture(source, pruning)


@pytest.mark.parametrize("member", CUT, ids=name_of)
def test_a_recipe_cuts_the_source_to_the_published_sizes(member: Member) -> None:
    assert member.base is not None
    source = member.base
    target = sizes_after(recipe_of(member, "prune"), source.architecture)
    assert target == member.architecture
    config = resized_config(source.facts["config"], target, tuple(range(target.num_hidden_layers)))
    hub_config(config)  # transformers takes them
    published = member.facts["config"]
    assert {key: config[key] for key in AXIS_KEYS.values()} == {
        key: published[key] for key in AXIS_KEYS.values()
    }


def test_minitron_4b_can_be_cut_from_the_8b_as_well() -> None:
    recipe = recipe_of(members()["Minitron-4B-Base"], "prune")
    target = sizes_after(recipe, members()["Minitron-8B-Base"].architecture)
    assert target == members()["Minitron-4B-Base"].architecture


@pytest.mark.parametrize("member", CUT, ids=name_of)
def test_calibration_is_the_papers(member: Member) -> None:
    recipe = PruneRecipe(source="whole", out="cut", **recipe_of(member, "prune"))
    assert (recipe.samples, recipe.scores, recipe.aggregation) == (1024, "paper", "l2,mean")
    assert recipe.steps == 1  # one shot
    assert recipe.seq_len is not None
    # The 4B alone loses heads.
    assert recipe.head_residual == (member.name == "Minitron-4B-Base")


@pytest.mark.parametrize("member", CUT, ids=name_of)
def test_a_distill_recipe_trains_as_long_as_the_paper(member: Member) -> None:
    training = member.facts["training"]
    recipe = DistillRecipe(
        student="cut",
        out="out",
        teacher="whole",
        corpus="text.jsonl",
        **recipe_of(member, "distill"),
    )
    sequences = recipe.batch_size * recipe.gradient_accumulation_steps * training["devices"]
    assert sequences == training["sequences_a_step"]
    assert recipe.seq_len == training["seq_len"]
    assert recipe.steps is not None
    assert recipe.steps * sequences * recipe.seq_len == pytest.approx(training["tokens"], rel=1e-4)
    for key in ("learning_rate", "min_learning_rate"):
        assert getattr(recipe, key) == training[key]
    assert recipe.warmup_steps == training.get("warmup_steps", 0)
    wanted = ("forward_kl", 1.0, 0.0, 0.0)
    assert (recipe.kind, recipe.temperature, recipe.ce_weight, recipe.alpha) == wanted


def test_the_depth_recipe_drops_the_papers_layers_where_they_matter_least() -> None:
    member = members()["Llama-3.1-Minitron-4B-Depth-Base"]
    dropped = list(indices_of(member.facts["dropped_layers"], 32))
    assert member.base is not None
    source = member.base.architecture
    recipe = PruneRecipe(source="whole", out="cut", **recipe_of(member, "prune"))
    assert recipe.block_size == len(dropped) == 16
    blocks = torch.ones(source.num_hidden_layers - len(dropped) + 1, dtype=torch.float64)
    blocks[dropped[0]] = 0.5
    layers = torch.ones(score_shapes(source)["layers"], dtype=torch.float64)
    plan = choose_plan(
        Importance({"block_size": recipe.block_size}, layers=layers, blocks=blocks),
        source,
        sizes_after(recipe_of(member, "prune"), source),
        contiguous=recipe.contiguous_layers,
    )
    assert sorted({*range(source.num_hidden_layers)} - {*plan.layers}) == dropped
    assert plan.layers[-1] == 31


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_has_only_fields_of_its_command(path: Path) -> None:
    keys = yaml.safe_load(path.read_text()).keys()
    if path.stem.endswith("-prune"):
        fields = PruneRecipe.__dataclass_fields__.keys()
    else:  # training and distilling
        fields = {*DistillRecipe.__dataclass_fields__, "init"}
    assert keys <= {*fields}
    shown = re.sub(r"\\\n#\s+", "", path.read_text())
    assert f"--recipe {path.stem} " in shown, "its first lines show the command"


def test_recipes_of_the_papers_prune_as_the_papers_do() -> None:
    for path in RECIPES.glob("*-prune.yaml"):
        recipe = yaml.safe_load(path.read_text())
        assert path.stem.startswith("tiny-") or recipe["reconstruct"] == "none", path.stem


def test_no_card_and_no_fact_of_this_machine() -> None:
    text = json.dumps(read_facts()) + "".join(path.read_text() for path in CARDS.iterdir())
    assert "/home" not in text
    assert "/root" not in text
