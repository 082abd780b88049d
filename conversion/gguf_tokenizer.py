"""The tokenizer in a GGUF file as the files of a Hub tokenizer.

llama.cpp names the rule by which a byte-level tokenizer splits a text (`tokenizer.ggml.pre`): the
rules known here are those of published tokenizer.json files. A SentencePiece vocabulary is brought
into a SentencePiece model, with which the tokenizer made of it is compared, id by id.

    write_tokenizer(file.metadata, Path("OUT"), "model.gguf")
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from minitron.conversion.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
)
from minitron.conversion.sentencepiece_tokenizer import save_tokenizer
from minitron.errors import TokenizerError, foreign_parser

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # tokenizer.ggml.model
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours to llama.cpp's
DIGIT = r"\p{N}"
GPT_2 = "gpt-2"  # the rule that ByteLevel of the library has itself
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{0}}"
)
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class SplitRule:
    """How a byte-level tokenizer splits a text before it merges bytes.

    `splits` are patterns, one after another, or GPT_2.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is not built of merges
    adds_bos: bool = False  # where the file does not say
    composes: bool = False  # NFC, which llama.cpp leaves out


RULES: Mapping[str, SplitRule] = {
    "gpt-2": SplitRule((GPT_2,)),
    "smollm": SplitRule((DIGIT, GPT_2)),
    "llama-bpe": SplitRule((_LLAMA_3,), ignore_merges=True, adds_bos=True),
    "smaug-bpe": SplitRule((_LLAMA_3,)),
    "qwen2": SplitRule((_LLAMA_3.replace("{1,3}", ""),), composes=True),
    "tekken": SplitRule(
        (_CASED.replace("{0}", "") + r"|\p{N}" + _REST,), ignore_merges=True, adds_bos=True
    ),
    "gpt-4o": SplitRule(
        (_CASED.replace("{0}", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + r"|\p{N}{1,3}" + _REST,)
    ),
}
_SAME_RULE = {  # other names that llama.cpp gives these rules
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "dbrx": "smaug-bpe",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "deepseek-r1-qwen": "qwen2",
    "phi-2": "gpt-2",
    "olmo": "gpt-2",
}


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, name: str) -> None:
    """Write tokenizer.json, its config and the chat template of the GGUF file `name`.

    Raises TokenizerError for a kind of tokenizer or a rule that is not known here, and for a
    vocabulary that is damaged.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in (BYTE_LEVEL, SENTENCEPIECE):
        raise TokenizerError(
            f"{name} has the tokenizer {kind!r:.40}: {BYTE_LEVEL} and {SENTENCEPIECE} can be read"
        )
    with foreign_parser(f"{name}: its tokenizer", TokenizerError, "fetch it again"):
        vocabulary = _Vocabulary(metadata)
        if kind == BYTE_LEVEL:
            _write_byte_level(vocabulary, _rule(metadata, name), folder)
        else:
            _write_sentencepiece(vocabulary, folder)
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


class _Vocabulary:
    """The tokens of a file. Raises ValueError, KeyError or TypeError where it is damaged."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        if not isinstance(self.tokens, list) or not all(type(each) is str for each in self.tokens):
            raise ValueError("its tokens are no texts")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("a token is there twice")
        self.types = self._list("token_type", [1] * len(self.tokens))
        self.scores = self._list("scores", [0.0] * len(self.tokens))

    def _list(self, key: str, default: list[Any]) -> list[Any]:
        values = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(values, list) or len(values) != len(self.tokens):
            raise ValueError(f"{key} is no list of one number for each token")
        return values

    def flag(self, key: str, *, default: bool) -> bool:
        """A switch, as add_bos_token."""
        return bool(self.metadata.get(f"tokenizer.ggml.{key}", default))

    def ids(self) -> dict[str, int]:
        """Role to token id, where the file names one."""
        found = {}
        for role, called in ROLES.items():
            token = self.metadata.get(f"tokenizer.ggml.{called}_token_id")
            if token is not None:
                if type(token) is not int or not 0 <= token < len(self.tokens):
                    raise ValueError(f"{called}_token_id is {token!r:.40}, no token")
                found[role] = token
        return found

    def added(self) -> list[AddedToken]:
        """The tokens that are found in a text before it is split."""
        return [
            AddedToken(token, normalized=False, special=kind in (UNKNOWN, CONTROL))
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def ends(self, *, adds_bos: bool) -> processors.PostProcessor | None:
        """What puts the bos and eos token around a text; None where neither is added."""
        ids, single = self.ids(), ["$A:0"]
        if "bos" in ids and self.flag("add_bos_token", default=adds_bos):
            single.insert(0, f"{self.tokens[ids['bos']]}:0")
        if "eos" in ids and self.flag("add_eos_token", default=False):
            single.append(f"{self.tokens[ids['eos']]}:0")
        if len(single) == 1:
            return None
        pair = [*single, *(each.replace("$A", "$B").replace(":0", ":1") for each in single)]
        special = [(self.tokens[ids[role]], ids[role]) for role in ("bos", "eos") if role in ids]
        return processors.TemplateProcessing(single, pair, list(dict.fromkeys(special)))


def _rule(metadata: Mapping[str, Any], name: str) -> SplitRule:
    called = metadata.get("tokenizer.ggml.pre", "default")
    rule = RULES.get(_SAME_RULE.get(str(called), str(called)))
    if rule is None:
        raise TokenizerError(
            f"{name} splits texts by the rule {called!r:.40}, which is not known here "
            f"({', '.join((*RULES, *_SAME_RULE))}): take the tokenizer of the model's Hub folder"
        )
    return rule


def _write_byte_level(vocabulary: _Vocabulary, rule: SplitRule, folder: Path) -> None:
    merges = [
        tuple(each.split(" ")) for each in vocabulary.metadata.get("tokenizer.ggml.merges", [])
    ]
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=rule.ignore_merges))
    if rule.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(rule.splits)
    tokenizer.decoder = decoders.ByteLevel()
    steps = [processors.ByteLevel(trim_offsets=False)]
    ends = vocabulary.ends(adds_bos=rule.adds_bos)
    tokenizer.post_processor = processors.Sequence(steps if ends is None else [*steps, ends])
    tokenizer.add_tokens(vocabulary.added())
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": vocabulary.tokens[each] for role, each in vocabulary.ids().items()},
    )
    made.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 knows this name too
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _pre_tokenizer(splits: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    """The patterns as steps; digits and GPT-2's as published files have them."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    for split in splits:
        if split == DIGIT:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif split != GPT_2:
            steps.append(pre_tokenizers.Split(Regex(split), "isolated"))
    use_regex = splits[-1] == GPT_2
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
    return pre_tokenizers.Sequence(steps)


def _write_sentencepiece(vocabulary: _Vocabulary, folder: Path) -> None:
    """A SentencePiece model of the vocabulary, and the tokenizer that is made of it."""
    proto, ids = ModelProto(), vocabulary.ids()
    entries = zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True)
    for token, score, kind in entries:
        # llama.cpp's converter writes the blanks of these as such.
        text = token.replace(" ", SPACE) if kind == USER_DEFINED else token
        proto.pieces.add(piece=text, score=score, type=kind)
    unknown = [index for index, kind in enumerate(vocabulary.types) if kind == UNKNOWN]
    ids["unk"] = ids.get("unk", unknown[0] if unknown else -1)
    trainer, spec = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback = BPE, BYTE in vocabulary.types
    for role in ROLES:
        setattr(trainer, f"{role}_id", ids.get(role, -1))
        if role in ids:
            setattr(trainer, f"{role}_piece", vocabulary.tokens[ids[role]])
    spec.name, spec.escape_whitespaces = "identity", True
    spec.add_dummy_prefix = vocabulary.flag("add_space_prefix", default=True)
    spec.remove_extra_whitespaces = vocabulary.flag("remove_extra_whitespaces", default=False)
    model_file = folder / "model"
    model_file.write_bytes(proto.SerializeToString())
    save_tokenizer(model_file, folder)
    model_file.unlink()
    ends = vocabulary.ends(adds_bos=True)
    if ends is not None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = ends
        tokenizer.save(str(folder / "tokenizer.json"))
