"""The best scale of ternary levels, without a sort: an interval that holds it is drawn together from both ends.

Of the squares of magnitudes ``v`` the levels ``0, a`` save ``G(a) = a H(a)``, where ``H(a) = sum(max(2v - a, 0))``
falls and is convex. Two things follow:

- The best scale is ``T(a)``, the mean of what lies above its half, and ``T`` never falls. So none is best between a
  scale and its mean: the steps of an alternating minimisation are bounds on the best scale, from below and from above.
- Between two scales ``H`` lies below its chord, so that ``G`` stays below the top of a parabola.

Where weights have one local optimum, as most have, some ten passes leave nothing between the bounds that could save
more. Else what lies between them is gone through from the lower end, part by part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcomp.constraints._lanes import anew_if_large, beside, in_lanes, max_in_lanes, sums_in_lanes

_SLACK = 1e-6  # of what is saved, as much as sums are rounded by
_SHRUNK = 0.7  # of an interval, or else it is halved


class _Search(NamedTuple):
    """Where the best scale of every group may still lie, and the best one found, each ``[..., 1]``."""

    low: jax.Array
    right: jax.Array  # up to here it is tried to rule out all scales at once
    high: jax.Array
    saved: jax.Array
    scale: jax.Array


def ternary_scale(x: jax.Array, unit: jax.Array, names: Sequence[str] = ()) -> jax.Array:
    """Of every group of ``v = |x| unit`` (``[..., n]``): the scale that saves most, ``[..., 1]``, to rounding.

    On a mesh ``names`` are its axes along which other devices hold the rest of these groups.
    """
    lanes = in_lanes(x, 0)

    def above(scales):
        """The sum and the number of magnitudes above half of each scale."""
        v = jnp.abs(anew_if_large(lanes, *scales)) * beside(unit, lanes)
        masks = [v > beside(scale / 2, lanes) for scale in scales]
        terms = [term for mask in masks for term in (jnp.where(mask, v, 0), mask.astype(jnp.int8))]
        sums = sums_in_lanes(terms, x.ndim, names)
        return sums[::2], [count.astype(x.dtype) for count in sums[1::2]]

    def narrow(search):
        low, right, high, saved, scale = search
        sums, counts = above((low, right))
        means = [total / jnp.maximum(count, 1) for total, count in zip(sums, counts, strict=True)]
        for total, mean in zip(sums, means, strict=True):
            saved, scale = jnp.maximum(saved, total * mean), jnp.where(total * mean > saved, mean, scale)

        heights = [2 * total - a * count for total, count, a in zip(sums, counts, (low, right), strict=True)]
        fall = (heights[0] - heights[1]) / (right - low)
        top = jnp.clip((heights[0] / fall + low) / 2, low, right)
        # Of comparisons with NaN none holds: where the interval is a point there is no chord.
        clear = (top * (heights[0] - fall * (top - low)) <= saved * (1 + _SLACK)) | ~(low < right)

        least = jnp.maximum(low, jnp.where(clear, jnp.maximum(right, means[1]), means[0]))
        most = jnp.minimum(right, means[1])
        middle = jnp.where(most - least < _SHRUNK * (right - low), most, (least + most) / 2)
        further = least + jnp.maximum(2 * (right - low), _SLACK * least)
        high = jnp.where(right == high, most, high)
        return _Search(least, jnp.where(clear, jnp.minimum(further, high), middle), high, saved, scale)

    nothing, largest = jnp.zeros_like(unit), max_in_lanes(jnp.abs(lanes), x.ndim, names) * unit
    start = _Search(nothing, largest, largest, nothing, nothing)
    return lax.while_loop(lambda search: jnp.any(search.low < search.high), narrow, start).scale
