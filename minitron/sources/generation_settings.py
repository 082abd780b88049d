"""generation_config.json: how a model's text begins and ends, checked before transformers takes it.

transformers takes values of any type there and fails when it generates.

    read_generation_config(Path("tiny/generation_config.json"), "tiny").eos_token_id
"""

from pathlib import Path

from transformers import GenerationConfig

from minitron.errors import SourceError, foreign_parser
from minitron.files.checked_json import check_kind, read_object

FILE = "generation_config.json"
_REMEDY = "mend or remove it"
_ID = (int, None)
_KIND = {
    "bos_token_id?": _ID,
    "eos_token_id?": (int, [int], None),
    "pad_token_id?": _ID,
}


def read_generation_config(path: Path, model: str) -> GenerationConfig:
    """The settings in a file of a model called `model`. Raises SourceError."""
    name = f"{model}/{FILE}"
    settings = read_object(path, SourceError, _REMEDY, called=name)
    check_kind(settings, _KIND, name, SourceError, _REMEDY)
    with foreign_parser(name, SourceError, _REMEDY):
        return GenerationConfig.from_pretrained(path.parent)
