"""The tokenizer of a folder, with the ids that its tokenizer.json gives.

transformers 5 makes some classes (LlamaTokenizer, Qwen2Tokenizer) of a tokenizer.json's vocabulary
alone and builds the rest anew: where the file is of another kind, ids differ without a word. A
model was trained on those of the file, which transformers 4 and every engine follow.

    open_tokenizer(Path("deepseek-r1-distill"), "deepseek-r1-distill")
"""

import logging
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minitron.errors import TokenizerError
from minitron.foreign_parser import foreign_parser

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


def open_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder`, which errors call `name`.

    Raises TokenizerError for files that cannot be read, and where tokenizer.json gives other ids
    than transformers' class and it is not clear which special tokens go with them.
    """
    with foreign_parser(f"{name}: its tokenizer", TokenizerError, "fetch it again"):
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        made.decode(made(SAMPLES[0])["input_ids"])  # damage may show only here
        # A class of its own is what builds anew; the common one reads the file as it is.
        if type(made) is PreTrainedTokenizerFast or not (folder / FILE).is_file():
            return made
        file = Tokenizer.from_file(str(folder / FILE))
        if _agree(made, file):
            return made
        followed: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        is_right = _agree(followed, file) and made("")["input_ids"] == followed("")["input_ids"]
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


def _agree(tokenizer: PreTrainedTokenizerBase, file: Tokenizer) -> bool:
    """Whether ids of texts, and the texts of these ids, are those of the file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for text in SAMPLES:
        ids = file.encode(text, add_special_tokens=False).ids
        if list(tokenizer(text, add_special_tokens=False)["input_ids"]) != ids:
            return False
        if backend is not None and backend.decode(ids) != file.decode(ids):
            return False
    return True
