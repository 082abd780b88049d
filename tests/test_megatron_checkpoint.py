"""Checkpoints of every layout, read: the tensors written are the tensors read, bit for bit."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies

from minitron.conversion.nemo_archive import open_archive
from minitron.conversion.nemo_source import MegatronCheckpoint, read_checkpoint
from minitron.errors import SourceError
from minitron.files.lazy_tensor import LazyTensor
from tests.nemo_files import (
    SPELLINGS,
    element_bytes,
    megatron_tensors,
    nemo_members,
    nemo_settings,
    pack_members,
    tar_bytes,
    torch_bytes,
    write_nemo_file,
)

SETTINGS = nemo_settings()
TENSORS = megatron_tensors(SETTINGS)
DISTRIBUTED = ("zarr", "torch_dist", "torch_dist per layer")


def read(path: Path, **options: Any) -> MegatronCheckpoint:
    return read_checkpoint(open_archive(path), **{"is_gated": False, **options})


def assert_same(found: Mapping[str, LazyTensor], written: Mapping[str, torch.Tensor]) -> None:
    assert set(found) == set(written)
    for name, tensor in written.items():
        lazy = found[name]
        assert (lazy.dtype, tuple(lazy.shape)) == (tensor.dtype, tuple(tensor.shape)), name
        assert lazy.nbytes == tensor.nbytes
        whole = lazy.read()
        assert whole.dtype == tensor.dtype
        assert torch.equal(whole, tensor), name
        assert torch.equal(lazy.read(3, 41), tensor[3:41]), name
        if (ranges := lazy.ranges(2, 40)) is not None:
            assert b"".join(map(bytes_at, ranges)) == element_bytes(tensor[2:40]), name


def bytes_at(range_: Any) -> bytes:
    with range_.path.open("rb") as file:
        file.seek(range_.start)
        return bytes(file.read(range_.size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize("layout", DISTRIBUTED)
def test_distributed_checkpoints_are_read_as_written(
    tmp_path: Path, layout: str, tensor_parallel: int, dtype: torch.dtype
) -> None:
    tensors = megatron_tensors(SETTINGS, dtype=dtype)
    path = write_nemo_file(
        tmp_path / "m.nemo", tensors, SETTINGS, layout=layout, tensor_parallel=tensor_parallel
    )

    found = read(path)

    assert found.layout == layout.split()[0]
    assert found.writer == f"{found.layout} version 1"
    assert_same(found.tensors, tensors)


@pytest.mark.parametrize("pack", ["tar", "tar.gz", "folder"])
@pytest.mark.parametrize("layout", [*DISTRIBUTED, "state_dict"])
def test_every_layout_is_read_from_every_container(tmp_path: Path, layout: str, pack: str) -> None:
    path = write_nemo_file(tmp_path / "m.nemo", TENSORS, SETTINGS, layout=layout, pack=pack)

    assert_same(read(path).tensors, TENSORS)


@pytest.mark.parametrize("layout", DISTRIBUTED)
def test_a_nemo_2_folder_is_read(tmp_path: Path, layout: str) -> None:
    path = write_nemo_file(
        tmp_path / "nemo2", TENSORS, SETTINGS, layout=layout, pack="nemo2", tensor_parallel=2
    )

    found = read(path)

    assert found.layout == f"nemo2 {layout.split()[0]}"
    assert_same(found.tensors, TENSORS)


PARALLEL = {
    "state_dict": (1, 1, 1),
    "state_dict TP 2": (2, 1, 1),
    "state_dict PP 2": (1, 2, 1),
    "state_dict TP 2 PP 2": (2, 2, 1),
    "state_dict VPP 2": (1, 1, 2),
    "state_dict TP 2 PP 2 VPP 2": (2, 2, 2),
}


@pytest.mark.parametrize("layout", PARALLEL)
def test_state_dicts_of_all_ranks_become_one_model(tmp_path: Path, layout: str) -> None:
    sizes = ("tensor_parallel", "pipeline_parallel", "virtual_pipeline")
    path = write_nemo_file(
        tmp_path / "m.nemo",
        TENSORS,
        SETTINGS,
        layout="state_dict",
        **dict(zip(sizes, PARALLEL[layout], strict=True)),
    )

    found = read(path)

    assert found.layout == layout
    assert_same(found.tensors, TENSORS)


@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_names_is_read(
    tmp_path: Path, spelling: str, tensor_parallel: int
) -> None:
    settings_ = nemo_settings(bias=True, num_query_groups=None)
    tensors = megatron_tensors(settings_)
    path = write_nemo_file(
        tmp_path / "m.nemo",
        tensors,
        settings_,
        layout="state_dict",
        spelling=spelling,
        tensor_parallel=tensor_parallel,
    )

    assert_same(read(path).tensors, tensors)


@pytest.mark.parametrize("prefix", ["", "model.", "model.module.", "module.", "model._orig_mod."])
@pytest.mark.parametrize("layout", ["zarr", "torch_dist", "state_dict"])
def test_every_prefix_is_taken_off(tmp_path: Path, layout: str, prefix: str) -> None:
    path = write_nemo_file(tmp_path / "m.nemo", TENSORS, SETTINGS, layout=layout, prefix=prefix)

    assert_same(read(path).tensors, TENSORS)


@pytest.mark.parametrize("layout", [*DISTRIBUTED, "state_dict"])
def test_gates_and_ups_are_joined_over_the_ranks(tmp_path: Path, layout: str) -> None:
    gated = nemo_settings(activation="fast-swiglu", bias=True)
    tensors = megatron_tensors(gated)
    path = write_nemo_file(
        tmp_path / "m.nemo", tensors, gated, layout=layout, is_gated=True, tensor_parallel=2
    )

    assert_same(read(path, is_gated=True).tensors, tensors)


@pytest.mark.parametrize("layout", [*DISTRIBUTED, "state_dict"])
def test_a_tied_model_has_no_output_layer(tmp_path: Path, layout: str) -> None:
    tied = nemo_settings(share_embeddings_and_output_weights=True)
    tensors = megatron_tensors(tied)
    path = write_nemo_file(tmp_path / "m.nemo", tensors, tied, layout=layout)

    found = read(path)

    assert "output_layer.weight" not in found.tensors
    assert_same(found.tensors, tensors)


@pytest.mark.parametrize("layout", [*DISTRIBUTED, "state_dict"])
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_rows_that_follow_each_other_in_the_file_have_ranges(
    tmp_path: Path, layout: str, tensor_parallel: int
) -> None:
    path = write_nemo_file(
        tmp_path / "m.nemo", TENSORS, SETTINGS, layout=layout, tensor_parallel=tensor_parallel
    )

    without = {name for name, lazy in read(path).tensors.items() if lazy.ranges() is None}

    columns = {name for name in TENSORS if "linear_proj" in name or "linear_fc2" in name}
    norms = {name for name in TENSORS if "layernorm" in name}
    copied = norms if layout == "state_dict" else set()
    assert without == (set() if tensor_parallel == 1 else columns | copied)


def test_opening_reads_no_more_than_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nemo_file(
        tmp_path / "m.nemo", TENSORS, SETTINGS, layout="torch_dist", tensor_parallel=2
    )

    def refuse(*_: object) -> None:
        raise AssertionError("an item was opened")

    monkeypatch.setattr("minitron.conversion.distributed_reader.read_torch_object", refuse)
    found = read(path).tensors

    assert {name: lazy.shape for name, lazy in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }


@pytest.mark.parametrize("layout", [*DISTRIBUTED, "state_dict"])
def test_unknown_tensors_are_kept_for_the_caller_to_refuse(tmp_path: Path, layout: str) -> None:
    extra = {
        **TENSORS,
        **{f"decoder.layers.{i}.mlp.router.weight": torch.ones(5, 42) * i for i in range(4)},
        "embedding.position_embeddings.weight": torch.ones(64, 42),
    }
    path = write_nemo_file(tmp_path / "m.nemo", extra, SETTINGS, layout=layout)

    assert_same(read(path).tensors, extra)


def test_an_asr_checkpoint_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    state = {"preprocessor.featurizer.window": torch.ones(7), "encoder.layers.0.norm": TENSORS}
    path = pack_members(tmp_path / "asr.nemo", {"model_weights.ckpt": torch_bytes(state)}, "tar")

    with pytest.raises(
        SourceError, match=r"such as preprocessor\.featurizer\.window.*Megatron GPT"
    ):
        read(path)


def test_an_archive_without_weights_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    path = pack_members(tmp_path / "x.nemo", {"model_config.yaml": b"a: 1", "notes": b""}, "tar")

    with pytest.raises(SourceError, match=r"holds model_config\.yaml, notes: a Megatron GPT"):
        read(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"{", "metadata.json is damaged"),
        (b"[]", "names the sharded_backend None"),
        (b'{"sharded_backend": "fsdp_dtensor"}', "'fsdp_dtensor'; zarr and torch_dist can be read"),
        (b'{"sharded_backend": ["zarr"]}', "names the sharded_backend"),
    ],
)
def test_an_unknown_backend_is_refused_by_name(
    tmp_path: Path, metadata: bytes, message: str
) -> None:
    members = {**nemo_members(TENSORS, layout="zarr"), "model_weights/metadata.json": metadata}
    path = pack_members(tmp_path / "m.nemo", members, "tar")

    with pytest.raises(SourceError, match=message):
        read(path)


def test_a_tensor_under_two_prefixes_is_refused(tmp_path: Path) -> None:
    members = nemo_members(TENSORS, layout="zarr")
    again = nemo_members(TENSORS, layout="zarr", prefix="module.")
    path = pack_members(tmp_path / "m.nemo", {**members, **again}, "tar")

    with pytest.raises(SourceError, match="twice"):
        read(path)


def outcome(path: Path) -> str:
    """What reading every tensor says: "read", or why not."""
    try:
        for lazy in read(path).tensors.values():
            assert lazy.nbytes < 1 << 30
            assert isinstance(lazy.read(), torch.Tensor)
    except SourceError as error:
        return str(error)
    return "read"


TINY = nemo_settings(num_layers=2, hidden_size=6, ffn_hidden_size=10, kv_channels=2)
TINY_TENSORS = megatron_tensors(TINY, vocab_size=14)
FUZZED: dict[str, dict[str, Any]] = {
    "zarr": {"layout": "zarr", "tensor_parallel": 2},
    "torch_dist": {"layout": "torch_dist", "tensor_parallel": 2},
    "per layer": {"layout": "torch_dist per layer"},
    "state_dict": {"layout": "state_dict"},
    "ranks": {"layout": "state_dict", "tensor_parallel": 2, "pipeline_parallel": 2},
    "legacy": {"layout": "state_dict", "spelling": "megatron_legacy", "is_zip": False},
}
MEMBERS = {name: nemo_members(TINY_TENSORS, **options) for name, options in FUZZED.items()}
PAYLOADS = [
    *(bytes([byte]) for byte in (0, 1, 0x7F, 0x80, 0xFF)),
    b"\xff" * 8,
    b"\x80" + b"\xff" * 11,  # a negative number in a tar header
    b"77777777777",
    b"cos\nsystem\n(S'touch hacked'\ntR.",
    b"../../hacked",
    b"PK\x05\x06",
    b"-1",
    b"1e9",
    b"[0]",
]


def mutated(data: bytes, changes: list[tuple[float, bytes, bool]]) -> bytes:
    """Each change writes a payload at a place between 0 and 1, over what is there or before it."""
    changed = bytearray(data)
    for place, payload, inserts in changes:
        start = int(place * len(changed))
        changed[start : start + (0 if inserts else len(payload))] = payload
    return bytes(changed)


CHANGES = strategies.lists(
    strategies.tuples(
        strategies.floats(0, 1),
        strategies.one_of(strategies.sampled_from(PAYLOADS), strategies.binary(max_size=8)),
        strategies.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
)
@given(
    kind=strategies.sampled_from(list(FUZZED)),
    target=strategies.floats(0, 1, exclude_max=True),
    changes=CHANGES,
    keeps=strategies.floats(0.5, 3).map(lambda kept: min(kept, 1.0)),
)
def test_no_damage_does_more_than_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    target: float,
    changes: list[tuple[float, bytes, bool]],
    keeps: float,
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    # Half of the time one member is damaged, otherwise the tar around them.
    members = dict(MEMBERS[kind])
    small = [name for name in members if "/." in name or name.endswith((".ckpt", ".json"))]
    names = [*small, *members]
    if target < 0.7:
        name = names[int(target / 0.7 * len(names))]
        members[name] = mutated(members[name], changes)
        data = tar_bytes(members)
    else:
        data = mutated(tar_bytes(members), changes)
    (folder / "m.nemo").write_bytes(data[: int(keeps * len(data))])
    before = set(os.listdir())

    assert "\n" not in outcome(folder / "m.nemo")
    assert os.listdir(folder) == ["m.nemo"]
    assert set(os.listdir()) == before


def test_the_description_of_an_array_may_hold_anything(tmp_path: Path) -> None:
    members = nemo_members(TINY_TENSORS, layout="zarr")
    name = "model_weights/model.output_layer.weight/.zarray"
    values = [None, -1, 0, 1e9, 2**80, "x", [], {}, [2**60] * 3, [True, 1], [[]], "bfloat16"]
    for field in json.loads(members[name]):
        for value in values:
            described = {**json.loads(members[name]), field: value}
            changed = {**members, name: json.dumps(described).encode()}
            path = pack_members(tmp_path / "m.nemo", changed, "tar")
            result = outcome(path)
            assert result == "read" or "output_layer.weight" in result
