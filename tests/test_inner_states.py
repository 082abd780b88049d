"""Inner states are those that the model itself computes, at the places that were named."""

from typing import Any

import pytest
import torch

from minitron.errors import TargetError
from minitron.model.architecture import Architecture
from minitron.model.decoder import Decoder
from minitron.training.inner_states import InnerState, captured_states, state_pairs
from tests.tiny import tiny_model

IDS = torch.tensor([[5, 9, 11, 7, 3]])


@pytest.mark.parametrize("variant", ["nemotron", "llama", "qwen3"])
def test_states_are_what_the_model_computes(variant: str) -> None:
    model = tiny_model(variant)
    decoder: Any = model.model.eval()
    last = len(decoder.layers) - 1
    parts = ["embedding", "hidden", "mlp_input", "mlp_output", "q", "k", "v"]
    places = [InnerState(part, 0 if part == "embedding" else 1) for part in parts]
    with captured_states(Decoder.of(model), [*places, InnerState("hidden", last)]) as states:
        output = decoder(IDS, use_cache=False, output_hidden_states=True)
    seen = dict(zip(parts, states, strict=False))
    entering, leaving = output.hidden_states[1:3]
    layer = decoder.layers[1]
    own = layer.input_layernorm(entering)
    expected = {
        "embedding": decoder.layers[0].input_layernorm(output.hidden_states[0]),
        "hidden": decoder.layers[2].input_layernorm(leaving),
        "mlp_output": layer.mlp(seen["mlp_input"]),
        "q": layer.self_attn.q_proj(own),
        "k": layer.self_attn.k_proj(own),
        "v": layer.self_attn.v_proj(own),
    }
    for part, value in expected.items():
        torch.testing.assert_close(seen[part], value)
    before_mlp = leaving - seen["mlp_output"]
    torch.testing.assert_close(seen["mlp_input"], layer.post_attention_layernorm(before_mlp))
    torch.testing.assert_close(states[-1], output.last_hidden_state)


def test_nothing_watches_a_model_afterwards() -> None:
    model = tiny_model("nemotron")
    decoder: Any = model.model.eval()
    with captured_states(Decoder.of(model), [InnerState("mlp_output", 0)]) as states:
        decoder(IDS)
    before = states[0]
    decoder(IDS + 1)
    assert states[0] is before


def architecture(layers: int) -> Architecture:
    model = tiny_model("nemotron", num_hidden_layers=layers)
    return Architecture.from_config(model.config.to_dict())


def test_the_third_last_layers_are_compared_unless_others_are_named() -> None:
    ours, theirs = architecture(4), architecture(7)
    pairs = state_pairs("embedding,hidden", None, ours=ours, theirs=theirs)
    assert [(pair.ours, pair.theirs) for pair in pairs] == [
        (InnerState("embedding", 0), InnerState("embedding", 0)),
        (InnerState("hidden", 1), InnerState("hidden", 4)),
    ]
    pairs = state_pairs("attention", "6:3,2:0", ours=ours, theirs=theirs)
    assert all(pair.compares_relations for pair in pairs)
    assert [(pair.theirs.part, pair.theirs.layer, pair.ours.layer) for pair in pairs] == [
        *(("q", 6, 3), ("q", 2, 0), ("k", 6, 3)),
        *(("k", 2, 0), ("v", 6, 3), ("v", 2, 0)),
    ]


def test_models_without_a_third_last_layer_need_a_map() -> None:
    ours, theirs = architecture(2), architecture(4)
    with pytest.raises(TargetError, match="a model has 2: give --layer-map"):
        state_pairs("hidden", None, ours=ours, theirs=theirs)
    [pair] = state_pairs("hidden", "3:1", ours=ours, theirs=theirs)
    assert (pair.theirs.layer, pair.ours.layer) == (3, 1)
