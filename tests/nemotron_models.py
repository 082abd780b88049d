"""Tiny Nemotron models of our class and of transformers' class, with the same weights.

All sizes differ, head_dim is not hidden_size / heads, and all weights are random: with the initial
weights of a norm, a forward pass that ignores them would give the same logits.

    build(OURS)(**tokens()).logits          # equal to build(TRANSFORMERS)(**tokens()).logits
"""

from types import ModuleType
from typing import Any

import pytest
import torch
import transformers.models.nemotron as transformers_nemotron
from torch import Tensor, nn

import modeling_nemotron

OURS: Any = modeling_nemotron
TRANSFORMERS: Any = transformers_nemotron

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 64,
}
HEADS = (
    "Model",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


def mended_here(defect: type[BaseException] = AssertionError) -> pytest.MarkDecorator:
    """Run a test with our `library`, where it must pass, and transformers', where it must fail.

    `defect` is the error of transformers 5.23. When transformers is corrected, the test fails.
    """
    fails = pytest.mark.xfail(raises=defect, strict=True, reason="a defect of transformers 5.23")
    return pytest.mark.parametrize(
        "library",
        [pytest.param(OURS, id="ours"), pytest.param(TRANSFORMERS, id="transformers", marks=fails)],
    )


def build(library: ModuleType, head: str = "ForCausalLM", **changes: Any) -> Any:
    """A model in eval mode; the same arguments give the same weights in either library."""
    config = library.NemotronConfig(**{**SIZES, **changes})
    model = getattr(library, f"Nemotron{head}")(config)
    return randomized(model).eval()


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Replace all weights by random ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.3
            draw = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(draw)
    return model


def tokens(batch: int = 2, length: int = 17, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(1, SIZES["vocab_size"], (batch, length), generator=generator)
    }


def left_padded(lengths: tuple[int, ...] = (17, 9)) -> dict[str, Tensor]:
    """Token ids of these lengths, padded on the left, with positions from their first tokens."""
    batch = tokens(len(lengths), max(lengths))
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - length for length in lengths])
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return {**batch, "attention_mask": mask.long(), "position_ids": positions}


def packed(lengths: tuple[int, ...] = (5, 9, 3)) -> dict[str, Tensor]:
    """Token ids of these lengths in one row; positions restart at 0 for each."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {**tokens(1, sum(lengths)), "position_ids": positions[None]}
