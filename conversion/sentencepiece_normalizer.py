"""What SentencePiece does to a text before it looks for pieces, as steps of the tokenizers library.

It knows the two places where the library's own `Precompiled` step leaves SentencePiece: it reads
the character map by grapheme (so `\\u00a0` + accent loses the accent and the last mark of a
Vietnamese letter in NFD goes missing), and it never composes a grapheme of six bytes or more
(kana and Hangul in NFD). It knows no pieces beyond the user-defined ones, which are never
normalized.

    >>> normalizer(spec, symbols=["\\n"]).normalize_str("ﬁne\\r\\n  print")
"""

import unicodedata
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Regex
from tokenizers.normalizers import NFC, Normalizer, Precompiled, Prepend, Replace
from tokenizers.normalizers import Sequence as Steps

SPACE = "▁"
APART = "\ufdd0"  # a noncharacter: no text holds it, and no mark attaches to what stands before it
SHELTERS = [chr(code) for code in range(0xFDD1, 0xFDF0)]  # noncharacters that stand in for symbols
COMPOSING = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
DEEPEST_COMPOSITION = 3  # U+1F82 is an alpha with three marks; no character composes four
ATTACHING = r"[\p{M}\x{200c}\x{200d}\x{ff9e}\x{ff9f}\x{1f3fb}-\x{1f3ff}]"


class NormalizerSpec(Protocol):
    """The fields of SentencePiece's message of that name that are read here."""

    name: str
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def normalizer(spec: NormalizerSpec, symbols: Sequence[str]) -> Normalizer:
    """Every step from the text to the string that pieces are looked for in."""
    mapping = [*_character_map(spec), *_blanks(spec)]
    mapped = Steps(mapping)
    changed = [symbol for symbol in symbols if mapped.normalize_str(symbol) != symbol]
    longest_first = sorted(changed, key=lambda symbol: (-len(symbol), symbol))
    sheltered = list(zip(longest_first, SHELTERS, strict=False))
    hide = [Replace(symbol, shelter) for symbol, shelter in sheltered]
    restore = [Replace(shelter, symbol) for symbol, shelter in sheltered]
    prefix = [Prepend(_space(spec))] if spec.add_dummy_prefix else []
    if not spec.remove_extra_whitespaces:
        return Steps([*hide, *prefix, *mapping, *restore])
    # The prefix comes last: a text of nothing but blanks stays empty.
    trim = Replace(Regex(rf"{_space(spec)}+\z"), "")
    return Steps([*hide, *mapping, *restore, trim, *prefix])


def _space(spec: NormalizerSpec) -> str:
    return SPACE if spec.escape_whitespaces else " "


def _character_map(spec: NormalizerSpec) -> list[Normalizer]:
    """The character map, longest match first as SentencePiece applies it."""
    if not spec.precompiled_charsmap:
        return []
    mapped = Precompiled(spec.precompiled_charsmap)
    if spec.name not in COMPOSING:
        return [mapped]
    # In these four maps a sequence maps to the composition of what its characters map to: map
    # each character on its own, then compose what stands together, one mark at a time.
    compose = [Replace(Regex(_composable()), ""), NFC()] * DEEPEST_COMPOSITION
    every_mark = Regex(rf"(?m)(?={ATTACHING})(?<=.)|(?<=\r)(?=\n)")
    return [Replace(every_mark, APART), mapped, *compose, Replace(APART, "")]


def _composable() -> str:
    """A pattern of APART wherever the character before it and the mark behind it make one.

    NFC alone would also reorder marks, which Arabic and Hebrew texts write in another order than
    Unicode's and SentencePiece leaves as they are.
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
        takes = [base for base in single if len(unicodedata.normalize("NFC", base + mark)) == 1]
        if takes:
            choices.append(f"(?<=[{''.join(takes)}]{APART})(?={mark})")
    return f"{APART}(?:{'|'.join(choices)})"


def _blanks(spec: NormalizerSpec) -> list[Normalizer]:
    r"""Leading and repeated blanks removed if the model asks for it; the others written as ▁.

    Only U+0020 is a blank. The patterns use \A and \z: ^ and $ would also hold at every newline.
    """
    escape: list[Normalizer] = [Replace(" ", SPACE)] if spec.escape_whitespaces else []
    if not spec.remove_extra_whitespaces:
        return escape
    return [Replace(Regex(r"\A +"), ""), Replace(Regex(" {2,}"), " "), *escape]
