"""Decoder: the layers of a loaded model, and the modules of a layer that the family's table names.

Knows where a part of a layer is and which of a fused module's outputs are its own. Runs nothing.

    decoder = Decoder.of(load_model(open_source("tiny")))
    decoder.part(3, "down").register_forward_pre_hook(hook)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from minitron.model.architecture import Architecture
from minitron.model.families import DECODER, FINAL_NORM, LAYERS


@dataclass(frozen=True)
class Decoder:
    """The layers, in order, and the norm after the last one."""

    architecture: Architecture
    layers: Sequence[nn.Module]
    norm: nn.Module

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Decoder":
        """The decoder of a causal language model."""
        # transformers' Qwen2Config has no head_dim, and all of them know more than config.json did.
        architecture = Architecture.from_config(model.config.to_dict())
        layers: Any = model.get_submodule(LAYERS)
        return cls(architecture, list(layers), model.get_submodule(FINAL_NORM))

    def part(self, layer: int, part: str) -> nn.Module:
        """The module of a part of a layer, such as `down`; `mlp` is the whole MLP."""
        family = self.architecture.family
        path = family.mlp if part == "mlp" else family.layer_modules[part]
        return self.layers[layer].get_submodule(path)

    def mlp_branch(self, layer: int) -> list[nn.Module]:
        """The modules that states pass before they are added to the stream: the MLP, its norms."""
        parts = ("mlp_norm", "mlp", "mlp_output_norm")
        modules = {*self.architecture.family.layer_modules, "mlp"}
        return [self.part(layer, part) for part in parts if part in modules]

    def output_of(self, part: str, output: torch.Tensor) -> torch.Tensor:
        """What a part contributes to the output (..., rows) of its module."""
        row = self.architecture.family.row(part)
        if len(row.parts) == 1:
            return output
        return output[..., self.architecture.run_slices(row)[part]]


def decoder_module(model: PreTrainedModel) -> Any:
    """The module that makes hidden states of ids: a causal language model without its head."""
    return model.get_submodule(DECODER)
