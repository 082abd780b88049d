"""Ridge least squares for a linear, from sums over tokens, with its error on tokens held out.

With inputs X (tokens, in) and wanted outputs Y (tokens, out), the fitted weight W (out, in) has the
least |X W^T - Y|^2 + lambda |W - W0|^2, where W0 is the weight before and lambda is alpha times the
mean of diag(X^T X):

    W (X^T X + lambda I) = Y^T X + lambda W0

A bias is a last column of W, and X has a last column of ones. alpha is the one of ALPHAS with the
least error on the tokens that are held out. Where Y = Z V^T for a known V, Y is not computed: sums
of Z become those of Y. Sums and solutions are in float64; products of some tokens may be in
float32. Method: ridge regression as in Olica (arXiv 2506.08436); plain least squares overfits small
calibration sets (RCPU, arXiv 2510.07782).

    fitted, held_out = Sums.zeros(4, 3), Sums.zeros(4, 3)
    fitted.add(read, wanted)
    fit(fitted, held_out, before).weight   # (out, in)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TOKENS_AT_ONCE = 1024  # whose products are added up before they are added in float64
COLUMNS_AT_ONCE = 128  # of what is multiplied with itself: what is symmetric is computed once
_OUTPUTS_AT_ONCE = 1024  # whose errors are computed


@dataclass
class Sums:
    """Sums over tokens of what a linear reads, X, and of what it shall return, Y."""

    inputs: torch.Tensor  # X^T X (in, in)
    products: torch.Tensor  # Y^T X (out, in)
    outputs: torch.Tensor  # the sum of Y^2 (out,)
    squares: torch.Tensor | None = None  # Y^T Y (out, out), where errors of Y V^T are needed

    @classmethod
    def zeros(
        cls, inputs: int, outputs: int, device: str = "cpu", *, squares: bool = False
    ) -> "Sums":
        """The sums of no token."""
        shapes = [(inputs, inputs), (outputs, inputs), (outputs,), (outputs, outputs)]
        of = [
            torch.zeros(shape, dtype=torch.float64, device=device)
            for shape in shapes[: 3 + squares]
        ]
        return cls(*of)

    def add(
        self, read: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype = torch.float64
    ) -> None:
        """Add tokens: `read` (tokens, in), `wanted` (tokens, out), multiplied in `dtype`."""
        runs = (tokens.split(TOKENS_AT_ONCE) for tokens in (read, wanted))
        for x, y in zip(*runs, strict=True):
            x, y = x.to(dtype), y.to(dtype)
            add_products(self.inputs, x, x)
            add_products(self.products, y, x)
            self.outputs.add_(y.square().sum(0))
            if self.squares is not None:
                add_products(self.squares, y, y)

    def through(self, weight: torch.Tensor) -> "Sums":
        """The sums where a linear shall return Y V^T; `weight` is V (rows, out).

        Errors follow from them only where there are squares.
        """
        products = self.products.new_empty(len(weight), self.inputs.shape[0])
        outputs = self.outputs.new_zeros(len(weight))
        for start in range(0, len(weight), _OUTPUTS_AT_ONCE):
            rows = slice(start, start + _OUTPUTS_AT_ONCE)
            some = weight[rows].double()
            torch.mm(some, self.products, out=products[rows])
            if self.squares is not None:
                outputs[rows] = ((some @ self.squares) * some).sum(1)
        return Sums(self.inputs, products, outputs)

    def at(self, outputs: slice) -> "Sums":
        """The sums for some of the outputs."""
        return Sums(self.inputs, self.products[outputs], self.outputs[outputs])

    def error(self, weight: torch.Tensor) -> float:
        """The sum over tokens and outputs of |X W^T - Y|^2; `weight` is (out, in)."""
        error = self.outputs.sum()
        runs = (rows.split(_OUTPUTS_AT_ONCE) for rows in (weight, self.products))
        for rows, products in zip(*runs, strict=True):
            rows = rows.double()
            error += ((rows @ self.inputs - 2 * products) * rows).sum()
        return float(error)


def products_dtype(computed_in: torch.dtype) -> torch.dtype:
    """The dtype to multiply activations in that were computed in another.

    Sums of bfloat16's numbers, which have 3 digits, lose nothing in float32. Those of float32's do:
    weights that are fitted to them differ by 2e-4.
    """
    return torch.float64 if computed_in.itemsize > 2 else torch.float32


def add_products(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left^T right to `sums`, some rows at a time; half of it where both are the same."""
    is_symmetric = left is right
    for start in range(0, left.shape[1], COLUMNS_AT_ONCE):
        rows = slice(start, start + COLUMNS_AT_ONCE)
        columns = slice(rows.stop if is_symmetric else None)
        sums[rows, columns] += left[:, rows].T @ right[:, columns]
        if is_symmetric:
            sums[:start, rows] = sums[rows, :start].T


@dataclass(frozen=True)
class Fit:
    """A fitted weight W (out, in), in float64, and the alpha that it was fitted with."""

    weight: torch.Tensor
    alpha: float


def fit(
    fitted: Sums,
    held_out: Sums,
    before: torch.Tensor,
    error: Callable[[torch.Tensor], float] | None = None,
) -> Fit:
    """The weight with the least error on `held_out` among those fitted to `fitted`.

    `before` (out, in) is W0. The weight may be worse than W0: the caller decides. `error` is that
    of a weight on the held-out tokens, where it is not what `held_out` says.
    """
    spread = float(fitted.inputs.diagonal().mean())
    work = torch.empty_like(fitted.inputs)
    best: tuple[float, Fit] | None = None
    for alpha in ALPHAS:
        weight = _solution(fitted, before, alpha * spread, work)
        if weight is None:
            continue
        found = (error or held_out.error)(weight)
        if best is None or found < best[0]:
            best = found, Fit(weight, alpha)
    if best is None:  # no inputs but zeros
        return Fit(before.double(), ALPHAS[-1])
    return best[1]


def _solution(
    sums: Sums, before: torch.Tensor, ridge: float, work: torch.Tensor
) -> torch.Tensor | None:
    """W (out, in) at this lambda; None where the inputs leave it open.

    `work` (in, in) is overwritten. LAPACK works in place on what is contiguous by columns, as the
    transposes here are: the sums of a wide linear are gigabytes.
    """
    left = work.copy_(sums.inputs).T
    left.diagonal().add_(ridge)
    failed = torch.empty((), dtype=torch.int32, device=left.device)
    torch.linalg.cholesky_ex(left, out=(left, failed))
    if bool(failed):
        return None
    weight = before.double().mul_(ridge) if before.dtype != torch.float64 else before * ridge
    weight.add_(sums.products)
    torch.linalg.solve_triangular(left, weight.T, upper=False, out=weight.T)
    torch.linalg.solve_triangular(left.T, weight.T, upper=True, out=weight.T)
    return weight
