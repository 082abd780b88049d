"""A decoder run layer by layer is the decoder, for every family, and holds two layers at most."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron.errors import SourceError
from minitron.sources.layer_stream import LayerStream
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from tests.tiny import SIZES, VARIANTS, tiny_folder, tiny_model, weights_of

IDS = torch.randint(SIZES["vocab_size"], (3, 11), generator=torch.Generator().manual_seed(0))


def run_through(stream: LayerStream, ids: torch.Tensor = IDS) -> torch.Tensor:
    states = stream.embed(ids)
    for index, layer in stream.layers():
        states = stream.run(index, layer, states)
    return stream.normed(states)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_stream_gives_what_the_model_gives(variant: str, keep: bool, tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "model", variant)))
    stream = LayerStream.of_source(source, keep=keep)
    wanted = load_model(source).model(input_ids=IDS, use_cache=False).last_hidden_state
    assert torch.equal(run_through(stream), wanted)
    assert torch.equal(run_through(stream), wanted)  # and again, with what was kept
    shorter = load_model(source).model(input_ids=IDS[:, :7], use_cache=False).last_hidden_state
    assert torch.equal(run_through(stream, IDS[:, :7]), shorter)


@pytest.mark.parametrize("variant", ["nemotron-biased", "qwen2-sliding", "mistral"])
@torch.inference_mode()
def test_a_loaded_model_can_be_streamed_and_stays_as_it_was(variant: str) -> None:
    model = tiny_model(variant, dtype=torch.bfloat16, sliding_window=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = model.model(input_ids=IDS, use_cache=False).last_hidden_state
    assert torch.equal(run_through(LayerStream.of_model(model)), wanted)
    assert torch.equal(model.model(input_ids=IDS, use_cache=False).last_hidden_state, wanted)
    assert all(torch.equal(before[name], held) for name, held in model.state_dict().items())


def test_the_embedding_passes_once_for_all_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.sources.layer_stream.BLOCK_BYTES", 1000)
    folder = tiny_folder(tmp_path / "model")
    stream = LayerStream.of_source(open_source(str(folder)), keep=False)
    reads: list[tuple[int, int]] = []
    read = LayerStream._read

    def watched(self: LayerStream, name: str, start: int, stop: int) -> torch.Tensor:
        reads.append((start, stop))
        return read(self, name, start, stop)

    monkeypatch.setattr(LayerStream, "_read", watched)
    batches = [torch.tensor([[5, 99, 5]]), torch.tensor([[6], [98]])]
    table = weights_of(folder)["model.embed_tokens.weight"]
    for ids, states in zip(batches, stream.embed_all(batches), strict=True):
        assert torch.equal(states, table[ids])
    assert len(reads) == 2  # of some twenty blocks, each once
    assert all(stop - start < 7 for start, stop in reads)


@torch.inference_mode()
def test_it_computes_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    source = open_source(str(tiny_folder(tmp_path / "model", dtype=torch.bfloat16)))
    stream = LayerStream.of_source(source, dtype=torch.bfloat16, keep=False)
    wanted = load_model(source, dtype=torch.bfloat16).model(input_ids=IDS, use_cache=False)
    states = run_through(stream)
    assert states.dtype == torch.bfloat16
    assert torch.equal(states, wanted.last_hidden_state)


@pytest.mark.parametrize("variant", ["llama", "llama-biased-tied"])
@torch.inference_mode()
def test_the_head_comes_in_blocks_that_make_the_logits(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.sources.layer_stream.BLOCK_BYTES", 1000)  # some five rows
    source = open_source(str(tiny_folder(tmp_path / "model", variant)))
    stream = LayerStream.of_source(source, keep=False)
    states = run_through(stream)  # embedded from such blocks too
    blocks = list(stream.head_blocks())
    assert len(blocks) > 10
    assert [first for first, _ in blocks] == list(range(0, SIZES["vocab_size"], len(blocks[0][1])))
    logits = torch.cat([states @ rows.T for _, rows in blocks], dim=-1)
    torch.testing.assert_close(logits, load_model(source)(input_ids=IDS, use_cache=False).logits)


def test_two_layers_are_held_and_the_next_one_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = LayerStream.of_source(
        open_source(str(tiny_folder(tmp_path / "model", num_hidden_layers=7))), keep=False
    )
    alive: set[tuple[int, int]] = set()
    read = LayerStream._weights_of

    def watched(self: LayerStream, index: int) -> dict[str, torch.Tensor]:
        weights = read(self, index)
        for name, tensor in weights.items():
            alive.add((index, id(name)))
            weakref.finalize(tensor.untyped_storage(), alive.discard, (index, id(name)))
        return weights

    monkeypatch.setattr(LayerStream, "_weights_of", watched)
    most: set[int] = set()
    for index, layer in stream.layers():
        states = stream.run(index, layer, torch.randn(1, 5, SIZES["hidden_size"]))
        assert states.isfinite().all()
        gc.collect()
        held = {layer for layer, _ in alive}
        assert held <= {index, index + 1}
        most |= held
    assert most == set(range(7))


def test_a_layer_that_is_damaged_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    weights = dict(weights_of(folder))
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = torch.inf
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stream = LayerStream.of_source(open_source(str(folder)), keep=False)
    turns: list[Any] = []
    with pytest.raises(SourceError, match="layers.2.mlp.up_proj.weight holds NaN or infinity"):
        turns.extend(index for index, _ in stream.layers())
    assert len(turns) <= 2
