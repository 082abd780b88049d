"""The loss of a model that is read layer by layer: that of the loaded one, in bounded memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitron.errors import CorpusError
from minitron.evaluation import loss
from minitron.evaluation.loss import evaluate_text
from minitron.sources.loading import load_model, loaded_bytes
from minitron.sources.opening import open_source
from minitron.sources.streamed_loss import streamed_loss
from minitron.text.corpus import HeldOut
from tests.tiny import VARIANTS, tiny_folder


def held_out(vocab_size: int) -> HeldOut:
    """Windows of two lengths, some targets of which do not count."""
    random = np.random.default_rng(0)
    inputs = tuple(
        random.integers(0, vocab_size, shape, dtype=np.int32) for shape in ((5, 19), (1, 7))
    )
    targets = tuple(random.integers(0, vocab_size, ids.shape, dtype=np.int32) for ids in inputs)
    targets[0][1, 4:9] = -100
    targets[1][0, 0] = -100
    return HeldOut(inputs, targets, None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_streamed_loss_is_that_of_the_loaded_model(variant: str, tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "it", variant)))
    text = held_out(101)
    nats, counted = streamed_loss(source, text.inputs, text.targets)
    loaded = evaluate_text(load_model(source), text)
    assert counted == loaded.tokens == 5 * 19 + 7 - 6
    assert nats / counted == pytest.approx(loaded.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value"), [("_LOGITS", 100), ("_BATCH_TOKENS", 20), ("CHUNK_BYTES", 42 * 4 * 40)]
)
def test_how_much_is_held_at_once_changes_nothing(
    name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(tiny_folder(tmp_path / "it")))
    text = held_out(101)
    nats, counted = streamed_loss(source, text.inputs, text.targets)
    monkeypatch.setattr(f"minitron.sources.streamed_loss.{name}", value)
    monkeypatch.setattr(
        "minitron.sources.layer_stream.BLOCK_BYTES", 3000
    )  # the head in several blocks
    again, counted_again = streamed_loss(source, text.inputs, text.targets)
    assert counted_again == counted
    assert again == pytest.approx(nats, rel=1e-6)


def test_a_candidate_that_does_not_fit_is_compared_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(tiny_folder(tmp_path / "it")))
    text = held_out(101)
    loaded = loss.source_loss(source, text)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was loaded whole")

    monkeypatch.setattr(loss, "load_model", refuse)
    with pytest.raises(AssertionError, match="loaded whole"):
        loss.source_loss(source, text)
    needed = loaded_bytes(source, None, "cpu")
    monkeypatch.setattr(loss, "free_memory", lambda device: needed - 1)
    assert loss.source_loss(source, text) == pytest.approx(loaded, rel=1e-6)


@pytest.mark.parametrize("in_memory", [True, False])
def test_ids_outside_the_vocabulary_are_refused_either_way(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(tiny_folder(tmp_path / "it")))
    monkeypatch.setattr(loss, "free_memory", lambda device: 1 << 40 if in_memory else 0)
    with pytest.raises(CorpusError, match="token id 10[1-9], outside the model's vocabulary"):
        loss.source_loss(source, held_out(110))
