"""A model's own text: the distribution is the model's, the draws are the sequence's alone."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from minitron.errors import TargetError
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.text import sampling
from minitron.text.sampling import draw, self_corpus
from tests.tiny import FAMILIES, tiny_model

_DIGEST = """
import torch
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.text.sampling import self_corpus
model = load_model(open_source("tiny"), dtype=torch.float32)
print(torch.get_num_threads(), self_corpus(model, seq_len=24, samples=9, seed=0).digest)
"""


class Markov:
    """A model of three words that one can check by hand: the next depends on the last alone."""

    device = torch.device("cpu")
    # From the last word (row) to the next; the fourth number of two bits is no word.
    table = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.9, 0.1], [1.0, 0.0, 0.0]])

    def __init__(self) -> None:
        self.config: Any = tiny_model("llama").config
        self.config.vocab_size = 3
        self.config.bos_token_id = self.config.eos_token_id = self.config.pad_token_id = 2

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids].log())


def test_a_number_for_each_bit_of_an_id_decides_it() -> None:
    """Of 0.5, 0.25, 0.25, nothing: the high bit at 0.75, the low at 2/3 below and at 1 above."""
    logits = Markov.table[:1].log().expand(4, -1)
    uniforms = torch.tensor([[0.74, 0.66], [0.74, 0.67], [0.76, 0.0], [0.99, 0.99]])
    assert draw(logits, uniforms.double()).tolist() == [0, 1, 2, 2]


def test_words_are_as_frequent_as_the_model_says() -> None:
    ids = self_corpus(Markov(), seq_len=50, samples=400, seed=1).sequences  # type: ignore[arg-type]
    assert 0.42 < (ids[:, 0] == 0).mean() < 0.58  # uniform but for the special word
    assert ids[:, 0].max() == 1
    for word, expected in enumerate(Markov.table.tolist()):
        following = ids[:, 1:][ids[:, :-1] == word]
        counts = np.bincount(following, minlength=3)
        assert counts / len(following) == pytest.approx(
            expected, abs=4 * (0.25 / len(following)) ** 0.5
        )
        assert not counts[np.array(expected) == 0].any()


def test_what_is_impossible_is_not_drawn_at_the_ends_of_the_range() -> None:
    vocab = 37
    logits = torch.full((2, vocab), -torch.inf)
    logits[:, 5] = 0.0
    uniforms = torch.tensor([[0.0] * 6, [1 - 2**-53] * 6], dtype=torch.double)
    assert draw(logits, uniforms).tolist() == [5, 5]


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_sequence_is_the_same_in_a_batch_of_any_size(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(variant)
    wanted = self_corpus(model, seq_len=8, samples=7, seed=3).sequences
    for tokens in (8, 3 * 8):
        monkeypatch.setattr(sampling, "_BATCH_TOKENS", tokens)
        assert (self_corpus(model, seq_len=8, samples=7, seed=3).sequences == wanted).all()
    assert (self_corpus(model, seq_len=8, samples=4, seed=3).sequences == wanted[:4]).all()
    assert (self_corpus(model, seq_len=8, samples=7, seed=4).sequences != wanted).any()
    assert len(np.unique(wanted, axis=0)) == 7


@pytest.mark.parametrize("variant", [*FAMILIES, "qwen2-sliding"])
def test_the_cache_changes_no_draw(variant: str) -> None:
    model = tiny_model(variant)
    ids = self_corpus(model, seq_len=9, samples=3, seed=6).sequences
    uniforms = np.stack([np.random.default_rng((6, row)).random((9, 7)) for row in range(3)])
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids).long()).logits
    for position in range(1, 9):
        drawn = draw(logits[:, position - 1], torch.from_numpy(uniforms[:, position]))
        assert drawn.tolist() == ids[:, position].tolist()


def test_global_random_numbers_are_neither_used_nor_changed() -> None:
    model = tiny_model("nemotron")
    torch.manual_seed(5)
    wanted = self_corpus(model, seq_len=4, samples=2, seed=0).sequences
    after = torch.rand(1)
    assert (self_corpus(model, seq_len=4, samples=2, seed=0).sequences == wanted).all()
    torch.manual_seed(5)
    assert after == torch.rand(1)


def test_text_is_the_same_on_every_processor() -> None:
    """Kernels are chosen as torch is imported: one process for each kind, threads with them."""
    digests = set()
    for threads, capability in ((1, "default"), (2, "avx2"), (2, "native")):
        environment = {"OMP_NUM_THREADS": str(threads), "ATEN_CPU_CAPABILITY": capability}
        process = subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env={**os.environ, **environment},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        count, digest = process.stdout.split()
        assert count == str(threads)
        digests.add(digest)
    model = load_model(open_source("tiny"), dtype=torch.float32)
    digests.add(self_corpus(model, seq_len=24, samples=9, seed=0).digest)
    assert len(digests) == 1


def test_one_token_leaves_nothing_to_sample() -> None:
    with pytest.raises(TargetError, match="needs at least 2"):
        self_corpus(tiny_model("nemotron"), seq_len=1, samples=1, seed=0)


def test_no_progress_bar_is_drawn_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    self_corpus(Markov(), seq_len=5, samples=2, seed=0)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
