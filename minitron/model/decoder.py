"""Decoder: the layers of a loaded model, and the modules of a layer that the family's table names.

Knows where a part of a layer is and which of a fused module's outputs are its own. Runs nothing.

    decoder = Decoder.of(load_model(open_source("tiny")))
    decoder.part(3, "down").register_forward_pre_hook(hook)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from minitron.model.architecture import Architecture
from minitron.model.families import FAMILIES
from minitron.model.family import DECODER, FINAL_NORM, LAYERS


@dataclass(frozen=True)
class LogitScale:
    """What makes logits of the products of last hidden states and output embedding."""

    divisor: float = 1.0
    cap: float | None = None  # logits are cap tanh(logits / cap)

    @classmethod
    def of(cls, config: Any) -> "LogitScale":
        """The numbers in a config object of transformers."""
        keys = FAMILIES[config.model_type].scales
        divisor = getattr(config, keys.logits_divisor) if keys.logits_divisor else 1.0
        return cls(divisor, getattr(config, keys.logits_cap) if keys.logits_cap else None)

    def __call__(self, products: torch.Tensor) -> torch.Tensor:
        """The logits."""
        logits = products if self.divisor == 1 else products / self.divisor
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap

    def apply_(self, products: torch.Tensor) -> torch.Tensor | float:
        """Overwrite products with logits; returns the derivative of the logits."""
        products.div_(self.divisor)
        if self.cap is None:
            return 1 / self.divisor
        products.div_(self.cap).tanh_()
        slope = products.square().neg_().add_(1).div_(self.divisor)
        products.mul_(self.cap)
        return slope

    @staticmethod
    @contextmanager
    def left_out(config: Any) -> Iterator[None]:
        """While the block runs, models of this config return products as they are for logits."""
        keys = FAMILIES[config.model_type].scales
        neutral = {keys.logits_divisor: 1.0, keys.logits_cap: None}
        before = {key: getattr(config, key) for key in neutral if key is not None}
        try:
            for key in before:
                setattr(config, key, neutral[key])
            yield
        finally:
            for key, value in before.items():
                setattr(config, key, value)


UNSCALED = LogitScale()


def embedding_scale(config: Any, dtype: torch.dtype) -> float:
    """The number by which rows of the embedding are multiplied, in the dtype of the rows."""
    key = FAMILIES[config.model_type].scales.embedding
    if key is None:
        return 1.0
    value = float(getattr(config, key))
    # The classes that multiply by the root of hidden_size round it to the dtype first.
    return float(torch.tensor(value**0.5).to(dtype)) if key == "hidden_size" else value


def branch_scale(config: Any) -> float:
    """The number by which what attention and the MLP add to the stream is multiplied."""
    key = FAMILIES[config.model_type].scales.branch
    return 1.0 if key is None else float(getattr(config, key))


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

    def output_norm(self, layer: int, part: str) -> nn.Module | None:
        """The norm behind a part that writes to the stream, `o` or `down`, where there is one."""
        norm = self.architecture.family.output_norms.get(part)
        return None if norm is None else self.part(layer, norm)

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
