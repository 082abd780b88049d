"""The tokenizer of a folder, with the ids that its tokenizer.json gives.

transformers 5 makes some classes (LlamaTokenizer, Qwen2Tokenizer) of a tokenizer.json's vocabulary
alone and builds the rest anew: where the file is of another kind, ids differ without a word. A
model was trained on those of the file, which transformers 4 and every engine follow.

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
# What tokenizers cut differently: numbers, blanks, contractions, case, accents, ligatures, bytes.
SAMPLES = (
    "It was the best of times,\n\n  42 naïve 漢字 🙂\tdon't I'LL 1234567.89   "
    "e\u0301 \ufb01ne Ⅳ ＦＵＬＬ\u00a0x_y==z;\r\n if(a):\n    pass   ",
    "  two blanks before",
    " one",
    "\nnext",
    "A",
)
# What transformers 5 maps model types to whose tokenizer.json it reads unchanged.
_UNCHANGED = ("TokenizersBackend", "MistralCommonBackend")
_COMMON = PreTrainedTokenizerFast
# Digests of the folders that follow tokenizer.json: a large one takes four seconds to compare.
_following: set[bytes] = set()
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
CODE_FILE = "tokenizer_json.py"  # its name begins so that it is copied as a tokenizer's file
CODE = '''"""What AutoTokenizer makes of tokenizer.json with trust_remote_code=True."""

from transformers import PreTrainedTokenizerFast


class TokenizerJson(PreTrainedTokenizerFast):
    """Follows tokenizer.json: transformers 5 would build a Qwen2Tokenizer, with other ids."""
'''


def open_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder`, which errors call `name`.

    Raises TokenizerError for files that cannot be read, and where tokenizer.json gives other ids
    than transformers' class and it is not clear which special tokens go with them.
    """
    with foreign_parser(f"{name}: its tokenizer", TokenizerError, "fetch it again"):
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        made.decode(made(SAMPLES[0])["input_ids"])  # damage may show only here
        # A class of its own is what builds anew; the common one reads the file as it is.
        if not (folder / FILE).is_file() or _follows(made, folder) or type(made) is _COMMON:
            return made
        followed: PreTrainedTokenizerBase = _COMMON.from_pretrained(folder)
        is_right = _agree(followed, folder) and made("")["input_ids"] == followed("")["input_ids"]
    kind = type(made).__name__
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
    return followed


def rebuilt_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase | None:
    """What AutoTokenizer makes of a written folder, if its ids are not those of tokenizer.json.

    Raises TokenizerError for files that cannot be read.
    """
    with foreign_parser(f"{name}: its tokenizer", TokenizerError, "fetch it again"):
        if _digest(folder) in _following:
            return None
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        if _follows(made, folder):
            return None
        return LlamaTokenizer.from_pretrained(folder) if type(made) is _COMMON else made


def following_settings(
    rebuilt: PreTrainedTokenizerBase, folder: Path, settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """What tokenizer_config.json may hold so that AutoTokenizer follows tokenizer.json.

    The first is enough but for a qwen2: transformers 5 makes a Qwen2Tokenizer of it whatever class
    is named, unless `auto_map` is there; it runs no code then, unless trust_remote_code is set.
    Both keep the special tokens and inputs that the class of `rebuilt` brings by itself.
    """
    added = Tokenizer.from_file(str(folder / FILE)).get_added_tokens_decoder().values()
    held = {token.content for token in added}
    first = {
        **{key: token for key in _SPECIAL if (token := getattr(rebuilt, key)) in held},
        "model_input_names": rebuilt.model_input_names,
        "padding_side": rebuilt.padding_side,
        **settings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    yield first
    code = f"{Path(CODE_FILE).stem}.TokenizerJson"
    yield {**first, "auto_map": {"AutoTokenizer": [code, code]}}


def _follows(made: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether AutoTokenizer, which made this of `folder`, follows tokenizer.json in each version.

    Where tokenizer_class is LlamaTokenizer and the file is byte-level, transformers 5.20 builds a
    LlamaTokenizer; later versions read the file as it is.
    """
    if type(made) is _COMMON:
        config, settings = _read(folder / "config.json"), _read(folder / TOKENIZER_CONFIG)
        named = str(settings.get("tokenizer_class") or config.get("tokenizer_class"))
        is_llama = named.removesuffix("Fast") == "LlamaTokenizer" and "auto_map" not in settings
        mapped = TOKENIZER_MAPPING_NAMES.get(config.get("model_type", ""))
        follows = mapped in _UNCHANGED or not is_llama
    else:
        follows = _agree(made, folder)
    if follows:
        _following.add(_digest(folder))
    return follows


def _digest(folder: Path) -> bytes:
    """Of all that AutoTokenizer reads in a folder."""
    config = _read(folder / "config.json")
    digest = sha256(repr([config.get(key) for key in ("model_type", "tokenizer_class")]).encode())
    for name in tokenizer_names(path.name for path in folder.iterdir() if path.is_file()):
        digest.update(name.encode() + sha256((folder / name).read_bytes()).digest())
    return digest.digest()


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, TokenizerError, "fetch it again") if path.is_file() else {}


def _agree(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether ids of texts, and the texts of these ids, are those of tokenizer.json."""
    file = Tokenizer.from_file(str(folder / FILE))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for text in SAMPLES:
        ids = file.encode(text, add_special_tokens=False).ids
        if list(tokenizer(text, add_special_tokens=False)["input_ids"]) != ids:
            return False
        if backend is not None and backend.decode(ids) != file.decode(ids):
            return False
    return True
