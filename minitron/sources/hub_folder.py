"""HubFolder: a model as the Hub lays it out, read lazily by tensor name.

Knows config.json, safetensors (one file or shards with an index), `pytorch_model.bin` (read in
place, never unpickled beyond tensors) and tokenizer files, in a folder or in a Hub repository at
one pinned revision. Does not know what the tensors mean.

    folder = HubFolder.at(Path("minitron-4b"))
    folder.tensors["model.norm.weight"].read()
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

from minitron.errors import SourceError
from minitron.files.cached_file import CachedFile, PieceCache
from minitron.files.checked_json import not_finite, read_object
from minitron.files.file import File, LocalFile
from minitron.files.hub_repository import HubFile, HubRepository
from minitron.files.lazy_tensor import DeferredTensor, LazyTensor, StoredTensor
from minitron.files.model_files import ADAPTER, LocalFolder, merge_advice, tokenizer_names
from minitron.files.safetensors_file import read_safetensors_header
from minitron.files.torch_file import read_torch_file
from minitron.model.family import HEAD
from minitron.model.source import Source, canonical_names, some_of

logger = logging.getLogger(__name__)

# In the order that transformers looks for them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LICENSE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")


_SHARD_NAME = re.compile(r"(?!\.{0,2}$)[^\x00-\x1f\x7f/\\:]+")  # a file on any system, no address
CONFIG = "config.json"


class FolderCompanions:
    """The files beside the weights of a folder or a repository."""

    def __init__(self, folder: LocalFolder | HubRepository) -> None:
        self._folder = folder

    def file(self, name: str) -> Path | None:
        """A file of the folder, on this machine; None where there is none."""
        return self._folder.file(name)

    @property
    def tokenizer_names(self) -> list[str]:
        """The names of the tokenizer's files; nothing is downloaded."""
        return tokenizer_names(self._folder.names())

    def tokenizer_files(self) -> Iterator[Path]:
        """The tokenizer's files."""
        return self._files(self.tokenizer_names)

    def license_files(self) -> Iterator[Path]:
        """The license terms, which a derived model must carry."""
        names = self._folder.names()
        return self._files(n for n in names if any(fnmatch(n, each) for each in _LICENSE_FILES))

    def _files(self, names: Iterable[str]) -> Iterator[Path]:
        for name in names:
            path = self._folder.file(name)
            if path is not None:
                yield path


class HubFolder(Source):
    """A model's config, tensors and tokenizer files, in a folder or a repository."""

    format = "hub"

    def __init__(self, folder: LocalFolder | HubRepository, *, low_disk: bool = False) -> None:
        """`low_disk` True reads weights that are on the Hub by ranges, and stores none."""
        self.name = folder.name
        self.revision = folder.revision
        self.companions = FolderCompanions(folder)
        self._folder = folder
        self._low_disk = low_disk
        self._windows = PieceCache()
        self._lock = Lock()
        self._shards: dict[str, Mapping[str, StoredTensor]] = {}
        self._outlines: dict[str, Mapping[str, StoredTensor] | None] = {}
        self.config = self._json(CONFIG)
        if self.config is None:
            self._refuse_adapter()
            raise SourceError(f"{self.name} has no config.json: it is not a model folder")
        if (key := not_finite(self.config)) is not None:
            raise SourceError(f"{self.name}: config.json says {key}, no finite number: mend it")

    @classmethod
    def at(cls, path: Path, name: str | None = None) -> "HubFolder":
        """The model in a folder of this machine, named by its path unless a name is given.

        Raises SourceError, before anything slow, for companion files that are outside the folder.
        """
        folder = cls(LocalFolder(path, name))
        for _ in (*folder.companions.tokenizer_files(), *folder.companions.license_files()):
            pass  # each is checked
        return folder

    @classmethod
    def embedded(cls, path: Path, name: str) -> "HubFolder":
        """A model of this package, whose installer may have made links of its files."""
        return cls(LocalFolder(path, name, is_ours=True))

    @cached_property
    def layout(self) -> str | None:
        """Format of the weights: "safetensors" or "pytorch_model.bin", " (sharded)"; or None."""
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
        """Every tensor under the family's own name, located but not read.

        A file on the Hub is downloaded when the first of its tensors is read, or with `low_disk`
        read there by ranges. Raises SourceError where shards are missing, damaged, or without a
        tensor that the index names.
        """
        if not self.files_of_tensors:
            self._refuse_adapter()
            raise SourceError(f"{self.name} has no weights: {self._why_no_weights()}")
        if ADAPTER in self._folder.names():
            logger.warning(
                "%s holds an adapter beside its weights (%s), which is not read: merge it first if "
                "it is meant",
                self.name,
                ADAPTER,
            )
        files = self._files_by_stored_name()
        known = {*self.architecture.shapes(), HEAD}
        found: dict[str, LazyTensor] = {}
        for name, stored in canonical_names(files, self.architecture).items():
            # As transformers does: what the index does not list is read where the model has it.
            if stored in self.files_of_tensors or name in known:
                file = files[stored]
                found[name] = self._tensor(file, stored)
        absent = [name for name in self.files_of_tensors if name not in files]
        for name, stored in canonical_names(absent, self.architecture).items():
            if name not in found:  # a tied tensor has another of its names
                raise SourceError(
                    f"{self.name}: the index says {self.files_of_tensors[stored]} holds "
                    f"{some_of(absent)}, but it does not: fetch the folder again"
                )
        return found

    def _files_by_stored_name(self) -> dict[str, str]:
        """Every tensor name in the weight files, with its file; those of the index come first."""
        holders: dict[str, str] = {}
        for file in dict.fromkeys(self.files_of_tensors.values()):
            for name in self._listed(file):
                if name in holders:
                    raise SourceError(
                        f"{self.name}: {holders[name]} and {file} both hold {name}: "
                        "fetch the folder again"
                    )
                holders[name] = file
        listed = {name: holders[name] for name in self.files_of_tensors if name in holders}
        return {**listed, **holders}

    @cached_property
    def _located(self) -> tuple[str | None, Mapping[str, str] | None, str | None]:
        """The layout, with the index of a sharded one or the name of a single file."""
        for weights in _WEIGHTS:
            kind = weights.removeprefix("model.")
            if weights in self._folder.names():
                return kind, None, weights
            index = self._json(f"{weights}.index.json")
            if index is not None:
                return f"{kind} (sharded)", _weight_map(index, f"{self.name}/{weights}"), None
        return None, None, None

    def _listed(self, file: str) -> Mapping[str, StoredTensor]:
        """The tensors of a weight file, which may be on the Hub."""
        outline = self._outline(file)
        return self._shard(file) if outline is None else outline

    def _tensor(self, file: str, name: str) -> LazyTensor:
        """A tensor of a weight file; where that is on the Hub, it is read there or downloaded."""
        listed = self._listed(file)[name]
        if self._outline(file) is None:
            return listed
        if self._low_disk:
            return listed.cached(self._windows)
        return DeferredTensor(listed.dtype, listed.shape, partial(self._downloaded, file, name))

    def _downloaded(self, file: str, name: str) -> StoredTensor:
        shard = self._shard(file)
        if name not in shard:
            raise SourceError(f"{self.name}: {file} has changed while it was read: try again")
        return shard[name]

    def _outline(self, file: str) -> Mapping[str, StoredTensor] | None:
        """The tensors of a file on the Hub, by the few of its bytes that describe them.

        None where the file is on this machine, or can only be downloaded whole.
        """
        if file not in self._outlines:
            remote = self._folder.remote_file(file)
            if remote is None and self._low_disk and self._is_remote(file):
                raise SourceError(
                    f"{self.name}: {file} can be had only whole: do it without --low-disk"
                )
            self._outlines[file] = None if remote is None else self._read_outline(remote)
        return self._outlines[file]

    def _is_remote(self, file: str) -> bool:
        return file in self._folder.names() and not self._folder.is_local(file)

    def _read_outline(self, remote: HubFile) -> Mapping[str, StoredTensor]:
        """The tensors of a file on the Hub; only low_disk needs to know where each one begins."""
        # Of a safetensors file, the header came with the first request.
        is_pickle = not remote.name.endswith(".safetensors")
        outline = _read_tensors(
            CachedFile(remote) if is_pickle else remote, outline=not self._low_disk
        )
        uncached = replace(remote, beginning=b"")  # of many shards, their beginnings take memory
        return {name: replace(tensor, file=uncached) for name, tensor in outline.items()}

    def _shard(self, file: str) -> Mapping[str, StoredTensor]:
        """The tensors of a weight file on this machine, downloaded where it is not there yet."""
        with self._lock:  # several threads may need the file at once
            if file not in self._shards:
                path = self._folder.file(file)
                if path is None:
                    raise SourceError(
                        f"{self.name} has no {file}, which its index names: "
                        f"{self._folder.remedy(file)}"
                    )
                self._shards[file] = _read_tensors(LocalFile.at(path))
            return self._shards[file]

    def _json(self, name: str) -> Any:
        path = self._folder.file(name)
        return None if path is None else read_object(path, SourceError, "fetch it again")

    def _why_no_weights(self) -> str:
        # Of a repository, what is not cached counts as here only where the Hub is not to be asked.
        if self.revision is not None and self._folder.is_local(_WEIGHTS[0]):
            return (
                "none is in the cache, and HF_HUB_OFFLINE is set; "
                f"{self._folder.remedy(_WEIGHTS[0])}"
            )
        return "model.safetensors or pytorch_model.bin, or an index with its shards"

    def _refuse_adapter(self) -> None:
        """Raise SourceError where the folder holds an adapter instead of a model."""
        settings = self._json(ADAPTER)
        if settings is not None:
            raise SourceError(merge_advice(self.name, settings))


def _read_tensors(file: File, *, outline: bool = False) -> Mapping[str, StoredTensor]:
    if file.name.endswith(".safetensors"):
        return read_safetensors_header(file)
    return read_torch_file(file, outline=outline)


def _weight_map(index: Mapping[str, Any], name: str) -> Mapping[str, str]:
    """An index's table, refused where it points outside its folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{name}.index.json has no weight_map: fetch it again")
    for file in weight_map.values():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise SourceError(
                f"{name}.index.json names the shard {file!r}, no file of its folder: fetch it again"
            )
    return weight_map
