"""Source: a model that can be read tensor by tensor, and the files beside its weights.

Knows which tensors a model's config asks for and refuses weights that are not those. Does not know
how a source is opened (`minitron.sources.opening`) or where its tensors are.

    source = open_source("tiny")
    source.architecture.parameters
    source.weights["model.norm.weight"].read()
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from minitron.errors import SourceError
from minitron.files.dtypes import FLOATS, name_of
from minitron.files.lazy_tensor import LazyTensor
from minitron.model.architecture import Architecture
from minitron.model.config_json import resized_config
from minitron.model.family import DECODER, EMBEDDING, HEAD

_LEFTOVERS = ("rotary_emb.inv_freq", "attention.masked_bias")  # buffers of earlier transformers
_ROWS = 4096  # of an embedding, compared at once
_DIGESTED = 4096  # numbers of each tensor
_NAMED = 3  # names in a message; the rest are counted


class Companions(Protocol):
    """The files beside a model's weights."""

    def file(self, name: str) -> Path | None:
        """A file by its name; None where there is none."""

    @property
    def tokenizer_names(self) -> list[str]:
        """The names of the tokenizer's files; nothing is downloaded."""

    def tokenizer_files(self) -> Iterator[Path]:
        """The tokenizer's files."""

    def license_files(self) -> Iterator[Path]:
        """The license terms, which a derived model must carry."""


class Source:
    """A model that can be read tensor by tensor; a kind of source sets these attributes."""

    name: str
    format: str  # "hub", "nemo" or "gguf"
    revision: str | None = None  # the commit, of a repository on the Hub
    config: Mapping[str, Any]  # config.json
    writer: str | None = None  # the version that a NeMo checkpoint names
    companions: Companions

    @cached_property
    def layout(self) -> str | None:
        """How the weights are stored; None where there are none."""
        raise NotImplementedError

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Every stored tensor under the Hub's names, located but not read."""
        raise NotImplementedError

    @cached_property
    def architecture(self) -> Architecture:
        """The sizes in config.json. Raises ArchitectureError."""
        return Architecture.from_config(self.config)

    def config_at(
        self, target: Architecture, kept_layers: tuple[int, ...] | None = None
    ) -> dict[str, Any]:
        """config.json at the sizes of `target`, as `resized_config` makes it."""
        return resized_config(self.config, target, kept_layers)

    @cached_property
    def weights(self) -> Mapping[str, LazyTensor]:
        """The tensors that config.json asks for, in canonical order, located but not read.

        Raises SourceError for one that is missing, of another shape or not of floating-point
        numbers, and for one that the family does not have.
        """
        stored, shapes = self.tensors, self.architecture.shapes()
        if missing := [name for name in shapes if name not in stored]:
            raise SourceError(
                f"{self.name} has no tensor {some_of(missing)}: its weights are incomplete"
            )
        for name, shape in shapes.items():
            self._check_tensor(name, stored[name], shape)
        tied = HEAD if self.architecture.tie_word_embeddings else ""
        unknown = [
            name
            for name in stored
            if name not in shapes and name != tied and not name.endswith(_LEFTOVERS)
        ]
        if unknown:
            raise SourceError(
                f"{self.name} has a tensor {some_of(unknown)} that no "
                f"{self.architecture.model_type} has: its config.json is not that of these weights"
            )
        if tied in stored and not _equal(stored[tied], stored[EMBEDDING]):
            raise SourceError(
                f"{self.name}: {tied} is not the embedding although tie_word_embeddings is "
                "set: set it to false in config.json"
            )
        return {name: stored[name] for name in shapes}

    def check_weights(self) -> None:
        """Raise the SourceError of `weights` where they are not what config.json asks for."""
        _ = self.weights

    @cached_property
    def digest(self) -> str:
        """sha256 of the sizes, names, shapes and first numbers of each tensor.

        Two checkpoints of one training run already differ there, and no weight is read whole. The
        same weights in another file format or a wider dtype have the same digest.
        """
        flags = sorted(self.architecture.flags)
        digest = hashlib.sha256(f"{self.architecture.model_type} {flags}".encode())
        for name, shape in self.architecture.shapes().items():
            digest.update(f"{name}{shape}".encode())
            tensor = self.tensors.get(name)
            if tensor is not None:
                stop = 1 if len(shape) > 1 else _DIGESTED
                values = tensor.read(0, stop).flatten()[:_DIGESTED].to(torch.float64)
                digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """Name, revision and digest, as records and importance files hold them."""
        return {"name": self.name, "revision": self.revision, "digest": self.digest}

    def _check_tensor(self, name: str, tensor: LazyTensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise SourceError(
                f"{self.name}: {name} has shape {list(tensor.shape)}, "
                f"but config.json asks for {list(shape)}"
            )
        if tensor.dtype not in FLOATS:
            raise SourceError(
                f"{self.name}: {name} holds {name_of(tensor.dtype)}, "
                "not floating-point numbers: start from the unquantized model"
            )


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return all(
        torch.equal(one.read(start, start + _ROWS), other.read(start, start + _ROWS))
        for start in range(0, one.shape[0], _ROWS)
    )


def canonical_names(stored: Iterable[str], architecture: Architecture) -> dict[str, str]:
    """Our name of each tensor to the stored one, in the order of `stored`.

    Names that the family does not know stay as they are. Raises SourceError where two stored names
    are of one tensor.
    """
    known = {*architecture.shapes(), HEAD}
    found: dict[str, str] = {}
    for name in stored:
        canonical = _canonical(name, known)
        if canonical in found:
            raise SourceError(
                f"the weights hold {canonical} twice, as {found[canonical]} and as {name}: "
                "remove one of them"
            )
        found[canonical] = name
    if architecture.tie_word_embeddings and HEAD in found and EMBEDDING not in found:
        return {EMBEDDING if name == HEAD else name: found[name] for name in found}
    return found


def _canonical(name: str, known: set[str]) -> str:
    prefix = f"{DECODER}."
    if name.startswith(prefix) and name.removeprefix(prefix) in known:
        return name.removeprefix(prefix)
    return prefix + name if prefix + name in known else name


def some_of(names: Iterable[str]) -> str:
    """The first names, each of at most 80 characters, and how many more there are."""
    listed = list(names)
    shown = [name if len(name) <= 80 else f"{name[:77]}..." for name in listed[:_NAMED]]
    more = len(listed) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
