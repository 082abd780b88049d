"""A pad token for which the embedding has no row is never used, and never written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import minitron
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source, zoo
from tests.tiny import FAMILIES, edit_config, tiny_folder, weights_of

VOCABULARY = 4099


def padded_folder(path: Path, family: str, pad: Any) -> Path:
    """A model whose config and generation settings name this pad token."""
    folder = tiny_folder(path, family, vocab_size=VOCABULARY)
    edit_config(folder, pad_token_id=pad)
    settings = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": pad}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    for file in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("verb", ["prune", "convert"])
def test_what_is_written_loads_in_plain_transformers(
    verb: str, family: str, tmp_path: Path
) -> None:
    source = padded_folder(tmp_path / "m", family, VOCABULARY)
    options = {"intermediate_size": 40, "scores": "random"} if verb == "prune" else {}
    getattr(minitron, verb)(str(source), str(tmp_path / "out"), **options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.config.pad_token_id is None
    assert GenerationConfig.from_pretrained(tmp_path / "out").pad_token_id is None
    ids = torch.arange(3, 20)[None]
    ours = load_model(open_source(str(tmp_path / "out")))(ids).logits
    torch.testing.assert_close(ours, model(ids).logits)


@pytest.mark.parametrize("pad", [VOCABULARY, 10**9, -VOCABULARY - 1])
def test_scores_are_those_of_the_model_without_the_token(pad: int, tmp_path: Path) -> None:
    options = {"intermediate_size": 40, "corpus": "random", "samples": 2, "seq_len": 16}
    for name, token in (("a", pad), ("b", None)):
        source = padded_folder(tmp_path / name, "llama", token)
        minitron.prune(str(source), str(tmp_path / f"{name}-out"), **options)
    one, other = weights_of(tmp_path / "a-out"), weights_of(tmp_path / "b-out")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert minitron.generate(str(tmp_path / "a"), "It was", max_new_tokens=3)


@pytest.mark.parametrize("pad", [0, 5, -1, None])
def test_a_pad_token_that_has_a_row_stays_as_it_is(pad: int | None, tmp_path: Path) -> None:
    source = padded_folder(tmp_path / "m", "llama", pad)
    minitron.convert(str(source), str(tmp_path / "out"))
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / file).read_text()).get("pad_token_id") == pad
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_an_end_outside_the_vocabulary_is_never_reached(key: str, tmp_path: Path) -> None:
    source = padded_folder(tmp_path / "m", "llama", None)
    edit_config(source, **{key: VOCABULARY + 3})
    minitron.prune(str(source), str(tmp_path / "out"), intermediate_size=40, scores="random")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("pad", ["<pad>", [1], {"a": 1}, True, 2.5])
def test_a_pad_token_that_is_no_number_is_one_line(pad: Any, tmp_path: Path) -> None:
    source = padded_folder(tmp_path / "m", "llama", None)
    edit_config(source, pad_token_id=pad)
    with pytest.raises(minitron.MinitronError):
        minitron.prune(str(source), str(tmp_path / "out"), intermediate_size=40, scores="random")
    assert not (tmp_path / "out").exists()
