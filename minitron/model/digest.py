"""Model digest: what tells one model from another without reading it whole.

Knows that sizes, every tensor's name and shape, and the numbers in its first row are enough: two
checkpoints of one training run already differ there. The same weights in another file format or a
wider dtype have the same digest.

    model_digest(open_source("tiny"))
"""

import hashlib
from typing import Any

import torch

from minitron.model.source import Source

_VALUES = 4096  # of each tensor


def model_digest(model: Source) -> str:
    """sha256 of the sizes, names, shapes and some numbers of each tensor."""
    architecture = model.architecture
    flags = sorted(architecture.flags)
    digest = hashlib.sha256(f"{architecture.model_type} {flags}".encode())
    for name, shape in architecture.shapes().items():
        digest.update(f"{name}{shape}".encode())
        tensor = model.tensors.get(name)
        if tensor is not None:
            stop = 1 if len(shape) > 1 else _VALUES
            values = tensor.read(0, stop).flatten()[:_VALUES].to(torch.float64)
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def description_of(model: Source) -> dict[str, Any]:
    """A model's name, revision and digest, as an importance file holds them."""
    return {"name": model.name, "revision": model.revision, "digest": model_digest(model)}
