"""Importance is what the formulas say, told by hand and by brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch

from minitron import measure_importance
from minitron.activation_scores import activation_scores
from minitron.architecture import Architecture
from minitron.corpus import Corpus
from minitron.errors import ImportanceError, OutputError
from minitron.importance import Importance
from minitron.source import open_source
from minitron.weight_scores import magnitude_scores, random_scores
from tests.tiny import FAMILIES, SIZES, tiny_folder, tiny_model

LAYERS = SIZES["num_hidden_layers"]


def corpus(samples: int = 3, seq_len: int = 5) -> Corpus:
    ids = np.random.default_rng(0).integers(SIZES["vocab_size"], size=(samples, seq_len))
    return Corpus(ids.astype(np.int32), "test")


def brute_force(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The paper's formulas on recorded activations, sample by sample, in float64."""
    seen: dict[str, torch.Tensor] = {}

    def record(name: str, *, output: bool) -> object:
        def hook(module: object, inputs: tuple[torch.Tensor, ...], result: object = None) -> None:
            chosen = result if output else inputs[0]
            seen[name] = (chosen[0] if isinstance(chosen, tuple) else chosen).detach().double()

        return hook

    handles = []
    for index, layer in enumerate(model.model.layers):
        handles += [
            layer.input_layernorm.register_forward_hook(record(f"in{index}", output=True)),
            layer.post_attention_layernorm.register_forward_hook(
                record(f"post{index}", output=True)
            ),
            layer.self_attn.o_proj.register_forward_hook(record(f"heads{index}", output=False)),
            layer.mlp.down_proj.register_forward_hook(record(f"ffn{index}", output=False)),
            layer.register_forward_hook(record(f"out{index}", output=True)),
            layer.register_forward_pre_hook(record(f"stream{index}", output=False)),
        ]
    samples = []
    for row in ids:
        with torch.no_grad():
            model.model(input_ids=row[None])
        samples.append(dict(seen))
    for handle in handles:
        handle.remove()

    def aggregate(name: str, width: int | None = None) -> torch.Tensor:
        means = []
        for sample in samples:
            values = sample[name][0]  # (seq, width)
            if width is not None:
                values = values.view(len(values), width, -1).norm(dim=-1)
            means.append(values.abs().mean(0))
        return torch.stack(means).square().sum(0).sqrt()

    def influence(index: int) -> torch.Tensor:
        cosines = [
            torch.cosine_similarity(s[f"stream{index}"][0], s[f"out{index}"][0], dim=-1)
            for s in samples
        ]
        return 1 - torch.cat(cosines).mean()

    layers = range(LAYERS)
    return {
        "hidden": sum(aggregate(f"{kind}{i}") for i in layers for kind in ("in", "post")),
        "ffn": torch.stack([aggregate(f"ffn{i}") for i in layers]),
        "heads": torch.stack(
            [aggregate(f"heads{i}", SIZES["num_attention_heads"]) for i in layers]
        ),
        "layers": torch.stack([influence(i) for i in layers]),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_brute_force_of_the_papers_formulas(family: str) -> None:
    model, text = tiny_model(family), corpus()
    scores = activation_scores(model, text)
    wanted = brute_force(model, torch.from_numpy(text.sequences).long())
    for axis, values in wanted.items():
        torch.testing.assert_close(scores.axis(axis), values, rtol=1e-4, atol=1e-6)


def test_hidden_scores_equal_a_hand_computation_on_two_tokens_of_two_samples() -> None:
    # With zero weights after the embedding every norm sees the embedding alone: row r of
    # LayerNorm1P with zero weight is (r - mean) / std, for all 2 * LAYERS norms the same.
    model = tiny_model("nemotron")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" not in name:
                parameter.zero_()
    ids = np.array([[1, 2], [3, 4]], np.int32)
    rows = model.model.embed_tokens.weight.detach().double()
    normed = (rows - rows.mean(1, True)) / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    first = (normed[1].abs() + normed[2].abs()) / 2
    second = (normed[3].abs() + normed[4].abs()) / 2
    expected = 2 * LAYERS * (first.square() + second.square()).sqrt()
    scores = activation_scores(model, Corpus(ids, "two by two"))
    torch.testing.assert_close(scores.axis("hidden"), expected, rtol=1e-4, atol=1e-5)
    # And a layer that adds nothing to the stream has no influence.
    torch.testing.assert_close(scores.axis("layers"), torch.zeros(LAYERS).double())


def test_batches_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = tiny_model(), corpus(samples=7)
    whole = activation_scores(model, text)
    monkeypatch.setattr("minitron.activation_scores._BATCH_TOKENS", 10)
    cut = activation_scores(model, text)
    for axis in ("hidden", "ffn", "heads", "layers"):
        torch.testing.assert_close(cut.axis(axis), whole.axis(axis), rtol=1e-5, atol=1e-7)


def test_hooks_are_gone_afterwards() -> None:
    model = tiny_model()
    activation_scores(model, corpus())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_planted_neuron_and_head_score_highest() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[17] *= 50
        model.model.layers[1].self_attn.v_proj.weight[8:16] *= 50  # KV group 1: heads 3 to 5
    scores = activation_scores(model, corpus())
    assert int(scores.axis("ffn")[2].argmax()) == 17
    assert set(scores.axis("heads")[1].topk(3).indices.tolist()) == {3, 4, 5}


def test_magnitude_scores_are_the_norms_of_the_weights_on_each_position(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "nemotron-biased")
    model = tiny_model("nemotron-biased")
    scores = magnitude_scores(open_source(str(folder)))
    layer = model.model.layers[3]
    up, down = layer.mlp.up_proj, layer.mlp.down_proj
    neurons = up.weight.square().sum(1) + up.bias.square() + down.weight.square().sum(0)
    torch.testing.assert_close(scores.axis("ffn")[3], neurons.detach().sqrt().double())
    q, o = layer.self_attn.q_proj, layer.self_attn.o_proj
    heads = (q.weight.square().sum(1) + q.bias.square() + o.weight.square().sum(0)).view(6, 8)
    torch.testing.assert_close(scores.axis("heads")[3], heads.sum(1).detach().sqrt().double())
    layers = sum(p.square().sum() for p in layer.parameters())
    torch.testing.assert_close(scores.axis("layers")[3], layers.detach().sqrt().double())
    rows = sum(
        weight.square().sum(0 if weight.shape[-1] == SIZES["hidden_size"] else 1)
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and SIZES["hidden_size"] in weight.shape
    )
    vectors = sum(
        p.square() for p in model.parameters() if p.dim() == 1 and len(p) == SIZES["hidden_size"]
    )
    torch.testing.assert_close(scores.axis("hidden"), (rows + vectors).detach().sqrt().double())


def test_random_scores_follow_their_seed() -> None:
    architecture = Architecture("llama", *[SIZES[key] for key in SIZES])
    one, same, other = (random_scores(architecture, seed) for seed in (1, 1, 2))
    assert one.digest == same.digest != other.digest


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = activation_scores(tiny_model(), corpus())
    saved.save(tmp_path / "scores.safetensors")
    loaded = Importance.load(tmp_path / "scores.safetensors")
    assert loaded.digest == saved.digest
    assert loaded.made_by == saved.made_by
    assert loaded.made_by["tokens"] == 15


def test_measuring_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    np.save(tmp_path / "ids.npy", corpus().sequences)
    for name in ("one", "two"):
        measure_importance(str(folder), str(tmp_path / name), corpus=str(tmp_path / "ids.npy"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("mine")
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(OutputError, match="exists already"):
        measure_importance(str(folder), str(tmp_path / "scores"), scores="random")
    assert (tmp_path / "scores").read_text() == "mine"


def test_a_file_that_holds_no_importance_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(ImportanceError, match="no importance file"):
        Importance.load(folder / "model.safetensors")
    with pytest.raises(ImportanceError, match="does not exist"):
        Importance.load(tmp_path / "nothing")
