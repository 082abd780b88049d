"""The table between Megatron-core's tensors and the Hub's, against numpy on whole models."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minitron.conversion.megatron_names import hub_tensors, megatron_tensors
from minitron.errors import SourceError, TargetError
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import LazyTensor, StoredTensor
from minitron.model.architecture import Architecture
from tests.tiny import SIZES

CONFIGS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one head a group": {"num_key_value_heads": 6},
    "one group": {"num_key_value_heads": 1},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "tied, biased": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
}
PADDED = 128
VARIANTS = pytest.mark.parametrize("variant", CONFIGS)


@dataclass(frozen=True)
class Held:
    """A lazy tensor in memory."""

    value: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def nbytes(self) -> int:
        return self.value.nbytes

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self.value[start:stop].clone()

    def ranges(self, start: int = 0, stop: int | None = None) -> None:
        return None


@dataclass(frozen=True)
class Unreadable(Held):
    """One that must not be read."""

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        raise AssertionError("weights were read")


def architecture_of(variant: str = "grouped", **changed: Any) -> Architecture:
    return Architecture.from_config(
        {"model_type": "nemotron", **SIZES, **CONFIGS[variant], **changed}
    )


def hub_model(architecture: Architecture) -> dict[str, torch.Tensor]:
    """A whole Hub model of random numbers."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).bfloat16()
        for name, shape in architecture.shapes().items()
    }


def fused(q: np.ndarray, k: np.ndarray, v: np.ndarray, a: Architecture) -> np.ndarray:
    """q, k and v as Megatron keeps them, by the view that Megatron itself takes."""
    groups, rest = a.num_key_value_heads, q.shape[1:]
    per_group = a.num_attention_heads // groups
    return np.concatenate(
        [
            q.reshape(groups, per_group, a.head_dim, *rest),
            k.reshape(groups, 1, a.head_dim, *rest),
            v.reshape(groups, 1, a.head_dim, *rest),
        ],
        axis=1,
    ).reshape(-1, *rest)


def megatron_model(hub: Mapping[str, torch.Tensor], a: Architecture) -> dict[str, torch.Tensor]:
    """The same model under Megatron's names, written out without the product's table."""
    made: dict[str, torch.Tensor] = {}

    def move(theirs: str, ours: str) -> None:
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in hub:
                made[f"{theirs}.{kind}"] = hub[f"{ours}.{kind}"]

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, torch.zeros(PADDED - len(tensor), tensor.shape[1]).bfloat16()])

    made["embedding.word_embeddings.weight"] = padded(hub["model.embed_tokens.weight"])
    for layer in range(a.num_hidden_layers):
        theirs, ours = f"decoder.layers.{layer}", f"model.layers.{layer}"
        move(f"{theirs}.input_layernorm", f"{ours}.input_layernorm")
        for kind in ("weight", "bias"):
            if f"{ours}.self_attn.q_proj.{kind}" in hub:
                q, k, v = (hub[f"{ours}.self_attn.{p}_proj.{kind}"].float().numpy() for p in "qkv")
                qkv = torch.from_numpy(fused(q, k, v, a)).bfloat16()
                made[f"{theirs}.self_attention.linear_qkv.{kind}"] = qkv
        move(f"{theirs}.self_attention.linear_proj", f"{ours}.self_attn.o_proj")
        move(f"{theirs}.pre_mlp_layernorm", f"{ours}.post_attention_layernorm")
        move(f"{theirs}.mlp.linear_fc1", f"{ours}.mlp.up_proj")
        move(f"{theirs}.mlp.linear_fc2", f"{ours}.mlp.down_proj")
    move("decoder.final_layernorm", "model.norm")
    if "lm_head.weight" in hub:
        made["output_layer.weight"] = padded(hub["lm_head.weight"])
    return made


def lazy(tensors: Mapping[str, torch.Tensor], kind: type[Held] = Held) -> dict[str, LazyTensor]:
    return {name: kind(tensor) for name, tensor in tensors.items()}


def assert_equal(found: Mapping[str, LazyTensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape), name
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].read(), tensor), name
        assert torch.equal(found[name].read(3, 29), tensor[3:29]), name


@VARIANTS
def test_megatron_tensors_become_the_hubs(variant: str) -> None:
    architecture = architecture_of(variant)
    hub = hub_model(architecture)
    found = hub_tensors(lazy(megatron_model(hub, architecture)), architecture)

    assert list(found) == list(architecture.shapes())
    assert_equal(found, hub)


@VARIANTS
def test_hub_tensors_become_megatrons(variant: str) -> None:
    architecture = architecture_of(variant)
    hub = hub_model(architecture)
    found = megatron_tensors(lazy(hub), architecture, padded_vocab_size=PADDED)

    assert_equal(found, megatron_model(hub, architecture))


@VARIANTS
@pytest.mark.parametrize("padded", [SIZES["vocab_size"], PADDED])
def test_there_and_back_changes_no_bit(variant: str, padded: int) -> None:
    architecture = architecture_of(variant)
    hub = hub_model(architecture)
    there = megatron_tensors(lazy(hub), architecture, padded_vocab_size=padded)

    assert_equal(hub_tensors(there, architecture), hub)


def test_a_padded_vocabulary_is_kept_where_the_config_counts_it() -> None:
    hub = hub_model(architecture_of())
    megatron = megatron_model(hub, architecture_of())
    found = hub_tensors(lazy(megatron), architecture_of(vocab_size=PADDED))

    assert torch.equal(found["lm_head.weight"].read(), megatron["output_layer.weight"])


def test_a_gain_stored_whole_loses_one_and_nothing_else_changes() -> None:
    architecture = architecture_of("biased")
    hub = hub_model(architecture)
    whole = megatron_model(hub, architecture)
    norms = [name for name in whole if "norm" in name and name.endswith("weight")]
    assert len(norms) == 2 * SIZES["num_hidden_layers"] + 1
    for name in norms:
        whole[name] = (whole[name].float() + 1).bfloat16()
    found = hub_tensors(lazy(whole), architecture, is_zero_centered=False)

    for name, tensor in hub.items():
        if "norm.weight" in name:
            gain = (tensor.float() + 1).bfloat16()
            assert torch.equal(found[name].read(), (gain.float() - 1).bfloat16()), name
        else:
            assert torch.equal(found[name].read(), tensor), name


def test_bytes_that_only_move_are_known_as_runs_of_whole_heads(tmp_path: Path) -> None:
    architecture = architecture_of()
    sizes = {
        name: tensor.shape
        for name, tensor in megatron_model(hub_model(architecture), architecture).items()
    }
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    file = LocalFile.at(tmp_path / "file")
    stored = {
        name: StoredTensor(file, torch.bfloat16, tuple(shape), 0) for name, shape in sizes.items()
    }
    row = 2 * SIZES["hidden_size"]
    head = SIZES["head_dim"] * row
    found = hub_tensors(stored, architecture)

    def places(part: str) -> list[tuple[int, int]]:
        ranges = found[f"model.layers.1.self_attn.{part}_proj.weight"].ranges()
        assert ranges is not None
        return [(place.start, place.size) for place in ranges]

    assert places("q") == [(0, 3 * head), (5 * head, 3 * head)]
    assert places("k") == [(3 * head, head), (8 * head, head)]
    assert places("v") == [(4 * head, head), (9 * head, head)]
    assert all(tensor.ranges() is not None for tensor in found.values())
    embedding = found["model.embed_tokens.weight"].ranges()
    assert embedding is not None
    assert sum(place.nbytes for place in embedding) == SIZES["vocab_size"] * row


def changed(tensors: dict[str, LazyTensor], name: str, shape: tuple[int, ...] | None) -> None:
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = Unreadable(torch.zeros(shape))


QKV = "decoder.layers.2.self_attention.linear_qkv.weight"
DISAGREEMENTS: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "a missing layer norm": ("decoder.layers.3.input_layernorm.bias", None),
    "a missing head": ("output_layer.weight", None),
    "a missing embedding": ("embedding.word_embeddings.weight", None),
    "fewer words than the config": ("embedding.word_embeddings.weight", (100, 42)),
    "a head of other height": ("output_layer.weight", (PADDED + 1, 42)),
    "a gated feed-forward": ("decoder.layers.0.mlp.linear_fc1.weight", (2 * 66, 42)),
    "other groups": (QKV, (9 * 8, 42)),
    "one axis too many": (QKV, (10 * 8, 42, 1)),
    "a bias": ("decoder.layers.0.mlp.linear_fc1.bias", (66,)),
    "a layer too many": ("decoder.layers.4.mlp.linear_fc1.weight", (66, 42)),
    "learned positions": ("embedding.position_embeddings.weight", (64, 42)),
    "experts": ("decoder.layers.0.mlp.router.weight", (4, 42)),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_a_disagreement_is_named_before_any_weight_is_read(case: str) -> None:
    architecture = architecture_of()
    tensors = lazy(megatron_model(hub_model(architecture), architecture), Unreadable)
    name, shape = DISAGREEMENTS[case]
    changed(tensors, name, shape)

    with pytest.raises(SourceError, match="config and tensors disagree") as caught:
        hub_tensors(tensors, architecture)
    # A head is measured against the embedding, so one of the two is named.
    assert name in str(caught.value) or case == "fewer words than the config"
    assert "\n" not in str(caught.value)


def test_a_head_beside_a_tied_embedding_is_refused() -> None:
    untied = architecture_of()
    tensors = lazy(megatron_model(hub_model(untied), untied), Unreadable)

    with pytest.raises(SourceError, match=r"has output_layer\.weight"):
        hub_tensors(tensors, architecture_of("tied"))


@pytest.mark.parametrize("shape", [None, (66, 41)])
def test_incomplete_hub_tensors_are_refused(shape: tuple[int, ...] | None) -> None:
    architecture = architecture_of()
    tensors = lazy(hub_model(architecture), Unreadable)
    changed(tensors, "model.layers.1.mlp.up_proj.weight", shape)

    with pytest.raises(SourceError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        megatron_tensors(tensors, architecture, padded_vocab_size=PADDED)


def test_other_families_are_refused() -> None:
    llama = Architecture.from_config({"model_type": "llama", **SIZES})

    with pytest.raises(TargetError, match="llama cannot be written"):
        megatron_tensors({}, llama, padded_vocab_size=PADDED)


def test_q_and_k_of_different_dtypes_are_refused() -> None:
    architecture = architecture_of()
    tensors = lazy(hub_model(architecture))
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = Held(torch.zeros(tensors[name].shape))

    with pytest.raises(TargetError, match="bfloat16, float32"):
        megatron_tensors(tensors, architecture, padded_vocab_size=PADDED)


def test_both_models_hold_equally_many_numbers() -> None:
    architecture = architecture_of("biased", vocab_size=PADDED)
    tensors = lazy(hub_model(architecture), Unreadable)
    megatron = megatron_tensors(tensors, architecture, padded_vocab_size=PADDED)

    assert sum(prod(tensor.shape) for tensor in megatron.values()) == architecture.parameters
