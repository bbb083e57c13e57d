"""The nearest point of a simplex and of an l1 ball, without a sort: Newton's method on the number that decides it.

The projection of ``v`` is ``max(v - t, 0)`` with the threshold ``t`` at which it sums to what it must. The sum is
convex and piecewise linear in ``t``, so Newton's method from below rises to the root in finitely many passes: each
takes the entries that reach the threshold, and moves it to where it would be right if they were all that remain.
At every pass the product of their number and of the excess of the sum falls to a quarter or less (their ratios to
those before add up to one at most), so the count of passes grows as the logarithm of the length and of the precision.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcomp.constraints._lanes import from_runs, in_order, in_runs, max_of_runs, sum_of_runs
from jaxcomp.constraints._shards import total as over_devices


def onto_simplex(v: jax.Array, total: ArrayLike, real: ArrayLike = True, names: Sequence[str] = ()) -> jax.Array:
    """The nearest of ``{p >= 0, sum(p) = total}`` to the last axis of ``v``; what is not real, padding, becomes 0.

    On a mesh ``names`` are its axes along which other devices hold the rest of that axis.
    """
    runs = in_order(in_runs(jnp.where(real, v, -jnp.inf), -jnp.inf))
    return from_runs(_above_threshold(runs, total, jnp.subtract, names)[0], v.shape)


def onto_l1_ball(x: jax.Array, radius: ArrayLike, names: Sequence[str] = ()) -> jax.Array:
    """The nearest of ``{z : sum(|z|) <= radius}`` to the last axis of ``x``, which goes on likewise."""
    runs = in_order(in_runs(x, 0))
    above, threshold = _above_threshold(runs, radius, _magnitude_beyond, names, least=0)
    return from_runs(jnp.where(threshold > 0, jnp.sign(runs) * above, runs), x.shape)


def _magnitude_beyond(x, threshold):
    """``|x| - threshold``, without magnitudes that XLA would store for all passes of a search."""
    return jnp.maximum(x - threshold, -threshold - x)


def _above_threshold(runs, total, beyond: Callable, names: Sequence[str], least=-jnp.inf):
    """By how much numbers in runs are beyond the threshold, and the threshold; to derivatives the support is fixed.

    ``beyond(runs, threshold)`` is by how much, negative for what falls short of it.
    """
    still, fixed = lax.stop_gradient((runs, total))
    top = max_of_runs(beyond(still, 0), names)
    found = _search(still, fixed, beyond, jnp.maximum(top - fixed, least), names)
    above = beyond(runs, found)
    support = (above > 0) | (beyond(still, 0) == top)
    above = jnp.where(support, above, 0)
    # What rounding keeps out of a threshold beside large weights is taken off the differences, which are small.
    rest = (sum_of_runs(above, names) - total) / sum_of_runs(support.astype(jnp.int32), names)
    return jnp.where(support & (above > rest), above - rest, 0), found + rest


def _search(runs, total, beyond, least, names):
    """The threshold, to rounding; no less than ``least``, which is below it."""

    def sums(excess, reaches):
        """In one pass: of all excess, and how many numbers it is of."""
        terms = jnp.where(reaches, excess, 0), reaches.astype(jnp.int32)
        nothing = jnp.zeros((), runs.dtype), jnp.int32(0)
        of_runs = lax.reduce(terms, nothing, lambda a, b: (a[0] + b[0], a[1] + b[1]), (runs.ndim - 1,))
        return [over_devices(jnp.sum(s, axis=-1)[..., None, None], names) for s in of_runs]

    # The first step, from far below: taken from there, it would drown in the rounding of large differences.
    excess, count = sums(beyond(runs, 0), beyond(runs, 0) > -jnp.inf)
    start = jnp.maximum(least, (excess - total) / count)
    everything = jnp.full_like(start, jnp.iinfo(jnp.int32).max - 1, jnp.int32)

    def unsettled(carry):
        _, count, before = carry
        return jnp.any(count < before)

    def rise(carry):
        threshold, before, _ = carry
        excess = beyond(runs, threshold)
        excess, count = sums(excess, excess >= 0)
        # Rounding must not let the threshold fall, or the search might go round for ever.
        return threshold + jnp.maximum((excess - total) / count, 0), count, before

    return lax.while_loop(unsettled, rise, (start, everything, everything + 1))[0]
