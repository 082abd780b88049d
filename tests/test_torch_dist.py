"""Checkpoints of torch's distributed format: chunks where the index says, and nothing executed."""

import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from minitron.conversion.distributed_reader import torch_dist_tensors
from minitron.conversion.nemo_archive import open_archive
from minitron.errors import SourceError
from minitron.files.file import File
from minitron.files.lazy_tensor import LazyTensor
from tests.nemo_files import (
    megatron_tensors,
    nemo_members,
    nemo_settings,
    pack_members,
    torch_bytes,
)

NAME = "model.output_layer.weight"
TENSORS = {
    "output_layer.weight": torch.randn(8, 6, generator=torch.manual_seed(0)),
    "decoder.layers.0.mlp.linear_fc2.weight": torch.randn(6, 10, generator=torch.manual_seed(1)),
    "decoder.layers.1.mlp.linear_fc2.weight": torch.randn(6, 10, generator=torch.manual_seed(2)),
    "decoder.layers.0.mlp.linear_fc1.weight": torch.randn(10, 6, generator=torch.manual_seed(3)),
    "decoder.layers.1.mlp.linear_fc1.weight": torch.randn(10, 6, generator=torch.manual_seed(4)),
}
INDEX = "model_weights/.metadata"


def members_of(change: Callable[[Metadata], object] = lambda index: None) -> dict[str, bytes]:
    """The members of a small checkpoint, its index changed."""
    members = nemo_members(TENSORS, layout="torch_dist", tensor_parallel=2)
    index = pickle.loads(members[INDEX])
    change(index)
    return {**members, INDEX: pickle.dumps(index, protocol=4)}


def tensors(tmp_path: Path, members: dict[str, bytes]) -> dict[str, LazyTensor]:
    """Every tensor by its key; of stacked ones the last layer."""
    archive = open_archive(pack_members(tmp_path / "m.nemo", members, "tar"))
    found = torch_dist_tensors(archive, "model_weights")
    return {
        key: tensor.layers()[-1] if ".layers." in key else tensor.whole()
        for key, tensor in found.items()
    }


def chunk_index(index: Metadata, offset: int = 0) -> MetadataIndex:
    """Where the index stores the chunk of NAME that begins at this row."""
    return MetadataIndex(NAME, torch.Size([offset, 0]))


def test_what_torch_itself_writes_is_read(tmp_path: Path) -> None:
    settings = nemo_settings()
    state = {f"module.{name}": t for name, t in megatron_tensors(settings).items()}
    state["module.half"] = torch.randn(3, 5).bfloat16()
    extra: dict[str, Any] = {"optimizer.step": torch.ones(2), "common": {"epoch": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.save({**state, **extra}, checkpoint_id=tmp_path / "weights", no_dist=True)
    archive = open_archive(tmp_path)

    found = torch_dist_tensors(archive, "weights")

    assert set(found) == set(state)
    for key, tensor in state.items():
        lazy = found[key].whole()
        assert (lazy.dtype, lazy.shape) == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(lazy.read(), tensor)


def test_chunks_are_put_together_and_the_rest_is_left_out(tmp_path: Path) -> None:
    found = tensors(tmp_path, members_of())

    assert set(found) == {
        NAME,
        "model.decoder.layers.mlp.linear_fc1.weight",
        "model.decoder.layers.mlp.linear_fc2.weight",
    }
    assert torch.equal(found[NAME].read(), TENSORS["output_layer.weight"])
    assert torch.equal(found[NAME].read(3, 6), TENSORS["output_layer.weight"][3:6])
    for name in ("mlp.linear_fc1.weight", "mlp.linear_fc2.weight"):
        layer = found[f"model.decoder.layers.{name}"]
        assert torch.equal(layer.read(), TENSORS[f"decoder.layers.1.{name}"])


def test_a_header_is_read_when_its_tensor_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import minitron.conversion.distributed_reader as reader

    read, opened = reader.read_torch_object, []

    def count_opened(file: File) -> object:
        opened.append(file)
        return read(file)

    monkeypatch.setattr(reader, "read_torch_object", count_opened)
    found = tensors(tmp_path, members_of())[NAME]
    assert opened == []
    found.read(0, 3)
    assert len(opened) == 1
    found.ranges()
    found.read()
    assert len(opened) == 2


def test_replicas_of_a_chunk_count_once(tmp_path: Path) -> None:
    def change(index: Metadata) -> None:
        index.state_dict_metadata[NAME].chunks *= 2

    found = tensors(tmp_path, members_of(change))
    assert torch.equal(found[NAME].read(), TENSORS["output_layer.weight"])


def stored_in(path: str) -> Callable[[Metadata], object]:
    def change(index: Metadata) -> None:
        place = chunk_index(index)
        index.storage_data[place] = replace(index.storage_data[place], relative_path=path)

    return change


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "a/../__0_0.distcp", "..", "", "sub/x", "..\\x"]
)
def test_an_item_outside_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("s")

    with pytest.raises(SourceError, match="which is not a file of this folder") as error:
        tensors(tmp_path, members_of(stored_in(path)))
    assert NAME in str(error.value)


def moved(**fields: Any) -> Callable[[Metadata], object]:
    def change(index: Metadata) -> None:
        place = chunk_index(index)
        index.storage_data[place] = replace(index.storage_data[place], **fields)

    return change


def chunked(*boxes: tuple[tuple[int, int], tuple[int, int]]) -> Callable[[Metadata], object]:
    """The chunks of NAME config to be these, every one of them stored."""

    def change(index: Metadata) -> None:
        stored = index.storage_data[chunk_index(index)]
        index.state_dict_metadata[NAME].chunks = [
            ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes
        ]
        for offsets, _ in boxes:
            index.storage_data.setdefault(MetadataIndex(NAME, torch.Size(offsets)), stored)

    return change


def resized(*sizes: int) -> Callable[[Metadata], object]:
    return lambda index: setattr(index.state_dict_metadata[NAME], "size", torch.Size(sizes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (stored_in("__9_9.distcp"), "stored in __9_9.distcp, which is missing"),
        (stored_in(7), "stored in 7, which is not a file"),  # type: ignore[arg-type]
        (moved(offset=1 << 40), "is truncated, .* bytes are needed"),
        (moved(length=1 << 40), "is truncated, .* bytes are needed"),
        (moved(length=10), "cannot be in 10 bytes"),
        (moved(offset=-1), "not a reasonable number"),
        (moved(offset="0"), "not a reasonable number"),
        (moved(transform_descriptors=["zstd"]), "stored transformed"),
        (
            lambda index: index.storage_data.pop(chunk_index(index)),
            r"at \[0, 0\] is stored nowhere",
        ),
        (lambda index: setattr(index, "storage_data", None), "it has no storage_data"),
        (lambda index: setattr(index, "state_dict_metadata", []), "lists no tensors"),
        (chunked(((0, 0), (4, 6))), r"its 1 chunks do not tile shape \[8, 6\]"),
        (chunked(((0, 0), (3, 6)), ((4, 0), (4, 6))), "do not tile"),
        (chunked(((0, 0), (4, 6)), ((2, 0), (6, 6))), "do not tile"),
        (chunked(((0, 0), (4, 6)), ((4, 0), (4, 3))), "do not tile"),
        (chunked(((0, 0), (4, 6)), ((4, 0), (4, 3)), ((4, 3), (4, 3))), "do not tile"),
        (chunked(((4, 0), (4, 6)), ((8, 0), (0, 6))), "not a reasonable number"),
        (chunked(((0, 0), (4, 3)), ((0, 3), (4, 3)), ((4, 0), (4, 3))), "its 3 chunks do not tile"),
        (chunked(), "has no chunks"),
        (resized(9, 6), "do not tile"),
        (resized(4, 6), "do not tile"),
        (resized(8), r"of shape \[8\] has a chunk at \[0, 0\]"),
        (resized(1 << 60, 6), "not a reasonable number"),
        (
            lambda index: setattr(index.state_dict_metadata[NAME], "properties", None),
            "no dtype that is known",
        ),
    ],
)
def test_an_index_that_does_not_hold_is_refused(
    tmp_path: Path, change: Callable[[Metadata], object], message: str
) -> None:
    with pytest.raises(SourceError, match=message) as error:
        tensors(tmp_path, members_of(change))
    assert "\n" not in str(error.value)
    assert ".metadata" in str(error.value) or NAME in str(error.value)


def of_dtype(dtype: torch.dtype) -> Callable[[Metadata], object]:
    return lambda index: setattr(index.state_dict_metadata[NAME].properties, "dtype", dtype)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(4, 5), r"is torch\.float32 \[4, 5\], \.metadata says torch\.float32 \[4, 6\]"),
        (torch.ones(4, 6).half(), r"is torch\.float16 \[4, 6\]"),
        ([torch.ones(4, 6)], "is not a tensor but a list"),
        (None, "is not a tensor but a NoneType"),
    ],
    ids=str,
)
def test_an_item_of_another_kind_is_refused_when_read(
    tmp_path: Path, value: object, message: str
) -> None:
    data = torch_bytes(value)
    members = members_of(moved(relative_path="__1_0.distcp", offset=0, length=len(data)))
    members["model_weights/__1_0.distcp"] = data

    with pytest.raises(SourceError, match=message) as error:
        tensors(tmp_path, members)[NAME].read()
    assert f"{NAME}, chunk [0, 0]" in str(error.value)


def test_a_damaged_item_is_named_when_read(tmp_path: Path) -> None:
    members = members_of()
    members["model_weights/__0_0.distcp"] = bytes(len(members["model_weights/__0_0.distcp"]))

    with pytest.raises(SourceError, match=r"chunk \[0, 0\] cannot be read: .*__0_0\.distcp"):
        tensors(tmp_path, members)[NAME].read()


def test_a_column_of_chunks_that_overlaps_no_other_is_no_grid(tmp_path: Path) -> None:
    # Two columns cut at different rows: every element is there once, but not as a grid.
    boxes = [((0, 0), (4, 3)), ((4, 0), (4, 3)), ((0, 3), (2, 3)), ((2, 3), (6, 3))]

    with pytest.raises(SourceError, match="its 4 chunks do not tile"):
        tensors(tmp_path, members_of(chunked(*boxes)))


class Runs:
    """Pickles as a call of os.system."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.touched}",)


def test_nothing_that_an_index_names_runs(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    def change(index: Metadata) -> None:
        index.planner_data = Runs(touched)
        index.storage_data["hostile"] = Runs(touched)

    with pytest.raises(SourceError, match="is not what it should list"):
        tensors(tmp_path, members_of(change))
    members = {**members_of(), INDEX: pickle.dumps(Runs(touched))}
    with pytest.raises(SourceError, match="damaged"):
        tensors(tmp_path, members)
    found = tensors(
        tmp_path, members_of(lambda index: setattr(index, "planner_data", Runs(touched)))
    )
    assert torch.equal(found[NAME].read(), TENSORS["output_layer.weight"])
    assert not touched.exists()


def test_an_index_may_name_classes_that_are_not_installed(tmp_path: Path) -> None:
    members = members_of(lambda index: setattr(index, "planner_data", PosixPath("x")))
    renamed = members[INDEX].replace(b"\x07pathlib", b"\x07megatro")
    assert renamed != members[INDEX]
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(renamed)

    found = tensors(tmp_path, {**members, INDEX: renamed})
    assert torch.equal(found[NAME].read(), TENSORS["output_layer.weight"])


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    members = members_of()
    del members[INDEX]

    with pytest.raises(SourceError, match=r"has no model_weights/\.metadata"):
        tensors(tmp_path, members)
