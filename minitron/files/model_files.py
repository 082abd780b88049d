"""The files of a model folder: which there may be, and `LocalFolder`, one on this machine.

The names are those that transformers' tokenizers and processors read beside the weights. Knows how
transformers 4 and 5 read a tokenizer's config, but no vocabulary and no class.

A folder may come from anybody. A link in it to another file of this machine would be copied beside
the weights and published, so links that lead outside the folder are refused. Links in a snapshot of
the Hub's cache lead to the blobs of the same cache.

    names = tokenizer_names(["config.json", "tokenizer.json"])   # ["tokenizer.json"]
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from minitron.errors import SourceError

TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER = "adapter_config.json"  # what PEFT writes in place of a model's config.json
TEMPLATES = "additional_chat_templates"  # the folder of all chat templates but the default one
_WEIGHTS = (".safetensors", ".bin")
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


class LocalFolder:
    """A folder on this machine."""

    revision: str | None = None

    def __init__(self, path: Path, name: str | None = None, *, is_ours: bool = False) -> None:
        """`is_ours` True follows any link, since a package manager may have made it."""
        self.path = path
        self.name = name or str(path)
        self._is_ours = is_ours

    def file(self, name: str) -> Path | None:
        """The file's path, if it is there. Raises SourceError for a link that leads outside.

        Weights may be elsewhere: only their numbers are copied.
        """
        path = self.path / name
        if not path.is_file():
            return None
        if not self._is_ours and path.suffix not in _WEIGHTS and leads_outside(path, self.path):
            raise SourceError(
                f"{path} is a link to {path.resolve()}, outside its folder: put the file itself "
                "there, or remove the link"
            )
        return path

    def names(self) -> list[str]:
        """The folder's files, in alphabetical order."""
        return model_files(self.path)

    def is_local(self, name: str) -> bool:
        """Whether the file is on this machine: always."""
        return True

    def remote_file(self, name: str) -> None:
        """None: every file is on this machine."""

    def remedy(self, name: str) -> str:
        """What to do about a missing file: whoever copied the folder knows where it is."""
        return "fetch it"


def is_model_file(name: str) -> bool:
    """Whether a path in a repository is one of a model: at its top, or a chat template.

    A name that is not printable could command a terminal, and no model needs one.
    """
    return name.isprintable() and ("/" not in name or _TEMPLATE.fullmatch(name) is not None)


def model_files(folder: Path) -> list[str]:
    """The model's files in a folder, by their paths in it, in alphabetical order."""
    paths = (*folder.iterdir(), *(folder / TEMPLATES).glob("*.jinja"))
    names = (path.relative_to(folder).as_posix() for path in paths if path.is_file())
    return sorted(filter(is_model_file, names))


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


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether a path below `folder`, links followed, is neither in it nor a blob of its cache."""
    return not any(path.resolve().is_relative_to(root) for root in _roots(folder.resolve()))


def _roots(folder: Path) -> tuple[Path, ...]:
    """The folder itself, and the blobs to which a snapshot in the Hub's cache is made of links."""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and (blobs := parent.parents[1] / "blobs").is_dir():
            return folder, blobs
    return (folder,)


def _belongs(name: str) -> bool:
    if "/" in name:
        return _TEMPLATE.fullmatch(name) is not None
    return any(fnmatch(name, pattern) for pattern in _PATTERNS)
