"""The threshold of a simplex and of an l1 ball, without a sort: Newton's method on the number that decides it.

The projection of ``v`` is ``max(v - t, 0)`` with the threshold ``t`` at which it sums to what it must. The sum is
convex and piecewise linear in ``t``, so Newton's method from below rises to the root in finitely many passes: each
takes the entries that reach the threshold, and moves it to where it would be right if they were all that remain.
At every pass the product of their number and of the excess of the sum falls to a quarter or less (their ratios to
those before add up to one at most), so the count of passes grows as the logarithm of the length and of the precision.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp.constraints._lanes import anew, in_order, in_runs, max_of_runs, sums_of_runs

Beyond = Callable[[jax.Array, ArrayLike], jax.Array]
"""By how much entries are beyond a threshold, negative for what falls short of it."""


class Threshold(NamedTuple):
    """What is taken from every entry of a group: two parts, each ``[..., 1]``, and the group's largest entry.

    What rounding keeps out of a threshold beside large entries, the rest, is taken off the differences, which are
    small.
    """

    found: jax.Array
    rest: jax.Array
    top: jax.Array

    def above(self, x: jax.Array, beyond: Beyond) -> jax.Array:
        """By how much entries are above the threshold; 0 for all others."""
        above = _supported(x, beyond, self.found, self.top)
        return jnp.where(above > self.rest, above - self.rest, 0)


def simplex_threshold(v: jax.Array, total: ArrayLike, real: ArrayLike = True, names: Sequence[str] = ()) -> Threshold:
    """Of the nearest of ``{p >= 0, sum(p) = total}`` to the last axis of ``v``, whose padding is not real.

    On a mesh ``names`` are its axes along which other devices hold the rest of that axis.
    """
    return _threshold(in_runs(jnp.where(real, v, -jnp.inf), -jnp.inf), total, jnp.subtract, -jnp.inf, names)


def ball_threshold(x: jax.Array, radius: ArrayLike, names: Sequence[str] = ()) -> Threshold:
    """Of the nearest of ``{z : sum(|z|) <= radius}`` to the last axis of ``x``; 0, or less by a rounding, inside."""
    return _threshold(in_runs(x, 0), radius, magnitude_beyond, 0, names)


def magnitude_beyond(x: jax.Array, threshold: ArrayLike) -> jax.Array:
    """``|x| - threshold``."""
    return jnp.abs(x) - threshold


def _threshold(runs, total, beyond: Beyond, least: float, names: Sequence[str]) -> Threshold:
    """No less than ``least``; to derivatives the support is fixed."""
    runs = in_order(runs)
    still, fixed = lax.stop_gradient((runs, total))
    top = max_of_runs(beyond(still, 0), names)
    found = _search(still, fixed, beyond, top, jnp.maximum(top - fixed, least), names)
    above = _supported(anew(runs, found), beyond, found, top)
    excess, count = _sums(above, above > -jnp.inf, names)
    return Threshold(*(one[..., 0] for one in (found, (excess - total) / count, top)))


def _supported(x, beyond, threshold, top):
    """By how much entries are beyond the threshold, if at all, or if they are the largest; else minus infinity."""
    above = beyond(x, threshold)
    return jnp.where((above > 0) | (above == beyond(top, threshold)), above, -jnp.inf)


def _sums(excess, reaches, names):
    """Of all excess, and how many numbers it is of."""
    return sums_of_runs((jnp.where(reaches, excess, 0), reaches.astype(jnp.int32)), names)


def _search(runs, total, beyond, top, least, names):
    """The threshold, to rounding; no less than ``least``, which is below it."""
    # The first step, from far below: taken from there, it would drown in the rounding of large differences.
    whole = beyond(anew(runs, top), 0)
    excess, count = _sums(whole, whole > -jnp.inf, names)
    start = jnp.maximum(least, (excess - total) / count)
    everything = jnp.full_like(start, np.iinfo(np.int32).max - 1, jnp.int32)

    def unsettled(carry):
        _, count, before = carry
        return jnp.any(count < before)

    def rise(carry):
        threshold, before, _ = carry
        excess = beyond(anew(runs, threshold), threshold)
        excess, count = _sums(excess, excess >= 0, names)
        # Rounding must not let the threshold fall, or the search might go round for ever.
        return threshold + jnp.maximum((excess - total) / count, 0), count, before

    return lax.while_loop(unsettled, rise, (start, everything, everything + 1))[0]
