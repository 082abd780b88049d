"""Removal: the order in which a linear loses its inputs at the least error, and that error.

A linear has the inputs X (tokens, n) and the weight W (out, n). Groups of its inputs are removed
one after another, always the group g with the least

    tr(W_g [H^-1]_gg^-1 W_g^T),    H = X^T X + lambda I,    lambda = RIDGE * mean(diag(X^T X))

which is how much the squared error of the outputs rises without g, once the weights that remain are
fitted again. W and H^-1 become those of what remains, by block elimination (optimal brain surgeon:
SlimGPT 2412.18110, OSSCAR 2403.12983, Týr 2503.09657).

Only H^-1 and W^T W are held, (n, n) in float64. An elimination changes both by products of a few
columns. As in LAPACK's pivoted Cholesky those are collected, and applied together: so most of the
work, about 3 n^3 operations, is products of matrices: on one core 0.3 s for 1,024 inputs and 8 s
for 4,096, and so some 9 minutes for 16,384.

    errors = removal_errors(moments, products, size=1)   # (n,)
    errors.argsort()   # the order of removal
"""

import torch

RIDGE = 1e-2
_COLUMNS = 64  # that are collected
_AT_ONCE = 1024  # rows that are cast or copied
_WIDE = 8  # bytes of a number in float64


def add_moments(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add X^T X of `rows` (tokens, n) to the upper triangle of `total` (n, n), in float64.

    The products of some rows are summed in float32.
    """
    for run in rows.detach().split(_AT_ONCE):
        x = run.float()
        for start in range(0, x.shape[1], _AT_ONCE):
            stop = start + _AT_ONCE
            total[start:stop, start:] += x[:, start:stop].T @ x[:, start:]


def mirror(total: torch.Tensor) -> None:
    """Make a matrix symmetric by its upper triangle."""
    for start in range(0, len(total), _AT_ONCE):
        stop = start + _AT_ONCE
        block = total[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        total[stop:, start:stop] = total[start:stop, stop:].T


def removal_bytes(inputs: int, size: int) -> int:
    """The memory in which `removal_errors` works, both matrices among it."""
    # Both, and a third with which a GPU inverts; rows that are copied; columns of eliminations.
    return _WIDE * inputs * (3 * inputs + 2 * _AT_ONCE + 14 * max(size, _COLUMNS))


def removal_errors(
    moments: torch.Tensor, products: torch.Tensor, size: int, sets: int = 1
) -> torch.Tensor:
    """Of each group of `size` neighbouring inputs, the error once it and all before it are removed.

    `moments` is X^T X and `products` W^T W, (n, n) in float64; both are overwritten. Neighbouring
    groups form `sets` of equal size, and no set loses another group before each has lost as many.
    Errors are sums of squares over tokens and outputs, or NaN where the inputs are not finite.
    Inputs that are 0 on every token go first.
    """
    if not moments.diagonal().isfinite().all():
        return moments.new_full((len(moments) // size,), torch.nan)
    is_dead = moments.diagonal() == 0
    products[is_dead] = 0
    products[:, is_dead] = 0
    ridge = RIDGE * float(moments.diagonal().mean())
    moments.diagonal().add_(ridge or 1.0)
    inverse = moments.T  # LAPACK works in place on what is contiguous by columns
    failed = torch.empty((), dtype=torch.int32, device=inverse.device)
    torch.linalg.cholesky_ex(inverse, out=(inverse, failed))
    torch.cholesky_inverse(inverse, out=inverse)
    remaining = _Remaining(inverse.T, products, size, sets)
    while len(remaining.groups):
        remaining.eliminate()
    return remaining.errors


class _Remaining:
    """What remains of a linear: its groups of inputs, and H^-1 and W^T W of those."""

    def __init__(self, inverse: torch.Tensor, products: torch.Tensor, size: int, sets: int) -> None:
        self._inverse, self._products, self._size = inverse, products, size
        self.groups = torch.arange(len(inverse) // size, device=inverse.device)
        self._set_of = self.groups // (len(self.groups) // sets)
        self._lost = self.groups.new_zeros(sets)
        self._inverses, self._squares = map(self._blocks, (inverse, products))
        self.errors = inverse.new_zeros(len(self.groups))
        self._error = inverse.new_zeros(())

    def eliminate(self) -> None:
        """Remove some groups, and change both matrices by them."""
        steps = min(len(self.groups), max(1, _COLUMNS // self._size))
        of_inverse = self._inverse.new_zeros(len(self._inverse), steps * self._size)
        of_products = torch.zeros_like(of_inverse)
        is_gone = torch.zeros_like(self.groups, dtype=torch.bool)
        for step in range(steps):
            place = self._least(is_gone)
            is_gone[place] = True
            known = slice(0, step * self._size)
            left, right = self._columns(place, of_inverse[:, known], of_products[:, known])
            columns = slice(known.stop, known.stop + self._size)
            of_inverse[:, columns], of_products[:, columns] = left, right
            self._change_blocks(left, right, is_gone)
        self._keep(~is_gone, of_inverse, of_products)

    def _least(self, is_gone: torch.Tensor) -> int:
        """The place of the group that costs least, whose error is recorded."""
        if self._size == 1:
            rises = (self._squares / self._inverses).flatten()
        else:
            solved = torch.linalg.solve(self._inverses, self._squares)
            rises = solved.diagonal(dim1=1, dim2=2).sum(1)
        set_of = self._set_of[self.groups]
        may_go = ~is_gone & (self._lost[set_of] == self._lost[set_of[~is_gone]].min())
        place = int(rises.masked_fill(~may_go, torch.inf).argmin())
        self._lost[set_of[place]] += 1
        self._error += rises[place].clamp(min=0)
        self.errors[self.groups[place]] = self._error
        return place

    def _columns(
        self, place: int, of_inverse: torch.Tensor, of_products: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """L and R (n, size): without the group, H^-1 is less by L L^T, W^T W by R L^T + L R^T."""
        group = slice(place * self._size, (place + 1) * self._size)
        inverse = self._inverse[:, group] - of_inverse @ of_inverse[group].T
        products = self._products[:, group] - of_products @ of_inverse[group].T
        products -= of_inverse @ of_products[group].T
        root = torch.linalg.cholesky(inverse[group])
        solve = torch.linalg.solve_triangular
        left = solve(root.T, inverse, upper=True, left=False)
        right = solve(root.T, products, upper=True, left=False)
        return left, right - left @ solve(root, right[group], upper=False) / 2

    def _change_blocks(
        self, left: torch.Tensor, right: torch.Tensor, is_gone: torch.Tensor
    ) -> None:
        """Change the diagonal blocks, by which groups are compared, without delay."""
        of_inverse, of_products = (rows.unflatten(0, (-1, self._size)) for rows in (left, right))
        self._inverses -= of_inverse @ of_inverse.mT
        change = of_products @ of_inverse.mT
        self._squares -= change + change.mT
        self._inverses[is_gone] = torch.eye(self._size, dtype=left.dtype, device=left.device)

    def _keep(self, kept: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """Make both matrices those of the kept groups."""
        columns = kept.repeat_interleave(self._size).nonzero().flatten()
        self._inverse = _submatrix(self._inverse, columns)
        self._products = _submatrix(self._products, columns)
        left, right = left[columns], right[columns]
        self._inverse.addmm_(left, left.T, alpha=-1)
        self._products.addmm_(right, left.T, alpha=-1).addmm_(left, right.T, alpha=-1)
        self.groups = self.groups[kept]
        self._inverses, self._squares = self._inverses[kept], self._squares[kept]

    def _blocks(self, matrix: torch.Tensor) -> torch.Tensor:
        """A copy of the blocks on the diagonal, (groups, size, size)."""
        shape = (len(self.groups), self._size)
        blocks = matrix.unflatten(1, shape).unflatten(0, shape).diagonal(dim1=0, dim2=2)
        copy: torch.Tensor = blocks.permute(2, 0, 1).clone()
        return copy


def _submatrix(matrix: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The rows and columns `kept` (ascending) of a matrix, in its own memory."""
    width = len(kept)
    for start in range(0, width, _AT_ONCE):
        rows = kept[start : start + _AT_ONCE]
        matrix[start : start + len(rows), :width] = matrix[rows][:, kept]
    return matrix[:width, :width]
