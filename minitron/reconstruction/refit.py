"""Refit: every linear of a pruned model fitted to its source, layer by layer, in order.

Each on what the fitted ones before it leave (x, m, s and P as in `side_by_side`):

| linear   | reads                       | shall return                                           |
|----------|-----------------------------|--------------------------------------------------------|
| q, k, v  | the small model's normed s  | what the source's kept rows make of its normed x       |
| o        | the small model's heads     | m P - s                                                |
| gate, up | the small model's normed m  | what the source's kept rows make of its normed m       |
| down     | the small model's neurons   | x P before the next kept layer, less the small model's |
| head     | the small model's last norm | the source's logits, less their mean over the          |
|          |                             | vocabulary                                             |

So the layer before a dropped one takes over its work. A fit that does not help on held-out tokens
is not used. Weights are rounded to the dtype they are stored in before the next linear is fitted.
Sources: block-wise least squares after pruning, arXiv 2510.14444; ridge, 2506.08436.

    made, refits = refit(both, is_held_out, folder)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from minitron.files.atomic_file import atomic_file
from minitron.files.file import LocalFile
from minitron.files.lazy_tensor import LazyTensor
from minitron.files.safetensors_file import read_safetensors_header
from minitron.model.families import HEAD
from minitron.model.source import Source
from minitron.reconstruction.least_squares import Sums, fit
from minitron.reconstruction.side_by_side import SideBySide, Tokens
from minitron.sources.layer_stream import LayerStream

_ROUNDING = 1e-6  # of the wanted squares: a smaller gain may be rounding alone
Layers = Iterator[tuple[int, nn.Module]]


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

    @classmethod
    def of(
        cls, name: str, alpha: float, held_out: Sums, before: torch.Tensor, after: torch.Tensor
    ) -> "Refit":
        """Compare two weights (out, in) on the sums of held-out tokens."""
        whole = float(held_out.outputs.sum()) or 1.0
        was, now = (float(held_out.errors(w.double()).sum()) / whole for w in (before, after))
        return cls(name, alpha, was, now)


class RefittedSource(Source):
    """The small model, with its fitted tensors in the place of those it had."""

    layout = "reconstructed"

    def __init__(self, small: Source, folder: Path) -> None:
        self.name, self.format, self.revision = small.name, small.format, small.revision
        self.config, self.companions = small.config, small.companions
        self._small, self._folder = small, folder

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors of the model, located but not read."""
        fitted: dict[str, LazyTensor] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            fitted.update(read_safetensors_header(LocalFile.at(path)))
        return {name: fitted.get(name, held) for name, held in self._small.weights.items()}


def refit(
    both: SideBySide,
    is_held_out: Sequence[bool],
    folder: Path,
    advance: Callable[[float], object] = lambda tokens: None,
) -> tuple[RefittedSource, list[Refit]]:
    """Fit every linear; the model that results, and what became of each linear.

    `is_held_out` says of each batch whether it only decides. Each fitted layer is written to
    `folder`. `advance` is called with tokens as they pass: four times a layer, and once for the
    head.
    """
    work = _Refitting(both, is_held_out, folder, advance)
    with torch.inference_mode():
        both.embed()
        theirs = both.theirs.layers()
        index, layer = next(theirs)
        for position, _ in both.ours.layers():
            while index < both.pair.layers[position]:
                both.skip(index, layer)
                index, layer = next(theirs)
            index, layer = work.fit_layer(position, index, layer, theirs)
        if HEAD in both.pair.small.weights:  # else it is the input embedding too
            work.fit_head()
    return RefittedSource(both.pair.small, folder), work.refits


class _Refitting:
    """The linears that are fitted so far."""

    def __init__(
        self,
        both: SideBySide,
        is_held_out: Sequence[bool],
        folder: Path,
        advance: Callable[[float], object],
    ) -> None:
        self._both, self._is_held_out, self._folder = both, is_held_out, folder
        self._advance = advance
        self.refits: list[Refit] = []

    def fit_layer(
        self, position: int, index: int, layer: nn.Module, coming: Layers
    ) -> tuple[int, nn.Module]:
        """Fit layer `position` to the source's `index`; the source's next layer that is kept."""
        both, layers = self._both, self._both.pair.layers
        self._fit(position, ("q", "k", "v"), both.attention_inputs(index, layer, position))
        self._fit(position, ("o",), both.attention_outputs(position))
        self._fit(position, ("gate", "up"), both.mlp_inputs(index, position))
        following = layers[position + 1] if position + 1 < len(layers) else None
        for index, layer in coming:
            if index == following:
                break
            both.skip(index, layer)
        self._fit(position, ("down",), both.mlp_outputs(position))
        both.pass_mlp(position)
        self._save(position)
        return index, layer

    def _fit(self, position: int, parts: tuple[str, ...], tokens: Tokens) -> None:
        """Fit the linears that hold `parts`, which read the same, and put the weights in place."""
        both, stored = self._both, self._both.pair.small.weights
        rows = both.pair.linears(parts)
        modules: list[Any] = [both.ours.decoder.part(position, row.parts[0]) for row in rows]
        weights = [_with_bias(module) for module in modules]
        fitted, held_out = self._sums(tokens, torch.cat(weights), has_bias=_has_bias(modules[0]))
        found = fit(fitted, held_out, torch.cat(weights))
        start = 0
        for row, module, before in zip(rows, modules, weights, strict=True):
            of_rows = slice(start, start := start + len(before))
            name = row.name(position)
            after = found.weight[of_rows].to(stored[name].dtype).double()
            done = Refit.of(name, found.alpha, held_out.at(of_rows), before, after)
            self.refits.append(done)
            if done.is_used:
                _put(module, after)

    def _sums(self, tokens: Tokens, weight: torch.Tensor, *, has_bias: bool) -> tuple[Sums, Sums]:
        """The sums to fit by, and those held out, for a weight (out, in)."""
        outputs, inputs = weight.shape
        fitted, held_out = (Sums.zeros(inputs, outputs, self._both.device) for _ in range(2))
        for (read, wanted), is_held_out in zip(tokens, self._is_held_out, strict=True):
            flat = read.flatten(0, -2)
            if has_bias:
                flat = torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
            (held_out if is_held_out else fitted).add(flat, wanted.flatten(0, -2))
            self._advance(len(flat))
        return fitted, held_out

    def _save(self, position: int) -> None:
        """Write the layer's tensors in the dtypes they are stored in."""
        small = self._both.pair.small
        module = self._both.ours.decoder.layers[position]
        held = {name.rpartition(".")[::2]: tensor for name, tensor in module.state_dict().items()}
        tensors = {}
        for slot in small.architecture.slots():
            if slot.layer == position:
                path = small.architecture.family.layer_modules[slot.row.parts[0]]
                tensor = held[path, slot.row.kind].to("cpu", small.weights[slot.name].dtype)
                tensors[slot.name] = tensor.contiguous()
        with atomic_file(self._folder / f"layer-{position:05}.safetensors") as partial:
            save_file(tensors, partial)

    def fit_head(self) -> None:
        """Fit the output embedding.

        The wanted outputs are the source's logits, x W^T, so that X^T Y follows from X^T x: no
        logits are held, but both output embeddings whole, in float64. A number added to all logits
        of a token changes nothing: the mean over the vocabulary is taken from both.
        """
        both = self._both
        theirs, ours = (_head_of(stream) for stream in (both.theirs, both.ours))
        mean = ours.mean(0)
        theirs, ours = theirs - theirs.mean(0), ours - mean
        wide = theirs.shape[1]
        pairs = [
            (Sums.zeros(ours.shape[1], wide, both.device), ours.new_zeros(wide, wide))
            for _ in ("fitted", "held out")
        ]
        for (read, wanted), is_held_out in zip(both.last_norms(), self._is_held_out, strict=True):
            sums, squares = pairs[is_held_out]
            seen = wanted.flatten(0, -2).double()
            sums.add(read.flatten(0, -2), seen)
            squares.addmm_(seen.T, seen)
            self._advance(len(seen))
        fitted, held_out = (
            Sums(sums.inputs, sums.products @ theirs.T, ((theirs @ squares) * theirs).sum(1))
            for sums, squares in pairs
        )
        found = fit(fitted, held_out, ours)
        after = (found.weight + mean).to(both.pair.small.weights[HEAD].dtype)
        done = Refit.of(HEAD, found.alpha, held_out, ours, after.double() - mean)
        self.refits.append(done)
        if done.is_used:
            with atomic_file(self._folder / "head.safetensors") as partial:
                save_file({HEAD: after.cpu().contiguous()}, partial)


def _head_of(stream: LayerStream) -> torch.Tensor:
    return torch.cat([rows.double() for _, rows in stream.head_blocks()])


def _has_bias(module: Any) -> bool:
    return module.bias is not None


def _with_bias(module: Any) -> torch.Tensor:
    """(out, in), with the bias as a last column where there is one."""
    weight: torch.Tensor = module.weight
    return torch.cat([weight, module.bias[:, None]], 1) if _has_bias(module) else weight


def _put(module: Any, weight: torch.Tensor) -> None:
    """Give a linear a weight, whose last column is the bias where there is one."""
    columns = weight[:, :-1] if _has_bias(module) else weight
    if _has_bias(module):
        bias = weight[:, -1].to(module.bias).contiguous()
        module.bias = nn.Parameter(bias, requires_grad=False)
    module.weight = nn.Parameter(columns.to(module.weight).contiguous(), requires_grad=False)
