"""A source that is replaced, rewritten or removed while it is read is one line, never a mix."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import minitron
from minitron.errors import SourceError
from minitron.files.file import LocalFile
from minitron.sources.hub_folder import HubFolder
from minitron.sources.opening import open_source
from tests.nemo_files import megatron_tensors, nemo_settings, write_nemo_file
from tests.tiny import pickled_folder, tiny_folder


def renamed_over(path: Path) -> None:
    """As rsync does: another file takes its name."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def written_to(path: Path) -> None:
    """As torch.save does: the same file, other bytes."""
    content = path.read_bytes()
    path.write_bytes(content)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "renamed over": (renamed_over, "was replaced or written to while it was read: run again"),
    "written to": (written_to, "was replaced or written to while it was read: run again"),
    "grown": (grown, "was replaced or written to while it was read: run again"),
    "removed": (Path.unlink, "cannot be read: No such file"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("verb", ["convert", "prune"])
def test_a_source_that_changes_while_it_is_read_is_refused(
    verb: str, kind: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tiny_folder if kind == "safetensors" else pickled_folder
    source = make(tmp_path / "m")
    (weights,) = [*source.glob("model.safetensors"), *source.glob("pytorch_model.bin")]
    happens, says = CHANGES[change]
    module = {"prune": "minitron.verbs.prune", "convert": "minitron.verbs.convert"}[verb]
    write = __import__(module, fromlist=["write_weights"]).write_weights

    def write_after_the_change(*arguments: Any, **named: Any) -> None:
        os.utime(weights, ns=(1, 1))
        happens(weights)
        write(*arguments, **named)

    monkeypatch.setattr(f"{module}.write_weights", write_after_the_change)
    options = {"intermediate_size": 40, "scores": "random"} if verb == "prune" else {}
    with pytest.raises(SourceError, match=says):
        getattr(minitron, verb)(str(source), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layout", ["zarr", "state_dict", "torch_dist"])
def test_a_nemo_that_changes_while_it_is_read_is_refused(
    layout: str, change: str, tmp_path: Path
) -> None:
    settings = nemo_settings()
    path = tmp_path / "m.nemo"
    write_nemo_file(path, megatron_tensors(settings), settings, layout=layout)
    os.utime(path, ns=(1, 1))
    tensors = open_source(str(path)).tensors
    happens, says = CHANGES[change]
    happens(path)
    for tensor in tensors.values():
        with pytest.raises(SourceError, match=says):
            tensor.read(0, 1)


def test_a_change_between_two_reads_of_one_tensor_is_seen(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", max_shard_size="20KB")
    tensors = HubFolder.at(folder).tensors
    first, *_, last = tensors.values()
    first.read(0, 1)
    renamed_over(first.file.path)
    with pytest.raises(SourceError, match="was replaced"):
        first.read(1, 2)
    last.read(0, 1)  # another shard


def test_what_is_written_while_it_is_read_is_seen_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"12345678")
    os.utime(path, ns=(1, 1))
    file = LocalFile.at(path)
    with pytest.raises(SourceError, match="was replaced"), file.open():
        path.write_bytes(b"87654321")
