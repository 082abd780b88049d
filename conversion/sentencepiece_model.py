"""A SentencePiece `.model` file: its content, and whether a tokenizer gives the same ids.

Refuses the few models that a tokenizer.json cannot express. `check_tokenizer` compares a tokenizer
with the model on difficult texts, id by id. Two kinds of difference cannot be avoided in a
tokenizer.json: they are returned, all others raise.

    >>> read_model(Path("tokenizer.model")).special
    {'unk': 1, 'bos': 2, 'eos': 3, 'pad': 0}
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from transformers import PreTrainedTokenizerFast

from minitron.errors import TokenizerError

logger = logging.getLogger(__name__)

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
_NEVER = -1e4  # far below any log probability, so that a literal "<0x0A>" stays text
SPACE = "▁"  # how a piece spells a blank
_PIECES_CHECKED = 4096
_SYMBOLS_CHECKED = 64
DIFFICULT = (
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


class NormalizerSpec(Protocol):
    """The fields that are read of SentencePiece's message of that name."""

    name: str
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


@dataclass(frozen=True)
class VocabularyPiece:
    """One entry of the vocabulary; its index is its id."""

    text: str
    score: float
    kind: int

    @property
    def log_probability(self) -> float:
        """The score of the piece in a unigram model of the tokenizers library."""
        if self.kind == USER_DEFINED:  # SentencePiece's own bonus, so that a symbol wins
            return 0.1 * (len(self.text.encode()) - 1)
        return self.score if self.kind == NORMAL else _NEVER


@dataclass(frozen=True)
class SentencePieceModel:
    """The content of a `.model` file."""

    pieces: tuple[VocabularyPiece, ...]
    algorithm: int
    byte_fallback: bool
    normalizer_spec: NormalizerSpec
    special: dict[str, int]  # role (unk, bos, eos, pad) to id, where the model has one

    def texts(self, *kinds: int) -> list[str]:
        """The texts of the pieces of these kinds."""
        return [piece.text for piece in self.pieces if piece.kind in kinds]

    @property
    def symbols(self) -> list[str]:
        """The user-defined pieces that can occur: none with a blank, which becomes ▁ before."""
        return [text for text in self.texts(USER_DEFINED) if " " not in text]


def read_model(model_file: Path) -> SentencePieceModel:
    """Read a model file. Raises TokenizerError for one that tokenizer.json cannot express."""
    processor = open_processor(model_file)
    message = ModelProto.FromString(processor.serialized_model_proto())
    trainer = message.trainer_spec
    if trainer.model_type not in (UNIGRAM, BPE):
        name = trainer.ModelType.Name(trainer.model_type).lower()
        raise TokenizerError(f"{model_file} is a {name} model; give a bpe or unigram one")
    if trainer.treat_whitespace_as_suffix:
        raise TokenizerError(f"{model_file} treats blanks as suffixes: tokenizer.json cannot")
    ids = {role: getattr(processor, f"{role}_id")() for role in ("unk", "bos", "eos", "pad")}
    return SentencePieceModel(
        pieces=tuple(
            VocabularyPiece(piece.piece, piece.score, piece.type) for piece in message.pieces
        ),
        algorithm=trainer.model_type,
        byte_fallback=trainer.byte_fallback,
        normalizer_spec=message.normalizer_spec,
        special={role: index for role, index in ids.items() if index >= 0},
    )


def open_processor(model_file: Path) -> SentencePieceProcessor:
    """SentencePiece's own tokenizer of this model."""
    try:
        return SentencePieceProcessor(model_file=str(model_file))
    except (OSError, RuntimeError) as error:
        raise TokenizerError(f"{model_file} is not a SentencePiece model: {error}") from None


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
    texts = [*DIFFICULT, *_texts_of(model)]
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
            "%s of %s difficult texts are tokenized otherwise than by %s, because %s: %s",
            f"{len(strings):,}",
            f"{len(texts):,}",
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
