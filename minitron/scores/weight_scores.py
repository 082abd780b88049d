"""Scores that need no text: by the magnitude of weights, and at random.

They are what importance by activations must beat (arXiv 2407.14679, table 14).

    magnitude_scores(open_source("tiny"))
"""

from collections.abc import Iterator

import torch

from minitron.files.dtypes import check_finite
from minitron.model.architecture import Architecture, Slot
from minitron.model.importance import Importance, score_shapes
from minitron.model.source import Source
from minitron.progress import Progress


def random_scores(architecture: Architecture, seed: int) -> Importance:
    """Uniform scores on every axis, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        axis: torch.rand(shape, generator=generator, dtype=torch.float64)
        for axis, shape in score_shapes(architecture).items()
    }
    return Importance(made_by={"scores": "random", "seed": seed}, **drawn)


def magnitude_scores(source: Source) -> Importance:
    """The L2 norm of all weights at each position of an axis, over the tensors that have it.

    One tensor is held at a time. Raises SourceError for weights that are incomplete or not finite.
    """
    architecture = source.architecture
    tensors = source.weights
    squares = {
        axis: torch.zeros(shape, dtype=torch.float64)
        for axis, shape in score_shapes(architecture).items()
    }
    slots = list(architecture.slots())
    with Progress("score", total=len(slots), unit="tensor") as progress:
        for slot in slots:
            weight = tensors[slot.name].read()
            check_finite(weight, slot.name, source.name)
            _add_squares(squares, weight, slot, architecture)
            progress.advance()
    heads = squares["heads"].unflatten(-1, (architecture.num_key_value_heads, -1))
    squares["kv_heads"] += heads.sum(-1)  # a group is cut with its query heads
    norms = {axis: total.sqrt() for axis, total in squares.items()}
    return Importance(made_by={"scores": "magnitude"}, **norms)


def _add_squares(
    squares: dict[str, torch.Tensor], weight: torch.Tensor, slot: Slot, architecture: Architecture
) -> None:
    """Add a tensor's squares to the sums of each axis that it has."""
    for axes, spread in _by_axes(weight, slot, architecture):
        for dimension, axis in enumerate(axes):
            if axis in squares:
                summed = squares[axis] if axis == "hidden" else squares[axis][slot.layer]
                summed += _squares_along(spread, dimension)
    if slot.layer is not None:
        squares["layers"][slot.layer] += _squares_along(weight.view(1, -1), 0).squeeze()


def _by_axes(
    weight: torch.Tensor, slot: Slot, architecture: Architecture
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Each part of a tensor with a dimension for every axis, (heads, head_dim, hidden) for one of
    (heads * head_dim, hidden)."""
    rows, *columns = slot.row.dimensions
    slices = architecture.run_slices(slot.row).values()
    for run, where in zip(rows, slices, strict=True):
        axes = [*run, *(axis for [run_of_columns] in columns for axis in run_of_columns)]
        yield axes, weight[where].view([architecture.size(axis) for axis in axes])


def _squares_along(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """The sum of squares over all other dimensions, (tensor.shape[dimension],)."""
    others = [other for other in range(tensor.dim()) if other != dimension]
    if not others:
        return tensor.double().square()
    norms: torch.Tensor = torch.linalg.vector_norm(tensor, dim=others, dtype=torch.float32)
    return norms.double().square()
