"""transformers 4 opens what the commands write: the same logits, the same ids, and not a warning.

Skipped unless MINITRON_TEST_TRANSFORMERS4 names the Python of an environment that has the versions
of .ci/transformers-4.txt, and torch.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

import minitron
from minitron.files.model_files import portable_tokenizer_config
from minitron.model.rotary import KEYS
from minitron.sources.hub_folder import HubFolder
from tests.test_rotary import stated
from tests.test_tokenizer_ids import WRITTEN, whole_folder
from tests.tiny import FAMILIES, edit_config, tiny_folder, write_text, zoo_tokenizer

PYTHON = os.environ.get("MINITRON_TEST_TRANSFORMERS4", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MINITRON_TEST_TRANSFORMERS4 names no Python")

TEXT = " It was the best <|end|> of times,\n\nit was  the worst. Naïve café! 12345"
KINDS = {
    "nemotron": "default",
    "llama": "llama3",
    "mistral": "longrope",
    "qwen2": "yarn",
    "qwen3": "dynamic",
    "smollm3": "linear",
    "olmo2": "dynamic",
    "granite": "llama3",
    "gemma3_text": "linear",
    "phi3": "longrope",
}
SMALLER = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3}
COMMANDS = ("prune", "convert", "distill")
GENERATIONS = {4: "flat", 5: "nested"}  # the form of the rotary settings in the source's config
# A tokenizer_config.json that minitron writes anew: transformers 5 would not follow the file.
FOLLOWING = [(family, kind) for family in ("qwen2", "qwen3") for kind in WRITTEN]
FOLLOWING += [("llama", kind) for kind in WRITTEN if "no class" not in kind]
# What commands write is alike in every family: of the later ones, one folder of each generation.
CASES = [(f, command, g) for f in FAMILIES[:5] for command in COMMANDS for g in GENERATIONS]
CASES += [(f, *case) for f in FAMILIES[5:] for case in (("convert", 4), ("prune", 5))]


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Of bytes, with the rules of its class."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    trained.train_from_iterator([TEXT] * 9, trainer)
    model = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def source(path: Path, family: str, kind: str, generation: int) -> Path:
    """A folder as transformers of that generation writes it."""
    tokenizer = qwen_tokenizer() if family.startswith("qwen") else zoo_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = {"default": "A{{ messages }}", "rag": "B{{ messages }}"}
    # Phi-3's classes count the factors of longrope by hidden_size / heads.
    sizes = {"hidden_size": 48} if family == "phi3" else {}
    tiny_folder(path, family, vocab_size=len(tokenizer), **sizes)
    scaling = stated(GENERATIONS[generation], family, kind)
    edit_config(path, remove=KEYS, **scaling)
    tokenizer.save_pretrained(path)
    file = path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("model_input_names", None)  # which transformers 5 does not write by itself
    if generation == 4:
        edit_config(path, remove=("dtype",), torch_dtype="float32", transformers_version="4.57.6")
        config = portable_tokenizer_config(config, has_fast_file=True)
        del config["backend"]
    file.write_text(json.dumps(config))
    return path


def made(path: Path, family: str, command: str, generation: int) -> Path:
    """What a command makes of a source of that generation."""
    kind = KINDS.get(family, "default")
    if command == "prune" and family not in ("nemotron", "gemma2"):
        kind = "default" if kind == "longrope" and family == "phi3" else "linear"
    folder, out = source(path / "source", family, kind, generation), path / "out"
    text = str(write_text(path / "text.txt", [TEXT * 9]))
    if command == "prune":
        minitron.prune(str(folder), str(out), **SMALLER, corpus=text, samples=2, seq_len=8)
    elif command == "convert":
        minitron.convert(str(folder), str(out))
    else:
        minitron.distill(
            str(folder),
            str(out),
            teacher=str(folder),
            corpus=text,
            dtype="float32",
            steps=1,
            batch_size=1,
            seq_len=8,
        )
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Everything that is written here, by its name."""
    paths = {f"{f} {c} {g}": (f, c, g) for f, c, g in CASES}
    root = tmp_path_factory.mktemp("transformers_4")
    others = {}
    for family, kind in FOLLOWING:
        tokenizer, named = WRITTEN[kind]
        folder = root / f"{family} {kind}"
        whole_folder(folder / "source", family, tokenizer(), named)
        minitron.convert(str(folder / "source"), str(folder / "out"))
        others[folder.name] = folder / "out"
    return {name: made(root / name, *case) for name, case in paths.items()} | others


def ids_for(folder: Path) -> list[int]:
    """More tokens than the context, where every kind of scaling shows."""
    vocabulary = int(HubFolder.at(folder).config["vocab_size"])
    return [(7 * place) % vocabulary for place in range(80)]


@pytest.fixture(scope="module")
def found(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What transformers 4 makes of them, all in one process."""
    work = tmp_path_factory.mktemp("reader")
    jobs = {
        name: {
            "folder": str(folder),
            "text": TEXT,
            "ids": ids_for(folder),
            # Its default attention leaves out Gemma2's attn_logit_softcapping.
            "options": {"attn_implementation": "eager"} if name.startswith("gemma2") else {},
        }
        for name, folder in folders.items()
    }
    (work / "jobs.json").write_text(json.dumps(jobs))
    reader = Path(__file__).with_name("transformers_4_reader.py")
    subprocess.run([PYTHON, str(reader), "jobs.json", "results.pt"], cwd=work, check=True)
    results: dict[str, Any] = torch.load(work / "results.pt")
    assert results["version"].startswith("4.57.")
    return results


@pytest.mark.parametrize(("family", "command", "generation"), CASES)
def test_transformers_4_opens_it_alike(
    folders: dict[str, Path], found: dict[str, Any], family: str, command: str, generation: int
) -> None:
    name = f"{family} {command} {generation}"
    folder, theirs = folders[name], found[name]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([ids_for(folder)])).logits
    torch.testing.assert_close(theirs["logits"], logits, rtol=1e-5, atol=1e-5)
    assert (theirs["dtype"], theirs["use_cache"]) == (model.dtype, True)
    assert theirs["ids"] == tokenizer(TEXT)["input_ids"]
    # `generate(**tokenizer(text))` refuses inputs that the model does not take.
    assert theirs["inputs"] == list(tokenizer(TEXT))
    assert theirs["templates"] == tokenizer.chat_template
    assert theirs["warnings"] == []


@pytest.mark.parametrize(("family", "kind"), FOLLOWING)
def test_transformers_4_gives_the_ids_of_a_file_that_is_of_another_kind_than_its_class(
    folders: dict[str, Path], found: dict[str, Any], family: str, kind: str
) -> None:
    folder, theirs = folders[f"{family} {kind}"], found[f"{family} {kind}"]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    assert theirs["ids"] == ids
    assert theirs["warnings"] == []
