"""Text that a model samples itself, as a corpus: calibration without data.

Each sequence starts with a token drawn uniformly from the vocabulary and goes on by sampling at
temperature 1, past ends of documents, as packed text does (LLM-QAT, arXiv 2305.17888, section 3.1).

    self_corpus(model, seq_len=512, samples=256, seed=0).sequences.shape   # (256, 512)
"""

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, set_seed

from minitron.errors import TargetError
from minitron.text.corpus import Corpus

_BATCH_TOKENS = 65_536  # cached at once


def self_corpus(model: PreTrainedModel, *, seq_len: int, samples: int, seed: int) -> Corpus:
    """`samples` sequences [samples, seq_len] that `model` samples, the same for the same seed.

    Raises TargetError for sequences of one token, which leave nothing to sample.
    """
    if seq_len < 2:
        raise TargetError(
            f"--seq-len is {seq_len}: text sampled by the model itself needs at least 2"
        )
    set_seed(seed)
    special = _special_ids(model)
    allowed = torch.tensor([i for i in range(model.config.vocab_size) if i not in special])
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=seq_len - 1,
        max_new_tokens=seq_len - 1,
        eos_token_id=None,
        pad_token_id=0,
    )
    batch = max(1, min(samples, _BATCH_TOKENS // seq_len))
    drawn = []
    with tqdm(total=samples * seq_len, unit="token", unit_scale=True, desc="sample") as progress:
        for start in range(0, samples, batch):
            rows = min(batch, samples - start)
            first = allowed[torch.randint(len(allowed), (rows, 1))].to(model.device)
            with torch.inference_mode():
                ids = model.generate(  # type: ignore[operator]  # mixed in without types
                    first,
                    attention_mask=torch.ones_like(first),
                    generation_config=settings,
                )
            drawn.append(ids.cpu().numpy().astype(np.int32))
            progress.update(ids.numel())
    return Corpus(np.concatenate(drawn), "self")


def _special_ids(model: PreTrainedModel) -> set[int]:
    """Ids that begin, end or pad a text, and so start no sentence."""
    ids: set[int] = set()
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.config, key, None)
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return ids
