"""The tensors of a model under the names of a GGUF file, and the two changes that ggml wants.

llama.cpp rotates neighbouring rows of a query in some families, and its norms multiply by their
weight alone: its converter reorders q and k of those families and adds the 1 of a zero-centered
norm. Both are undone here, and done.

    hub_tensors(file.tensors, architecture)["model.norm.weight"]
    gguf_tensors(source.weights, architecture)["output_norm.weight"]
"""

from collections.abc import Mapping

import torch

from minitron.conversion.gguf_file import gguf_package
from minitron.errors import TargetError
from minitron.files.lazy_tensor import DerivedTensor, LazyTensor, Shifted
from minitron.model.architecture import Architecture, Slot
from minitron.model.family import Gguf

OUTPUT = "output.weight"  # absent where the output embedding is the input embedding
EMBEDDING = "token_embd.weight"


def gguf_of(architecture: Architecture) -> Gguf:
    """How llama.cpp stores the family. Raises TargetError where that is not known."""
    if architecture.family.gguf is None:
        raise TargetError(
            f"it is not known here how llama.cpp stores a {architecture.model_type}: convert it "
            "with llama.cpp's convert_hf_to_gguf.py"
        )
    return architecture.family.gguf


def hub_tensors(
    stored: Mapping[str, LazyTensor], architecture: Architecture
) -> dict[str, LazyTensor]:
    """Tensors of a GGUF file under the Hub's names; those that are no model's keep their own."""
    names = gguf_names(architecture)
    found = {
        slot.name: _changed(stored[names[slot.name]], slot, architecture, to_hub=True)
        for slot in architecture.slots()
        if names[slot.name] in stored
    }
    return {**found, **{name: stored[name] for name in stored if name not in names.values()}}


def gguf_tensors(
    tensors: Mapping[str, LazyTensor], architecture: Architecture
) -> dict[str, LazyTensor]:
    """The Hub's tensors under their names in a GGUF file, as llama.cpp computes with them."""
    names = gguf_names(architecture)
    return {
        names[slot.name]: _changed(tensors[slot.name], slot, architecture, to_hub=False)
        for slot in architecture.slots()
    }


def gguf_names(architecture: Architecture) -> dict[str, str]:
    """The Hub's name of each tensor to that in a GGUF file."""
    gguf, package = gguf_of(architecture), gguf_package()
    [kind] = [each for each, name in package.MODEL_ARCH_NAMES.items() if name == gguf.architecture]
    mapping = package.get_tensor_name_map(kind, 1)  # of one layer: a file may claim many
    names = {}
    for slot in architecture.slots():
        module, _, end = slot.row.name(0).rpartition(".")
        stored = mapping.get_name(module)
        assert stored is not None, slot.name
        names[slot.name] = f"{stored.replace('blk.0.', f'blk.{slot.layer}.')}.{end}"
    return names


class HeadRows(DerivedTensor):
    """The rows of every head in another order."""

    def __init__(self, tensor: LazyTensor, order: torch.Tensor) -> None:
        super().__init__(tensor.dtype, tensor.shape)
        self.tensor, self.order = tensor, order

    def _read(self, start: int, stop: int) -> torch.Tensor:
        size = len(self.order)
        first = start // size * size
        heads = self.tensor.read(first, -(-stop // size) * size).unflatten(0, (-1, size))
        rows: torch.Tensor = heads[:, self.order].flatten(0, 1)
        return rows[start - first : stop - first].contiguous()


def _changed(
    tensor: LazyTensor, slot: Slot, architecture: Architecture, *, to_hub: bool
) -> LazyTensor:
    family, [part, *_] = architecture.family, slot.row.parts
    if tensor.shape != slot.shape:
        return tensor  # refused where the weights are checked
    if part in ("q", "k") and gguf_of(architecture).pairs_rows:
        halves = torch.arange(architecture.head_dim).reshape(2, -1).T.flatten()
        return HeadRows(tensor, halves.argsort() if to_hub else halves)
    if part.endswith("norm") and family.norm.is_zero_centered and slot.row.kind == "weight":
        return Shifted(tensor, -1.0 if to_hub else 1.0, tensor.dtype if to_hub else torch.float32)
    return tensor
