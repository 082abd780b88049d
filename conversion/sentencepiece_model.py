"""A SentencePiece `.model` file, read: its vocabulary and the settings that decide about ids.

It knows the protocol buffer and refuses the few models that a tokenizer.json cannot express.

    >>> read_model(Path("tokenizer.model")).special
    {'unk': 1, 'bos': 2, 'eos': 3, 'pad': 0}
"""

from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

from minitron.conversion.sentencepiece_normalizer import NormalizerSpec
from minitron.errors import TokenizerError

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
NEVER_CHOSEN = -1e4  # far below any log probability: a literal "<0x0A>" stays text


@dataclass(frozen=True)
class Piece:
    """One row of the vocabulary."""

    text: str
    score: float
    kind: int

    @property
    def log_probability(self) -> float:
        """What the piece counts in a unigram model."""
        if self.kind == USER_DEFINED:  # SentencePiece's bonus, so that a symbol is chosen
            return 0.1 * (len(self.text.encode()) - 1)
        return self.score if self.kind == NORMAL else NEVER_CHOSEN


@dataclass(frozen=True)
class SentencePieceModel:
    """A `.model` file, read."""

    pieces: tuple[Piece, ...]
    algorithm: int
    byte_fallback: bool
    normalizer_spec: NormalizerSpec
    special: dict[str, int]  # role (unk, bos, eos, pad) to id, where the model has one

    def texts(self, *kinds: int) -> list[str]:
        return [piece.text for piece in self.pieces if piece.kind in kinds]

    @property
    def symbols(self) -> list[str]:
        """The user-defined pieces that a text can hold: a blank is written ▁ before the search."""
        return [text for text in self.texts(USER_DEFINED) if " " not in text]


def read_model(model_file: Path) -> SentencePieceModel:
    """The model file's vocabulary and settings, refused where tokenizer.json cannot say them."""
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
        pieces=tuple(Piece(piece.piece, piece.score, piece.type) for piece in message.pieces),
        algorithm=trainer.model_type,
        byte_fallback=trainer.byte_fallback,
        normalizer_spec=message.normalizer_spec,
        special={role: index for role, index in ids.items() if index >= 0},
    )


def open_processor(model_file: Path) -> SentencePieceProcessor:
    """SentencePiece itself on this model."""
    try:
        return SentencePieceProcessor(model_file=str(model_file))
    except (OSError, RuntimeError) as error:
        raise TokenizerError(f"{model_file} is no SentencePiece model: {error}") from None
