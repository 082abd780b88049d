"""Compares a tokenizer with its SentencePiece model on difficult texts, id by id.

Two kinds of difference cannot be avoided in a tokenizer.json: they are returned, all others raise.

    >>> check_tokenizer(AutoTokenizer.from_pretrained("folder"), Path("folder/tokenizer.model"))
    ()
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from minitron.conversion.sentencepiece_model import (
    CONTROL,
    NORMAL,
    SPACE,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    open_processor,
    read_model,
)
from minitron.errors import TokenizerError

logger = logging.getLogger(__name__)

_PIECES_CHECKED = 4096
_SYMBOLS_CHECKED = 64
_DIFFICULT = (
    "",
    " ",
    "   ",
    "\n",
    " \n \n",
    "\t\tx",
    "The quick brown fox jumps over the lazy dog.",
    "  leading and trailing  ",
    "runs  of   blanks    and\ttabs\t \t mixed",
    "first line\nsecond line\n\n\nfifth line\n",
    "windows\r\nline\r\n\r\nends\rand old\n\rones",
    "def f(x: int = 3) -> dict[str, int]:\n    if x != 0:\n\treturn {'a': x ** 2}  # ok\n",
    "for(int i=0;i<n;++i){ a[i] |= ~b[i]^0xFF; } // C",
    '<p class="x">&amp; &#60;</p>\n\n```json\n{"k": [1, 2.5e-3, null]}\n```',
    "1234567890 3.14159 1,000,000 -42 ½ Ⅷ ② x²",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\dir\\file.txt",
    "Don't \u2018quote\u2019 \u201cme\u201d \u2014 \u2026 \u00abguillemets\u00bb!?",
    "naïve café Ærøskøbing Łódź İstanbul ẞ",
    "nai\u0308ve cafe\u0301 vie\u0323\u0302t o\u031b\u0323 \u1100\u1161\u11a8 \u304b\u3099",
    "\u0301mark first, x\u0323\u0307 stacked, \u00a0\u0301 on a blank",
    "z\u0335\u0321\u031b\u0300\u0351 a\u0308\u0323 \u0645\u0651\u064e",
    "\ufb01ne \ufb03 \uff21\uff22\uff23 \uff5e \u2460 \u00bd \u33a5 \u2122 \u212b \uff76\uff9e",
    "中文没有空格。日本語のテキスト、한국어 텍스트",
    "مرحبا بالعالم، كيف حالك؟ شَدَّة",
    "שָׁלוֹם עוֹלָם",
    "नमस्ते दुनिया क्षत्रिय ไทยภาษา தமிழ்",
    "Привет мир Ελληνικά ἄνθρωπος",
    "😀 👍🏽 👨\u200d👩\u200d👧 🏳️\u200d🌈 🇩🇪 ☃️",
    "\x00null \x01\x02 control \x7f \x1b[0m \x85 \x9f",
    "zero\u200bwidth \u200e\u200f marks \ufeff soft\u00adhyphen no\u00a0break \u2028 \u2029 \u3000",
    "private \ue000 replacement \ufffd unassigned \U000e0041 rare \U00020000\U0001f9ff",
    "▁literal ▁▁blank▁ mark ▁",
    "<s></s> <unk><pad> [INST] <|im_start|> <extra_id_0>System\n\n<extra_id_1>User\nHi\n",
    "bytes <0x0A> <0x41><0xFF> <0xZZ> <0x0a>",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "x" * 3000,
    "ab" * 1500,
    " a" * 700,
    "!?" * 300,
    " " * 300,
    "\n" * 200,
    "GGTTACACGATTACAGGCATGAGCCACCGCGCCTGG" * 20,
)


@dataclass(frozen=True)
class Difference:
    """A text whose ids differ from SentencePiece's, for a known reason."""

    text: str
    expected: tuple[int, ...]
    found: tuple[int, ...]
    reason: str


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, model_file: Path) -> tuple[Difference, ...]:
    """The texts that differ for a known reason. Raises TokenizerError for any other difference."""
    model = read_model(model_file)
    processor = open_processor(model_file)
    _check_vocabulary(tokenizer, model, model_file)
    texts = [*_DIFFICULT, *_texts_of(model)]
    differences = []
    for text, found in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        expected = processor.encode(text)
        if found != expected:
            reason = _reason(text, expected, found, model)
            differences.append(Difference(text, tuple(expected), tuple(found), reason))
        # SentencePiece decodes an unknown id to " ⁇ ", a Hub tokenizer to <unk>.
        known = [index for index in expected if index != model.special["unk"]]
        if tokenizer.decode(known) != processor.decode(known):
            raise TokenizerError(f"the tokenizer decodes {text[:60]!r} otherwise than {model_file}")
    for reason in dict.fromkeys(difference.reason for difference in differences):
        strings = [f"{d.text:.60}" for d in differences if d.reason == reason]
        logger.info(
            "%d of %d difficult texts are tokenized otherwise than by %s, because %s: %s",
            len(strings),
            len(texts),
            model_file.name,
            reason,
            ", ".join(map(repr, strings)),
        )
    return tuple(differences)


def _check_vocabulary(
    tokenizer: PreTrainedTokenizerFast, model: SentencePieceModel, model_file: Path
) -> None:
    if len(tokenizer) != len(model.pieces):
        raise TokenizerError(
            f"the tokenizer has {len(tokenizer)} tokens, {model_file} {len(model.pieces)}"
        )
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(model.pieces))))
    for index, (token, piece) in enumerate(zip(tokens, model.pieces, strict=True)):
        if token != piece.text:
            raise TokenizerError(f"token {index} is {token!r}, in {model_file} {piece.text!r}")


def _reason(text: str, expected: list[int], found: list[int], model: SentencePieceModel) -> str:
    """The known reason of a difference. Raises TokenizerError where there is none."""
    special = [index for index in found if model.pieces[index].kind in (UNKNOWN, CONTROL)]
    if any(model.pieces[index].text in text for index in special):
        return "the text of a special token is read as that token"
    scores = _score(expected, model), _score(found, model)
    # SentencePiece sums scores in float32, tokenizers in float64.
    if model.algorithm == UNIGRAM and math.isclose(*scores, rel_tol=1e-5, abs_tol=1e-3):
        return "two ways to split it have the same score"
    raise TokenizerError(
        f"the tokenizer reads {text[:60]!r} as {found[:20]}, not as {expected[:20]}: "
        "it is not the same as its SentencePiece model"
    )


def _score(ids: list[int], model: SentencePieceModel) -> float:
    pieces = [model.pieces[index] for index in ids]
    return sum(piece.log_probability for piece in pieces if piece.kind in (NORMAL, USER_DEFINED))


def _texts_of(model: SentencePieceModel) -> Iterator[str]:
    """Texts made of the model's own pieces."""
    for symbol in model.texts(USER_DEFINED)[:_SYMBOLS_CHECKED]:
        yield from (symbol, f"a{symbol}b", f" {symbol} {symbol}{symbol}  x", f"x\n{symbol}\n")
    for literal in model.texts(UNKNOWN, CONTROL)[:_SYMBOLS_CHECKED]:
        yield from (literal, f"a {literal} b")
    normal = model.texts(NORMAL)
    for text in normal[:: len(normal) // _PIECES_CHECKED + 1]:
        yield from (text.replace(SPACE, " "), text.replace(SPACE, " ") * 3)
