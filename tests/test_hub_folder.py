"""Weights in every layout of a folder are read as they are, or refused by name."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron.errors import SourceError
from minitron.sources.hub_folder import HubFolder
from tests.tiny import pickled_folder, tiny_folder, tiny_model

LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "safetensors": lambda path: tiny_folder(path, dtype=torch.bfloat16),
    "safetensors (sharded)": lambda path: tiny_folder(
        path, dtype=torch.bfloat16, max_shard_size="20KB"
    ),
    "pytorch_model.bin": lambda path: pickled_folder(path, dtype=torch.bfloat16),
    "pytorch_model.bin (sharded)": lambda path: pickled_folder(
        path, dtype=torch.bfloat16, shards=3
    ),
}
SHARDED = [layout for layout in LAYOUTS if "sharded" in layout]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in every layout."""
    root = tmp_path_factory.mktemp("layouts")
    return {layout: write(root / layout) for layout, write in LAYOUTS.items()}


@pytest.fixture
def copy_of(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them, to be damaged."""
    return lambda layout: Path(shutil.copytree(folders[layout], tmp_path / "copy"))


def shards_of(folder: Path) -> list[Path]:
    found = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return sorted(found)


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    (path,) = folder.glob("*.index.json")
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("layout", LAYOUTS)
class TestEveryLayout:
    def test_tensors_are_the_models(self, layout: str, folders: dict[str, Path]) -> None:
        folder = HubFolder.at(folders[layout])
        state = tiny_model(dtype=torch.bfloat16).state_dict()
        assert folder.layout == layout
        assert (len(shards_of(folders[layout])) > 2) == ("sharded" in layout)
        assert folder.tensors.keys() == state.keys()
        for name, tensor in state.items():
            stored = folder.tensors[name]
            assert (stored.shape, stored.dtype) == (tuple(tensor.shape), torch.bfloat16)
            assert torch.equal(stored.read(), tensor), name

    @pytest.mark.parametrize(("start", "stop"), [(0, 3), (5, 17), (40, None), (7, 7), (-2, None)])
    def test_rows_are_the_models(
        self, layout: str, start: int, stop: int | None, folders: dict[str, Path]
    ) -> None:
        folder = HubFolder.at(folders[layout])
        for name, tensor in tiny_model(dtype=torch.bfloat16).state_dict().items():
            assert torch.equal(folder.tensors[name].read(start, stop), tensor[start:stop]), name

    def test_weights_are_not_read_before_they_are_asked_for(
        self, layout: str, copy_of: Callable[[str], Path]
    ) -> None:
        folder = HubFolder.at(copy_of(layout))
        stored = folder.tensors["model.layers.2.mlp.up_proj.weight"]
        content = bytearray(stored.file.path.read_bytes())
        content[stored.offset : stored.offset + stored.nbytes] = bytes(stored.nbytes)
        status = stored.file.path.stat()
        stored.file.path.write_bytes(content)
        os.utime(stored.file.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert not stored.read().any()

    def test_the_folder_knows_which_file_holds_a_tensor(
        self, layout: str, folders: dict[str, Path]
    ) -> None:
        folder = HubFolder.at(folders[layout])
        files = {path.name for path in shards_of(folders[layout])}
        assert set(folder.files_of_tensors.values()) == files
        for name, file in folder.files_of_tensors.items():
            assert folder.tensors[name].file.path.name == file

    def test_a_truncated_shard_is_named(self, layout: str, copy_of: Callable[[str], Path]) -> None:
        path = copy_of(layout)
        shard = shards_of(path)[-1]
        shard.write_bytes(shard.read_bytes()[:-100])
        with pytest.raises(SourceError, match=rf"{shard.name} is truncated"):
            _ = HubFolder.at(path).tensors

    def test_an_empty_shard_is_named(self, layout: str, copy_of: Callable[[str], Path]) -> None:
        path = copy_of(layout)
        shard = shards_of(path)[0]
        shard.write_bytes(b"")
        with pytest.raises(SourceError, match=shard.name):
            _ = HubFolder.at(path).tensors


@pytest.mark.parametrize("layout", SHARDED)
class TestTheIndex:
    def test_a_missing_shard_is_named(self, layout: str, copy_of: Callable[[str], Path]) -> None:
        path = copy_of(layout)
        shard = shards_of(path)[1]
        shard.unlink()
        with pytest.raises(SourceError, match=rf"has no {shard.name}, which its index names"):
            _ = HubFolder.at(path).tensors

    def test_a_tensor_that_no_shard_has_is_named(
        self, layout: str, copy_of: Callable[[str], Path]
    ) -> None:
        path = copy_of(layout)
        shard = shards_of(path)[0].name
        edit_index(path, lambda index: index["weight_map"].update({"model.extra.weight": shard}))
        with pytest.raises(SourceError, match=rf"says {shard} holds model.extra.weight, but it"):
            _ = HubFolder.at(path).tensors

    @pytest.mark.parametrize(
        "file",
        ["../{}", "/etc/{}", "sub/{}", "./{}", "", "..", ".", 7, None, ["{}"]]
        + ["C:\\{}", "sub\\{}", "C:{}", "a\0{}", "a\n{}", "\x1b[31m{}", "https://some.where/{}"],
        ids=repr,
    )
    def test_a_shard_outside_the_folder_is_refused(
        self, layout: str, file: Any, copy_of: Callable[[str], Path]
    ) -> None:
        path = copy_of(layout)
        shard = shards_of(path)[0]
        shutil.copy(shard, path.parent)
        (path / "sub").mkdir()
        shutil.copy(shard, path / "sub")
        if isinstance(file, str):
            file = file.format(shard.name)
        edit_index(path, lambda index: index["weight_map"].update({"model.norm.weight": file}))
        with pytest.raises(SourceError, match=r"names the shard .*, no file of its folder: fetch"):
            _ = HubFolder.at(path).tensors

    @pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors"], ids=str)
    def test_an_index_without_a_table_is_refused(
        self, layout: str, weight_map: Any, copy_of: Callable[[str], Path]
    ) -> None:
        path = copy_of(layout)
        edit_index(path, lambda index: index.update(weight_map=weight_map))
        with pytest.raises(SourceError, match=r"index.json has no weight_map: fetch it again"):
            _ = HubFolder.at(path).tensors

    def test_a_damaged_index_is_named(self, layout: str, copy_of: Callable[[str], Path]) -> None:
        path = copy_of(layout)
        (index,) = path.glob("*.index.json")
        index.write_text(index.read_text()[:-20])
        with pytest.raises(SourceError, match=rf"{index.name} is not JSON \(.*\): fetch it again"):
            _ = HubFolder.at(path).tensors


def test_safetensors_come_before_a_pickle_beside_them(folders: dict[str, Path]) -> None:
    folder = folders["safetensors"]
    pickle = folder / "pytorch_model.bin"
    pickle.write_bytes(b"not even a pickle")
    try:
        assert HubFolder.at(folder).layout == "safetensors"
        assert "model.norm.weight" in HubFolder.at(folder).tensors
    finally:
        pickle.unlink()


def test_a_pickle_from_before_torch_1_6_is_read_too(tmp_path: Path) -> None:
    folder = pickled_folder(tmp_path / "old", dtype=torch.bfloat16)
    state = tiny_model(dtype=torch.bfloat16).state_dict()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert (folder / "pytorch_model.bin").read_bytes()[:2] != b"PK"
    tensors = HubFolder.at(folder).tensors
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name].read(), tensor) for name, tensor in state.items())


def test_a_config_alone_is_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "é": 1}', encoding="utf-8")
    folder = HubFolder.at(tmp_path)
    assert folder.config == {"model_type": "llama", "é": 1}
    assert folder.layout is None
    assert folder.files_of_tensors == {}
    with pytest.raises(SourceError, match="has no weights: model.safetensors or pytorch_model.bin"):
        _ = folder.tensors


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"{tmp_path} has no config.json: it is not a model"):
        HubFolder.at(tmp_path)


def test_a_folder_called_config_json_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SourceError, match="has no config.json"):
        HubFolder.at(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"model_type": "llama"', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["llama"]', "holds no JSON object"),
        (b"null", "holds no JSON object"),
    ],
    ids=lambda content: str(content)[:30],
)
def test_a_damaged_config_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SourceError, match=rf"config.json {message}.*: fetch it again"):
        HubFolder.at(tmp_path)


def test_tokenizer_and_license_files_are_found_by_name(tmp_path: Path) -> None:
    tokenizer = {
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "spiece.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "tekken.json",
        "qwen.tiktoken",
    }
    licenses = {"LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md"}
    others = {"README.md", "model.safetensors", "generation_config.json", "config.json", "merges"}
    for name in tokenizer | licenses | others:
        (tmp_path / name).write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    folder = HubFolder.at(tmp_path)
    assert {path.name for path in folder.companions.tokenizer_files()} == tokenizer
    assert {path.name for path in folder.companions.license_files()} == licenses
    assert folder.companions.file("README.md") == tmp_path / "README.md"
    assert folder.companions.file("absent") is None


def test_a_folder_has_the_name_it_is_given(folders: dict[str, Path]) -> None:
    path = folders["safetensors"]
    assert HubFolder.at(path).name == str(path)
    assert HubFolder.at(path, "tiny").name == "tiny"
    assert HubFolder.at(path).revision is None
