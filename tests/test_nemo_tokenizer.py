"""Which file of an archive is the tokenizer, whatever age of NeMo named it."""

from typing import Any

import pytest

from minitron.conversion.nemo_tokenizer import FoundTokenizer, find_tokenizer, is_instruct
from minitron.errors import TokenizerError

ONE = f"{'1' * 32}_nemotron_2_256k.model"
TWO = f"{'2' * 32}_megatron_2.model"
YAML = "./model_config.yaml"


def find(tokenizer: Any, *names: str) -> FoundTokenizer:
    return find_tokenizer({"tokenizer": tokenizer}, [YAML, *names])


def spm(**section: Any) -> dict[str, Any]:
    return {"library": "sentencepiece", "type": None, "vocab_file": None, **section}


@pytest.mark.parametrize("key", ["model", "tokenizer_model"])
@pytest.mark.parametrize("member", [ONE, f"./{ONE}"])
def test_both_keys_of_a_sentencepiece_model_are_read(key: str, member: str) -> None:
    assert find(spm(**{key: f"nemo:{ONE}"}), member, TWO) == FoundTokenizer("sentencepiece", member)


@pytest.mark.parametrize("kept", [ONE, TWO])
def test_of_two_keys_the_one_whose_file_is_there_counts(kept: str) -> None:
    section = spm(model=f"nemo:{ONE}", tokenizer_model=f"nemo:{TWO}")

    assert find(section, kept).member == kept


def test_of_two_files_that_are_there_todays_key_counts() -> None:
    section = spm(model=f"nemo:{ONE}", tokenizer_model=f"nemo:{TWO}")

    assert find(section, ONE, TWO).member == ONE


@pytest.mark.parametrize(
    "value", ["/data/tokenizers/nemotron_2_256k.model", "nemotron_2_256k.model", "../x/" + ONE]
)
def test_a_path_of_the_training_machine_is_looked_up_by_its_last_part(value: str) -> None:
    assert find(spm(model=value), ONE, TWO).member == ONE


@pytest.mark.parametrize(
    "value",
    [f"nemo:{'3' * 32}_gone.model", None, "", 7, "/etc/passwd", "../../etc/passwd", "/", "."],
)
def test_else_the_one_model_in_the_root_is_used(value: Any) -> None:
    assert find(spm(model=value), ONE, "model_weights/x.model").member == ONE


def test_without_a_tokenizer_section_too_the_one_model_is_used() -> None:
    assert find_tokenizer({}, [YAML, ONE]) == FoundTokenizer("sentencepiece", ONE)
    assert find("nemotron", ONE) == FoundTokenizer("sentencepiece", ONE)


def test_nothing_outside_the_archive_is_ever_named() -> None:
    for value in ("/etc/passwd", "nemo:/etc/passwd", "../../etc/passwd", "~/.bashrc", "file:///x"):
        with pytest.raises(TokenizerError, match="the archive has no such file"):
            find(spm(model=value))


def test_several_models_and_no_name_are_refused() -> None:
    with pytest.raises(TokenizerError) as refusal:
        find(spm(model=None), ONE, TWO)

    assert ONE in str(refusal.value)
    assert TWO in str(refusal.value)


def test_several_files_of_one_name_are_refused_unless_one_is_nearer() -> None:
    with pytest.raises(TokenizerError, match="may be any of a/t.model, b/t.model"):
        find(spm(model="/data/t.model"), "a/t.model", "b/t.model")

    assert find(spm(model="/data/t.model"), "a/t.model", "t.model").member == "t.model"
    assert find(spm(model="b/t.model"), "a/t.model", "b/t.model").member == "b/t.model"


@pytest.mark.parametrize("value", ["nvidia/Minitron-4B-Base", "gpt2", "org/name.with-dots_1"])
def test_a_hub_id_is_the_tokenizer_of_the_hugging_face_library(value: str) -> None:
    section = {"library": "huggingface", "type": value, "model": None}

    assert find(section, ONE) == FoundTokenizer("huggingface", hub_id=value)


@pytest.mark.parametrize(
    "value", ["/home/me/tokenizer", "../tokenizer", "context/gone", "nemo:gone", None, "a/b/c", ""]
)
def test_a_folder_of_the_training_machine_is_refused(value: Any) -> None:
    with pytest.raises(TokenizerError, match="neither an id on the Hub nor a file"):
        find({"library": "huggingface", "type": value})


@pytest.mark.parametrize("value", ["context/nemo_tokenizer", "/tmp/x/nemo_tokenizer"])
def test_a_hugging_face_folder_of_nemo_2_is_found(value: str) -> None:
    section = {"library": "huggingface", "type": value}
    files = ["context/nemo_tokenizer/tokenizer.json", "context/nemo_tokenizer/x.json"]

    assert find(section, *files) == FoundTokenizer("huggingface", "context/nemo_tokenizer")


def test_a_sentencepiece_model_of_nemo_2_is_in_its_context() -> None:
    assert find(spm(model="context/t.model"), "context/t.model").member == "context/t.model"
    assert find(spm(model=ONE), f"context/{ONE}").member == f"context/{ONE}"
    assert find(spm(model=None), f"context/{ONE}", "weights/x.model").member == f"context/{ONE}"


def test_files_of_other_libraries_are_named_as_what_they_are() -> None:
    bpe = {"library": "megatron", "type": "GPT2BPETokenizer", "vocab_file": "nemo:a_vocab.json"}

    assert find({**bpe, "merge_file": "nemo:b_merges.txt"}, "a_vocab.json", "b_merges.txt") == (
        FoundTokenizer("bpe", "a_vocab.json", merges="b_merges.txt")
    )
    assert find(bpe, "a_vocab.json") == FoundTokenizer("megatron", "a_vocab.json")
    tiktoken = {"library": "tiktoken", "model": "nemo:c_vocab.json"}
    assert find(tiktoken, "c_vocab.json") == FoundTokenizer("tiktoken", "c_vocab.json")


def test_a_tokenizer_that_is_not_there_is_refused_by_its_name() -> None:
    with pytest.raises(TokenizerError, match="GPT2BPETokenizer"):
        find({"library": "megatron", "type": "GPT2BPETokenizer"})


PROMPT = {"system_turn_start": "<extra_id_0>", "turn_start": "<extra_id_1>"}


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ({"data": {"chat": True}}, "model.nemo", True),
        ({"data": {"chat": True, "chat_prompt_tokens": PROMPT}}, "model.nemo", True),
        ({"data": {"chat": False, "chat_prompt_tokens": PROMPT}}, "model.nemo", False),
        ({"data": {"chat_prompt_tokens": PROMPT}}, "model.nemo", True),
        ({"data": {"chat": "${.x}"}}, "model.nemo", False),
        ({"data": {"chat": False}}, "Nemotron-Mini-4B-Instruct.nemo", True),
        ({}, "nemotron-3-8b-chat-4k-sft.nemo", True),
        ({}, "/models/Nemotron-4-340B-Instruct", True),
        ({}, "/home/chat/instruct/minitron-8b-base.nemo", False),
        ({}, "Nemotron-4-340B-Base", False),
        ({}, "instructions_chatty.nemo", False),
        ({"data": None}, "model.nemo", False),
    ],
)
def test_an_instruct_model_is_known_by_its_data_or_its_name(
    settings: dict[str, Any], name: str, expected: bool
) -> None:
    assert is_instruct(settings, name) is expected
