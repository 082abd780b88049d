"""A GPT with RMSNorm and SwiGLU in a `.nemo` becomes a Llama, Mistral or Qwen2 of equal logits."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import minitron
from minitron.errors import ArchitectureError

from .nemo_files import megatron_tensors, nemo_settings, write_nemo_file

Tensors = dict[str, torch.Tensor]
LLAMA: dict[str, Any] = {
    "hidden_size": 48,  # Llama asks for a multiple of the heads
    "normalization": "rmsnorm",
    "activation": "fast-swiglu",
    "rotary_percentage": 1.0,
    "rotary_base": 500.0,
    "qkv_bias": False,
}


def settings_of(**changed: Any) -> dict[str, Any]:
    return nemo_settings(**{**LLAMA, **changed})


def megatron_logits(tensors: Tensors, settings: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Megatron-core's forward pass, written from its definition: (batch, tokens, vocabulary)."""
    heads, groups = settings["num_attention_heads"], settings["num_query_groups"]
    size, each = settings["kv_channels"], heads // groups
    shift = 1.0 if settings.get("layernorm_zero_centered_gamma") else 0.0

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + settings["layernorm_epsilon"])
        return x * scale * (tensors[f"{name}.weight"] + shift)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def rotated(x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(0, size, 2).float() / size
        angles = torch.outer(torch.arange(x.shape[1]).float(), settings["rotary_base"] ** -steps)
        angles = torch.cat((angles, angles), -1)[:, None, :]
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()

    x = F.embedding(ids, tensors["embedding.word_embeddings.weight"])
    batch, length = ids.shape
    left = (settings.get("window_size") or [-1])[0]
    unseen = torch.full((length, length), -math.inf)
    hidden = unseen.triu(1) + (0 if left < 0 else unseen.tril(-left - 1))
    for number in range(settings["num_layers"]):
        layer = f"decoder.layers.{number}"
        fused = linear(norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attention.linear_qkv")
        fused = fused.view(batch, length, groups, each + 2, size)
        q = rotated(fused[..., :each, :].reshape(batch, length, heads, size))
        k = rotated(fused[..., each, :]).repeat_interleave(each, 2)
        v = fused[..., each + 1, :].repeat_interleave(each, 2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(size) + hidden
        seen = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
        x = x + linear(seen.flatten(2), f"{layer}.self_attention.linear_proj")
        inner = linear(norm(x, f"{layer}.pre_mlp_layernorm"), f"{layer}.mlp.linear_fc1")
        gate, up = inner.chunk(2, -1)
        x = x + linear(F.silu(gate) * up, f"{layer}.mlp.linear_fc2")
    return norm(x, "decoder.final_layernorm") @ tensors["output_layer.weight"].T


@pytest.mark.parametrize(
    ("changed", "options", "model_type"),
    [
        ({}, {"layout": "zarr", "tensor_parallel": 2}, "llama"),
        ({}, {"layout": "torch_dist per layer"}, "llama"),
        ({}, {"layout": "state_dict", "tensor_parallel": 2}, "llama"),
        ({"layernorm_zero_centered_gamma": True}, {"layout": "state_dict"}, "llama"),
        ({"bias": True, "activation": "swiglu"}, {"tensor_parallel": 2}, "llama"),
        ({"qkv_bias": True, "hidden_size": 42}, {"layout": "torch_dist"}, "qwen2"),
        ({"window_size": [-1, 0]}, {}, "llama"),
        ({"window_size": [4, 0]}, {"tensor_parallel": 2}, "mistral"),
        ({"window_size": [0, 0], "layernorm_zero_centered_gamma": True}, {}, "mistral"),
        ({"hidden_size": 40}, {"layout": "torch_dist"}, "mistral"),
    ],
    ids=[
        "zarr TP 2",
        "torch_dist",
        "state_dict TP 2",
        "gamma less one",
        "biased",
        "qkv biased",
        "a window without end",
        "a window",
        "the smallest window",
        "a width that no Llama has",
    ],
)
def test_it_gives_megatrons_logits(
    changed: dict[str, Any], options: dict[str, Any], model_type: str, tmp_path: Path
) -> None:
    settings = settings_of(**changed)
    tensors = megatron_tensors(settings)
    path = write_nemo_file(tmp_path / "m.nemo", tensors, settings, is_gated=True, **options)
    out = convert(path, tmp_path)
    assert json.loads((out / "config.json").read_text())["model_type"] == model_type
    ids = torch.randint(104, (2, 9), generator=torch.Generator().manual_seed(1))
    wanted = megatron_logits(tensors, settings, ids)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def convert(path: Path, tmp_path: Path) -> Path:
    """The Hub folder; these have no tokenizer, so it is written by hand from the source."""
    from minitron.files.tensor_stream import stream_tensors
    from minitron.records.folder_writer import specs_of, write_json, write_weights
    from minitron.sources.opening import open_source

    source, out = open_source(str(path)), tmp_path / "out"
    out.mkdir()
    write_weights(out, specs_of(source.tensors), stream_tensors(source.tensors, source.name))
    write_json(out / "config.json", source.config)
    return out


def test_a_llama_of_nemo_2_is_one_too(tmp_path: Path) -> None:
    settings = settings_of()
    tensors = megatron_tensors(settings)
    fields = {
        "num_layers": 4,
        "hidden_size": 48,
        "ffn_hidden_size": 66,
        "num_attention_heads": 6,
        "num_query_groups": 2,
        "kv_channels": 8,
        "rotary_base": 500.0,
        "seq_length": 64,
    }
    written = {
        "_target_": "nemo.collections.llm.gpt.model.llama.LlamaModel",
        "config": {"_target_": "nemo.collections.llm.gpt.model.llama.LlamaConfig", **fields},
    }
    options = {"layout": "torch_dist", "pack": "nemo2", "is_gated": True}
    out = convert(write_nemo_file(tmp_path / "m", tensors, written, **options), tmp_path)
    ids = torch.arange(8).view(1, 8)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits
    wanted = megatron_logits(tensors, settings, ids)
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rotary_percentage": 0.5}, "rotary_percentage: 0.5, but Llama rotates whole heads"),
        ({"activation": "fast-geglu"}, "activation: 'fast-geglu'; of gated ones swiglu and fast-"),
        ({"window_size": [4, 0], "bias": True}, "but Llama attends to the whole context: no Hugg"),
        (
            {"window_size": [4, 4]},
            "window_size: a list; it must be a list of the tokens before",
        ),
        (
            {"window_size": 4096},
            "window_size: 4096; it must be a list of the tokens before",
        ),
        ({"qk_layernorm": True}, "but Llama norms no q or k"),
        ({"normalization": "layernorm1p"}, "a gated MLP, but Nemotron's has one up projection"),
        ({"activation": "squared-relu"}, "but Nemotron's norm is LayerNorm with a bias"),
        ({"rotary_base": 0}, "rotary_base: 0; it must be a number, 1 to 1e"),
        ({"layernorm_epsilon": 0.0}, "layernorm_epsilon: 0.0; it must be a number, 1e-30 to 1"),
    ],
)
def test_what_no_llama_is_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = settings_of(**changed)
    tensors = megatron_tensors(settings)
    path = write_nemo_file(tmp_path / "m.nemo", tensors, settings)
    with pytest.raises(ArchitectureError, match=message):
        minitron.inspect(str(path))
