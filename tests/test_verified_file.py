"""A large file in the Hub's cache is looked at once, and again when it was written to since."""

import hashlib
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from minitron.errors import SourceError
from minitron.files.verified_file import verify

CONTENT = bytes(range(256)) * 5
OTHER = CONTENT[:-1] + b"\0"


def cached(root: Path, content: bytes, name: str | None = None) -> Path:
    """A file as huggingface_hub caches it; the link in the snapshot."""
    blob = root / "blobs" / (name or hashlib.sha256(CONTENT).hexdigest())
    link = root / "snapshots" / ("c" * 40) / "model.safetensors"
    blob.parent.mkdir(parents=True)
    link.parent.mkdir(parents=True)
    blob.write_bytes(content)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


@pytest.fixture
def looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose sha256 was taken."""
    files: list[str] = []

    def digest(file: object, name: str) -> object:
        files.append(Path(str(getattr(file, "name", ""))).name)
        return file_digest(file, name)  # type: ignore[arg-type]

    file_digest = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", digest)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return files


def test_a_file_is_looked_at_once(tmp_path: Path, looked: list[str]) -> None:
    link = cached(tmp_path, CONTENT)
    verify(link)
    verify(link)
    assert looked == [hashlib.sha256(CONTENT).hexdigest()]


def test_a_file_that_was_written_to_is_looked_at_again(tmp_path: Path, looked: list[str]) -> None:
    link = cached(tmp_path, CONTENT)
    verify(link)
    link.write_bytes(OTHER)
    with pytest.raises(SourceError, match=r"model.safetensors is damaged"):
        verify(link)


def test_another_file_of_the_same_size_is_refused_each_time(
    tmp_path: Path, looked: list[str]
) -> None:
    link = cached(tmp_path, OTHER)
    for _ in range(2):
        with pytest.raises(SourceError) as refused:
            verify(link)
        seen, expected = (hashlib.sha256(content).hexdigest() for content in (OTHER, CONTENT))
        assert str(refused.value) == (
            f"{link} is damaged: its sha256 is {seen}, but on the Hub it is {expected}: delete "
            f"{tmp_path}/blobs/{expected} and run again"
        )
    assert len(looked) == 2


def test_a_blob_in_a_store_that_repositories_share_is_looked_at(
    tmp_path: Path, looked: list[str]
) -> None:
    link = cached(tmp_path, OTHER)
    blob = tmp_path / "blobs" / hashlib.sha256(CONTENT).hexdigest()
    blob.rename(tmp_path / "named-otherwise")
    blob.symlink_to(tmp_path / "named-otherwise")
    with pytest.raises(SourceError, match="is damaged"):
        verify(link)


@pytest.mark.parametrize("name", ["0" * 40, "model.safetensors"])
def test_what_is_not_called_by_a_sha256_is_taken_as_it_is(
    tmp_path: Path, looked: list[str], name: str
) -> None:
    verify(cached(tmp_path, OTHER, name))
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(OTHER)
    verify(plain)
    assert looked == []


def test_where_nothing_can_be_noted_it_is_looked_at_every_time(
    tmp_path: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(in_the_way))
    link = cached(tmp_path, CONTENT)
    verify(link)
    verify(link)
    assert len(looked) == 2
