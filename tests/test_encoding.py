"""A document ends once and a prompt never, whatever a tokenizer adds by itself."""

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import minitron
from minitron.errors import TokenizerError
from minitron.sources.loading import load_model, load_tokenizer
from minitron.sources.opening import open_source
from minitron.text.corpus import held_out_text, load_corpus
from minitron.text.encoding import prompt_ids, tokenize
from minitron.text.text_row import Text
from tests.tiny import write_text, zoo_tokenizer

TEXTS = ["It was the best of times.", "a b"]
FRAMES = {"none": "$A", "begin": "<b> $A", "end": "$A <e>", "both": "<b> $A <e>"}


def framing(frame: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose post-processor adds what `frame` names."""
    tokenizer = zoo_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<b>", "eos_token": "<e>"})
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<b>", "<e>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=FRAMES[frame], special_tokens=special
    )
    return tokenizer


def bare_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("frame", FRAMES)
def test_a_document_has_one_end(frame: str) -> None:
    tokenizer = framing(frame)
    begin = [tokenizer.bos_token_id] if frame in ("begin", "both") else []
    found = [document.ids.tolist() for document in tokenize(map(Text, TEXTS), tokenizer)]
    assert found == [[*begin, *bare_ids(tokenizer, text), tokenizer.eos_token_id] for text in TEXTS]


def test_a_corpus_is_the_same_whether_the_tokenizer_or_minitron_ends_it(tmp_path: Path) -> None:
    name = str(write_text(tmp_path / "a.jsonl", TEXTS * 3))
    one, other = (load_corpus(name, framing(frame), seq_len=7) for frame in ("none", "end"))
    assert one.digest == other.digest
    texts = [held_out_text(name, framing(frame), 16) for frame in ("none", "end")]
    for of_one, of_other in zip(texts[0].targets, texts[1].targets, strict=True):
        assert of_one.tolist() == of_other.tolist()


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("prompt", ["It was", "", "a<e>", "It was the end<e> and"])
def test_a_prompt_is_never_ended_by_the_tokenizer(frame: str, prompt: str) -> None:
    tokenizer = framing(frame)
    begin = [tokenizer.bos_token_id] if frame in ("begin", "both") else []
    assert prompt_ids(tokenizer, prompt) == [*begin, *bare_ids(tokenizer, prompt)]


def test_an_end_that_a_tokenizer_adds_changes_no_continuation(tmp_path: Path) -> None:
    source = open_source("tiny")
    load_model(source).save_pretrained(tmp_path)
    generated = []
    for frame in ("$A", "$A <|endoftext|>"):
        tokenizer = load_tokenizer(source)
        end = (tokenizer.eos_token, tokenizer.eos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=frame.replace("<|endoftext|>", end[0]), special_tokens=[end]
        )
        tokenizer.save_pretrained(tmp_path)
        generated.append(minitron.generate(str(tmp_path), "It was the", max_new_tokens=5))
    assert generated[0] == generated[1] != ""


def test_what_a_tokenizer_cannot_encode_is_one_line() -> None:
    with pytest.raises(TokenizerError, match="the tokenizer .* cannot be read: .*: it does"):
        list(tokenize([Text("x\ud800")], zoo_tokenizer()))
