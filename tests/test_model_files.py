"""A tokenizer comes along whole, and both generations of transformers open it."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.utils import CHAT_TEMPLATE_DIR

import minitron
from minitron.errors import TokenizerError
from minitron.files.model_files import (
    TEMPLATES,
    is_model_file,
    portable_tokenizer_config,
    tokenizer_names,
)
from minitron.publish.publishable import check_publishable
from minitron.sources.loading import load_tokenizer
from minitron.sources.opening import open_source, zoo
from tests.hub_repositories import Account
from tests.hub_server import serving, talk_to
from tests.tiny import tiny_folder, write_text, zoo_tokenizer

RANDOM: dict[str, Any] = {"corpus": "random", "samples": 2, "seq_len": 8}
FAST = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": ["input_ids", "attention_mask"],
}
CHAT = {
    "default": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "tool use": "TOOLS",
    "rag": "DOCUMENTS",
}


def test_every_file_that_a_tokenizer_of_transformers_reads_belongs_to_one() -> None:
    """As the classes name them, read from their sources: importing all of them takes a minute."""
    package = Path(transformers.__file__).parent
    names = set()
    for source in package.glob("models/*/tokenization_*.py"):
        found = re.search(r"VOCAB_FILES_NAMES[^=\n]*= \{(.*?)\}", source.read_text(), re.S)
        names |= set(re.findall(r':\s*"([^"]+)"', found[1])) if found else set()
    assert len(names) > 20
    assert set(tokenizer_names(names)) == names
    assert TEMPLATES == CHAT_TEMPLATE_DIR


@pytest.mark.parametrize(
    ("name", "belongs"),
    {
        "additional_chat_templates/rag.jinja": True,
        "additional_chat_templates/tool use.jinja": True,
        "additional_chat_templates/deeper/rag.jinja": False,
        "additional_chat_templates/../rag.jinja": False,
        "additional_chat_templates/.jinja": False,
        "additional_chat_templates/rag.py": False,
        "other/tokenizer.json": False,
        "chat_template.jinja": True,
        "processor_config.json": True,
        "config.json": False,
        "generation_config.json": False,
        "model.safetensors": False,
    }.items(),
)
def test_what_belongs_to_a_tokenizer(name: str, belongs: bool) -> None:
    assert bool(tokenizer_names([name])) == belongs
    assert is_model_file(name) == ("/" not in name or belongs)


def test_files_at_the_top_come_first_since_they_show_the_folder() -> None:
    names = ["additional_chat_templates/a.jinja", "tokenizer.json", "added_tokens.json"]
    assert tokenizer_names(names) == ["added_tokens.json", "tokenizer.json", names[0]]


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"tokenizer_class": "TokenizersBackend"}, FAST),
        ({"tokenizer_class": "PythonBackend"}, FAST),
        # transformers 4 would begin with a token that 5 does not put there
        ({"tokenizer_class": "LlamaTokenizer", "backend": "tokenizers"}, FAST),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "backend": "tokenizers"}, FAST),
        (
            {"tokenizer_class": "TokenizersBackend", "model_input_names": ["input_ids"]},
            {"tokenizer_class": "PreTrainedTokenizerFast"},
        ),
        (
            {"extra_special_tokens": ["<a>"]},
            {"additional_special_tokens": ["<a>"], "extra_special_tokens": ...},
        ),
        (
            {"extra_special_tokens": [], "additional_special_tokens": ["<b>"]},
            {"extra_special_tokens": ...},
        ),
        ({"extra_special_tokens": {"image_token": "<i>"}}, {}),
        ({"tokenizer_class": "LlamaTokenizer"}, {}),
        ({"tokenizer_class": "LlamaTokenizer", "backend": "tokenizers", "add_bos_token": True}, {}),
        ({"tokenizer_class": "Qwen2Tokenizer", "backend": "tokenizers"}, {}),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, {}),
        ({"tokenizer_class": None}, {}),
        ({}, {}),
    ],
    ids=str,
)
def test_a_config_gets_what_both_generations_know(
    config: dict[str, Any], changed: Mapping[str, Any]
) -> None:
    expected = {k: v for k, v in {**config, **changed}.items() if v is not ...}
    assert portable_tokenizer_config(config, has_fast_file=True) == expected


def test_without_tokenizer_json_a_class_stays() -> None:
    config = {"tokenizer_class": "SentencePieceBackend"}
    assert portable_tokenizer_config(config, has_fast_file=False) == config


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer that has several chat templates, as transformers 5 writes it."""
    folder = tmp_path_factory.mktemp("tokenizer_files") / "source"
    tokenizer = zoo_tokenizer()
    tiny_folder(folder, "llama", hidden_size=48, vocab_size=len(tokenizer))
    tokenizer.chat_template = CHAT
    tokenizer.add_special_tokens({"extra_special_tokens": ["<extra_id_0>"]})
    tokenizer.save_pretrained(folder)
    return folder


def made_by(command: str, source: Path, out: Path) -> Path:
    """What a command makes of the source."""
    if command == "prune":
        minitron.prune(str(source), str(out), num_hidden_layers=3, **RANDOM)
    elif command == "convert":
        minitron.convert(str(source), str(out))
    elif command == "remake":
        minitron.remake(str(made_by("prune", source, out.with_name("pruned"))), str(out))
    else:
        text = str(write_text(out.with_name("text.txt"), ["It was the best of times. " * 9]))
        minitron.train(str(out), init=str(source), corpus=text, steps=1, seq_len=8, batch_size=1)
    return out


@pytest.mark.parametrize("command", ["prune", "convert", "remake", "train"])
def test_every_command_takes_the_whole_tokenizer_along(
    source: Path, tmp_path: Path, command: str
) -> None:
    out = made_by(command, source, tmp_path / "out")
    for name, template in CHAT.items():
        file = "chat_template.jinja" if name == "default" else f"{TEMPLATES}/{name}.jinja"
        assert (out / file).read_text() == template
    tokenizer = load_tokenizer(open_source(str(out)))
    assert tokenizer.chat_template == CHAT
    assert tokenizer.extra_special_tokens == ["<extra_id_0>"]
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in config
    text = "It was <extra_id_0> the best of times"
    assert tokenizer(text) == load_tokenizer(open_source(str(source)))(text)
    assert json.loads((out / "config.json").read_text())["use_cache"] is True
    pushed = check_publishable(out)
    assert f"{TEMPLATES}/rag.jinja" in pushed


def test_a_folder_that_is_called_as_that_of_the_templates_is_a_folder_like_any(
    source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / TEMPLATES
    shutil.copytree(source, folder)
    minitron.convert(str(folder), str(tmp_path / "out"))
    assert load_tokenizer(open_source(str(tmp_path / "out"))).chat_template == CHAT


def test_what_both_generations_know_already_stays_byte_for_byte(tmp_path: Path) -> None:
    minitron.convert("tiny-quarter", str(tmp_path / "out"))
    for file in zoo()["tiny-quarter"].glob("tokenizer*"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_templates_come_from_the_hub(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as hub:
        hub.accounts["hf_reads"] = Account("me")
        talk_to(hub, monkeypatch, tmp_path / "home", "hf_reads")
        files = (path for path in source.rglob("*") if path.is_file())
        hub.add("a/b", {p.relative_to(source).as_posix(): p.read_bytes() for p in files})
        opened = open_source("a/b")
        assert f"{TEMPLATES}/rag.jinja" in opened.companions.tokenizer_names
        assert load_tokenizer(opened).chat_template == CHAT
        minitron.convert("a/b", str(tmp_path / "out"))
    assert (tmp_path / "out" / TEMPLATES / "tool use.jinja").read_text() == "TOOLS"


def test_a_damaged_tokenizer_config_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    damaged = made_by("convert", source, tmp_path / "damaged")
    (damaged / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json is not JSON .* fetch it"):
        minitron.convert(str(damaged), str(tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))
