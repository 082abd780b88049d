"""Ridge least squares for a linear, from sums over tokens, with its error on tokens held out.

With inputs X (tokens, in) and wanted outputs Y (tokens, out), the fitted weight W (out, in) has the
least |X W^T - Y|^2 + lambda |W - W0|^2, where W0 is the weight before and lambda is alpha times the
mean of diag(X^T X):

    (X^T X + lambda I) W^T = X^T Y + lambda W0^T

A bias is a last column of W, and X has a last column of ones. alpha is the one of ALPHAS with the
least error on the tokens that are held out. Sums and solutions are in float64. Method: ridge
regression as in Olica (arXiv 2506.08436); plain least squares overfits small calibration sets
(RCPU, arXiv 2510.07782).

    moments = Moments(fitted, held_out)
    fit(moments, before).weight   # (out, in)
"""

from dataclasses import dataclass

import torch

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class Sums:
    """Sums over tokens of what a linear reads, X, and of what it shall return, Y."""

    inputs: torch.Tensor  # X^T X (in, in)
    products: torch.Tensor  # X^T Y (in, out)
    outputs: torch.Tensor  # the sum of Y^2 (out,)

    @classmethod
    def zeros(cls, inputs: int, outputs: int, device: str = "cpu") -> "Sums":
        """The sums of no token."""
        of = {"dtype": torch.float64, "device": device}
        return cls(
            torch.zeros(inputs, inputs, **of),  # type: ignore[call-overload]
            torch.zeros(inputs, outputs, **of),  # type: ignore[call-overload]
            torch.zeros(outputs, **of),  # type: ignore[call-overload]
        )

    def add(self, read: torch.Tensor, wanted: torch.Tensor) -> None:
        """Add tokens: `read` (tokens, in), `wanted` (tokens, out)."""
        read, wanted = read.double(), wanted.double()
        self.inputs.addmm_(read.T, read)
        self.products.addmm_(read.T, wanted)
        self.outputs.add_(wanted.square().sum(0))

    def at(self, outputs: slice) -> "Sums":
        """The sums for some of the outputs."""
        return Sums(self.inputs, self.products[:, outputs], self.outputs[outputs])

    def errors(self, weight: torch.Tensor) -> torch.Tensor:
        """The sum over tokens of |X W^T - Y|^2, for each output (out,); `weight` is (out, in)."""
        explained = ((weight @ self.inputs) * weight).sum(1)
        return explained - 2 * (weight * self.products.T).sum(1) + self.outputs


@dataclass(frozen=True)
class Fit:
    """A fitted weight W, and the squared error on held-out tokens of each output by W0 and W."""

    weight: torch.Tensor  # (out, in), in float64
    alpha: float
    error_before: torch.Tensor  # (out,)
    error_after: torch.Tensor  # (out,)


def fit(fitted: Sums, held_out: Sums, before: torch.Tensor) -> Fit:
    """The weight with the least error on `held_out` among those fitted to `fitted`.

    `before` (out, in) is W0. Where the fitted weight is worse than W0, `error_after` is larger than
    `error_before`; the caller decides.
    """
    before = before.to(fitted.inputs)
    spread = fitted.inputs.diagonal().mean()
    best: tuple[float, float, torch.Tensor] | None = None
    for alpha in ALPHAS:
        weight = _solution(fitted, before, float(alpha * spread))
        if weight is None:
            continue
        error = float(held_out.errors(weight).sum())
        if best is None or error < best[0]:
            best = error, alpha, weight
    if best is None:  # no inputs but zeros
        return Fit(before, ALPHAS[-1], held_out.errors(before), held_out.errors(before))
    _, alpha, weight = best
    return Fit(weight, alpha, held_out.errors(before), held_out.errors(weight))


def _solution(sums: Sums, before: torch.Tensor, ridge: float) -> torch.Tensor | None:
    """W (out, in) at this lambda; None where the inputs leave it open."""
    left = sums.inputs.clone()
    left.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(left)
    if bool(failed):
        return None
    return torch.cholesky_solve(sums.products + ridge * before.T, factor).T
