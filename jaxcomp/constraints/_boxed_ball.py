"""A ball cut by a box, projected by one root and not by two clips: where an attacker's perturbations live."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import Constraint, Footprint, check_range, finite_or_nan
from jaxcomp.constraints._convex import Box
from jaxcomp.constraints._groupwise import groupwise
from jaxcomp.constraints._lanes import anew, beside, in_lanes, max_in_lanes, sums_in_lanes
from jaxcomp.constraints._select import stored
from jaxcomp.constraints._shards import total as over_devices
from jaxcomp.constraints._sparse import group_footprint, most_of_pools, unit_of_groups
from jaxcomp.constraints._views import View, elements, whole
from jaxcomp.constraints.forms import Support

_FAR = 2.0**50  # radii: squares of what lies nearer do not overflow


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BoxedBall(Constraint):
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
    def convex(self) -> bool:
        return self.norm != "l0"

    def project(self, x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        bounds = {name: jnp.asarray(getattr(self, name), wide) for name in ("low", "high", "centre")}
        radius = jnp.asarray(self.radius, wide)
        if self.norm == "linf":
            low, high, centre = bounds.values()
            near = jnp.clip(x.astype(wide), jnp.maximum(low, centre - radius), jnp.minimum(high, centre + radius))
            return finite_or_nan(x, near.astype(x.dtype))
        if self.norm == "l0":
            return finite_or_nan(x, self._few(x.astype(wide), radius, **bounds).astype(x.dtype))
        if np.ndim(self.view.sizes(x.shape).elements):  # padding lies at the centre, so that it is 0 there
            bounds["centre"] = jnp.broadcast_to(bounds["centre"], x.shape)
        shared = {name: bound for name, bound in bounds.items() if not bound.ndim}
        own = [bound for name, bound in bounds.items() if name not in shared]
        decide, entries = _ROOTS[self.norm]
        return groupwise(decide, entries, self.view, (radius, shared), *own, x, guarded=True)

    def _few(self, x: jax.Array, radius: jax.Array, low: jax.Array, high: jax.Array, centre: jax.Array) -> jax.Array:
        """At the centre but for those entries of every group that bring the result nearest."""
        clipped, away = jnp.clip(x, low, high), x - centre
        unit = self.view.spread(unit_of_groups(*self.view.tiles(away)), x.shape)
        away, moved = away * unit, (clipped - centre) * unit
        saving = moved * (2 * away - moved)  # of the squared distance, by not staying at the centre; never negative
        alone = self.view.alone
        scores, _ = alone.tiles(stored(lax.stop_gradient(saving)))
        keep = most_of_pools(scores, jnp.minimum(radius, x.size).astype(jnp.int32), alone, x.shape)
        return jnp.where(keep, clipped, centre)

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """For "l0" of the entries that differ from the centre only; else as by default."""
        if self.norm == "l0":
            v = jnp.where(x == jnp.asarray(self.centre, x.dtype), jnp.zeros((), v.dtype), v)
        return super().tangent(x, v)

    def footprint(self, x: jax.Array) -> Footprint:
        """Of "l0" the entries that are not zero, and where they are; else every weight."""
        return group_footprint(x, elements()) if self.norm == "l0" else super().footprint(x)

    def forms(self, x):
        return (Support(elements()),) if self.norm == "l0" else ()

    def check(self, x) -> None:
        super().check(x)
        self.view.sizes(x.shape)
        if self.norm not in _NORMS:
            raise ValueError(f"norm must be one of {', '.join(_NORMS)}, found {self.norm!r}")
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


def _l1_level(numbers, *parts, names, **_):
    """Whether clipping is enough, and the amount that is taken off distances, less than 0, in two parts."""
    radius, shared = numbers
    lanes = _laid(shared, parts)

    def reach(level, *lanes):
        """Distances less an amount, ``-level``; and of those that neither bound stops how many there are."""
        x, low, high, centre = lanes
        away, up, down, level = x - centre, high - centre, centre - low, beside(level, x)
        above, below = away + level, level - away
        free = ((above >= 0) & (above < up)) | ((below >= 0) & (below < down))
        distance = jnp.clip(above, 0, up) + jnp.clip(below, 0, down)
        return sums_in_lanes((distance, free.astype(x.dtype)), parts[-1].ndim, names)

    def away(x, _, __, centre):
        return jnp.abs(x - centre)

    top = max_in_lanes(away(*lanes), parts[-1].ndim, names)
    (sizes,) = sums_in_lanes((away(*_again(lanes, top)),), parts[-1].ndim, names)
    reached = reach(0 * top, *_again(lanes, sizes))[0]
    inside = reached <= radius
    total = jnp.where(inside, reached, radius)
    unclipped = (total - sizes) / over_devices(jnp.full_like(top, parts[-1].shape[-1]), names)  # were nothing clipped
    return inside, *_root(reach, lanes, total, jnp.where(inside, 0, unclipped), -top, 0 * top)


def _l1_entries(numbers, found, *parts):
    _, shared = numbers
    (inside, level, rest), (x, low, high, centre) = found, _named(shared, parts)
    away = x - centre
    room = jnp.where(away < 0, centre - low, high - centre)
    left = jnp.clip((jnp.abs(away) + level) + rest, 0, room)  # in this order: beside a large level the rest is lost
    return _at(left, inside, x, low, high, centre)


def _l2_factor(numbers, *parts, names, **_):
    """Whether clipping is enough, by what distances are multiplied first, and the factor of these."""
    radius, shared = numbers
    lanes, ndim = (*_laid(shared, parts), _unit_of(radius)), parts[-1].ndim

    def away(x, _, __, centre, unit):
        return (x - centre) / unit

    # What is farther away is as far from every member, to rounding: only its direction counts.
    largest = max_in_lanes(jnp.abs(away(*lanes)), ndim, names)
    lanes = *lanes, lax.stop_gradient(jnp.minimum(1, _FAR / largest))

    def nearer(*lanes):
        return away(*lanes[:5]) * beside(lanes[5], lanes[0])

    def reach(level, *lanes):
        """Squares of distances times a factor, ``sqrt(level)``; and their growth where no bound stops them."""
        x, low, high, centre, unit, _ = lanes
        moved = beside(jnp.sqrt(level), x) * nearer(*lanes)
        up, down = jnp.minimum((high - centre) / unit, _FAR), jnp.minimum((centre - low) / unit, _FAR)
        free = (moved > -down) & (moved < up)
        terms = jnp.square(jnp.clip(moved, -down, up)), jnp.where(free, jnp.square(moved), 0)
        squares, growth = sums_in_lanes(terms, ndim, names)
        return squares, growth / level

    one = jnp.ones_like(largest)
    reached = reach(one, *_again(lanes, largest))[0]
    total = _total_of(radius)
    inside = reached <= total
    total = jnp.where(inside, reached, total)
    (energy,) = sums_in_lanes((jnp.square(nearer(*_again(lanes, reached))),), ndim, names)
    unclipped = total / jnp.where(energy > 0, energy, 1)
    level, rest = _root(reach, lanes, total, jnp.where(inside, one, unclipped), 0 * one, one)
    return inside, lanes[5], jnp.sqrt(jnp.where(total > 0, level + rest, 1))


def _l2_entries(numbers, found, *parts):
    radius, shared = numbers
    (inside, near, factor), (x, low, high, centre), unit = found, _named(shared, parts), _unit_of(radius)
    away = (x - centre) / unit * near
    room = jnp.where(away < 0, jnp.minimum((centre - low) / unit, _FAR), jnp.minimum((high - centre) / unit, _FAR))
    left = jnp.minimum(jnp.where(radius > 0, factor * jnp.abs(away), 0), room) * unit
    return _at(left, inside, x, low, high, centre)


def _unit_of(radius):
    """In which squares do not vanish."""
    return jnp.where((radius > 0) & (radius < jnp.inf), radius, 1)


def _total_of(radius):
    """The square of the radius in that unit."""
    return jnp.where(radius > 0, jnp.where(radius < jnp.inf, 1.0, jnp.inf), 0.0).astype(radius.dtype)


_ROOTS: dict[str, tuple[Callable, Callable]] = {"l1": (_l1_level, _l1_entries), "l2": (_l2_factor, _l2_entries)}
_NORMS = ("l0", *_ROOTS, "linf")


def _named(shared, parts):
    """The array, the two bounds and the centre: numbers for all by name, and arrays in this order before the array."""
    *own, x = parts
    arrays = iter(own)
    return x, *(shared[name] if name in shared else next(arrays) for name in ("low", "high", "centre"))


def _laid(shared, parts):
    """Those in lanes, where they are arrays; what fills these up lies at the centre."""
    x, *bounds = _named(shared, parts)
    fill = bounds[2] if not bounds[2].ndim else 0
    return in_lanes(x, fill), *(in_lanes(bound, 0) if bound.ndim else bound for bound in bounds)


def _at(distance, inside, x, low, high, centre):
    """At these distances from the centre, unless clipping is enough."""
    moved = jnp.where(inside, x, centre + jnp.sign(x - centre) * distance)
    return jnp.clip(moved, low, high)


def _again(lanes, *known):
    return tuple(anew(one, *known) if one.ndim else one for one in lanes)


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
        sums, steepness = reach(t, *_again(still, t))
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
    sums, steepness = reach(t, *_again(lanes, t))
    missing, steepness = total - sums, lax.stop_gradient(steepness)
    return t, jnp.where(steepness > 0, missing / jnp.where(steepness > 0, steepness, 1), 0)
