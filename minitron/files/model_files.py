"""Names of the files of a model folder: tokenizer, chat templates, a PEFT adapter.

The names are those that transformers' tokenizers and processors read beside the weights. Knows how
transformers 4 and 5 read a tokenizer's config, but no vocabulary and no class.

    names = tokenizer_names(["config.json", "tokenizer.json"])   # ["tokenizer.json"]
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER = "adapter_config.json"  # what PEFT writes in place of a model's config.json
TEMPLATES = "additional_chat_templates"  # the folder of all chat templates but the default one
_TEMPLATE = re.compile(rf"{TEMPLATES}/[^/\\\x00-\x1f\x7f]+\.jinja")
# `vocab_files_names` of every tokenizer class, and what a processor reads beside them.
_PATTERNS = (
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "*.spm",
    "*.tokenizer",
    "vocab*",
    "*_vocab.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "byte_maps.json",
    "emoji.json",
    "normalizer.json",
    "word_*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "tekken.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_FAST = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is, in both generations
# Classes that transformers 4 does not have.
_ONLY_5 = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend")
# Classes that put a first token before the text in transformers 4 unless the config forbids it;
# transformers 5 follows tokenizer.json and writes no add_bos_token.
_ADDS_BOS_IN_4 = ("LlamaTokenizer", "CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer")


def is_model_file(name: str) -> bool:
    """Whether a path in a repository is one of a model: at its top, or a chat template.

    A name that is not printable could command a terminal, and no model needs one.
    """
    return name.isprintable() and ("/" not in name or _TEMPLATE.fullmatch(name) is not None)


def tokenizer_names(names: Iterable[str]) -> list[str]:
    """Those of `names` that belong to a tokenizer; those in a folder come last."""
    found = [name for name in names if _belongs(name)]
    return sorted(found, key=lambda name: ("/" in name, name))


def tokenizer_folder(files: Sequence[Path]) -> Path:
    """The folder of a tokenizer's files, which all but chat templates are directly in."""
    return next((file.parent for file in files if file.suffix != ".jinja"), files[0].parent)


def portable_tokenizer_config(config: Mapping[str, Any], *, has_fast_file: bool) -> dict[str, Any]:
    """A tokenizer_config.json with which transformers 4 and 5 produce the same ids.

    `has_fast_file`: whether there is a tokenizer.json too. A config of transformers 4 is not
    changed; in one of 5 the class and the list of extra special tokens get names that both know,
    and model_input_names is written out, since 4 has other defaults.
    """
    both = dict(config)
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    is_of_5 = "backend" in config or name in _ONLY_5
    adds_bos = name in _ADDS_BOS_IN_4 and "add_bos_token" not in config
    if is_of_5 and has_fast_file and (name in _ONLY_5 or adds_bos):
        both["tokenizer_class"] = _FAST
    if is_of_5 and both.get("tokenizer_class") == _FAST:  # it makes token types too in 4
        both.setdefault("model_input_names", ["input_ids", "attention_mask"])
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 4 wants an object under this name
        del both["extra_special_tokens"]
        if extra or "additional_special_tokens" not in config:
            both["additional_special_tokens"] = extra
    return both


def merge_advice(name: str, settings: Mapping[str, Any]) -> str:
    """The error for an adapter given as a model; `settings` is its adapter_config.json."""
    kind, base = settings.get("peft_type", "PEFT"), settings.get("base_model_name_or_path")
    return (
        f"{name:.80} is a {kind!s:.20} adapter of {base!s:.80}, not a whole model: merge it with "
        "peft, AutoPeftModelForCausalLM.from_pretrained(ADAPTER).merge_and_unload()"
        ".save_pretrained(OUT), save the base model's tokenizer to OUT too, and name OUT"
    )


def _belongs(name: str) -> bool:
    if "/" in name:
        return _TEMPLATE.fullmatch(name) is not None
    return any(fnmatch(name, pattern) for pattern in _PATTERNS)
