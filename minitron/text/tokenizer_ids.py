"""Opens the tokenizer of a folder so that it gives the ids of its tokenizer.json.

transformers 5 builds some classes (LlamaTokenizer, Qwen2Tokenizer) from nothing but the vocabulary
of a tokenizer.json. Where the file is of another kind, ids differ, without a warning. The model was
trained on those of the file, which transformers 4 and every engine use.

    open_tokenizer(Path("deepseek-r1-distill"), "deepseek-r1-distill")
"""

import logging
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from minitron.errors import TokenizerError, foreign_parser
from minitron.files.checked_json import read_object
from minitron.files.model_files import TOKENIZER_CONFIG, tokenizer_names

logger = logging.getLogger(__name__)

FILE = "tokenizer.json"
# What tokenizers split differently: numbers, blanks, contractions, case, accents, ligatures, bytes.
SAMPLES = (
    "It was the best of times,\n\n  42 naïve 漢字 🙂\tdon't I'LL 1234567.89   "
    "e\u0301 \ufb01ne Ⅳ ＦＵＬＬ\u00a0x_y==z;\r\n if(a):\n    pass   ",
    "  two blanks before",
    " one",
    "\nnext",
    "A",
)
# The classes of transformers 5 that read tokenizer.json unchanged.
_UNCHANGED = ("TokenizersBackend", "MistralCommonBackend")
_COMMON = PreTrainedTokenizerFast
# Digests of the folders whose tokenizer follows its file: comparing a large one takes 4 seconds.
_following: set[bytes] = set()
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
CODE_FILE = "tokenizer_json.py"  # its name begins so that it is copied as a tokenizer's file
CODE = '''"""What AutoTokenizer makes of tokenizer.json with trust_remote_code=True."""

from transformers import PreTrainedTokenizerFast


class TokenizerJson(PreTrainedTokenizerFast):
    """Follows tokenizer.json: transformers 5 would build a Qwen2Tokenizer, with other ids."""
'''


def open_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder`; errors call it `name`.

    Raises TokenizerError for files that cannot be read, and where tokenizer.json gives other ids
    than transformers' class and it is not clear which special tokens belong to them.
    """
    with foreign_parser(f"{name}: its tokenizer", TokenizerError, "fetch it again"):
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        loaded.decode(loaded(SAMPLES[0])["input_ids"])  # some damage raises only here
        # The common class reads the file as it is; the others may build from the vocabulary.
        if not (folder / FILE).is_file() or _follows(loaded, folder) or type(loaded) is _COMMON:
            return loaded
        from_file: PreTrainedTokenizerBase = _COMMON.from_pretrained(folder)
        is_right = (
            _agree(from_file, folder) and loaded("")["input_ids"] == from_file("")["input_ids"]
        )
    kind = type(loaded).__name__
    if not is_right:
        raise TokenizerError(
            f"{name}: transformers makes a {kind} of its tokenizer.json that gives other ids or "
            "text than the file: fetch the tokenizer again, or write the right one with "
            "PreTrainedTokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    logger.warning(
        "%s: AutoTokenizer makes a %s that gives other ids than its tokenizer.json; those of the "
        "file are used: do the same with PreTrainedTokenizerFast.from_pretrained",
        name,
        kind,
    )
    return from_file


def rebuilt_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that AutoTokenizer builds of a folder; None where it follows tokenizer.json.

    Raises TokenizerError for files that cannot be read.
    """
    with foreign_parser(f"{name}: its tokenizer", TokenizerError, "fetch it again"):
        if _digest(folder) in _following:
            return None
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        if _follows(loaded, folder):
            return None
        return LlamaTokenizer.from_pretrained(folder) if type(loaded) is _COMMON else loaded


def following_settings(
    rebuilt: PreTrainedTokenizerBase, folder: Path, settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Contents of tokenizer_config.json with which AutoTokenizer follows tokenizer.json.

    The first is enough but for a qwen2: transformers 5 builds a Qwen2Tokenizer whatever class is
    named, except where `auto_map` exists, whose code runs only with trust_remote_code. Both keep
    the special tokens and inputs that are defaults of the class of `rebuilt`.
    """
    added = Tokenizer.from_file(str(folder / FILE)).get_added_tokens_decoder().values()
    contents = {token.content for token in added}
    first = {
        **{key: token for key in _SPECIAL if (token := getattr(rebuilt, key)) in contents},
        "model_input_names": rebuilt.model_input_names,
        "padding_side": rebuilt.padding_side,
        **settings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    yield first
    code = f"{Path(CODE_FILE).stem}.TokenizerJson"
    yield {**first, "auto_map": {"AutoTokenizer": [code, code]}}


def _follows(loaded: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether `loaded`, AutoTokenizer's of `folder`, follows tokenizer.json in every version.

    Where tokenizer_class is LlamaTokenizer and the file is byte-level, transformers 5.20 builds a
    LlamaTokenizer; later versions read the file as it is.
    """
    if type(loaded) is _COMMON:
        config, settings = _read(folder / "config.json"), _read(folder / TOKENIZER_CONFIG)
        named = str(settings.get("tokenizer_class") or config.get("tokenizer_class"))
        is_llama = named.removesuffix("Fast") == "LlamaTokenizer" and "auto_map" not in settings
        mapped = TOKENIZER_MAPPING_NAMES.get(config.get("model_type", ""))
        follows = mapped in _UNCHANGED or not is_llama
    else:
        follows = _agree(loaded, folder)
    if follows:
        _following.add(_digest(folder))
    return follows


def _digest(folder: Path) -> bytes:
    """A digest of everything that AutoTokenizer reads in a folder."""
    config = _read(folder / "config.json")
    digest = sha256(repr([config.get(key) for key in ("model_type", "tokenizer_class")]).encode())
    for name in tokenizer_names(path.name for path in folder.iterdir() if path.is_file()):
        digest.update(name.encode() + sha256((folder / name).read_bytes()).digest())
    return digest.digest()


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, TokenizerError, "fetch it again") if path.is_file() else {}


def _agree(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether it encodes and decodes SAMPLES as tokenizer.json does."""
    file = Tokenizer.from_file(str(folder / FILE))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for text in SAMPLES:
        ids = file.encode(text, add_special_tokens=False).ids
        if list(tokenizer(text, add_special_tokens=False)["input_ids"]) != ids:
            return False
        if backend is not None and backend.decode(ids) != file.decode(ids):
            return False
    return True
