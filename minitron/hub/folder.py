"""HubFolder: a model as the Hub lays it out, read lazily by tensor name.

Knows config.json, safetensors (one file or shards with an index), `pytorch_model.bin` (read in
place, never unpickled beyond tensors), tokenizer files, and that all of it may lie in a folder or
in a Hub repository at one pinned revision. Does not know what the tensors mean.

    folder = HubFolder.at(Path("minitron-4b"))
    folder.tensors["model.norm.weight"].read()
"""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from minitron.errors import SourceError
from minitron.hub.fetched_tensor import FetchedTensor
from minitron.hub.repository import Piece
from minitron.tensors.lazy_tensor import LazyTensor
from minitron.tensors.safetensors_file import (
    MAX_HEADER,
    parse_safetensors_header,
    read_safetensors_header,
)
from minitron.tensors.stored_tensor import StoredTensor
from minitron.tensors.torch_file import read_torch_file

# In the order that transformers looks for them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = (
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "tekken.json",
)
_LICENSE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")


_ENOUGH = 1 << 17  # bytes, for the header of most safetensors files


class Place(Protocol):
    """Where files lie: a folder, or a repository that is downloaded file by file."""

    name: str
    revision: str | None

    def file(self, name: str) -> Path | None:
        """The file on this machine, fetched where needed; None where there is none."""

    def names(self) -> list[str]:
        """The names of all files at the top level."""

    def piece(self, name: str, start: int, stop: int) -> Piece | None:
        """Some bytes of a file that is not on this machine; None where `file` will do."""


class LocalPlace:
    """A folder on this machine."""

    revision: str | None = None

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)

    def file(self, name: str) -> Path | None:
        """The file's path, if it is there."""
        path = self.path / name
        return path if path.is_file() else None

    def names(self) -> list[str]:
        """The folder's files, in alphabetical order."""
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    def piece(self, name: str, start: int, stop: int) -> Piece | None:
        """None: every file is here."""


class HubFolder:
    """A model's config, tensors and tokenizer files, at a place."""

    format = "hub"
    writer: str | None = None

    def __init__(self, place: Place) -> None:
        self.name = place.name
        self.revision = place.revision
        self._place = place
        self._shards: dict[str, Mapping[str, StoredTensor]] = {}
        self._outlines: dict[str, Mapping[str, StoredTensor] | None] = {}
        self.config = self._json("config.json")
        if self.config is None:
            raise SourceError(f"{self.name} has no config.json: it is not a model folder")

    @classmethod
    def at(cls, path: Path, name: str | None = None) -> "HubFolder":
        """The model in a folder of this machine, called by its path unless a name is given."""
        return cls(LocalPlace(path, name))

    @cached_property
    def layout(self) -> str | None:
        """How the weights lie: "safetensors" or "pytorch_model.bin", " (sharded)"; None if none."""
        return self._located[0]

    @cached_property
    def files_of_tensors(self) -> Mapping[str, str]:
        """Tensor name to the weight file that holds it."""
        _, index, single = self._located
        if index is not None:
            return index
        return dict.fromkeys(self._listed(single), single) if single is not None else {}

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Every tensor, located but not read. Raises SourceError where shards are missing,
        damaged, or without a tensor that the index names.

        A safetensors file of the Hub is fetched when the first of its tensors is read."""
        found: dict[str, LazyTensor] = {}
        for name, file in self.files_of_tensors.items():
            shard = self._listed(file)
            if name not in shard:
                raise SourceError(
                    f"{self.name}: the index says {file} holds {name}, but it does not: "
                    "fetch the folder again"
                )
            listed = shard[name]
            fetch = partial(self._fetched, file, name)
            is_here = self._outline(file) is None
            found[name] = listed if is_here else FetchedTensor(listed.dtype, listed.shape, fetch)
        if not found:
            raise SourceError(
                f"{self.name} has no weights: model.safetensors or pytorch_model.bin, "
                "or an index with its shards"
            )
        return found

    def file(self, name: str) -> Path | None:
        """A file of the folder, on this machine; None where there is none."""
        return self._place.file(name)

    @property
    def tokenizer_names(self) -> list[str]:
        """What a tokenizer may need, by name; nothing is fetched."""
        return sorted(self._matching_names(_TOKENIZER_FILES))

    def tokenizer_files(self) -> Iterator[Path]:
        """Whatever a tokenizer may need."""
        return self._matching(_TOKENIZER_FILES)

    def license_files(self) -> Iterator[Path]:
        """The terms that a derived model must carry on."""
        return self._matching(_LICENSE_FILES)

    def _matching(self, patterns: tuple[str, ...]) -> Iterator[Path]:
        for name in self._matching_names(patterns):
            path = self._place.file(name)
            if path is not None:
                yield path

    def _matching_names(self, patterns: tuple[str, ...]) -> Iterator[str]:
        for name in self._place.names():
            if any(fnmatch(name, pattern) for pattern in patterns):
                yield name

    @cached_property
    def _located(self) -> tuple[str | None, Mapping[str, str] | None, str | None]:
        """The layout, with the index of a sharded one or the name of a single file."""
        for weights in _WEIGHTS:
            kind = weights.removeprefix("model.")
            if weights in self._place.names():
                return kind, None, weights
            index = self._json(f"{weights}.index.json")
            if index is not None:
                return f"{kind} (sharded)", _weight_map(index, f"{self.name}/{weights}"), None
        return None, None, None

    def _listed(self, file: str) -> Mapping[str, StoredTensor]:
        """The tensors of a file, which need not be here."""
        outline = self._outline(file)
        return self._shard(file) if outline is None else outline

    def _fetched(self, file: str, name: str) -> StoredTensor:
        shard = self._shard(file)
        if name not in shard:
            raise SourceError(f"{self.name}: {file} has changed while it was read: try again")
        return shard[name]

    def _outline(self, file: str) -> Mapping[str, StoredTensor] | None:
        """The tensors of a safetensors file that is not here, by its header alone."""
        if file not in self._outlines:
            self._outlines[file] = None
            if file.endswith(".safetensors"):
                self._outlines[file] = self._read_outline(file)
        return self._outlines[file]

    def _read_outline(self, file: str) -> Mapping[str, StoredTensor] | None:
        begun = self._place.piece(file, 0, _ENOUGH)
        if begun is None:
            return None
        needed = 8 + int.from_bytes(begun.content[:8], "little")
        if len(begun.content) < min(needed, begun.size, MAX_HEADER):
            begun = self._place.piece(file, 0, needed)
        return (
            None
            if begun is None
            else parse_safetensors_header(Path(file), begun.content, begun.size)
        )

    def _shard(self, file: str) -> Mapping[str, StoredTensor]:
        if file not in self._shards:
            path = self._place.file(file)
            if path is None:
                raise SourceError(f"{self.name} has no {file}, which its index names: fetch it")
            read = read_safetensors_header if path.suffix == ".safetensors" else read_torch_file
            self._shards[file] = read(path)
        return self._shards[file]

    def _json(self, name: str) -> Any:
        path = self._place.file(name)
        if path is None:
            return None
        try:
            parsed = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path} is not JSON ({error}): fetch it again") from error
        if not isinstance(parsed, dict):
            raise SourceError(f"{path} holds no JSON object: fetch it again")
        return parsed


def _weight_map(index: Mapping[str, Any], name: str) -> Mapping[str, str]:
    """An index's table, refused where it points outside its folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{name}.index.json has no weight_map: fetch it again")
    for file in weight_map.values():
        if not isinstance(file, str) or file in ("", "..") or Path(file).name != file:
            raise SourceError(
                f"{name}.index.json names the shard {file!r}, no file of its folder: fetch it again"
            )
    return weight_map
