"""A SentencePiece model as a fast Hub tokenizer that gives SentencePiece's own ids.

Converts BPE and unigram models. The tokenizer adds no token by itself, neither bos nor eos, and is
written only after `check_tokenizer` has compared it with SentencePiece.

    >>> save_tokenizer(Path("megatron_2.model"), Path("OUT.partial"))
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.normalizers import NFC, Normalizer, Precompiled, Prepend, Replace
from transformers import PreTrainedTokenizerFast

from minitron.conversion.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    Difference,
    NormalizerSpec,
    SentencePieceModel,
    check_tokenizer,
    read_model,
)

# Noncharacters: no text holds them, and no mark attaches to one.
_SEPARATOR = "\ufdd0"
_PLACEHOLDERS = [chr(code) for code in range(0xFDD1, 0xFDF0)]
_COMPOSING = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
_DEEPEST_COMPOSITION = 3  # U+1F82 is an alpha with three marks; no character composes four
_ATTACHING = r"[\p{M}\x{200c}\x{200d}\x{ff9e}\x{ff9f}\x{1f3fb}-\x{1f3ff}]"


def build_tokenizer(model_file: Path) -> PreTrainedTokenizerFast:
    """The model as a fast tokenizer; `check_tokenizer` compares it with the model."""
    model = read_model(model_file)
    spec = model.normalizer_spec
    tokenizer = Tokenizer(_bpe(model) if model.algorithm == BPE else _unigram(model))
    tokenizer.normalizer = _normalizer(spec, model.symbols)
    tokenizer.pre_tokenizer = _pre_tokenizer(model)
    tokenizer.decoder = _decoder(spec)
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in model.texts(UNKNOWN, CONTROL)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": model.pieces[index].text for role, index in model.special.items()},
    )


def save_tokenizer(model_file: Path, folder: Path) -> tuple[Difference, ...]:
    """Write tokenizer.json, its config and tokenizer.model; returns the known differences.

    Raises TokenizerError where the tokenizer differs from the model in any other way.
    """
    tokenizer = build_tokenizer(model_file)
    differences = check_tokenizer(tokenizer, model_file)
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 knows this name too
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # llama.cpp's converter reads this one.
    (folder / "tokenizer.model").write_bytes(model_file.read_bytes())
    return differences


def _bpe(model: SentencePieceModel) -> models.BPE:
    """Every pair of pieces that form a piece; SentencePiece merges the best score first."""
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    ids = {piece.text: index for index, piece in enumerate(model.pieces)}
    ranked = sorted(
        (-scores[text], ids[text], cut)
        for text in scores
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    )
    texts = [piece.text for piece in model.pieces]
    return models.BPE(
        ids,
        [(texts[index][:cut], texts[index][cut:]) for _, index, cut in ranked],
        unk_token=texts[model.special["unk"]],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=bool(model.symbols),  # symbols do not come from merges, see _pre_tokenizer
    )


def _unigram(model: SentencePieceModel) -> models.Unigram:
    return models.Unigram(
        [(piece.text, piece.log_probability) for piece in model.pieces],
        unk_id=model.special["unk"],
        byte_fallback=model.byte_fallback,
    )


def _pre_tokenizer(model: SentencePieceModel) -> pre_tokenizers.PreTokenizer:
    """Split at user-defined symbols, and inside a literal "<0x0A>", which is text and not a byte.

    Added tokens would also split at symbols, but the text between two would then be normalized by
    itself. In a unigram model the score of a symbol decides, as it does in SentencePiece.
    """
    splits = []
    if model.algorithm == BPE and model.symbols:
        longest_first = sorted(model.symbols, key=len, reverse=True)
        symbols = Regex("|".join(map(re.escape, longest_first)))
        splits.append(pre_tokenizers.Split(symbols, "isolated"))
    if model.texts(BYTE):
        byte = Regex("<(?=0x[0-9A-F]{2}>)")
        splits.append(pre_tokenizers.Split(byte, "merged_with_previous"))
    return pre_tokenizers.Sequence(splits)


def _decoder(spec: NormalizerSpec) -> decoders.Decoder:
    """Pieces to text, without the blank of the dummy prefix.

    Where the model removes extra blanks, SentencePiece drops the pieces at the start that are one
    blank each, and the blank that begins the first other piece.
    """
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.remove_extra_whitespaces:
        lone_blank = decoders.Replace(Regex(rf"\A{SPACE}\z"), _SEPARATOR)
        leading = decoders.Replace(Regex(rf"\A({_SEPARATOR}+ ?| )"), "")
        return decoders.Sequence([lone_blank, *steps, leading, decoders.Replace(_SEPARATOR, " ")])
    prefix = [decoders.Strip(" ", left=1, right=0)] if spec.add_dummy_prefix else []
    return decoders.Sequence([*steps, *prefix])


def _normalizer(spec: NormalizerSpec, symbols: Sequence[str]) -> Normalizer:
    """Every step from a text to the string in which pieces are searched.

    The library's own `Precompiled` step differs from SentencePiece in two ways, which
    `_character_map` corrects: it reads the character map by grapheme (so `\\u00a0` + accent loses
    the accent, and a Vietnamese letter in NFD its last mark), and it never composes a grapheme of
    six bytes or more (kana and Hangul in NFD).
    """
    mapping = [*_character_map(spec), *_blanks(spec)]
    mapped = normalizers.Sequence(mapping)
    # SentencePiece never normalizes its user-defined symbols: a placeholder protects those that
    # the steps would change.
    changed = [symbol for symbol in symbols if mapped.normalize_str(symbol) != symbol]
    longest_first = sorted(changed, key=lambda symbol: (-len(symbol), symbol))
    pairs = list(zip(longest_first, _PLACEHOLDERS, strict=False))
    protect = [Replace(symbol, placeholder) for symbol, placeholder in pairs]
    restore = [Replace(placeholder, symbol) for symbol, placeholder in pairs]
    space = SPACE if spec.escape_whitespaces else " "
    prefix = [Prepend(space)] if spec.add_dummy_prefix else []
    if not spec.remove_extra_whitespaces:
        return normalizers.Sequence([*protect, *prefix, *mapping, *restore])
    # The prefix comes last, so that a text of nothing but blanks stays empty.
    trim = Replace(Regex(rf"{space}+\z"), "")
    return normalizers.Sequence([*protect, *mapping, *restore, trim, *prefix])


def _character_map(spec: NormalizerSpec) -> list[Normalizer]:
    """The character map, longest match first as SentencePiece applies it."""
    if not spec.precompiled_charsmap:
        return []
    mapped = Precompiled(spec.precompiled_charsmap)
    if spec.name not in _COMPOSING:
        return [mapped]
    # In these four maps a sequence maps to the composition of its mapped characters: map each
    # character by itself, then compose neighbours, one mark at a time.
    compose = [Replace(Regex(_composable_pattern()), ""), NFC()] * _DEEPEST_COMPOSITION
    every_mark = Regex(rf"(?m)(?={_ATTACHING})(?<=.)|(?<=\r)(?=\n)")
    return [Replace(every_mark, _SEPARATOR), mapped, *compose, Replace(_SEPARATOR, "")]


def _composable_pattern() -> str:
    """A pattern of _SEPARATOR between a character and a mark that compose to one character.

    NFC alone would also reorder marks: Arabic and Hebrew texts write them in another order than
    Unicode's, which SentencePiece keeps.
    """
    pairs = [
        pair
        for pair in (unicodedata.decomposition(chr(code)).split() for code in range(0x20000))
        if len(pair) == 2 and not pair[0].startswith("<")
    ]
    marks = sorted({chr(int(mark, 16)) for _, mark in pairs})
    bases = {chr(int(base, 16)) for base, _ in pairs}
    bases |= {unicodedata.normalize("NFC", chr(int(b, 16)) + chr(int(m, 16))) for b, m in pairs}
    single = sorted(base for base in bases if len(base) == 1)
    choices = []
    for mark in marks:
        composing = [base for base in single if len(unicodedata.normalize("NFC", base + mark)) == 1]
        if composing:
            choices.append(f"(?<=[{''.join(composing)}]{_SEPARATOR})(?={mark})")
    return f"{_SEPARATOR}(?:{'|'.join(choices)})"


def _blanks(spec: NormalizerSpec) -> list[Normalizer]:
    r"""Remove leading and repeated blanks if the model says so, and write the others as ▁.

    Only U+0020 is a blank. The patterns use \A and \z, because ^ and $ also match at every newline.
    """
    escape: list[Normalizer] = [Replace(" ", SPACE)] if spec.escape_whitespaces else []
    if not spec.remove_extra_whitespaces:
        return escape
    return [Replace(Regex(r"\A +"), ""), Replace(Regex(" {2,}"), " "), *escape]
