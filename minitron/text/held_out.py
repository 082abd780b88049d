"""Held-out text: windows of tokens to predict and of the tokens before them.

Texts are packed with a separator before each. Every token of a text is predicted once, from at most
`seq_len` tokens before it, in windows that overlap by `seq_len - stride`. Separators are context
and are not counted, so bits per byte are comparable between tokenizers.

    held_out_text("books.jsonl.gz", tokenizer, seq_len=512, stride=256)
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from transformers import PreTrainedTokenizerBase

from minitron.errors import CorpusError
from minitron.text.corpus import load_ids
from minitron.text.encoding import TokenIds, tokenize
from minitron.text.texts import read_texts

UNCOUNTED = -100  # a target that is not scored


@dataclass(frozen=True)
class HeldOut:
    """Inputs and targets of a loss, the same for every model that is compared."""

    inputs: tuple[TokenIds, ...]  # each (windows, tokens)
    targets: tuple[TokenIds, ...]  # the same shapes; -100 where nothing is counted
    bytes: int | None  # of the text; None for ids, and where some texts are chats

    @property
    def digest(self) -> str:
        """sha256 of the tokens."""
        digest = hashlib.sha256()
        for ids in (*self.inputs, *self.targets):
            digest.update(f"{ids.shape}".encode() + np.ascontiguousarray(ids).tobytes())
        return digest.hexdigest()


def held_out_text(
    name: str, tokenizer: PreTrainedTokenizerBase, seq_len: int, stride: int | None = None
) -> HeldOut:
    """The text of a file or a Hub dataset, packed into windows of `seq_len` tokens.

    Each window predicts its last `stride` tokens (all of them unless given), the first one all.
    """
    documents = list(tokenize(read_texts(name, tokenizer), tokenizer))
    separators = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    start = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream = np.concatenate([np.array(start, np.int32), *(d.ids for d in documents)])
    inputs, targets = stream[:-1], stream[1:].copy()
    targets[np.isin(targets, separators)] = UNCOUNTED
    if not (targets != UNCOUNTED).any():
        raise CorpusError(f"{name} holds no text: there is nothing to predict")
    windows = _windows(inputs, targets, seq_len, stride or seq_len)
    sizes = [document.bytes for document in documents if document.bytes is not None]
    return HeldOut(
        tuple(inputs for inputs, _ in windows),
        tuple(targets for _, targets in windows),
        sum(sizes) if len(sizes) == len(documents) else None,
    )


def held_out_ids(name: str, seq_len: int) -> HeldOut:
    """The rows of an `.npy` of ids, each predicted from its second token on."""
    ids = load_ids(name, seq_len=seq_len + 1).sequences
    if ids.shape[1] < 2:
        raise CorpusError(f"{name} holds sequences of one token: there is nothing to predict")
    return HeldOut((ids[:, :-1],), (ids[:, 1:],), None)


def _windows(
    inputs: TokenIds, targets: TokenIds, seq_len: int, stride: int
) -> list[tuple[TokenIds, TokenIds]]:
    """Windows of `seq_len`, one every `stride`, and a shorter last one; each (windows, tokens).

    Targets that an earlier window has counted are UNCOUNTED in later ones.
    """
    found, begin, counted = [], 0, 0
    if len(inputs) >= seq_len:
        whole = [sliding_window_view(ids, seq_len)[::stride].copy() for ids in (inputs, targets)]
        whole[1][1:, : seq_len - stride] = UNCOUNTED
        found.append((whole[0], whole[1]))
        begin = len(whole[0]) * stride
        counted = begin - stride + seq_len
    if counted < len(inputs):
        rest = targets[begin:].copy()
        rest[: counted - begin] = UNCOUNTED
        found.append((inputs[None, begin:], rest[None]))
    return found
