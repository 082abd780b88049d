"""The output embedding of the smaller model, fitted to the source's logits by blocks of rows.

The wanted outputs are the source's logits T x of its last normed stream x, T (vocabulary, hidden);
the smaller model returns O s. A number added to all logits of a token changes nothing: the mean
over the vocabulary is taken from T and O. The fitted weight is linear in the rows of both,

    W = [T O] K,  K = [Y^T X; lambda I] (X^T X + lambda I)^-1,

where X holds s and Y holds x. Its error follows from [T O]^T [T O], so neither embedding and no
logits are held: both are read twice, once to choose alpha and once to write W.

    HeadFitting(theirs, ours).fit(fitted, held_out, torch.bfloat16, path)   # HeadFit(...)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from minitron.files.atomic_file import atomic_file
from minitron.files.safetensors_file import TensorSpec, write_safetensors
from minitron.model.family import HEAD
from minitron.reconstruction.least_squares import Sums, fit
from minitron.sources.layer_stream import BLOCK_BYTES, LayerStream

BYTES_AT_ONCE = 4 * BLOCK_BYTES  # of both output embeddings in float64


@dataclass(frozen=True)
class HeadFit:
    """The alpha, and the relative squared errors on held-out tokens before and after."""

    alpha: float
    before: float
    after: float


class HeadFitting:
    """Both output embeddings, and what is known of them after they were read once."""

    def __init__(self, theirs: LayerStream, ours: LayerStream) -> None:
        self._streams = theirs, ours
        self._wide = theirs.config.hidden_size
        width = self._wide + ours.config.hidden_size
        self._products = torch.zeros(width, width, dtype=torch.float64, device=ours.device)
        total = torch.zeros(width, dtype=torch.float64, device=ours.device)
        count = 0
        for rows in self._blocks():
            self._products.addmm_(rows.T, rows)
            total.add_(rows.sum(0))
            count += len(rows)
        self._mean = total / count
        self._products.addr_(self._mean, total, alpha=-1)

    def fit(self, fitted: Sums, held_out: Sums, dtype: torch.dtype, path: Path) -> HeadFit:
        """Fit W to sums of s and x, and write it to `path` in `dtype`, rounded as its error is."""
        wide, width = self._wide, len(self._products)
        assert held_out.squares is not None
        narrow = width - wide
        before = self._products.new_zeros(width, narrow)
        before[wide:].fill_diagonal_(1)
        padded = torch.cat([fitted.products, fitted.products.new_zeros(narrow, narrow)])
        whole = float((held_out.squares * self._products[:wide, :wide]).sum())

        def error(weight: torch.Tensor) -> float:
            read = self._products @ weight
            error = (read * (weight @ held_out.inputs)).sum()
            wanted = self._products[:, :wide] @ held_out.products
            return whole + float(error - 2 * (wanted * weight).sum())

        found = fit(Sums(fitted.inputs, padded, fitted.outputs), held_out, before, error)
        after = whole + self._write(found.weight, held_out, dtype, path)
        return HeadFit(found.alpha, error(before) / (whole or 1.0), after / (whole or 1.0))

    def _write(self, weight: torch.Tensor, held_out: Sums, dtype: torch.dtype, path: Path) -> float:
        """Write the rows [T O] K; what the rounded ones add to the held-out error of none."""
        wide, mean = self._wide, self._mean
        error = 0.0

        def pieces() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal error
            for block in self._blocks():
                rows = block - mean
                written = (rows @ weight + mean[wide:]).to(dtype)
                kept = written.double() - mean[wide:]
                wanted = rows[:, :wide] @ held_out.products
                error += float(((kept @ held_out.inputs - 2 * wanted) * kept).sum())
                yield HEAD, written.cpu()

        vocabulary = self._streams[1].config.vocab_size
        specs = {HEAD: TensorSpec(dtype, (vocabulary, len(mean) - wide))}
        with atomic_file(path) as partial:
            write_safetensors(partial, specs, pieces())
        return error

    def _blocks(self) -> Iterator[torch.Tensor]:
        """Rows of both output embeddings side by side, in float64 (rows, wide + narrow)."""
        theirs, ours = self._streams
        at_once = max(1, BYTES_AT_ONCE // (8 * (self._wide + ours.config.hidden_size)))
        both = zip(theirs.head_blocks(at_once), ours.head_blocks(at_once), strict=True)
        for (_, wide), (_, narrow) in both:
            yield torch.cat([wide.double(), narrow.double()], 1)
