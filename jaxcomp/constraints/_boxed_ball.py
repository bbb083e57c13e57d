"""A ball cut by a box, projected by one root and not by two clips: where an attacker's perturbations live."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp.constraints._constraint import Footprint, check_range, to_unit
from jaxcomp.constraints._convex import Box, _OfGroups
from jaxcomp.constraints._lanes import beside, in_lanes, long_sum, max_in_lanes, sums_in_lanes
from jaxcomp.constraints._select import select_top
from jaxcomp.constraints._sparse import group_footprint
from jaxcomp.constraints._views import View, elements, whole

_FAR = 2.0**50  # radii: squares of what lies nearer do not overflow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BoxedBall(_OfGroups):
    """Every weight lies between two bounds, and every group within a radius of a centre: the set of an attacker.

    ``{w : low <= w <= high, and for every group g, ||w_g - centre_g|| <= radius}``, where ``low <= centre <= high``.
    What may be added to an image ``x`` of pixels from 0 to 1 is in ``BoxedBall(radius, norm, low=-x, high=1 - x)``.

    The projection is exact. Distances from the centre are reduced by a factor ("l2") or an amount ("l1"), then clipped;
    the number by which is the root of a sum of capped ramps, and is found by Newton's method. (To project on the ball
    and clip after is to reduce by too much.) For "linf" a clip does. For "l0" the radius counts the entries that may
    differ from the centre, and those differ that bring the result nearest; that set is not convex, and its tangent
    moves only what differs already.

    Args:
        radius: at least 0; a leaf.
        norm: "l0", "l1", "l2" or "linf". Static.
        low: one bound for all weights, or one for each in the shape of the leaf; a leaf of the pytree.
        high: likewise.
        centre: likewise.
        view: what a group is; by default the whole leaf.

    Raises:
        ValueError: from `check`: another norm, a negative radius, bounds that do not enclose the centre.

    >>> x = jnp.array([3.0, 4.0, -2.0])
    >>> BoxedBall(3.0, "l1", low=-1.0, high=1.5).project(x).tolist()
    [1.25, 1.5, -0.25]
    >>> BoxedBall(2, "l0", low=-1.0, high=1.5).project(x).tolist()
    [1.5, 1.5, 0.0]

    References: Wang et al., Adversarial Attack Generation Empowered by Min-Max Optimization, NeurIPS 2021 (whose code
    takes a few bisections for the root); Cominetti, Mac Cawley and Silva, A Newton's Method for the Continuous
    Quadratic Knapsack Problem, Math. Prog. Comp. 2014.
    """

    radius: ArrayLike
    norm: str = dataclasses.field(metadata={"static": True})
    low: ArrayLike = -np.inf
    high: ArrayLike = np.inf
    centre: ArrayLike = 0.0
    view: View = dataclasses.field(default=whole(), metadata={"static": True})

    @property
    def convex(self) -> bool:  # type: ignore[override]
        return self.norm != "l0"

    def _nearest(self, parts, shape):
        def of_groups(bound):
            bound = jnp.asarray(bound, parts.dtype)
            return self.view.split(bound) if bound.ndim else bound

        bounds = (of_groups(bound) for bound in (self.low, self.high, self.centre))
        return _NEAREST[self.norm](parts, *bounds, jnp.asarray(self.radius, parts.dtype))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """For "l0" of the entries that differ from the centre only; else as by default."""
        if self.norm == "l0":
            v = jnp.where(x == jnp.asarray(self.centre, x.dtype), jnp.zeros((), v.dtype), v)
        return super().tangent(x, v)

    def footprint(self, x: jax.Array) -> Footprint:
        """Of "l0" the entries that are not zero, and where they are; else every weight."""
        return group_footprint(x, elements()) if self.norm == "l0" else super().footprint(x)

    def check(self, x) -> None:
        super().check(x)
        if self.norm not in _NEAREST:
            raise ValueError(f"norm must be one of {', '.join(_NEAREST)}, found {self.norm!r}")
        check_range("radius", self.radius, 0, np.inf)
        Box(self.low, self.high).check(x)
        if np.shape(self.centre) not in ((), x.shape):
            raise ValueError(f"centre of shape {np.shape(self.centre)} given for a leaf of shape {x.shape}")
        if not any(isinstance(number, jax.core.Tracer) for number in (self.low, self.high, self.centre)):
            low, high, centre = (np.asarray(number, np.float64) for number in (self.low, self.high, self.centre))
            if not np.all((low <= centre) & (centre <= high) & np.isfinite(centre)):
                raise ValueError(
                    f"centre must lie between low and high, found low={self.low}, centre={self.centre}, "
                    f"high={self.high}"
                )


def _onto_l0(x, low, high, centre, radius):
    clipped = jnp.clip(x, low, high)
    unit = to_unit(x - centre)
    away, moved = (x - centre) * unit, (clipped - centre) * unit
    saving = moved * (2 * away - moved)  # of the squared distance, by not staying at the centre; never negative
    count = jnp.clip(radius, 0, x.shape[-1]).astype(jnp.int32)
    return jnp.where(select_top(saving, count), clipped, centre)


def _onto_l1(x, low, high, centre, radius):
    away, up, down = x - centre, high - centre, centre - low
    lanes = [_laid(part) for part in (away, up, down)]

    def reach(level, away, up, down):
        """Distances less an amount, ``-level``; and of those that neither bound stops how many there are."""
        above, below = away + beside(level, away), beside(level, away) - away
        free = ((above >= 0) & (above < up)) | ((below >= 0) & (below < down))
        distance = jnp.clip(above, 0, up) + jnp.clip(below, 0, down)
        return sums_in_lanes((distance, free.astype(x.dtype)), x.ndim)

    (sizes,), top = sums_in_lanes((jnp.abs(lanes[0]),), x.ndim), max_in_lanes(jnp.abs(lanes[0]), x.ndim)
    reached = reach(0 * top, *lanes)[0]
    inside = reached <= radius
    total = jnp.where(inside, reached, radius)
    unclipped = (total - sizes) / x.shape[-1]  # the root, were nothing clipped
    level, rest = _root(reach, lanes, total, jnp.where(inside, 0, unclipped), -top, 0 * top)
    room = jnp.where(away < 0, down, up)
    left = jnp.clip((jnp.abs(away) + level) + rest, 0, room)  # in this order: beside a large level the rest is lost
    return _at(left, inside, x, low, high, centre)


def _onto_l2(x, low, high, centre, radius):
    unit = jnp.where((radius > 0) & (radius < jnp.inf), radius, 1)  # in which squares do not vanish
    away, up, down = ((part / unit) for part in (x - centre, high - centre, centre - low))
    # What is farther away is as far from every member, to rounding: only its direction counts.
    largest = jnp.max(jnp.abs(away), axis=-1, keepdims=True)
    away = away * lax.stop_gradient(jnp.minimum(1, _FAR / largest))
    up, down = jnp.minimum(up, _FAR), jnp.minimum(down, _FAR)
    lanes = [_laid(part) for part in (away, up, down)]

    def reach(level, away, up, down):
        """Squares of distances times a factor, ``sqrt(level)``; and their growth where no bound stops them."""
        moved = beside(jnp.sqrt(level), away) * away
        free = (moved > -down) & (moved < up)
        squares, growth = sums_in_lanes(
            (jnp.square(jnp.clip(moved, -down, up)), jnp.where(free, jnp.square(moved), 0)), x.ndim
        )
        return squares, growth / level

    one = jnp.ones_like(largest)
    reached = reach(one, *lanes)[0]
    total = jnp.where(radius > 0, jnp.where(radius < jnp.inf, 1.0, jnp.inf), 0.0)
    inside = reached <= total
    total = jnp.where(inside, reached, total)
    energy = long_sum(jnp.square(away))
    unclipped = total / jnp.where(energy > 0, energy, 1)
    level, rest = _root(reach, lanes, total, jnp.where(inside, one, unclipped), 0 * one, one)
    factor = jnp.sqrt(jnp.where(total > 0, level + rest, 1))
    room = jnp.where(away < 0, down, up)
    left = jnp.minimum(jnp.where(total > 0, factor * jnp.abs(away), 0), room) * unit
    return _at(left, inside, x, low, high, centre)


def _onto_linf(x, low, high, centre, radius):
    return jnp.clip(x, jnp.maximum(low, centre - radius), jnp.minimum(high, centre + radius))


_NEAREST: dict[str, Callable[..., jax.Array]] = {"l0": _onto_l0, "l1": _onto_l1, "l2": _onto_l2, "linf": _onto_linf}


def _laid(part):
    """In lanes, unless it is one number for all."""
    return in_lanes(part, 0) if part.ndim else part


def _at(distance, inside, x, low, high, centre):
    """At these distances from the centre, unless clipping is enough."""
    moved = jnp.where(inside, x, centre + jnp.sign(x - centre) * distance)
    return jnp.clip(moved, low, high)


def _root(reach, lanes, total, start, least, most):
    """The number t, in two parts, at which what ``reach(t, *lanes)`` sums comes to a total.

    That is a sum of capped ramps, and the slope of those not at an end. Between the bends of the ramps one step of
    Newton's method is exact, so that finitely many lead to the root; where a step leaves the interval known to hold
    the root, that interval is halved. The second part is the last step, and all that derivatives see: from it follow
    those of an implicit function, the clipped ramps fixed.
    """
    still, fixed = lax.stop_gradient((lanes, total))
    slack = 2 * jnp.finfo(fixed.dtype).eps * fixed

    def unsettled(carry):
        return jnp.any(carry[-1])

    def narrow(carry):
        t, least, most, _ = carry
        sums, steepness = reach(t, *still)
        missing = fixed - sums
        least, most = jnp.where(missing > 0, t, least), jnp.where(missing < 0, t, most)
        newton, middle = t + missing / steepness, least + (most - least) / 2
        # Of comparisons with NaN none holds, and the search ends.
        apart = (least < middle) & (middle < most)
        moving = (jnp.abs(missing) > slack) & (newton != t) & apart
        # Of neighbours the lower one: what is missing there is left to the last step, what is too much could not be.
        rest = jnp.where((missing < -slack) & (newton != t), least, t)
        t = jnp.where(moving, jnp.where((least < newton) & (newton < most), newton, middle), rest)
        return t, least, most, moving

    start, least, most = lax.stop_gradient((jnp.clip(start, least, most), least, most))
    t = lax.while_loop(unsettled, narrow, (start, least, most, jnp.full(start.shape, True)))[0]
    sums, steepness = reach(t, *lanes)
    missing, steepness = total - sums, lax.stop_gradient(steepness)
    return t, jnp.where(steepness > 0, missing / jnp.where(steepness > 0, steepness, 1), 0)
