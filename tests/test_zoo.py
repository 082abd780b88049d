"""The embedded family is what its cards say, and anybody's tools read it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

import minitron
from minitron.sources.loading import hub_config, new_model
from minitron.sources.opening import open_source, zoo

TINY = zoo()["tiny"]
CHILDREN = {"tiny-half": 0.5, "tiny-quarter": 0.25}  # share of the teacher's parameters
SENTENCES = (
    "The old man rose from his chair and went to the window. He looked out upon the street, "
    "where the rain was falling, and said nothing for a long time. His daughter watched him.\n"
)
HARD_TEXTS = [
    "",
    " leading, trailing ",
    "It was the best of times,\n\nit was the worst of times.\r\n",
    "def f(x):\n\treturn  x ** 2  # 12345",
    "naïve café — “quotes” … 中文 🙂👩‍👩‍👧",
    "<extra_id_0>System\n<extra_id_1>User",
]


def recorded(folder: Path) -> dict[str, Any]:
    """The results in a member's minitron.json."""
    results: dict[str, Any] = json.loads((folder / "minitron.json").read_text())["results"]
    return results


def loss_in(results: dict[str, Any]) -> float:
    """The held-out loss of the model itself."""
    return float(results["rows"][0]["values"][0])


def test_the_teacher_is_a_tiny_nemotron_with_heads_of_their_own_size() -> None:
    output = minitron.inspect("tiny")
    assert 6_000_000 <= output.parameters <= 8_000_000
    assert output.model_type == "nemotron"
    assert output.head_dim * output.num_attention_heads != output.hidden_size
    assert 1 < output.num_key_value_heads < output.num_attention_heads
    assert output.dtype == "bfloat16"


def test_all_of_it_takes_at_most_sixteen_megabytes_and_holds_no_text() -> None:
    files = {path.name: path.stat().st_size for path in TINY.iterdir()}
    assert sum(files.values()) <= 16e6
    assert not [name for name in files if name.endswith((".txt", ".gz", ".parquet", ".npy"))]


def test_the_family_takes_at_most_thirty_megabytes() -> None:
    assert set(zoo()) == {"tiny", *CHILDREN}
    files = [file for folder in zoo().values() for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 30e6


@pytest.mark.parametrize(("name", "share"), CHILDREN.items())
def test_a_child_has_its_share_of_the_teachers_parameters(name: str, share: float) -> None:
    whole, child = minitron.inspect("tiny").parameters, minitron.inspect(name)
    assert child.parameters == pytest.approx(share * whole, rel=0.05)
    assert child.dtype == "bfloat16"
    for file in ("tokenizer.json", "tokenizer.model"):
        assert (zoo()[name] / file).read_bytes() == (TINY / file).read_bytes()


@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_is_within_a_twentieth_of_the_teachers_held_out_loss(name: str) -> None:
    """As recorded on the same text; test_evaluation holds what `evaluate` records."""
    teacher, child = recorded(TINY), recorded(zoo()[name])
    assert teacher["measured"].split(" held out: ")[1].split()[0] in child["measured"]
    assert 1 < loss_in(child) / loss_in(teacher) < 1.05


@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_still_has_the_loss_that_is_recorded(name: str, tmp_path: Path) -> None:
    """Of a text of ours; its order among the family is that of the records."""
    (tmp_path / "text.txt").write_text(SENTENCES)
    losses = {n: minitron.evaluate(n, corpus=str(tmp_path / "text.txt")).loss for n in zoo()}
    assert losses["tiny"] < losses[name] < 1.15 * losses["tiny"]


@pytest.mark.parametrize("name", CHILDREN)
def test_a_childs_recipes_made_it(name: str) -> None:
    record = json.loads((zoo()[name] / "minitron.json").read_text())
    recipes = Path(minitron.__file__).parent / "recipes"
    made = {"prune": record["source"]["made"]["recipe"], "distill": record["recipe"]}
    assert record["command"] == "distill"
    assert record["teacher"]["name"] == "tiny"
    assert record["teacher"]["digest"] == open_source("tiny").digest
    for command, recorded_recipe in made.items():
        recipe = (recipes / f"{name}-{command}.yaml").read_text()
        for key, value in yaml.safe_load(recipe).items():
            assert recorded_recipe[key] == value, (command, key)


def test_the_teachers_recipes_made_it_from_random_weights() -> None:
    record = json.loads((TINY / "minitron.json").read_text())
    recipes = Path(minitron.__file__).parent / "recipes"
    made = {"tiny": record["source"]["made"], "tiny-continued": record}
    for name, step in made.items():
        for key, value in yaml.safe_load((recipes / f"{name}.yaml").read_text()).items():
            assert step["recipe"][key] == value, (name, key)
        assert step["training"]["epochs"] == pytest.approx(step["recipe"]["epochs"], abs=0.001)
    card = (TINY / "README.md").read_text()
    assert "minitron train tiny-first --scratch --corpus books-train.jsonl.gz" in card
    assert "Trained from random weights" in card


@pytest.mark.parametrize("name", ["tiny", *CHILDREN])
def test_its_weights_are_complete_and_nothing_is_left_at_its_start(name: str) -> None:
    source = open_source(name)
    for name, stored in source.weights.items():
        assert stored.read().float().std() > 0, name


@pytest.mark.parametrize("name", ["tiny", *CHILDREN])
def test_its_config_is_as_it_would_be_written_and_has_nothing_left_over_from_training(
    name: str, tmp_path: Path
) -> None:
    minitron.convert(name, str(tmp_path / "out"))
    for file in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "out" / file).read_text())
        assert json.loads((zoo()[name] / file).read_text()) == written
    assert hub_config(open_source(name).config).use_cache


def test_special_ids_are_those_of_the_nemotron_family() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    specials = ["<pad>", "<unk>", "<s>", "</s>", "<extra_id_0>", "<extra_id_1>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2, 3, 4, 5]
    config = json.loads((TINY / "config.json").read_text())
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (0, 2, 3)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_tokenizer_json_gives_the_ids_of_tokenizer_model(text: str) -> None:
    reference = SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert tokenizer(text)["input_ids"] == reference.encode(text)
    assert tokenizer.decode(reference.encode(text)) == text


def test_plain_transformers_loads_it_and_it_speaks() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    ids = tokenizer("It was the best of times,", return_tensors="pt").input_ids
    written = tokenizer.decode(model.generate(ids, max_new_tokens=20, do_sample=False)[0])
    assert written == "It was the best of times," + minitron.generate(
        "tiny", "It was the best of times,", max_new_tokens=20
    )


def test_it_has_learned_more_than_half_of_what_there_is_to_know(tmp_path: Path) -> None:
    """On a few lines of its kind of English: random guessing costs 12 bits a token."""
    (tmp_path / "text.txt").write_text(SENTENCES)
    measured = minitron.evaluate("tiny", corpus=str(tmp_path / "text.txt"))
    assert measured.bits_per_byte < 2


def test_its_card_states_its_held_out_loss_and_the_recipe_made_it() -> None:
    card = (TINY / "README.md").read_text()
    stated = re.search(r"([\d.]+) bits per byte", card)
    assert stated is not None
    assert float(stated[1]) <= 1.60
    record = json.loads((TINY / "minitron.json").read_text())
    recipe = (Path(minitron.__file__).parent / "recipes" / "tiny-continued.yaml").read_text()
    assert record["command"] == "train"
    for key, value in yaml.safe_load(recipe).items():
        assert record["recipe"][key] == value, key


def test_a_fresh_model_of_its_sizes_is_zero_centred() -> None:
    config = hub_config(open_source("tiny").config)
    torch.manual_seed(0)
    model = new_model(config)
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    assert norms
    assert all(not parameter.any() for parameter in norms)
