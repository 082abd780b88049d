"""The metadata of a GGUF file that hold a Hub tokenizer, as llama.cpp reads them.

Byte-level BPE and SentencePiece BPE are known. The name of the rule that splits a text is looked up
by the rule itself in tokenizer.json, so that a tokenizer with other tokens finds it too.

    tokenizer_metadata(tokenizer, model_file, vocab_size=49152)["tokenizer.ggml.pre"]   # "smollm"
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minitron.conversion.gguf_tokenizer import (
    BYTE_LEVEL,
    DIGIT,
    GPT_2,
    ROLES,
    RULES,
    SENTENCEPIECE,
)
from minitron.conversion.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    read_model,
)
from minitron.errors import TokenizerError

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_NO_SCORE = -1000.0  # of an added token, which no merge makes
_PREFIX = "tokenizer.ggml."
_REMEDY = "convert it with llama.cpp's convert_hf_to_gguf.py"


def tokenizer_metadata(
    tokenizer: PreTrainedTokenizerBase, model_file: Path | None, *, vocab_size: int
) -> dict[str, Any]:
    """llama.cpp's keys; `model_file` is the SentencePiece model beside tokenizer.json, if any.

    Raises TokenizerError for a tokenizer that llama.cpp has no name for, and for one with more
    tokens than the embedding has rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(f"it has no tokenizer.json, which --to gguf reads: {_REMEDY}")
    parts = json.loads(backend.to_str())
    if parts["model"]["type"] != "BPE":
        raise TokenizerError(f"its tokenizer is {parts['model']['type']}, not BPE: {_REMEDY}")
    tokens = _Tokens(tokenizer, parts, vocab_size)
    if '"ByteLevel"' in json.dumps([parts["pre_tokenizer"], parts["decoder"]]):
        found = tokens.byte_level()
    else:
        found = tokens.sentencepiece(None if model_file is None else read_model(model_file))
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    return {
        **{f"{_PREFIX}{key}": value for key, value in found.items()},
        **{f"{_PREFIX}{key}": value for key, value in _special(tokenizer).items()},
        **({"tokenizer.chat_template": template} if template else {}),
    }


class _Tokens:
    """The tokens of a tokenizer.json, one for each row of the embedding."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, parts: Mapping[str, Any], vocab_size: int
    ) -> None:
        self.parts, self.model, self.rows = parts, parts["model"], vocab_size
        self.added = {token["id"]: token for token in parts["added_tokens"]}
        by_id = {index: text for text, index in self.model["vocab"].items()}
        by_id |= {index: token["content"] for index, token in self.added.items()}
        if by_id and max(by_id) >= vocab_size:
            raise TokenizerError(
                f"its tokenizer has {max(by_id) + 1} tokens, but its embedding {vocab_size} rows: "
                "they do not belong together"
            )
        self.texts = [by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)]
        self.unused = {index for index in range(vocab_size) if index not in by_id}
        self.unknown = tokenizer.unk_token_id

    def byte_level(self) -> dict[str, Any]:
        """The keys of a byte-level BPE."""
        return {
            "model": BYTE_LEVEL,
            "pre": _rule_name(self.parts),
            "tokens": self.texts,
            "token_type": [self._kind(index) for index in range(self.rows)],
            "merges": [" ".join(pair) for pair in self._merges()],
        }

    def sentencepiece(self, model: SentencePieceModel | None) -> dict[str, Any]:
        """The keys of a BPE of SentencePiece, with its own scores where its model is given."""
        if model is not None and model.algorithm != BPE:
            raise TokenizerError(f"its SentencePiece model is unigram, not BPE: {_REMEDY}")
        ranks = {"".join(pair): rank for rank, pair in reversed([*enumerate(self._merges())])}
        scores = [-float(ranks.get(text, len(ranks))) for text in self.texts]
        kinds = [self._kind(index) for index in range(self.rows)]
        kinds = [
            BYTE if _BYTE_PIECE.fullmatch(text) else kind
            for text, kind in zip(self.texts, kinds, strict=True)
        ]
        if isinstance(self.unknown, int):
            kinds[self.unknown] = UNKNOWN
        if model is None:
            steps = json.dumps([self.parts["normalizer"], self.parts["pre_tokenizer"]])
            has_prefix = '"Prepend"' in steps or '"first"' in steps or '"always"' in steps
        else:
            has_prefix = model.normalizer_spec.add_dummy_prefix
            for index, piece in enumerate(model.pieces[: self.rows]):
                if piece.text == self.texts[index]:
                    scores[index], kinds[index] = piece.score, piece.kind
        for index in self.added:
            if kinds[index] not in (UNKNOWN, CONTROL, BYTE):
                scores[index] = _NO_SCORE
        texts = [
            text.replace(SPACE, " ") if kind == USER_DEFINED else text
            for text, kind in zip(self.texts, kinds, strict=True)
        ]
        return {
            "model": SENTENCEPIECE,
            "pre": "default",
            "tokens": texts,
            "scores": scores,
            "token_type": kinds,
            "add_space_prefix": has_prefix,
        }

    def _kind(self, index: int) -> int:
        if index in self.unused:
            return UNUSED
        if index not in self.added:
            return NORMAL
        text = self.texts[index]
        is_control = self.added[index]["special"] or (text[:2] == "<|" and text[-2:] == "|>")
        return CONTROL if is_control else USER_DEFINED

    def _merges(self) -> list[tuple[str, str]]:
        pairs = [
            each.split(" ") if isinstance(each, str) else each for each in self.model["merges"]
        ]
        return [(one, other) for one, other in pairs]


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The ids of special tokens, and which of them a text gets without being asked."""
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    text = tokenizer("a")["input_ids"]
    return {
        **{f"{ROLES[role]}_token_id": token for role, token in ids.items() if token is not None},
        "add_bos_token": ids["bos"] is not None and text[0] == ids["bos"],
        "add_eos_token": ids["eos"] is not None and text[-1] == ids["eos"],
    }


def _rule_name(parts: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule by which this tokenizer.json splits a text."""
    splits = tuple(_splits(parts["pre_tokenizer"] or {}))
    ignores = bool(parts["model"].get("ignore_merges"))
    names = [name for name, rule in RULES.items() if rule.splits == splits]
    if not names:
        raise TokenizerError(
            f"its tokenizer splits texts by {' then '.join(splits) or 'no rule'}, for which no "
            f"name of llama.cpp's is known here ({', '.join(RULES)}): {_REMEDY}"
        )
    same = [name for name in names if RULES[name].ignore_merges == ignores]
    return (same or names)[0]


def _splits(step: Mapping[str, Any]) -> Iterator[str]:
    """The patterns of a pre-tokenizer, one after another."""
    kind = step.get("type")
    if kind == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _splits(inner)
    elif kind == "Digits" and step["individual_digits"]:
        yield DIGIT
    elif kind == "ByteLevel" and not step["add_prefix_space"]:
        yield from [GPT_2] if step["use_regex"] else []
    elif kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        yield step["pattern"].get("Regex", json.dumps(step["pattern"]))
    else:
        yield json.dumps(step)
