"""Importance is what the formulas give, computed by hand and by brute force."""

import copy
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minitron import measure_importance
from minitron.errors import ImportanceError, OutputError
from minitron.model.architecture import Architecture
from minitron.model.importance import Importance
from minitron.scores.activation_scores import Measurement
from minitron.scores.aggregation import KINDS, Aggregation
from minitron.scores.weight_scores import magnitude_scores, random_scores
from minitron.sources.opening import open_source
from minitron.text.corpus import Corpus
from tests.tiny import FAMILIES, SIZES, VARIANTS, activation_scores, tiny_folder, tiny_model

LAYERS = SIZES["num_hidden_layers"]


def corpus(samples: int = 3, seq_len: int = 5) -> Corpus:
    ids = np.random.default_rng(0).integers(SIZES["vocab_size"], size=(samples, seq_len))
    return Corpus(ids.astype(np.int32), "test")


AGGREGATORS = {
    "mean": lambda values: values.abs().mean(0),
    "l2": lambda values: values.square().sum(0).sqrt(),
    "var": lambda values: (values - values.mean(0)).square().mean(0),
}
HEADS, KV_HEADS = SIZES["num_attention_heads"], SIZES["num_key_value_heads"]
Seen = list[dict[str, torch.Tensor]]  # of each sample, what passed each place: (seq, width)


def recorded(model: torch.nn.Module, ids: torch.Tensor) -> Seen:
    """Activations of every sample alone, in float64."""
    seen: dict[str, torch.Tensor] = {}

    def record(name: str, *, output: bool) -> object:
        def hook(module: object, inputs: tuple[torch.Tensor, ...], result: object = None) -> None:
            chosen = result if output else inputs[0]
            whole = chosen[0] if isinstance(chosen, tuple) else chosen
            if name.startswith("before"):  # of a fused projection, whose gate comes first
                whole = whole[..., -SIZES["intermediate_size"] :]
            seen[name] = whole[0].detach().double()

        return hook

    handles = []
    for index, layer in enumerate(model.model.layers):
        # The first modules of attention and MLP read their inputs.
        up = getattr(layer.mlp, "up_proj", None) or layer.mlp.gate_up_proj
        places = {
            f"in{index}": (
                getattr(layer.self_attn, "q_proj", None) or layer.self_attn.qkv_proj,
                False,
            ),
            f"post{index}": (up, False),
            f"heads{index}": (layer.self_attn.o_proj, False),
            f"after{index}": (layer.mlp.down_proj, False),
            f"before{index}": (up, True),
            f"out{index}": (layer, True),
            f"stream{index}": (layer, False),
        }
        for name, (module, output) in places.items():
            handles.append(module.register_forward_hook(record(name, output=output)))
    samples = []
    for row in ids:
        with torch.no_grad():
            model.model(input_ids=row[None])
        samples.append(dict(seen))
    for handle in handles:
        handle.remove()
    return samples


def brute_force(
    model: torch.nn.Module,
    ids: torch.Tensor,
    *,
    batch: str = "l2",
    sequence: str = "mean",
    neurons: str = "after",
) -> dict[str, torch.Tensor]:
    """The paper's formulas on recorded activations, sample by sample, in float64."""
    samples = recorded(model, ids)

    def aggregate(name: str, norms: int | None = None) -> torch.Tensor:
        scores = []
        for sample in samples:
            values = sample[name]  # (seq, width)
            if norms is not None:
                values = values.view(len(values), norms, -1).norm(dim=-1)
            scores.append(AGGREGATORS[sequence](values))
        return AGGREGATORS[batch](torch.stack(scores))

    layers = range(len(model.model.layers))
    return {
        "hidden": sum(aggregate(f"{kind}{i}") for i in layers for kind in ("in", "post")),
        "ffn": torch.stack([aggregate(f"{neurons}{i}") for i in layers]),
        "heads": torch.stack([aggregate(f"heads{i}", HEADS) for i in layers]),
        "kv_heads": torch.stack([aggregate(f"heads{i}", KV_HEADS) for i in layers]),
        "layers": torch.stack([influence(samples, i, i) for i in layers]),
    }


def influence(samples: Seen, first: int, last: int) -> torch.Tensor:
    cosines = [
        torch.cosine_similarity(sample[f"stream{first}"], sample[f"out{last}"], dim=-1)
        for sample in samples
    ]
    return 1 - torch.cat(cosines).mean()


def modelopt(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """mcore_minitron.py of nvidia-modelopt 0.43, batch size 1, on recorded activations."""
    samples, layers = recorded(model, ids), range(len(model.model.layers))

    def collected(name: str) -> torch.Tensor:
        total = torch.zeros(())
        for sample in samples:
            activations = sample[name][:, None].to(torch.float32)  # (seq, batch, width)
            total = total + activations.abs().mean(dim=0).pow(2).sum(dim=0)
        return total.pow(0.5)

    heads = [collected(f"heads{i}").view(HEADS, -1) for i in layers]
    groups = [each.view(KV_HEADS, HEADS // KV_HEADS, -1) for each in heads]
    depth = [
        sum(
            1 - torch.cosine_similarity(s[f"stream{i}"], s[f"out{i}"], dim=-1).mean()
            for s in samples
        )
        for i in layers
    ]
    norms = [collected(f"{kind}{i}") for i in layers for kind in ("in", "post")]
    return {
        "hidden": torch.stack(norms).sum(dim=0).double(),
        "ffn": torch.stack([collected(f"after{i}") for i in layers]).double(),
        "heads": torch.stack([torch.linalg.vector_norm(h, ord=2, dim=1) for h in heads]).double(),
        "kv_heads": torch.stack(
            [torch.linalg.vector_norm(g, ord=2, dim=(1, 2)) for g in groups]
        ).double(),
        "layers": torch.stack(depth).double(),
    }


def contribution(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every part adds to what its readers compute, token by token, from recorded inputs."""
    wide, read = copy.deepcopy(model).double(), dict[torch.nn.Module, torch.Tensor]()
    for module in wide.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda m, inputs: read.update({m: inputs[0]}))
    with torch.no_grad():
        wide(input_ids=ids, use_cache=False)

    def rms(linear: torch.nn.Linear, units: int, rows: slice = slice(None)) -> torch.Tensor:
        given = read[linear].flatten(0, 1).unflatten(1, (units, -1))  # (tokens, units, columns)
        weight = linear.weight.detach()[rows].unflatten(1, (units, -1))  # (out, units, columns)
        added = torch.einsum("tuc,ouc->tou", given, weight)
        return added.square().sum(1).mean(0).sqrt()

    ends = {"qkv_proj": (0, 48, 64, 80), "gate_up_proj": (0, 66, 132)}  # of parts that are fused

    layers, width = wide.model.layers, model.config.hidden_size
    readers = [
        (linear, slice(*run))
        for layer in layers
        for name, linear in layer.named_modules()
        if isinstance(linear, torch.nn.Linear) and not name.endswith(("o_proj", "down_proj"))
        for run in pairwise(ends.get(name.rpartition(".")[2], (0, len(linear.weight))))
    ]
    readers.append((wide.lm_head, slice(None)))
    return {
        "hidden": sum(rms(linear, width, rows) for linear, rows in readers),
        "ffn": torch.stack([rms(x.mlp.down_proj, SIZES["intermediate_size"]) for x in layers]),
        "heads": torch.stack([rms(x.self_attn.o_proj, HEADS) for x in layers]),
        "kv_heads": torch.stack([rms(x.self_attn.o_proj, KV_HEADS) for x in layers]),
    }


def without(model: torch.nn.Module, start: int, stop: int, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the model without the layers [start, stop)."""
    cut = copy.deepcopy(model)
    kept = [layer for layer in range(LAYERS) if not start <= layer < stop]
    cut.model.layers = torch.nn.ModuleList(cut.model.layers[layer] for layer in kept)
    cut.config.num_hidden_layers = len(kept)
    if getattr(cut.config, "layer_types", None):
        cut.config.layer_types = [cut.config.layer_types[layer] for layer in kept]
    with torch.no_grad():
        logits: torch.Tensor = cut(input_ids=ids, use_cache=False).logits.double()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_brute_force_of_the_papers_formulas(family: str) -> None:
    model, text = tiny_model(family), corpus()
    scores = activation_scores(model, text)
    wanted = brute_force(model, torch.from_numpy(text.sequences).long())
    for axis, values in wanted.items():
        torch.testing.assert_close(scores.axis(axis), values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("neurons", ["after", "before"])
@pytest.mark.parametrize(("batch", "sequence"), list(product(KINDS, KINDS)))
def test_every_axis_of_a_two_layer_model_equals_the_formulas_for_every_aggregation(
    batch: str, sequence: str, neurons: Any
) -> None:
    model, text = tiny_model("qwen3", num_hidden_layers=2), corpus(samples=5)
    ids = torch.from_numpy(text.sequences).long()
    settings = Measurement(aggregation=Aggregation(batch, sequence), neurons=neurons)
    scores = activation_scores(model, text, settings)
    wanted = brute_force(model, ids, batch=batch, sequence=sequence, neurons=neurons)
    for axis, values in wanted.items():
        torch.testing.assert_close(scores.axis(axis), values, rtol=1e-4, atol=1e-6)
    assert scores.made_by["aggregation"] == {"batch": batch, "sequence": sequence}


@pytest.mark.parametrize("family", ["nemotron", "llama"])
def test_modelopt_scores_are_what_modelopt_computes(family: str) -> None:
    model, text = tiny_model(family), corpus(samples=5)
    scores = activation_scores(model, text, Measurement(scores="modelopt"))
    wanted = modelopt(model, torch.from_numpy(text.sequences).long())
    for axis, values in wanted.items():
        torch.testing.assert_close(scores.axis(axis), values, rtol=1e-5, atol=1e-6)
    assert scores.made_by["scores"] == "modelopt"


@pytest.mark.parametrize("variant", VARIANTS)
def test_contributions_equal_what_each_part_adds_to_its_readers(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.scores.contribution._VALUES", 200)  # several runs of rows
    model, text = tiny_model(variant), corpus(samples=5)
    settings = Measurement(scores="contribution", block_size=2)
    scores = activation_scores(model, text, settings, batch_tokens=10)  # in three batches
    wanted = contribution(model, torch.from_numpy(text.sequences).long())
    for axis, values in wanted.items():
        torch.testing.assert_close(scores.axis(axis), values, rtol=1e-4, atol=1e-6)
    paper = activation_scores(model, text, Measurement(block_size=2))
    for axis in ("layers", "blocks"):
        torch.testing.assert_close(scores.axis(axis), paper.axis(axis), rtol=1e-6, atol=1e-7)
    assert scores.made_by["scores"] == "contribution"
    assert "aggregation" not in scores.made_by


@pytest.mark.parametrize("variant", ["nemotron", "qwen2-sliding", "llama-biased-tied"])
def test_blocks_have_the_influence_of_what_is_between_their_ends(variant: str) -> None:
    model, text = tiny_model(variant), corpus()
    scores = activation_scores(model, text, Measurement(block_size=3))
    samples = recorded(model, torch.from_numpy(text.sequences).long())
    wanted = torch.stack([influence(samples, start, start + 2) for start in range(LAYERS - 2)])
    torch.testing.assert_close(scores.axis("blocks"), wanted, rtol=1e-4, atol=1e-6)
    singles = torch.stack([influence(samples, layer, layer) for layer in range(LAYERS)])
    torch.testing.assert_close(scores.axis("layers"), singles, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("measure", ["loss", "logits"])
@pytest.mark.parametrize("variant", ["nemotron", "qwen2-sliding", "llama-biased-tied"])
def test_layers_can_be_scored_by_what_the_model_is_without_them(
    variant: str, measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "minitron.sources.layer_stream.BLOCK_BYTES", 3000
    )  # the head in several blocks
    monkeypatch.setattr("minitron.sources.streamed_loss._LOGITS", 100)
    model, text = tiny_model(variant), corpus(samples=4, seq_len=9)
    scores = activation_scores(model, text, Measurement(layer_scores=measure, block_size=2))
    ids = torch.from_numpy(text.sequences).long()
    whole = without(model, 0, 0, ids)

    def lost(start: int, stop: int) -> torch.Tensor:
        logits = without(model, start, stop, ids)
        if measure == "logits":
            return (logits - whole).square().sum() / whole.square().sum()
        nats = [
            F.cross_entropy(some[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            for some in (logits, whole)
        ]
        return nats[0] - nats[1]

    layers = torch.stack([lost(layer, layer + 1) for layer in range(LAYERS)])
    blocks = torch.stack([lost(start, start + 2) for start in range(LAYERS - 1)])
    torch.testing.assert_close(scores.axis("layers"), layers, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.axis("blocks"), blocks, rtol=1e-4, atol=1e-5)


def test_large_activations_do_not_overflow_in_half_precision() -> None:
    model = tiny_model("nemotron", dtype=torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight *= 1e6
    scores = activation_scores(model, corpus())
    assert all(scores.axis(axis).isfinite().all() for axis in scores.axes)
    assert scores.axis("ffn").max() > 1e11


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


def test_batches_do_not_change_scores() -> None:
    model, text = tiny_model(), corpus(samples=7)
    whole = activation_scores(model, text)
    cut = activation_scores(model, text, batch_tokens=10)
    for axis in whole.axes:
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
    v, k = layer.self_attn.v_proj, layer.self_attn.k_proj
    neurons = up.weight.square().sum(1) + up.bias.square() + down.weight.square().sum(0)
    torch.testing.assert_close(scores.axis("ffn")[3], neurons.detach().sqrt().double())
    q, o = layer.self_attn.q_proj, layer.self_attn.o_proj
    heads = (q.weight.square().sum(1) + q.bias.square() + o.weight.square().sum(0)).view(6, 8)
    torch.testing.assert_close(scores.axis("heads")[3], heads.sum(1).detach().sqrt().double())
    groups = heads.sum(1).view(2, 3).sum(1)
    for projection in (k, v):
        rows = projection.weight.square().sum(1) + projection.bias.square()
        groups = groups + rows.view(2, 8).sum(1)
    torch.testing.assert_close(scores.axis("kv_heads")[3], groups.detach().sqrt().double())
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
