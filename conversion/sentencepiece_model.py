"""A SentencePiece `.model` file: its vocabulary and the settings that decide about ids.

Knows the protocol buffer, and refuses the few models that a tokenizer.json cannot express.

    >>> read_model(Path("tokenizer.model")).special
    {'unk': 1, 'bos': 2, 'eos': 3, 'pad': 0}
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

from minitron.errors import TokenizerError

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
_NEVER = -1e4  # far below any log probability, so that a literal "<0x0A>" stays text
SPACE = "▁"  # how a piece spells a blank


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
