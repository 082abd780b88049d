"""The tokenizers built from SentencePiece models, against SentencePiece itself."""

import json
import logging
import random
import unicodedata
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import decoders, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minitron.conversion.sentencepiece_model import check_tokenizer
from minitron.conversion.sentencepiece_tokenizer import (
    build_tokenizer,
    save_tokenizer,
)
from minitron.errors import TokenizerError

TEXT = """
Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my
purse, and nothing particular to interest me on shore, I thought I would sail about a little and
see the watery part of the world. It is a way I have of driving off the spleen and regulating the
circulation. Whenever I find myself growing grim about the mouth; whenever it is a damp, drizzly
November in my soul; then, I account it high time to get to sea as soon as I can.
def add(one, two):
    if one == 0:
        return two
    return add(one - 1, two + 1)  # 1234567890
Don't panic: the café's naïve waiter said "voilà", then 42 times "ﬁn"…
中文也在这里。日本語のかな、パン。한국어 글자. Việt Nam ơi. Привет. مرحبا بالعالم. שלום
"""
FRAGMENTS = (
    "the| the|The|  |    | |a|b|one|Ishmael|café|cafe\u0301|Vie\u0323\u0302t|o\u031b\u0323|ﬁ|①|½|"
    "\u00a0|\u00a0\u0301|中文|か\u3099|\uff76\uff9e|\u1112\u1161\u11ab|مر|م\u0651\u064e|😀|"
    "👨\u200d👩\u200d👧|\t|\n|\r\n|\x01|\x7f|\u200b|\ufeff|\u2028|～|~|▁|▁▁|<0x41>|<|>|12|1|def|"
    " return|xxxxxxxxxxxx|\ufffd|<extra_id_0>|<extra_id_1>|<extra"
)
SYMBOLS = ["<extra_id_0>", "<extra_id_1>", "\n", "▁▁▁", "①", "<tool call>"]


def train(folder: Path, **settings: Any) -> Path:
    """A SentencePiece model of a few hundred pieces."""
    lines = [line for line in TEXT.splitlines() if line]
    prefix = folder / "tiny"
    defaults = {"model_type": "bpe", "vocab_size": 360, "hard_vocab_limit": False}
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3),
        model_prefix=str(prefix),
        num_threads=1,
        minloglevel=2,
        **{**defaults, **settings},
    )
    return prefix.with_suffix(".model")


def mixtures(count: int, seed: int = 0) -> list[str]:
    """Random neighbours of difficult fragments."""
    draw = random.Random(seed)
    return ["".join(draw.choices(FRAGMENTS.split("|"), k=draw.randint(1, 7))) for _ in range(count)]


def same_or_tied(processor: SentencePieceProcessor, one: list[int], other: list[int]) -> bool:
    def score(ids: list[int]) -> float:
        symbols = [symbol for symbol in map(processor.id_to_piece, ids) if symbol in SYMBOLS]
        bonus = sum(0.1 * (len(symbol.encode()) - 1) for symbol in symbols)
        return sum(map(processor.get_score, ids)) + bonus

    return one == other or abs(score(one) - score(other)) < 1e-3


@pytest.mark.parametrize(
    ("model_type", "prefix", "rule", "shorten", "byte_fallback", "symbols"),
    list(
        product(
            ["bpe", "unigram"],
            [True, False],
            ["nmt_nfkc", "identity"],
            [True, False],
            [True, False],
            [True, False],
        )
    ),
)
def test_ids_and_texts_are_those_of_sentencepiece(
    tmp_path: Path,
    model_type: str,
    prefix: bool,
    rule: str,
    shorten: bool,
    byte_fallback: bool,
    symbols: bool,
) -> None:
    model_file = train(
        tmp_path,
        model_type=model_type,
        vocab_size=620 if byte_fallback else 360,
        add_dummy_prefix=prefix,
        normalization_rule_name=rule,
        remove_extra_whitespaces=shorten,
        allow_whitespace_only_pieces=not shorten,
        byte_fallback=byte_fallback,
        user_defined_symbols=SYMBOLS if symbols else [],
    )
    tokenizer = build_tokenizer(model_file)

    reasons = {difference.reason for difference in check_tokenizer(tokenizer, model_file)}
    assert reasons <= {
        "the text of a special token is read as that token",
        "two ways to split it have the same score",
    }
    if model_type == "bpe":
        assert "two ways to split it have the same score" not in reasons

    processor = SentencePieceProcessor(model_file=str(model_file))
    for text in mixtures(200):
        expected, found = processor.encode(text), tokenizer(text)["input_ids"]
        if model_type == "bpe":
            assert found == expected, repr(text)
        assert same_or_tied(processor, found, expected), repr(text)
        known = [index for index in expected if index != processor.unk_id()]
        assert tokenizer.decode(known) == processor.decode(known), repr(text)


@pytest.mark.parametrize("rule", ["nfkc", "nmt_nfkc"])
def test_decomposed_letters_are_composed_and_other_marks_stay_in_place(
    tmp_path: Path, rule: str
) -> None:
    model_file = train(tmp_path, normalization_rule_name=rule, byte_fallback=True, vocab_size=620)
    tokenizer = build_tokenizer(model_file)
    processor = SentencePieceProcessor(model_file=str(model_file))
    draw = random.Random(1)
    letters = [
        chr(code)
        for first, last in [(0xC0, 0x250), (0x370, 0x530), (0x1E00, 0x2000), (0x3040, 0x3100)]
        for code in range(first, last)
    ]
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4, 97)]
    texts = [
        unicodedata.normalize("NFD", "".join(draw.choices(alphabet, k=6)))
        for alphabet in (letters, syllables)
        for _ in range(200)
    ]
    texts += [
        "\u00a0\u0301",
        "\uff76\uff9e\uff8a\uff9f",
        "شَدَّة",
        "בְּרֵאשִׁית",
        "a\u0327\u0308",
        "\r\n\r\n",
    ]

    for text in texts:
        assert tokenizer(text)["input_ids"] == processor.encode(text), ascii(text)


def test_a_saved_folder_gives_the_same_ids_through_auto_tokenizer(tmp_path: Path) -> None:
    model_file = train(tmp_path, byte_fallback=True, vocab_size=620, user_defined_symbols=SYMBOLS)
    folder = tmp_path / "hub"
    folder.mkdir()

    save_tokenizer(model_file, folder)

    (folder / "config.json").write_text(json.dumps({"model_type": "nemotron"}))
    saved = AutoTokenizer.from_pretrained(folder)
    built = build_tokenizer(model_file)
    assert [saved(text)["input_ids"] for text in mixtures(100)] == [
        built(text)["input_ids"] for text in mixtures(100)
    ]
    assert (folder / "tokenizer.model").read_bytes() == model_file.read_bytes()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["clean_up_tokenization_spaces"] is False


def test_special_tokens_are_the_pieces_that_the_model_says(tmp_path: Path) -> None:
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
    tokenizer = build_tokenizer(train(tmp_path, **ids, pad_piece="<blank>", eos_piece="<end>"))

    assert (tokenizer.pad_token_id, tokenizer.pad_token) == (0, "<blank>")
    assert (tokenizer.unk_token_id, tokenizer.unk_token) == (1, "<unk>")
    assert (tokenizer.bos_token_id, tokenizer.bos_token) == (2, "<s>")
    assert (tokenizer.eos_token_id, tokenizer.eos_token) == (3, "<end>")


def test_a_model_without_pad_makes_a_tokenizer_without_pad(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(train(tmp_path))

    assert tokenizer.pad_token is None


def test_neither_bos_nor_eos_is_added(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(train(tmp_path))

    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(tokenizer("sea")["input_ids"])


@pytest.mark.parametrize("prefix", [True, False])
def test_a_user_defined_symbol_is_one_id_wherever_it_stands(tmp_path: Path, prefix: bool) -> None:
    model_file = train(
        tmp_path, user_defined_symbols=["<extra_id_0>", "\n"], add_dummy_prefix=prefix
    )
    tokenizer = build_tokenizer(model_file)
    symbol, newline = tokenizer.convert_tokens_to_ids(["<extra_id_0>", "\n"])

    ids = tokenizer("<extra_id_0>System\n \nIshmael<extra_id_0>")["input_ids"]

    assert (ids.count(symbol), ids.count(newline)) == (2, 2)
    assert ids == SentencePieceProcessor(model_file=str(model_file)).encode(
        "<extra_id_0>System\n \nIshmael<extra_id_0>"
    )


def test_the_text_of_a_byte_piece_is_text(tmp_path: Path) -> None:
    model_file = train(tmp_path, model_type="unigram", byte_fallback=True, vocab_size=620)
    tokenizer = build_tokenizer(model_file)

    assert tokenizer.convert_tokens_to_ids("<0x41>") not in tokenizer("<0x41>")["input_ids"]


def test_known_differences_are_returned_and_logged_with_their_texts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_file = train(tmp_path)

    with caplog.at_level(logging.INFO):
        differences = check_tokenizer(build_tokenizer(model_file), model_file)

    assert "<s>" in {difference.text for difference in differences}
    assert "texts are tokenized otherwise than by" in caplog.text
    assert "'<s>'" in caplog.text


def altered(tokenizer: PreTrainedTokenizerFast, part: str) -> PreTrainedTokenizerFast:
    engine = tokenizer.backend_tokenizer
    if part == "normalizer":
        engine.normalizer = normalizers.Sequence([normalizers.Lowercase(), engine.normalizer])
    else:
        engine.decoder = decoders.Fuse()
    return tokenizer


def test_a_tokenizer_that_reads_otherwise_is_refused(tmp_path: Path) -> None:
    model_file = train(tmp_path)

    with pytest.raises(TokenizerError, match="reads 'The quick brown"):
        check_tokenizer(altered(build_tokenizer(model_file), "normalizer"), model_file)


def test_a_tokenizer_that_decodes_otherwise_is_refused(tmp_path: Path) -> None:
    model_file = train(tmp_path)

    with pytest.raises(TokenizerError, match="decodes .* otherwise than"):
        check_tokenizer(altered(build_tokenizer(model_file), "decoder"), model_file)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other", "third"):
        (tmp_path / name).mkdir()
    model_file = train(tmp_path / "one")
    shorter = train(tmp_path / "other", vocab_size=340)
    renamed = train(tmp_path / "third", bos_piece="<begin>")

    with pytest.raises(TokenizerError, match="tokens"):
        check_tokenizer(build_tokenizer(shorter), model_file)
    with pytest.raises(TokenizerError, match="token 1 is '<begin>'"):
        check_tokenizer(build_tokenizer(renamed), model_file)


@pytest.mark.parametrize("content", [b"", b"no model " * 99, None])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    model_file = tmp_path / "bad.model"
    if content is not None:
        model_file.write_bytes(content)

    with pytest.raises(TokenizerError, match=r"bad\.model is not a SentencePiece model"):
        build_tokenizer(model_file)


@pytest.mark.parametrize("model_type", ["word", "char"])
def test_models_of_other_algorithms_are_refused(tmp_path: Path, model_type: str) -> None:
    model_file = train(tmp_path, model_type=model_type, use_all_vocab=True)

    with pytest.raises(TokenizerError, match=f"is a {model_type} model; give a bpe or unigram"):
        build_tokenizer(model_file)


def test_a_model_that_writes_blanks_as_suffixes_is_refused(tmp_path: Path) -> None:
    model_file = train(tmp_path, treat_whitespace_as_suffix=True)

    with pytest.raises(TokenizerError, match="suffixes"):
        build_tokenizer(model_file)


def test_nothing_is_written_for_a_model_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.model").write_bytes(b"no model")
    folder = tmp_path / "hub"
    folder.mkdir()

    with pytest.raises(TokenizerError):
        save_tokenizer(tmp_path / "bad.model", folder)

    assert list(folder.iterdir()) == []
