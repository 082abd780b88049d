"""Scores by activations: what each part of a network does on real text.

Formulas of arXiv 2407.14679, section 2.2. Over the tokens of a sequence the mean of absolute values
is taken, over sequences the L2 norm (the paper's batch=L2, seq=mean); sums are kept in float64.

| axis   | activation                                                   | then              |
|--------|--------------------------------------------------------------|-------------------|
| hidden | output of each norm of the decoder layers                    | sum over norms    |
| ffn    | input of down_proj, that is, after the activation            | per layer         |
| heads  | L2 norm over head_dim of each head's output before o_proj    | per layer         |
| layers | block influence: 1 - mean cosine between a layer's in and out | per layer        |

The paper's formula takes neurons before the activation. On a squared ReLU that lost to random
pruning (benchmarks/LOG.md); NVIDIA's ModelOpt takes them after it, and so do we.

    activation_scores(load_model(open_source("tiny")), corpus)
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from minitron.corpus import Corpus
from minitron.importance import Importance

Observe = Callable[[torch.Tensor], torch.Tensor]

_BATCH_TOKENS = 8192


def activation_scores(model: PreTrainedModel, corpus: Corpus) -> Importance:
    """Scores of hidden, ffn, heads and layers from one forward pass, without the output embedding.

    `corpus.sequences` [samples, seq_len] must hold ids of the model's vocabulary.
    """
    recorder = _Recorder(model)
    seq_len = corpus.sequences.shape[1]
    batch = max(1, _BATCH_TOKENS // seq_len)
    total = int(corpus.sequences.size)
    with (
        recorder.attached(),
        torch.inference_mode(),
        tqdm(total=total, unit="token", unit_scale=True, desc="score", disable=None) as progress,
    ):
        for start in range(0, len(corpus.sequences), batch):
            ids = torch.from_numpy(corpus.sequences[start : start + batch]).long()
            model.model(input_ids=ids.to(model.device), use_cache=False)
            progress.update(ids.numel())
    made_by = {
        "scores": "paper",
        "aggregation": {"batch": "l2", "sequence": "mean"},
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "samples": len(corpus.sequences),
        "seq_len": seq_len,
        "tokens": total,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return recorder.importance(made_by, total)


class _Recorder:
    """Running sums of squares of each sequence's scores, filled by hooks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = list(model.model.layers)
        self._heads = int(model.config.num_attention_heads)
        self._squares: dict[tuple[str, int], torch.Tensor] = {}
        self._cosines = torch.zeros(len(self._layers), dtype=torch.float64)

    def attached(self) -> ExitStack:
        """The hooks, as a context that removes them."""
        stack = ExitStack()
        for handle in self._hooks():
            stack.callback(handle.remove)
        return stack

    def importance(self, made_by: dict[str, Any], tokens: int) -> Importance:
        """The scores of all that was seen."""

        def per_layer(axis: str) -> torch.Tensor:
            rows = [self._squares[axis, layer].sqrt() for layer in range(len(self._layers))]
            return torch.stack(rows)

        norms = [total.sqrt() for (axis, _), total in self._squares.items() if axis == "hidden"]
        return Importance(
            made_by=made_by,
            hidden=torch.stack(norms).sum(0),
            ffn=per_layer("ffn"),
            heads=per_layer("heads"),
            layers=1 - self._cosines / tokens,
        )

    def _hooks(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        for index, layer in enumerate(self._layers):
            for norm_index, norm in enumerate(
                (layer.input_layernorm, layer.post_attention_layernorm)
            ):
                yield norm.register_forward_hook(self._on_output("hidden", 2 * index + norm_index))
            yield layer.mlp.down_proj.register_forward_pre_hook(self._on_input("ffn", index))
            o_proj = layer.self_attn.o_proj
            yield o_proj.register_forward_pre_hook(self._on_input("heads", index, self._head_norms))
            yield layer.register_forward_hook(self._on_layer(index))

    def _on_output(self, axis: str, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._add(axis, index, output)

        return hook

    def _on_input(
        self, axis: str, index: int, observe: Observe | None = None
    ) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._add(axis, index, observe(inputs[0]) if observe else inputs[0])

        return hook

    def _on_layer(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
            self._cosines[index] += cosine.sum(dtype=torch.float64).cpu()

        return hook

    def _head_norms(self, outputs: torch.Tensor) -> torch.Tensor:
        heads = outputs.unflatten(-1, (self._heads, -1))  # (batch, seq, heads, head_dim)
        norms: torch.Tensor = torch.linalg.vector_norm(heads, dim=-1, dtype=torch.float32)
        return norms

    def _add(self, axis: str, index: int, activations: torch.Tensor) -> None:
        """Add each sequence's squared mean of absolute values; activations (batch, seq, width)."""
        sums = torch.linalg.vector_norm(activations, ord=1, dim=1, dtype=torch.float32)
        squares = (sums.double() / activations.shape[1]).square().sum(0).cpu()
        known = self._squares.get((axis, index))
        self._squares[axis, index] = squares if known is None else known + squares
