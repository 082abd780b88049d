"""Folders that hold something else than a model: links to other places, adapters, strange names."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import minitron
from minitron.errors import SourceError
from minitron.sources.hub_folder import HubFolder
from minitron.sources.loading import load_tokenizer
from minitron.sources.opening import open_source, zoo
from tests.tiny import tiny_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tiny_folder(tmp_path / "m", "llama", vocab_size=4099)
    for file in zoo()["tiny"].glob("tokenizer*"):
        shutil.copy(file, made)
    return made


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "id_rsa"
    path.write_text("a private key")
    return path


def prune(source: Path, out: Path) -> None:
    minitron.prune(str(source), str(out), intermediate_size=40, scores="random")


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE.txt", "tokenizer.model", "README.md"])
@pytest.mark.parametrize("how", ["absolute", "relative", "a chain"])
def test_a_link_that_leads_outside_is_refused(
    name: str, how: str, folder: Path, secret: Path, tmp_path: Path
) -> None:
    link = folder / name
    link.unlink(missing_ok=True)
    if how == "a chain":
        (folder / "inner").symlink_to(secret)
        link.symlink_to("inner")
    else:
        link.symlink_to(secret if how == "absolute" else f"../{secret.name}")
    with pytest.raises(SourceError, match=rf"{name} is a link to .*id_rsa, outside its folder"):
        prune(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_that_leads_outside_is_refused(
    name: str, folder: Path, secret: Path, tmp_path: Path
) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    with pytest.raises(SourceError, match="outside its folder"):
        prune(folder, tmp_path / "out")


def test_links_within_the_folder_or_to_it_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "terms").write_text("terms")
    (folder / "LICENSE").symlink_to("terms")
    (tmp_path / "link").symlink_to(folder)
    prune(tmp_path / "link", tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"


def test_a_snapshot_of_the_hubs_cache_is_made_of_links(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../..") / "blobs" / str(number))
    prune(snapshot, tmp_path / "out")
    assert load_tokenizer(open_source(str(snapshot)))


def test_weights_may_be_on_another_disk(folder: Path, tmp_path: Path) -> None:
    elsewhere = shutil.move(folder / "model.safetensors", tmp_path / "weights.safetensors")
    (folder / "model.safetensors").symlink_to(elsewhere)
    prune(folder, tmp_path / "out")


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "meta/base-1B", "r": 8}


@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_is_named_with_its_base_and_how_to_merge_it(
    has_config: bool, folder: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    if has_config:
        shutil.copy(folder / "config.json", adapter)
    with pytest.raises(SourceError, match=r"is a LORA adapter of meta/base-1B, .*merge_and_unload"):
        prune(adapter, tmp_path / "out")


@pytest.mark.parametrize("settings", [{}, {"peft_type": 7, "base_model_name_or_path": ["x" * 999]}])
def test_a_strange_adapter_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(SourceError, match="adapter of .*and name OUT$"):
        HubFolder.at(tmp_path)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_scaling"])
def test_a_config_of_numbers_that_are_none_is_refused(key: str, value: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    stated = value if key == "rms_norm_eps" else f'{{"factor": [1.0, {value}]}}'
    text = json.dumps({**config, key: "it"}).replace('"it"', stated)
    (folder / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"config.json says \w+ is (nan|-?inf), no finite number"):
        open_source(str(folder))


@pytest.mark.parametrize(
    "content",
    ['{"a": "\\ud800"}', '{"a": ' + "[" * 5000 + "]" * 5000 + "}", '{"a": ' + "9" * 5000 + "}"],
    ids=["half a surrogate", "deep", "long number"],
)
def test_json_that_cannot_be_written_again_is_refused(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(SourceError, match="config.json is not JSON"):
        open_source(str(folder))


def test_a_name_that_commands_a_terminal_is_no_tokenizer_file(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer\x1b[31m.json").write_text("{}")
    assert all(name.isprintable() for name in minitron.inspect(str(folder)).tokenizer)
    prune(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*\x1b*"))


def test_an_adapter_beside_whole_weights_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    prune(folder, tmp_path / "out")
    lines = [line for line in caplog.messages if "adapter_config.json" in line]
    assert len(lines) == 1
    assert "merge it first" in lines[0]
