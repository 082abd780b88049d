"""Quantized weights take fewer bytes, say nearly the same words, and are refused where due."""

import logging
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import minitron
from minitron.cli import main
from minitron.errors import MissingExtraError, TargetError
from minitron.sources import quantization
from minitron.sources.loading import load_model
from minitron.sources.opening import open_source
from minitron.sources.quantization import quantized, weight_bytes
from tests.tiny import tiny_model, zoo_tokenizer

pytest.importorskip("optimum.quanto")

PROSE = """
The rain had stopped before they reached the village, and the old man, who had not spoken since the
bridge, lifted his hat to the first person whom they met. "You will find the house empty," said the
woman, looking from one to the other. "He went away on Tuesday, and he told nobody where he was
going." They thanked her and walked on; but at the corner of the street the boy turned round, and he
saw that she was still standing at the gate, with her hand upon the latch, and that she was crying.
"""
PROMPT = "The old man lifted his hat"


@pytest.fixture(scope="module")
def full() -> PreTrainedModel:
    return load_model(open_source("tiny"))


def brought_to(name: str) -> PreTrainedModel:
    return quantized(load_model(open_source("tiny")), name)


def likeliest(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids).logits
    return logits.argmax(-1)


def linear_elements(model: PreTrainedModel) -> int:
    layers: Any = model.model.layers
    return sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize(("name", "a_weight"), [("int8", 1.0), ("int4", 0.5)])
def test_bytes_fall_to_the_integers_and_their_scales(
    name: str, a_weight: float, full: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before, elements = weight_bytes(full), linear_elements(full)
    rest = before - elements * full.dtype.itemsize
    assert before == sum(parameter.nbytes for parameter in full.parameters())
    model = brought_to(name)
    layers = weight_bytes(model) - rest
    assert a_weight < layers / elements < 1.2 * a_weight
    assert f"weights in {name}: " in caplog.text


@pytest.mark.parametrize(("name", "least"), [("int8", 0.97), ("int4", 0.88)])
def test_most_likeliest_tokens_of_prose_stay_the_same(
    name: str, least: float, full: PreTrainedModel
) -> None:
    # Measured: 0.992 and 0.922 of 128 tokens.
    ids = zoo_tokenizer()(PROSE, return_tensors="pt")["input_ids"].long()
    with torch.no_grad():  # 4-bit weights cannot be used in inference mode
        agrees = likeliest(brought_to(name), ids) == likeliest(full, ids)
    assert agrees.shape == ids.shape
    assert least <= agrees.float().mean() < 1


def test_only_the_layers_are_quantized() -> None:
    model: Any = brought_to("int8")
    parts = (model.model.embed_tokens, model.lm_head, model.model.norm)
    assert not any(hasattr(part.weight, "__tensor_flatten__") for part in parts)
    layers = model.model.layers
    linear = [m.weight for m in layers.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 6 * len(layers)
    assert all(hasattr(weight, "__tensor_flatten__") for weight in linear)


@pytest.mark.parametrize("variant", ["nemotron-biased", "llama-biased-tied", "qwen3"])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_every_family_stays_near_its_logits(variant: str, name: str) -> None:
    ids = torch.randint(5, 101, (2, 9))
    sizes = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 32}
    whole = tiny_model(variant, **sizes)
    with torch.no_grad():
        expected = whole(ids).logits
        found = quantized(tiny_model(variant, **sizes), name)(ids).logits
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < (0.05 if name == "int8" else 0.5)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_generating_is_the_same_with_the_same_seed(name: str) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 9, "quantize": name}
    greedy = [minitron.generate("tiny", PROMPT, **settings) for _ in range(2)]
    assert greedy[0] == greedy[1]
    settings |= {"temperature": 1.0}
    one, same, other = (minitron.generate("tiny", PROMPT, seed=s, **settings) for s in (1, 1, 2))
    assert one == same != other


def test_the_command_takes_it(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    main(["generate", "tiny", PROMPT, "--quantize", "int8", "--max-new-tokens", "5"])
    assert capsys.readouterr().out.startswith(PROMPT)
    assert "weights in int8: " in caplog.text


def test_an_unknown_name_is_refused_before_the_model_is_opened() -> None:
    with pytest.raises(TargetError, match="quantize is int3: it must be one of int8, int4"):
        minitron.generate("no-such-model", PROMPT, quantize="int3")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"optimum-quanto is not installed.*\[quantize\]"):
        minitron.generate("no-such-model", PROMPT, quantize="int8")
