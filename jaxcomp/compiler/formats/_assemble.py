"""From a plan to a format: weights brought together by strips, and strips of equal need by buckets."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxcomp.compiler.formats._beside import Beside
from jaxcomp.compiler.formats._dense import Dense
from jaxcomp.compiler.formats._format import Format
from jaxcomp.compiler.formats._plan import Plan


def assemble(matrix: np.ndarray, plan: Plan, part: Callable[[np.ndarray, np.ndarray, int], Format]) -> Format:
    """The format that a plan says.

    Args:
        matrix: ``[*stack, depth, columns]``.
        plan: made for it.
        part: ``part(values, index, depth)`` makes a format of strips of equal need, from weights
            ``[*stack, strips, inputs, width]`` and the inputs that they belong to, ``[*stack, strips, inputs]``.
    """
    *stack, depth, columns = matrix.shape
    matrices, count = matrix.reshape(-1, depth, columns), plan.used.shape[-1]
    tiles = _reordered(matrices, plan.order, count * plan.width)
    tiles = tiles.reshape(-1, depth, count, plan.width)
    parts: list[Format] = []
    for bucket in plan.buckets:
        used = np.take_along_axis(plan.used, bucket.strips[:, None], axis=2)
        # A stable sort puts the inputs that are read first, in order; what fills up reads anything, times zero.
        index = np.argsort(~used, axis=1, kind="stable")[:, : bucket.inputs].swapaxes(1, 2)
        values = tiles[np.arange(len(tiles))[:, None, None], index, bucket.strips[:, :, None]]
        values = values.reshape(*stack, -1, bucket.inputs, plan.width)
        if values.shape[-3] == 1 and bucket.inputs == depth:
            parts.append(Dense(jnp.asarray(values[..., 0, :, :])))
        else:
            parts.append(part(values, index.astype(np.int32).reshape(*stack, -1, bucket.inputs), depth))
    if not parts:
        return Beside((Dense(jnp.asarray(matrix[..., :0])),), None, 1, columns, columns)
    order, run, zeros = _places(plan, columns)
    if order is None and not zeros and len(parts) == 1 and count * plan.width == columns:
        return parts[0]
    placed = None if order is None else jnp.asarray(order.astype(np.int32).reshape(*stack, -1))
    return Beside(tuple(parts), placed, run, zeros, columns)


def _reordered(matrices: np.ndarray, order: np.ndarray | None, columns: int) -> np.ndarray:
    """Outputs in the order of the plan, then zeros up to so many."""
    if order is not None:
        matrices = np.take_along_axis(matrices, order[:, None], axis=2)
    return np.pad(matrices, ((0, 0), (0, 0), (0, columns - matrices.shape[2])))


def _places(plan: Plan, columns: int) -> tuple[np.ndarray | None, int, int]:
    """Where each run of outputs is among those of the buckets, how long a run is, how many zeros come last."""
    held = np.concatenate([bucket.strips for bucket in plan.buckets], axis=1)
    stack, kept = held.shape
    count, width = plan.used.shape[-1], plan.width
    place = np.full((stack, count), kept)
    np.put_along_axis(place, held, np.broadcast_to(np.arange(kept), held.shape), axis=1)
    if plan.order is None:
        if (place == np.arange(count)).all():
            return None, 1, 0
        return place, width, width if kept < count else 0
    at = np.argsort(plan.order, axis=1)  # where an output is among the reordered ones
    order = np.take_along_axis(place, at // width, axis=1) * width + at % width
    if (order == np.arange(columns)).all():
        return None, 1, 0
    return np.minimum(order, kept * width), 1, 1 if kept < count else 0
