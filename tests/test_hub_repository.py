"""Offline, what is cached is opened at its commit, and what is not is one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_folder, tiny_model

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
NAMES = [
    "owner/whole",
    "owner/whole@main",
    f"owner/whole@{COMMIT}",
    "owner/whole@v9",
    f"owner/whole@{OTHER}",
    "owner/shardless",
    "owner/configless",
    "owner/config-only",
    "owner/absent",
]
SCRIPT = """
import json, sys
from minitron.errors import MinitronError
from minitron.sources.opening import open_source

def reported(name):
    try:
        source = open_source(name)
        return {
            "name": source.name,
            "revision": source.revision,
            "layout": source.layout,
            "tokenizer": [path.name for path in source.companions.tokenizer_files()],
            "licenses": [path.name for path in source.companions.license_files()],
            "absent": source.companions.file("generation_config.json"),
            "norm": source.tensors["model.norm.weight"].read().tolist(),
            "paths": sorted({str(stored.file.path) for stored in source.tensors.values()}),
        }
    except MinitronError as error:
        return {"error": type(error).__name__, "message": str(error)}

print(json.dumps({name: reported(name) for name in sys.argv[1:]}))
"""


def cached(hub: Path, name: str, files: dict[str, bytes]) -> Path:
    """A repository as huggingface_hub caches it: blobs, a snapshot of links to them, a ref."""
    root = hub / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, (file, content) in enumerate(sorted(files.items())):
        blob = root / "blobs" / f"{number:040x}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of some repositories, none of which is on the Hub."""
    hub = tmp_path_factory.mktemp("cache") / "hub"
    folder = tiny_folder(tmp_path_factory.mktemp("model") / "model", max_shard_size="40KB")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    del files["generation_config.json"]
    files |= {"tokenizer.json": b"{}", "tokenizer.model": b"", "LICENSE": b"terms"}
    shard = "model-00002-of-"
    cached(hub, "owner/whole", files)
    (hub / "models--owner--whole" / "snapshots" / COMMIT / "tokenizer-of-old").mkdir()
    cached(hub, "owner/shardless", {k: v for k, v in files.items() if not k.startswith(shard)})
    cached(hub, "owner/configless", {k: v for k, v in files.items() if k != "config.json"})
    cached(hub, "owner/config-only", {"config.json": files["config.json"]})
    return hub


@pytest.fixture(scope="module")
def results(hub: Path) -> dict[str, dict[str, Any]]:
    """What a process that is offline says of each name."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, *NAMES],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    by_name: dict[str, dict[str, Any]] = json.loads(run.stdout)
    return by_name


@pytest.mark.parametrize("name", ["owner/whole", "owner/whole@main", f"owner/whole@{COMMIT}"])
def test_a_cached_repository_is_opened_at_its_commit(
    name: str, results: dict[str, dict[str, Any]]
) -> None:
    source = results[name]
    assert source["name"] == "owner/whole"
    assert source["revision"] == COMMIT
    assert source["layout"] == "safetensors (sharded)"
    assert source["tokenizer"] == ["tokenizer.json", "tokenizer.model"]
    assert source["licenses"] == ["LICENSE"]
    assert source["absent"] is None
    assert len(source["paths"]) > 2
    assert all(f"models--owner--whole/snapshots/{COMMIT}/" in path for path in source["paths"])


def test_its_tensors_are_those_that_were_cached(results: dict[str, dict[str, Any]]) -> None:
    assert results["owner/whole"]["norm"] == tiny_model().model.norm.weight.tolist()


@pytest.mark.parametrize("name", ["owner/absent", "owner/whole@v9", f"owner/whole@{OTHER}"])
def test_what_is_not_cached_is_named_in_one_line(
    name: str, results: dict[str, dict[str, Any]]
) -> None:
    assert results[name]["error"] == "SourceError"
    assert results[name]["message"] == (
        f"{name} is neither a folder nor in the cache, and HF_HUB_OFFLINE is set: unset it, or "
        "check the name"
    )


def test_a_shard_that_is_not_cached_is_named(results: dict[str, dict[str, Any]]) -> None:
    assert results["owner/shardless"]["error"] == "SourceError"
    assert "owner/shardless has no model-00002-of-" in results["owner/shardless"]["message"]
    message = results["owner/shardless"]["message"]
    assert "which its index names: fetch it where there is a network: hf download owner" in message
    assert re.search(r"owner/shardless model\S+safetensors --revision [0-9a-f]{40}$", message)


def test_a_repository_of_which_only_the_config_is_cached_has_no_weights(
    results: dict[str, dict[str, Any]],
) -> None:
    assert results["owner/config-only"]["message"].startswith(
        "owner/config-only has no weights: none is in the cache, and HF_HUB_OFFLINE is set; "
        "fetch it where there is a network: hf download owner/config-only model.safetensors"
    )


def test_a_cached_repository_without_config_is_no_model(
    results: dict[str, dict[str, Any]],
) -> None:
    assert results["owner/configless"]["error"] == "SourceError"
    assert "owner/configless" in results["owner/configless"]["message"]
