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

    refit(both, is_held_out, finished, progress.advance, Processes())
    RefittedSource(small, finished)
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from minitron.model.family import HEAD, Row
from minitron.reconstruction.finished import Finished, Refit
from minitron.reconstruction.head import HeadFitting
from minitron.reconstruction.least_squares import Sums, fit, products_dtype
from minitron.reconstruction.rotation import WRITERS
from minitron.reconstruction.side_by_side import SideBySide, Tokens
from minitron.sources.processes import Processes

PASSES = 4  # of all tokens in a layer: what reads each of q, o, up and down
Layers = Iterator[tuple[int, nn.Module]]


def refit(
    both: SideBySide,
    is_held_out: Sequence[bool],
    finished: Finished,
    advance: Callable[[float], object],
    processes: Processes,
) -> None:
    """Fit every linear that is not `finished`, where both streams are before the first layer.

    `is_held_out` says of each batch whether it only decides. `advance` is called with tokens as
    they pass: PASSES times a layer, and once for the head. `processes` have tokens of their own,
    and the same weights.
    """
    work = _Refitting(both, is_held_out, finished, advance, processes)
    theirs = both.theirs.layers()
    index, layer = next(theirs)
    for position, _ in both.ours.layers():
        while index < both.pair.layers[position]:
            both.skip(index, layer)
            index, layer = next(theirs)
        if position < finished.layers:
            both.pass_kept(index, layer, position)
            index, layer = work.next_kept(position, theirs) or (index, layer)
            continue
        index, layer = work.fit_layer(position, index, layer, theirs)
    if HEAD in both.pair.small.weights:
        work.fit_head()
    else:  # it is the input embedding too
        finished.add_head([])


class _Refitting:
    """The linears of the layer that is being fitted."""

    def __init__(
        self,
        both: SideBySide,
        is_held_out: Sequence[bool],
        finished: Finished,
        advance: Callable[[float], object],
        processes: Processes,
    ) -> None:
        self._both, self._is_held_out, self._finished = both, is_held_out, finished
        self._advance, self._processes = advance, processes
        self._products_dtype = products_dtype(both.dtype)
        self._refits: list[Refit] = []

    def fit_layer(
        self, position: int, index: int, layer: nn.Module, coming: Layers
    ) -> tuple[int, nn.Module]:
        """Fit layer `position` to the source's `index`; the source's next layer that is kept."""
        both = self._both
        self._fit(position, ("q", "k", "v"), both.attention_inputs(index, layer, position))
        self._fit(position, ("o",), both.attention_outputs(position))
        self._fit(position, ("gate", "up"), both.mlp_inputs(index, position))
        following = self.next_kept(position, coming) or (index, layer)
        self._fit(position, ("down",), both.mlp_outputs(position))
        both.pass_mlp(position)
        self._finished.add_layer(position, self._tensors(position), self._refits)
        self._refits = []
        return following

    def next_kept(self, position: int, coming: Layers) -> tuple[int, nn.Module] | None:
        """The source's kept layer after `position`; its stream is put before it, or at its end."""
        layers = self._both.pair.layers
        following = layers[position + 1] if position + 1 < len(layers) else None
        for index, layer in coming:
            if index == following:
                return index, layer
            self._both.skip(index, layer)
        return None

    def _fit(self, position: int, parts: tuple[str, ...], tokens: Tokens) -> None:
        """Fit the linears that hold `parts`, which read the same, and put the weights in place."""
        both, stored = self._both, self._both.pair.small.weights
        rows = both.pair.linears(parts)
        modules: list[Any] = [both.ours.decoder.part(position, row.parts[0]) for row in rows]
        weights = [_with_bias(module) for module in modules]
        fitted, held_out = self._sums_of_linears(tokens, position, rows, weights)
        found = fit(fitted, held_out, torch.cat(weights))
        weight = self._processes.of_first(found.weight)
        start = 0
        for row, module, before in zip(rows, modules, weights, strict=True):
            of_rows = slice(start, start := start + len(before))
            name = row.name(position)
            after = weight[of_rows].to(stored[name].dtype)
            squares = held_out.at(of_rows)
            whole = float(squares.outputs.sum()) or 1.0
            facts = [found.alpha, *(squares.error(rows) / whole for rows in (before, after))]
            known = self._processes.of_first(torch.tensor(facts, dtype=torch.float64))
            self._refits.append(Refit(name, *known.tolist()))
            if self._refits[-1].is_used:
                _put(module, after)

    def _sums_of_linears(
        self, tokens: Tokens, position: int, rows: Sequence[Row], weights: Sequence[torch.Tensor]
    ) -> tuple[Sums, Sums]:
        """The sums to fit by, and those held out, for linears with weights (out, in)."""
        both = self._both
        has_bias = _has_bias(both.ours.decoder.part(position, rows[0].parts[0]))
        inputs = weights[0].shape[1]
        if rows[0].parts[0] in WRITERS:
            return self._sums(tokens, inputs, len(weights[0]), ones=(has_bias, False))
        wide = both.theirs.config.hidden_size + has_bias
        sums = self._sums(tokens, inputs, wide, ones=(has_bias, has_bias), squares=True)
        kept = torch.cat([both.pair.kept_rows(row, position) for row in rows]).to(both.device)
        fitted, held_out = (each.through(kept) for each in sums)
        return fitted, held_out

    def _sums(
        self,
        tokens: Tokens,
        inputs: int,
        outputs: int,
        *,
        ones: Sequence[bool] = (False, False),
        squares: bool = False,
    ) -> tuple[Sums, Sums]:
        """The sums to fit by, and those held out, with `squares`: of what is read and wanted, each
        perhaps with a last column of ones."""
        device = self._both.device
        fitted = Sums.zeros(inputs, outputs, device)
        held_out = Sums.zeros(inputs, outputs, device, squares=squares)
        for pair, is_held_out in zip(tokens, self._is_held_out, strict=True):
            read, wanted = map(_flat, pair, ones)
            if is_held_out:
                held_out.add(read, wanted)
            else:
                fitted.add(read, wanted, self._products_dtype)
            self._advance(len(read))
        for sums in (fitted, held_out):
            self._processes.add_in_place(sums.inputs, sums.products, sums.outputs)
        if held_out.squares is not None:
            self._processes.add_in_place(held_out.squares)
        return fitted, held_out

    def _tensors(self, position: int) -> dict[str, torch.Tensor]:
        """The layer's tensors in the dtypes they are stored in."""
        small = self._both.pair.small
        module = self._both.ours.decoder.layers[position]
        held = {name.rpartition(".")[::2]: tensor for name, tensor in module.state_dict().items()}
        tensors = {}
        for slot in small.architecture.slots():
            if slot.layer == position:
                path = small.architecture.family.layer_modules[slot.row.parts[0]]
                dtype = small.weights[slot.name].dtype
                tensors[slot.name] = held[path, slot.row.kind].to("cpu", dtype)
        return tensors

    def fit_head(self) -> None:
        """Fit the output embedding."""
        both, finished = self._both, self._finished
        narrow, wide = (stream.config.hidden_size for stream in (both.ours, both.theirs))
        fitted, held_out = self._sums(both.last_norms(), narrow, wide, squares=True)
        if not self._processes.is_first:
            return
        dtype = both.pair.small.weights[HEAD].dtype
        work = HeadFitting(both.theirs, both.ours)
        done = work.fit(fitted, held_out, dtype, finished.head)
        finished.add_head([Refit(HEAD, done.alpha, done.before, done.after)])


def _flat(states: torch.Tensor, has_ones: bool) -> torch.Tensor:
    """States by token, perhaps with a last column of ones."""
    flat = states.flatten(0, -2)
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1) if has_ones else flat


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
