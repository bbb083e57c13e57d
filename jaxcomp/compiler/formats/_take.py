"""Runs of entries picked out of rows: one gather."""

import jax
from jax import lax


def take(x: jax.Array, index: jax.Array, run: int) -> jax.Array:
    """``[rows, runs * run]``: of each row of ``x``, cut into runs of this length, the runs with these numbers.

    The numbers are trusted to lie within the row: a clamp costs less than looking for what is outside.
    """
    rows = x.shape[0]
    if run == 1:
        numbers = lax.GatherDimensionNumbers((0,), (1,), (1,))
        sizes: tuple[int, ...] = (rows, 1)
    else:
        x = x.reshape(rows, -1, run)
        numbers = lax.GatherDimensionNumbers((0, 2), (1,), (1,))
        sizes = (rows, 1, run)
    picked = lax.gather(x, index.reshape(-1, 1), numbers, sizes, mode=lax.GatherScatterMode.CLIP)
    return picked.reshape(rows, -1)
