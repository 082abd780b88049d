"""Layer stream: a decoder run one layer after another, its weights read straight from the source.

A layer's arguments (rotary table, mask, positions) are those that the family's own forward passes
to it, so they need no code here: the forward runs once with probes in place of the layers, which
record how they are called. In memory are two layers, the one that runs and the one being read, or
all where they are kept.

    stream = LayerStream.of_source(open_source("tiny"), keep=False)
    states = stream.embed(ids)                 # (batch, length, hidden)
    for index, layer in stream.layers():
        states = stream.run(index, layer, states)
"""

import copy
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from minitron.files.dtypes import check_finite, dtype_named
from minitron.files.lazy_tensor import LazyTensor
from minitron.model.decoder import Decoder, LogitScale, decoder_module, embedding_scale
from minitron.model.family import EMBEDDING, FINAL_NORM, HEAD, LAYERS
from minitron.model.source import Source
from minitron.sources.empty_weights import empty_weights
from minitron.sources.held import HeldTensor
from minitron.sources.loading import fast_dtype, hub_config, new_model

BLOCK_BYTES = 16 << 20  # of an embedding, held at once
_CALLS_KEPT = 8


class LayerStream:
    """A decoder's layers, embedding and head, each read when it is needed."""

    def __init__(
        self,
        skeleton: PreTrainedModel,
        tensors: Mapping[str, LazyTensor],
        *,
        dtype: torch.dtype,
        device: str,
        keep: bool,
        checked_for: str | None,
    ) -> None:
        """`skeleton` is the model without weights, and is changed. `checked_for` names a source
        whose weights are checked to be finite as they are read. Modules of `decoder` may be hooked:
        a layer has its weights while it runs.
        """
        self.decoder = Decoder.of(skeleton.eval())
        self.config = skeleton.config
        self.dtype = dtype
        self.device = device
        self.logit_scale = LogitScale.of(self.config)
        self._embedding_scale = embedding_scale(self.config, dtype)
        self._tensors = tensors
        self._keep = keep
        self._checked_for = checked_for
        self._present = [False] * len(self.decoder.layers)
        self._norm_is_present = False
        self._embedding: torch.Tensor | None = None
        self._probes = [_Probe() for _ in self.decoder.layers]
        skeleton.set_submodule(LAYERS, nn.ModuleList(self._probes))
        skeleton.set_submodule(FINAL_NORM, nn.Identity())
        self._frame = decoder_module(skeleton)
        for _, module in _without_weights(self._frame):
            module.to(device)
        self._calls: dict[torch.Size, list[dict[str, Any]]] = {}

    @classmethod
    def of_source(
        cls,
        source: Source,
        *,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        keep: bool,
    ) -> "LayerStream":
        """The decoder of a source. Raises SourceError for weights that are incomplete.

        `dtype` None computes in the checkpoint's own where the device multiplies it in hardware,
        else in float32. `keep` True reads every layer, and the embedding, once; else once a sweep.
        """
        tensors = source.weights
        with empty_weights():
            skeleton = new_model(hub_config(source.config))
        return cls(
            skeleton,
            tensors,
            dtype=dtype or compute_dtype(tensors, device),
            device=device,
            keep=keep,
            checked_for=source.name,
        )

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> "LayerStream":
        """The decoder of a loaded model, whose weights are shared and whose modules stay alone."""
        with empty_weights():  # a model's constructor may change its config
            skeleton = type(model)(copy.deepcopy(model.config))
        for name, module in _without_weights(decoder_module(model)):
            setattr(decoder_module(skeleton), name, module)  # a cast model has a cast rotary table
        weights = model.state_dict().items()
        held = {name: HeldTensor(tensor, copies=False) for name, tensor in weights}
        device = str(model.device)
        return cls(skeleton, held, dtype=model.dtype, device=device, keep=True, checked_for=None)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The input of the first layer, (batch, length, hidden)."""
        [states] = self.embed_all([ids])
        return states

    def embed_all(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The input of the first layer for each batch of ids, (batch, length, hidden).

        Where layers are not kept, the embedding is not either: it is read once, block by block.
        """
        if self._keep:
            if self._embedding is None:
                self._embedding = self._read(EMBEDDING)
            rows = self._embedding
            return [self._scaled(F.embedding(ids.to(self.device), rows)) for ids in batches]
        width = self._tensors[EMBEDDING].shape[1]
        states = [
            torch.empty(ids.numel(), width, dtype=self.dtype, device=self.device) for ids in batches
        ]
        # Sorted, the ids of a block of rows are a run, found without a look at all of them.
        ascending = [ids.flatten().cpu().sort() for ids in batches]
        for start, stop in _row_blocks(self._tensors[EMBEDDING]):
            bounds = torch.tensor([start, stop])
            runs = [torch.searchsorted(ids, bounds).tolist() for ids, _ in ascending]
            if all(low == high for low, high in runs):
                continue
            rows = self._scaled(self._read(EMBEDDING, start, stop))
            for batch, (ids, places), (low, high) in zip(states, ascending, runs, strict=True):
                found = rows.index_select(0, (ids[low:high] - start).to(self.device))
                batch.index_copy_(0, places[low:high].to(self.device), found)
        return [batch.view(*ids.shape, width) for batch, ids in zip(states, batches, strict=True)]

    def _scaled(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding as the first layer reads them."""
        return rows if self._embedding_scale == 1 else rows * self._embedding_scale

    def layers(self) -> Iterator[tuple[int, nn.Module]]:
        """Every layer with its weights, in order, while the next one is read in a thread."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._weights_of, 0)
            for index, layer in enumerate(self.decoder.layers):
                weights = coming.result()
                if index + 1 < len(self.decoder.layers):
                    coming = pool.submit(self._weights_of, index + 1)
                if not weights:  # kept
                    yield index, layer
                    continue
                layer.load_state_dict(weights, strict=True, assign=True)
                weights.clear()  # only the layer holds them now, and frees them when it is emptied
                yield index, layer
                if self._keep:
                    self._present[index] = True
                else:
                    layer.to("meta")
                _return_freed_memory()

    def run(self, index: int, layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """The layer's output, called as the model itself calls it."""
        output = layer(states, **self._call(states)[index])
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """What the output embedding sees."""
        if not self._norm_is_present:
            names = self.decoder.norm.state_dict()
            weights = {name: self._read(f"{FINAL_NORM}.{name}") for name in names}
            self.decoder.norm.load_state_dict(weights, strict=True, assign=True)
            self._norm_is_present = True
        output: torch.Tensor = self.decoder.norm(states)
        return output

    def head_blocks(self, at_once: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """The output embedding in blocks of `at_once` rows, each with the id of its first row."""
        name = HEAD if HEAD in self._tensors else EMBEDDING
        for start, stop in _row_blocks(self._tensors[name], at_once):
            yield start, self._read(name, start, stop)

    def _call(self, states: torch.Tensor) -> list[dict[str, Any]]:
        """What each layer is called with for states of this shape."""
        if states.shape not in self._calls:
            if len(self._calls) == _CALLS_KEPT:
                self._calls.clear()
            # Only the shape matters: one number, expanded, stands for all hidden states.
            nothing = torch.zeros((), dtype=self.dtype, device=self.device).expand(states.shape)
            self._frame(inputs_embeds=nothing, use_cache=False)
            self._calls[states.shape] = [probe.call for probe in self._probes]
        return self._calls[states.shape]

    def _weights_of(self, index: int) -> dict[str, torch.Tensor]:
        """A layer's weights by their names inside it; none where it has them already."""
        if self._present[index]:
            return {}
        prefix = f"{LAYERS}.{index}."
        names = self.decoder.layers[index].state_dict()
        return {name: self._read(prefix + name) for name in names}

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        tensor = self._tensors[name].read(start, stop)
        if self._checked_for is not None:
            check_finite(tensor, name, self._checked_for)
        return tensor.to(device=self.device, dtype=self.dtype)


def compute_dtype(
    tensors: Mapping[str, LazyTensor], device: str, named: str | None = None
) -> torch.dtype:
    """The named dtype; else that of the weights, or float32 where this device only emulates it."""
    if named is not None:
        return dtype_named(named)
    return fast_dtype(tensors[EMBEDDING].dtype, device)


class _Probe(nn.Module):
    """In place of a layer: records the arguments that it is called with."""

    call: dict[str, Any]

    def forward(self, states: torch.Tensor, **call: Any) -> torch.Tensor:
        self.call = call
        return states


def _without_weights(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Its children that hold tables alone, such as the rotary one."""
    return [(name, child) for name, child in module.named_children() if not [*child.parameters()]]


def _return_freed_memory() -> None:
    """Return freed memory to the system: glibc keeps tensors below 32 MB, which add up."""
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _row_blocks(tensor: LazyTensor, at_once: int | None = None) -> Iterator[tuple[int, int]]:
    """Runs of rows, of about BLOCK_BYTES unless given."""
    count = tensor.shape[0]
    rows = at_once or max(1, BLOCK_BYTES * count // tensor.nbytes)
    for start in range(0, count, rows):
        yield start, min(start + rows, count)
