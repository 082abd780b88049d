"""Quantization: a loaded model's decoder weights as 8- or 4-bit integers, to generate with less.

Knows which layers are quantized and how many bytes they take then. Activations stay as they are,
and so do embeddings, norms and the output embedding. optimum-quanto (extra `quantize`) makes the
integers.

    model = quantized(load_model(open_source("tiny")), "int8")
"""

import logging
import math
from importlib import import_module
from importlib.util import find_spec
from typing import Any, get_args

from torch import Tensor
from transformers import PreTrainedModel

from minitron.errors import MissingExtraError, TargetError
from minitron.files.device_memory import readable_bytes
from minitron.model.family import LAYERS
from minitron.recipes.first_steps import Quantization

QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

logger = logging.getLogger(__name__)


def check_quantization(name: str) -> None:
    """Check, before a model is read, that it can be quantized. Raises TargetError for an unknown
    name, MissingExtraError without optimum-quanto."""
    if name not in QUANTIZATIONS:
        raise TargetError(f"--quantize is {name!r}: choose {' or '.join(QUANTIZATIONS)}")
    if find_spec("optimum") is None or find_spec("optimum.quanto") is None:
        raise MissingExtraError("optimum-quanto", "quantize")


def quantized(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The same model, its layers' linear weights now "int8" (a scale a row) or "int4" (a scale and
    a shift for each 128 or fewer of a row). Raises as `check_quantization`."""
    check_quantization(name)
    quanto: Any = import_module("optimum.quanto")
    before = weight_bytes(model)
    layers = model.get_submodule(LAYERS)
    quanto.quantize(layers, weights=getattr(quanto, f"q{name}"))
    quanto.freeze(layers)
    logger.info(
        "weights in %s: %s, before %s",
        name,
        readable_bytes(weight_bytes(model)),
        readable_bytes(before),
    )
    return model


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes that a model's weights take in memory, quantized ones with their scales."""
    return sum(_stored_bytes(parameter) for parameter in model.parameters())


def _stored_bytes(weight: Tensor) -> int:
    """Bytes that a tensor holds; one of a subclass consists of inner tensors."""
    if not hasattr(weight, "__tensor_flatten__"):
        return math.prod(weight.shape) * weight.itemsize
    names, _ = weight.__tensor_flatten__()
    return sum(_stored_bytes(getattr(weight, name)) for name in names)
