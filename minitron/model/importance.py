"""Importance: how much each part of a network matters, in small arrays, and what made them.

Knows the shape of the scores and their file; minitron.scores measures them, `plan` chooses by
them. The file is safetensors with `made_by` as JSON in its metadata.

    importance = Importance.load(Path("tiny.importance.safetensors"))
    importance.heads   # (layers, heads)
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from minitron.errors import ImportanceError, foreign_parser
from minitron.files.checked_json import Unreadable, check_kind, parse_object
from minitron.files.unfinished import write_file
from minitron.model.architecture import Architecture
from minitron.model.source import Source

_REMEDY = "measure it again with `minitron importance`"
_FLOATS = (torch.float64, torch.float32, torch.float16)
# What of the description is used again: here, in pictures and in the card.
_MADE_BY = {
    "scores?": str,
    "corpus?": (str, None),
    "tokens?": int,
    "block_size?": (int, None),
    "model?": ({"name": str, "revision": (str, None), "digest": str}, None),
}
SCORED = ("hidden", "ffn", "heads", "layers", "kv_heads", "blocks")


def score_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Axis to the shape of its scores."""
    layers = architecture.num_hidden_layers
    return {
        "hidden": (architecture.hidden_size,),
        "ffn": (layers, architecture.intermediate_size),
        "heads": (layers, architecture.num_attention_heads),
        "layers": (layers,),
        "kv_heads": (layers, architecture.num_key_value_heads),
    }


@dataclass(frozen=True)
class Importance:
    """Scores per axis in float64; the higher, the more it matters. An axis not measured is None."""

    made_by: Mapping[str, Any]
    hidden: torch.Tensor | None = None  # (hidden,)
    ffn: torch.Tensor | None = None  # (layers, ffn)
    heads: torch.Tensor | None = None  # (layers, heads)
    layers: torch.Tensor | None = None  # (layers,)
    kv_heads: torch.Tensor | None = None  # (layers, kv_heads)
    blocks: torch.Tensor | None = None  # (layers - block_size + 1,), by a block's first layer

    def axis(self, name: str) -> torch.Tensor:
        """The scores of one axis. Raises ImportanceError where it was not measured."""
        scores = getattr(self, name)
        if scores is None:
            raise ImportanceError(f"the importance holds no {name} scores: measure it again")
        return torch.as_tensor(scores)

    @property
    def axes(self) -> tuple[str, ...]:
        """What was scored."""
        return tuple(self._scores())

    @property
    def is_random(self) -> bool:
        """Whether the scores are random numbers, of which a share of the sum means nothing."""
        return self.made_by.get("scores") == "random"

    @property
    def digest(self) -> str:
        """sha256 of the scores."""
        digest = hashlib.sha256()
        for name, scores in self._scores().items():
            digest.update(f"{name}{tuple(scores.shape)}".encode() + scores.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write one safetensors file; it appears only when complete. Raises OutputError."""
        write_file(path, save(self._scores(), {"minitron": json.dumps(dict(self.made_by))}))

    @classmethod
    def load(cls, path: Path) -> "Importance":
        """Read what `save` wrote. Raises ImportanceError for anything else."""
        if not path.is_file():
            raise ImportanceError(f"{path} does not exist: make it with `minitron importance`")
        with foreign_parser(str(path), ImportanceError, _REMEDY), safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        try:
            made_by = parse_object(metadata.get("minitron", "").encode())
        except Unreadable as error:
            raise ImportanceError(f"{path} is no importance file: its metadata {error}") from error
        check_kind(made_by, _MADE_BY, str(path), ImportanceError, _REMEDY)
        for name, tensor in scores.items():
            if name not in SCORED or tensor.dtype not in _FLOATS:
                raise ImportanceError(
                    f"{path} is no importance file: it holds {name!r:.40} of {tensor.dtype}"
                )
        return cls(made_by=made_by, **scores)

    def check_fits(self, architecture: Architecture) -> None:
        """Refuse scores of another model; ImportanceError names the axis and both shapes."""
        wanted = score_shapes(architecture)
        starts = architecture.num_hidden_layers - (self.made_by.get("block_size") or 1) + 1
        wanted["blocks"] = (starts,)
        for name, scores in self._scores().items():
            if tuple(scores.shape) != wanted[name]:
                raise ImportanceError(
                    f"the importance holds {name} scores of shape {list(scores.shape)}, the model "
                    f"needs {list(wanted[name])}: it was measured on another model"
                )
            if not torch.isfinite(scores).all():
                raise ImportanceError(f"the importance holds {name} scores that are not finite")

    def check_made_for(self, model: Source) -> None:
        """Refuse scores of another model, by its sizes and its weights; ImportanceError names both.

        Scores without a record of their model are accepted for any.
        """
        self.check_fits(model.architecture)
        measured = self.made_by.get("model")
        if measured is not None and measured["digest"] != model.digest:
            at = f" at {measured['revision']}" if measured["revision"] else ""
            raise ImportanceError(
                f"the importance was measured on {measured['name']}{at}, whose weights are not "
                f"those of {model.name}: measure it again"
            )

    def _scores(self) -> dict[str, torch.Tensor]:
        named = {axis: getattr(self, axis) for axis in SCORED}
        return {axis: scores.contiguous() for axis, scores in named.items() if scores is not None}
