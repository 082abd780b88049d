"""State dicts of ranks: found by their folders, unwrapped, joined, and refused where incomplete."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron.conversion.megatron_names import canonical_name
from minitron.conversion.nemo_archive import open_archive
from minitron.conversion.state_dicts import StateDicts, has_state_dicts, read_state_dicts
from minitron.errors import SourceError
from tests.nemo_files import (
    megatron_tensors,
    nemo_members,
    nemo_settings,
    pack_members,
    torch_bytes,
)

SETTINGS = nemo_settings()
TENSORS = megatron_tensors(SETTINGS)


def read(tmp_path: Path, members: dict[str, bytes], **options: Any) -> StateDicts:
    archive = open_archive(pack_members(tmp_path / "m.nemo", members, "tar"))
    return read_state_dicts(archive, **{"is_gated": False, **options})


def ranks(**options: Any) -> dict[str, bytes]:
    return nemo_members(TENSORS, layout="state_dict", **options)


def assert_whole(found: StateDicts) -> None:
    assert set(found.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(found.tensors[name].read(), tensor), name


def state(**extra: Any) -> dict[str, Any]:
    return {**{f"model.{name}": tensor for name, tensor in TENSORS.items()}, **extra}


NESTED = {
    "language_model": {
        "embedding": {"word_embeddings": {"weight": TENSORS["embedding.word_embeddings.weight"]}},
        "output_layer": {"weight": TENSORS["output_layer.weight"]},
        "encoder": {
            name.removeprefix("decoder."): tensor
            for name, tensor in TENSORS.items()
            if name.startswith("decoder.")
        },
    }
}
WRAPPED = {
    "none": state(),
    "state_dict": {"state_dict": state(), "epoch": 3, "optimizer_states": [state()]},
    "module": {"module": state(), "optimizer": {"exp_avg": torch.ones(3)}},
    "model": {"model": TENSORS, "args": None, "rng_state": [torch.ones(2)]},
    "twice": {"state_dict": {"module": TENSORS}},
    "nested, as Megatron-LM wrote it": {"model": NESTED, "iteration": 7},
    "one interleaved turn": {"state_dict": {}, "model0": state()},
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy file"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_every_wrapper_is_removed(tmp_path: Path, wrapper: str, is_zip: bool) -> None:
    members = {"model_weights.ckpt": torch_bytes(WRAPPED[wrapper], is_zip=is_zip)}

    assert_whole(read(tmp_path, members))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("model_weights.ckpt", "state_dict"),
        ("megatron_gpt--val_loss=2.1-step=9-last.ckpt", "state_dict"),
        ("mp_rank_00/model_weights.ckpt", "state_dict"),
        ("mp_rank_00/megatron_gpt-last.ckpt", "state_dict"),
        ("mp_rank_00/model_optim_rng.pt", "state_dict"),
        ("mp_rank_00_000/model_optim_rng.pt", "state_dict"),
        ("tp_rank_00_pp_rank_000/model_weights.ckpt", "state_dict"),
    ],
)
def test_a_state_dict_is_found_by_its_place(tmp_path: Path, name: str, layout: str) -> None:
    found = read(tmp_path, {name: torch_bytes(state())})

    assert found.layout == layout
    assert_whole(found)


@pytest.mark.parametrize(
    "name", ["weights.ckpt", "mp_rank_0x/model_weights.ckpt", "a/model_weights.ckpt"]
)
def test_other_places_hold_no_state_dict(tmp_path: Path, name: str) -> None:
    archive = open_archive(pack_members(tmp_path / "m.nemo", {name: torch_bytes(state())}, "tar"))

    assert not has_state_dicts(archive)


def test_the_first_stage_s_embedding_counts(tmp_path: Path) -> None:
    members = ranks(pipeline_parallel=2, spelling="local")
    last = "tp_rank_00_pp_rank_001/model_weights.ckpt"
    copied = torch.load(io.BytesIO(members[last]))
    copied["model.embedding.word_embeddings.weight"] = torch.zeros(104, 42)

    assert_whole(read(tmp_path, {**members, last: torch_bytes(copied)}))


@pytest.mark.parametrize(
    "missing", ["tp_rank_01_pp_rank_000", "tp_rank_00_pp_rank_001", "tp_rank_00_pp_rank_000"]
)
def test_a_missing_rank_is_refused(tmp_path: Path, missing: str) -> None:
    members = ranks(tensor_parallel=2, pipeline_parallel=2)
    del members[f"{missing}/model_weights.ckpt"]

    with pytest.raises(SourceError, match="3 ranks, TP 2 x PP 2 needs 4"):
        read(tmp_path, members)


def test_two_folders_of_one_rank_are_refused(tmp_path: Path) -> None:
    data = torch_bytes(state())
    members = {"mp_rank_00/model_weights.ckpt": data, "mp_rank_00_000/model_weights.ckpt": data}

    with pytest.raises(SourceError, match="two state dicts of rank"):
        read(tmp_path, members)


def changed_rank(changes: dict[str, Any]) -> dict[str, bytes]:
    """Two tensor-parallel ranks, the second one with these entries changed, or without them."""
    members = ranks(tensor_parallel=2, spelling="local")
    state_ = torch.load(io.BytesIO(members["mp_rank_01/model_weights.ckpt"]))
    state_.update(changes)
    kept = {name: value for name, value in state_.items() if value is not None}
    return {**members, "mp_rank_01/model_weights.ckpt": torch_bytes(kept)}


FC1 = "model.decoder.layers.2.mlp.linear_fc1.weight"
NORM = "model.decoder.layers.2.input_layernorm.weight"
PROJ = "model.decoder.layers.2.self_attention.linear_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({FC1: None}, "is on one of tensor-parallel ranks 0 and 1"),
        ({FC1: torch.ones(33, 41)}, r"parts that do not fit: torch\.float32 \[33, 42\]"),
        ({FC1: torch.ones(33, 42).half()}, r"parts that do not fit.*torch\.float16"),
        ({FC1: torch.ones(33)}, "parts that do not fit"),
        ({PROJ: torch.ones(41, 24)}, "parts that do not fit"),
        ({PROJ: torch.tensor(1.0)}, "parts that do not fit"),
        ({NORM: torch.ones(41)}, "another shape or dtype on each"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        read(tmp_path, changed_rank(changes))


def test_halves_need_an_even_number_of_rows(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"shape \[33, 42\] has no two halves"):
        read(tmp_path, changed_rank({}), is_gated=True)


def test_copies_on_all_ranks_may_part_by_rounding(tmp_path: Path) -> None:
    name = NORM.removeprefix("model.")
    found = read(tmp_path, changed_rank({NORM: TENSORS[name] + 1e-3})).tensors

    assert torch.equal(found[name].read(), TENSORS[name])
    assert torch.equal(found[name].read(3, 9), TENSORS[name][3:9])


def test_copies_that_differ_are_refused_when_read(tmp_path: Path) -> None:
    found = read(tmp_path, changed_rank({NORM: -TENSORS[NORM.removeprefix("model.")]})).tensors

    with pytest.raises(SourceError, match=r"layers\.2\.input_layernorm\.weight differs between"):
        found[NORM.removeprefix("model.")].read()


def test_a_stage_without_one_of_its_layers_is_refused(tmp_path: Path) -> None:
    held = {name: t for name, t in state().items() if ".layers.1." not in name}

    with pytest.raises(SourceError, match=r"a stage has layers \[0, 2, 3\]"):
        read(tmp_path, {"model_weights.ckpt": torch_bytes(held)})


def test_a_name_that_would_garble_a_message_is_refused(tmp_path: Path) -> None:
    members = {"model_weights.ckpt": torch_bytes(state(**{"a\nb": torch.ones(3)}))}

    with pytest.raises(SourceError, match=r"it names a tensor 'a\\nb'"):
        read(tmp_path, members)


def test_a_name_in_two_spellings_is_refused(tmp_path: Path) -> None:
    twice = state(**{"module.output_layer.weight": TENSORS["output_layer.weight"]})

    with pytest.raises(SourceError, match=r"holds output_layer\.weight twice"):
        read(tmp_path, {"model_weights.ckpt": torch_bytes(twice)})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "holds a list, not a state dict"),
        (torch.ones(3), "holds a StoredTensor, not a state dict"),
        ({}, "holds no tensors of a model"),
        ({"epoch": 3}, "holds no tensors of a model"),
        ({"encoder.w": torch.ones(3)}, r"tensors such as encoder\.w, but no embedding"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(tmp_path, {"model_weights.ckpt": torch_bytes(value)})


def test_a_damaged_file_is_named_within_its_archive(tmp_path: Path) -> None:
    members = ranks(tensor_parallel=2)
    members["mp_rank_01/model_weights.ckpt"] = b"PK\x03\x04 and no more"
    path = pack_members(tmp_path / "m.nemo", members, "tar.gz")

    with pytest.raises(SourceError) as error:
        read_state_dicts(open_archive(path), is_gated=False)
    assert str(error.value).startswith(f"{path}: mp_rank_01/model_weights.ckpt is truncated")


class Runs:
    """Pickles as a call of os.system."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.touched}",)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy file"])
def test_nothing_that_a_state_dict_names_runs(tmp_path: Path, is_zip: bool) -> None:
    touched = tmp_path / "touched"
    hostile = state(**{"model.x._extra_state": Runs(touched), "hyper_parameters": Runs(touched)})

    assert_whole(read(tmp_path, {"model_weights.ckpt": torch_bytes(hostile, is_zip=is_zip)}))
    assert not touched.exists()


def test_dicts_that_hold_themselves_end(tmp_path: Path) -> None:
    endless: dict[str, Any] = state()
    endless["a"] = endless
    wrapped: dict[str, Any] = {}
    wrapped["model"] = wrapped

    found = read(tmp_path, {"model_weights.ckpt": torch_bytes(endless)}).tensors
    assert set(TENSORS) < set(found)  # and more that no model has
    with pytest.raises(SourceError, match="holds a dict"):
        read(tmp_path, {"model_weights.ckpt": torch_bytes(wrapped)})


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.output_layer.weight", "output_layer.weight"),
        ("model.module.output_layer.weight", "output_layer.weight"),
        ("module.output_layer.weight", "output_layer.weight"),
        ("model._orig_mod.output_layer.weight", "output_layer.weight"),
        ("_orig_mod.model.output_layer.weight", "output_layer.weight"),
        ("model.language_model.output_layer.weight", "output_layer.weight"),
        (
            "model.decoder.layers.mlp.linear_fc1.layer_norm_bias",
            "decoder.layers.pre_mlp_layernorm.bias",
        ),
        (
            "model.language_model.encoder.layers.11.self_attention.dense.bias",
            "decoder.layers.11.self_attention.linear_proj.bias",
        ),
        ("model.encoder.layers.0.norm.weight", "encoder.layers.0.norm.weight"),
        ("model.decoder.layers.0.mlp.linear_fc1._extra_state", None),
        ("model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_4", None),
        ("model.rotary_pos_emb.inv_freq", None),
        ("model.language_model.rotary_pos_emb.inv_freq", None),
        ("optimizer.state.exp_avg.model.output_layer.weight", None),
        ("chained_0.optimizer.state.exp_avg.output_layer.weight", None),
        ("model.word_embeddings.weight", None),
        ("word_embeddings_for_head.weight", None),
    ],
)
def test_every_key_has_one_name(key: str, name: str | None) -> None:
    assert canonical_name(key) == name
