"""Token ids that a config names, against the rows that the embedding has.

A pad token is often added to a tokenizer without a row for it. The id is never used by the model,
but transformers refuses to build an embedding that pads with a row outside itself.

    with_usable_pad({"pad_token_id": 32000}, 32000)   # {"pad_token_id": None}
"""

from collections.abc import Mapping
from typing import Any

PAD = "pad_token_id"


def has_row(token: object, vocab_size: int) -> bool:
    """Whether an id may be a row; torch counts negative ones from the end."""
    return type(token) is not int or -vocab_size <= token < vocab_size


def with_usable_pad(settings: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """`settings`, with a pad token outside the vocabulary named as none."""
    usable = has_row(settings.get(PAD), vocab_size)
    return dict(settings) if usable else {**settings, PAD: None}
