"""The nearest point of a simplex and of an l1 ball, without a sort: Newton's method on the number that decides it.

The projection of ``v`` is ``max(v - t, 0)`` with the threshold ``t`` at which it sums to what it must. The sum is
convex and piecewise linear in ``t``, so Newton's method from below rises to the root in finitely many passes: each
takes the entries that reach the threshold, and moves it to where it would be right if they were all that remain.
At every pass the product of their number and of the excess of the sum falls to a quarter or less (their ratios to
those before add up to one at most), so the count of passes grows as the logarithm of the length and of the precision.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

_RUN = 1024  # numbers that are added one after another; in longer sums the rounding would show


def onto_simplex(v: jax.Array, total: ArrayLike, real: ArrayLike = True) -> jax.Array:
    """The nearest of ``{p >= 0, sum(p) = total}`` to the last axis of ``v``; what is not real, padding, becomes 0."""
    return _above_threshold(jnp.where(real, v, -jnp.inf), total)[0]


def onto_l1_ball(x: jax.Array, radius: ArrayLike) -> jax.Array:
    """The nearest of ``{z : sum(|z|) <= radius}`` to the last axis of ``x``."""
    above, threshold = _above_threshold(jnp.abs(x), radius, least=0)
    return jnp.where(threshold > 0, jnp.sign(x) * above, x)


def long_sum(x: jax.Array) -> jax.Array:
    """The sum over the last axis, which stays: of runs, then of their sums, for the error grows with the length."""
    while x.shape[-1] > _RUN:
        # Kept apart, or XLA makes one sum of the two.
        x = lax.optimization_barrier(jnp.sum(_in_runs(x, 0), axis=-1))
    return jnp.sum(x, axis=-1, keepdims=True)


def _above_threshold(v, total, least=-jnp.inf):
    """``max(v - t, 0)`` and the threshold ``t``; to derivatives the support is fixed."""
    top = lax.stop_gradient(jnp.max(v, axis=-1, keepdims=True))
    found = _search(*lax.stop_gradient((v, total, jnp.maximum(top - total, least))))
    support = (v > found) | (v == top)
    above = jnp.where(support, v - found, 0)
    # What rounding keeps out of a threshold beside large weights is taken off the differences, which are small.
    rest = (long_sum(above) - total) / jnp.sum(support, axis=-1, keepdims=True, dtype=jnp.int32)
    return jnp.where(support & (above > rest), above - rest, 0), found + rest


def _search(v, total, least):
    """The threshold, to rounding; no less than ``least``, which is below it."""
    real = v > -jnp.inf
    # The first step, from far below: taken from there, it would drown in the rounding of large differences.
    mean = (long_sum(jnp.where(real, v, 0)) - total) / jnp.sum(real, axis=-1, keepdims=True, dtype=jnp.int32)
    start = jnp.maximum(least, mean)
    everything = jnp.full_like(start, v.shape[-1] + 1, jnp.int32)
    runs = _in_runs(v, -jnp.inf)

    def unsettled(carry):
        _, count, before = carry
        return jnp.any(count < before)

    def rise(carry):
        threshold, before, _ = carry
        excess, count = _beyond(runs, threshold)
        # Rounding must not let the threshold fall, or the search might go round for ever.
        return threshold + jnp.maximum((excess - total) / count, 0), count, before

    return lax.while_loop(unsettled, rise, (start, everything, everything + 1))[0]


def _beyond(runs, threshold):
    """By how much all entries beyond the threshold exceed it, and how many reach it, in one pass."""
    excess = runs - threshold[..., None]
    reaches = excess >= 0
    terms = jnp.where(reaches, excess, 0), reaches.astype(jnp.int32)
    nothing = jnp.zeros((), runs.dtype), jnp.int32(0)
    sums = lax.reduce(terms, nothing, lambda a, b: (a[0] + b[0], a[1] + b[1]), (runs.ndim - 1,))
    return [jnp.sum(s, axis=-1, keepdims=True) for s in sums]


def _in_runs(x, fill):
    """The last axis as rows of equal length, not longer than a run: filled up, and no copy where that is not needed."""
    *batch, n = x.shape
    rows = -(-n // _RUN)
    length = -(-n // rows)
    padded = jnp.pad(x, [(0, 0)] * len(batch) + [(0, rows * length - n)], constant_values=fill)
    return padded.reshape(*batch, rows, length)
