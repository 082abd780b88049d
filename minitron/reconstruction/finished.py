"""What is finished of a reconstruction, in its folder, where an interrupted one continues.

Fitted tensors are in a file a layer, and one for the output embedding; a file without a place in
the record is not finished. Does not know how anything is fitted.

    finished = Finished.at(folder, 8192)
    finished.add_layer(0, tensors, refits)
    RefittedSource(small, finished)
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from minitron.files.atomic_file import atomic_file, replace_file
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import LazyTensor
from minitron.files.safetensors_file import read_safetensors_header
from minitron.model.source import Source

_RECORD, _HEAD, _COVARIANCE = "finished.json", "head.safetensors", "covariance.safetensors"
_ROUNDING = 1e-6  # of the wanted squares: a smaller gain may be rounding alone


@dataclass(frozen=True)
class Refit:
    """What became of one linear: its tensor, alpha, and relative squared errors, held out."""

    name: str
    alpha: float
    error_before: float
    error_after: float

    @property
    def is_used(self) -> bool:
        """Whether the fit helps on the held-out tokens by more than rounding may."""
        return self.error_before - self.error_after > _ROUNDING


@dataclass
class Finished:
    """The layers that are fitted, and what became of each linear."""

    folder: Path
    batch_tokens: int  # another batch would round otherwise
    layers: int = 0
    has_head: bool = False  # or none is to be fitted
    refits: list[Refit] = field(default_factory=list)
    writes: bool = True  # else another process does

    @classmethod
    def at(cls, folder: Path, batch_tokens: int, *, writes: bool = True) -> "Finished":
        """What an earlier run has finished in `folder`; nothing, of batches of `batch_tokens`."""
        record = _record(folder)
        if record is None:
            if writes:
                folder.mkdir(exist_ok=True)
            return cls(folder, batch_tokens, writes=writes)
        refits = [Refit(**refit) for refit in record.pop("refits")]
        return cls(folder, **record, refits=refits, writes=writes)

    def add_layer(
        self, position: int, tensors: Mapping[str, torch.Tensor], refits: Sequence[Refit]
    ) -> None:
        """Write a layer's tensors, and that it is finished."""
        assert position == self.layers
        if self.writes:
            _save(self._layer(position), tensors)
        self.layers += 1
        self._add(refits)

    def add_head(self, refits: Sequence[Refit]) -> None:
        """Write that the output embedding is finished; its file is removed where it is not used."""
        if self.writes and not any(refit.is_used for refit in refits):
            self.head.unlink(missing_ok=True)
        self.has_head = True
        self._add(refits)

    @property
    def head(self) -> Path:
        """The file of the fitted output embedding."""
        return self.folder / _HEAD

    def files(self) -> list[Path]:
        """The files of what is finished."""
        layers = [self._layer(position) for position in range(self.layers)]
        return [*layers, *([self.head] if self.has_head and self.head.exists() else [])]

    def covariance(self) -> torch.Tensor | None:
        """The covariance of the source's stream, where it is known."""
        path = self.folder / _COVARIANCE
        return load_file(path)["covariance"] if path.exists() else None

    def keep_covariance(self, covariance: torch.Tensor) -> None:
        """Write the covariance of the source's stream."""
        if self.writes:
            _save(self.folder / _COVARIANCE, {"covariance": covariance})
            self._add([])

    def _layer(self, position: int) -> Path:
        return self.folder / f"layer-{position:05}.safetensors"

    def _add(self, refits: Sequence[Refit]) -> None:
        self.refits += refits
        if self.writes:
            record = asdict(self)
            content = {key: record[key] for key in record if key not in ("folder", "writes")}
            replace_file(self.folder / _RECORD, json.dumps(content).encode())


def keep_covariance_alone(folder: Path) -> None:
    """Remove what is finished in `folder`, but for what any smaller model of the source shares."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _COVARIANCE:
            path.unlink()


def batch_tokens_of(folder: Path) -> int | None:
    """The tokens of a batch of what is finished in `folder`; None where nothing is."""
    record = _record(folder)
    return None if record is None else int(record["batch_tokens"])


def reached(folder: Path) -> str:
    """Where a reconstruction in `folder` continues, in words."""
    record = _record(folder)
    return f"layer {0 if record is None else record['layers']} of the smaller model"


def _record(folder: Path) -> dict[str, Any] | None:
    path = folder / _RECORD
    return dict(json.loads(path.read_text())) if path.exists() else None


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with atomic_file(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


class RefittedSource(Source):
    """The small model, with its fitted tensors in the place of those it had."""

    layout = "reconstructed"

    def __init__(self, small: Source, finished: Finished) -> None:
        self.name, self.format, self.revision = small.name, small.format, small.revision
        self.config, self.companions = small.config, small.companions
        self._small, self._files = small, finished.files()

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors of the model, located but not read."""
        fitted: dict[str, LazyTensor] = {}
        for path in self._files:
            fitted.update(read_safetensors_header(LocalFile.at(path)))
        return {name: fitted.get(name, held) for name, held in self._small.weights.items()}
