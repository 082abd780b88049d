"""Scores by optimal brain surgery are the errors of a greedy removal by hand, in float64."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from minitron.model.architecture import Architecture
from minitron.model.plan import choose_plan
from minitron.scores.activation_scores import Measurement
from minitron.scores.removal import RIDGE, add_moments, mirror, removal_errors
from minitron.text.corpus import Corpus
from tests.tiny import SIZES, activation_scores, tiny_model

OBS = Measurement(scores="obs")
HEADS, KV_HEADS = SIZES["num_attention_heads"], SIZES["num_key_value_heads"]


def corpus(samples: int = 8, seq_len: int = 40) -> Corpus:
    ids = np.random.default_rng(0).integers(SIZES["vocab_size"], size=(samples, seq_len))
    return Corpus(ids.astype(np.int32), "test")


def removed_by_hand(
    inputs: torch.Tensor, weight: torch.Tensor, groups: int, sets: int = 1
) -> tuple[list[int], torch.Tensor]:
    """The greedy order, with W and H^-1 written out after each removal, and RMS errors by group."""
    size, each = len(weight.T) // groups, groups // sets
    products = inputs.T @ inputs
    products += RIDGE * products.diagonal().mean() * torch.eye(len(products)).double()
    inverse, weight = torch.linalg.inv(products), weight * (inputs != 0).any(0)
    order: list[int] = []
    errors, error = torch.zeros(groups).double(), 0.0
    while len(order) < groups:
        left = [group for group in range(groups) if group not in order]
        lost = [sum(group // each == one for group in order) for one in range(sets)]
        fewest = min(lost[group // each] for group in left)
        rises = {}
        for group in (one for one in left if lost[one // each] == fewest):
            at = slice(group * size, (group + 1) * size)
            within = torch.linalg.inv(inverse[at, at])
            rises[group] = float(torch.trace(weight[:, at] @ within @ weight[:, at].T))
        first = min(rises, key=lambda one: rises[one])
        at = slice(first * size, (first + 1) * size)
        within = torch.linalg.inv(inverse[at, at])
        weight -= weight[:, at] @ within @ inverse[at]
        inverse = inverse - inverse[:, at] @ within @ inverse[at]
        error += rises[first]
        order.append(first)
        errors[first] = (error / len(inputs)) ** 0.5
    return order, errors


def recorded(model: PreTrainedModel, text: Corpus, module: str) -> torch.Tensor:
    """What a linear reads, (tokens, inputs) in float64."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(text.sequences).long(), use_cache=False)
    hook.remove()
    return seen[0].flatten(0, 1).double()


@pytest.mark.parametrize("variant", ["nemotron", "llama-biased-tied"])
def test_neurons_and_heads_are_ordered_as_a_greedy_removal_by_hand(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron.scores.removal._COLUMNS", 16)  # several groups at once, or one
    monkeypatch.setattr("minitron.scores.removal._AT_ONCE", 20)
    model, text = tiny_model(variant), corpus()
    scores = activation_scores(model, text, OBS, batch_tokens=100)
    for layer in range(SIZES["num_hidden_layers"]):
        for axis, module, groups, sets in (
            ("ffn", "mlp.down_proj", SIZES["intermediate_size"], 1),
            ("heads", "self_attn.o_proj", HEADS, KV_HEADS),
            ("kv_heads", "self_attn.o_proj", KV_HEADS, 1),
        ):
            name = f"model.layers.{layer}.{module}"
            inputs, weight = recorded(model, text, name), model.get_submodule(name).weight
            order, errors = removed_by_hand(inputs, weight.detach().double(), groups, sets)
            found = scores.axis(axis)[layer]
            assert found.argsort().tolist() == order
            torch.testing.assert_close(found, errors, rtol=1e-4, atol=1e-6)


def test_other_axes_are_scored_by_contribution_and_as_in_the_paper() -> None:
    model, text = tiny_model("qwen3"), corpus()
    scores = activation_scores(model, text, OBS)
    contribution = activation_scores(model, text, Measurement(scores="contribution"))
    for axis in ("hidden", "layers"):
        assert torch.equal(scores.axis(axis), contribution.axis(axis))
    assert scores.made_by["scores"] == "obs"
    assert "neurons" not in scores.made_by


def test_a_dead_neuron_is_cut_first_a_vital_one_last_and_every_cut_is_a_prefix() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        mlp = model.model.layers[2].mlp
        mlp.up_proj.weight[17] = 0
        mlp.down_proj.weight[:, 17] = 100  # which nothing reaches
        mlp.down_proj.weight[:, 23] *= 50
    scores = activation_scores(model, corpus(), OBS)
    order = scores.axis("ffn")[2].argsort().tolist()
    assert (order[0], order[-1]) == (17, 23)
    assert scores.axis("ffn")[2, 17] == 0
    source = Architecture.from_config(model.config.to_dict())
    for size in (1, 30, 65):
        plan = choose_plan(scores, source, source.resized(intermediate_size=size))
        assert sorted(order[-size:]) == list(plan.ffn[2])
    heads = scores.axis("heads")[2].argsort().tolist()
    for count in (2, 4):
        plan = choose_plan(scores, source, source.with_heads(count))
        assert sorted(heads[-count:]) == list(plan.heads[2])


def test_a_layer_that_reads_only_zeros_loses_nothing_and_one_of_infinities_has_no_scores() -> None:
    products = torch.rand(6, 6).double()
    nothing = removal_errors(torch.zeros(6, 6).double(), products @ products.T, size=2)
    assert nothing.tolist() == [0, 0, 0]
    unbounded = removal_errors(torch.full((6, 6), torch.inf).double(), products, size=1)
    assert unbounded.isnan().all()


@pytest.mark.parametrize("size", [1, 4])
def test_a_wide_linear_is_ordered_as_by_hand(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 160, generator=generator) @ torch.randn(160, 160, generator=generator)
    weight = torch.randn(24, 160, generator=generator)
    order, errors = removed_by_hand(inputs.double(), weight.double(), 160 // size)
    moments, products = torch.zeros(2, 160, 160).double()
    for total, rows in ((moments, inputs), (products, weight)):
        add_moments(total, rows)
        mirror(total)
    found = removal_errors(moments, products, size)
    assert found.argsort().tolist() == order
    torch.testing.assert_close((found / 400).sqrt(), errors, rtol=1e-4, atol=0)
