"""Text that a model samples itself, as a corpus: calibration without data.

Each sequence starts with a token drawn uniformly from the vocabulary and continues by sampling at
temperature 1, past ends of documents, as packed text does (LLM-QAT, arXiv 2305.17888, section 3.1).

    self_corpus(model, seq_len=512, samples=256, seed=0).sequences.shape   # (256, 512)
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from minitron.errors import TargetError
from minitron.progress import Progress
from minitron.text.corpus import Corpus
from minitron.text.encoding import TokenIds
from modeling_nemotron import CACHE_NAME

_BATCH_TOKENS = 65_536  # in the KV cache at once
_DRAWN_ROWS = 32  # bounds the memory of float64 probabilities where the vocabulary is large


def self_corpus(model: PreTrainedModel, *, seq_len: int, samples: int, seed: int) -> Corpus:
    """`samples` sequences [samples, seq_len] that `model` samples, the same for the same seed.

    Random numbers depend on the seed and the number of the sequence only. A float32 model samples
    the same text on every processor; bfloat16 logits, and with them the text, depend on the
    processor. Raises TargetError for sequences of one token, which leave nothing to sample.
    """
    if seq_len < 2:
        raise TargetError(
            f"--seq-len is {seq_len}: text sampled by the model itself needs at least 2"
        )
    bits = (model.config.vocab_size - 1).bit_length()
    batch = max(1, _BATCH_TOKENS // seq_len)
    sampled = []
    with Progress("sample", total=samples * seq_len, unit="token") as progress:
        for start in range(0, samples, batch):
            rows = range(start, min(start + batch, samples))
            # A generator a sequence: its text does not depend on the size of the batch.
            generators = [np.random.default_rng((seed, row)) for row in rows]
            uniforms = np.stack([one.random((seq_len, bits)) for one in generators])
            sampled.append(_sample(model, torch.from_numpy(uniforms), progress))
    return Corpus(np.concatenate(sampled), "self")


def _sample(model: PreTrainedModel, uniforms: Tensor, progress: Progress) -> TokenIds:
    """One batch of token ids [rows, length], from random numbers [rows, length, bits]."""
    uniforms = uniforms.to(model.device)
    cache = DynamicCache(config=model.config)
    special = _special_ids(model)
    first = [-torch.inf if i in special else 0.0 for i in range(model.config.vocab_size)]
    logits = torch.tensor(first, device=model.device).expand(len(uniforms), -1)
    sequences: list[Tensor] = []
    with torch.inference_mode():
        for position in range(uniforms.shape[1]):
            if position:
                fed = sequences[-1][:, None]
                logits = model(input_ids=fed, use_cache=True, **{CACHE_NAME: cache}).logits[:, -1]
            parts = zip(
                logits.split(_DRAWN_ROWS), uniforms[:, position].split(_DRAWN_ROWS), strict=True
            )
            sequences.append(torch.cat([draw(*part) for part in parts]))
            progress.advance(len(uniforms))
    return torch.stack(sequences, 1).cpu().numpy().astype(np.int32)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids [rows] by the softmax of logits [rows, vocabulary], from numbers in [0, 1).

    `uniforms` [rows, bits] decide one bit of each id each, the highest first. Logits that differ
    by a rounding error then give another id about once in a million draws. One number a draw and
    the cumulative sum would give another 400 times as often: each of its boundaries moves.
    """
    rows, bits = uniforms.shape
    padded = F.pad(logits, (0, 2**bits - logits.shape[1]), value=-torch.inf)
    weights = padded.double().softmax(-1)
    ids = torch.zeros(rows, dtype=torch.long, device=logits.device)
    for uniform in uniforms.unbind(1):
        halves = weights.view(rows, 2, -1)
        low, high = halves.sum(-1).unbind(-1)
        bit = (uniform * (low + high) >= low).long()
        weights = halves[torch.arange(rows, device=bit.device), bit]
        ids = 2 * ids + bit
    return ids


def _special_ids(model: PreTrainedModel) -> set[int]:
    """Ids that begin, end or pad a text: no text starts with one."""
    ids: set[int] = set()
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.config, key, None)
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return ids
