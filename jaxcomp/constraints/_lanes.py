"""Sums along the last axis, in the order in which a processor adds fastest and rounding grows least.

XLA adds neighbours of the last axis one by one on a CPU, having first stored the terms. So the axis is cut into runs of
lines of a few lanes each: lines are added to one another, all their lanes at a time, and a sum a lane and run is left.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

LANES = 16
LINES = 32  # of a run, at most: XLA would make a tree of sums of more, and store their terms
_FEW = 32  # numbers that XLA adds without storing the terms


def in_lanes(x: jax.Array, fill: float) -> jax.Array:
    """``[..., n]`` as ``[..., runs, lines, lanes]``, filled up at the end where it must be.

    If n is small, the lanes are what stands on the last axis but one: ``[..., n, lanes]``.
    """
    *batch, n = x.shape
    if n <= _FEW:
        return x.swapaxes(-1, -2) if batch else x[:, None]
    lines = -(-n // LANES)
    runs = -(-lines // LINES)
    lines = -(-lines // runs)
    missing = runs * lines * LANES - n
    if missing:
        x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, missing)], constant_values=fill)
    return x.reshape(*batch, runs, lines, LANES)


def beside(numbers: jax.Array, lanes: jax.Array) -> jax.Array:
    """``[..., 1]``, as it broadcasts with lanes."""
    if lanes.ndim <= max(numbers.ndim, 2):
        return numbers.reshape(*numbers.shape[:-2], 1, -1)
    return numbers.reshape(*numbers.shape, 1, 1)


def sum_lines(x: jax.Array) -> jax.Array:
    """Lanes summed over lines."""
    # Kept apart, or XLA makes one sum of this and of what sums its result.
    return lax.optimization_barrier(jnp.sum(x, axis=-2, dtype=x.dtype))


def sum_in_lanes(terms: jax.Array, ndim: int) -> jax.Array:
    """The sums of terms in lanes, as ``[..., 1]`` with so many axes."""
    return _over_lanes(sum_lines(terms), terms.ndim, ndim)


def sums_in_lanes(terms: Sequence[jax.Array], ndim: int) -> list[jax.Array]:
    """The same of several terms in one pass, which has no derivative."""
    nothing = [jnp.zeros((), x.dtype) for x in terms]
    add = functools.partial(jax.tree.map, jnp.add)
    sums = lax.optimization_barrier(lax.reduce(list(terms), nothing, add, (terms[0].ndim - 2,)))
    return [_over_lanes(x, terms[0].ndim, ndim) for x in sums]


def max_in_lanes(x: jax.Array, ndim: int) -> jax.Array:
    """The largest of numbers in lanes, as ``[..., 1]`` with so many axes."""
    return _over_lanes(lax.optimization_barrier(jnp.max(x, axis=-2)), x.ndim, ndim, jnp.max)


def _over_lanes(x, before, ndim, function=None):
    """What is left of lanes of so many axes, made ``[..., 1]``: where lanes are not numbers of their own, their sum."""
    if before <= max(ndim, 2):
        return x[..., None] if ndim > 1 else x
    x = x.reshape(*x.shape[: ndim - 1], -1)
    return function(x, axis=-1, keepdims=True) if function else sum_in_lanes(in_lanes(x, 0), x.ndim)
