"""A stream of tokens gives each character once, whatever bytes a model samples."""

import pytest

from minitron.text.encoding import TextStream
from tests.test_generation import spaced_tokenizer


@pytest.mark.parametrize(
    ("prompt", "tokens", "parts"),
    [
        ("▁It", "▁was <0xE6> <0xBC> <0xA2> ▁the", [" was", "", "", "漢", " the", ""]),
        ("▁It", "<0x41> <0xE6> ▁the", ["A", "", "\ufffd the", ""]),  # a byte of no character
        ("▁It", "<0xE6> ▁the <0xBC>", ["", "\ufffd the", "", "\ufffd"]),
        ("▁It <0xE6>", "▁the", [" the", ""]),  # a prompt that ends in U+FFFD
        ("▁It", "</s> ▁the", ["", " the", ""]),
        ("▁It", "", [""]),
    ],
)
def test_parts_are_complete_and_no_text_is_repeated(
    prompt: str, tokens: str, parts: list[str]
) -> None:
    tokenizer = spaced_tokenizer()
    stream = TextStream(tokenizer, tokenizer.convert_tokens_to_ids(prompt.split()))
    found = [stream.add(token) for token in tokenizer.convert_tokens_to_ids(tokens.split())]
    assert [*found, stream.finish()] == parts
