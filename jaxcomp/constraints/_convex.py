"""Convex sets: balls, boxes, simplices, and any other whose projection is given, once for every group of a view."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import Constraint, check_range, finite_or_nan
from jaxcomp.constraints._groupwise import groupwise, unit_over
from jaxcomp.constraints._lanes import anew, in_runs, sums_of_runs
from jaxcomp.constraints._simplex import ball_threshold, magnitude_beyond, simplex_threshold
from jaxcomp.constraints._views import View, whole


class _OfGroups(Constraint):
    """A convex set that every group of a view must lie in: numbers of a group decide what is nearest to its entries."""

    convex = True
    view: View

    def project(self, x: jax.Array) -> jax.Array:
        return groupwise(type(self)._decide, type(self)._entries, self.view, self, x, guarded=True)

    def _decide(self, parts: jax.Array, *, shape: tuple[int, ...], names: Sequence[str]) -> Any:
        """What `_entries` must know of every group."""
        raise NotImplementedError

    def _entries(self, found: Any, parts: jax.Array) -> jax.Array:
        """Of what is nearest."""
        raise NotImplementedError

    def check(self, x: Any) -> None:
        super().check(x)
        self.view.sizes(x.shape)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class L1Ball(_OfGroups):
    """In every group the magnitudes sum to a radius at most: ``{w : for every group g, ||w_g||_1 <= radius}``.

    The projection takes the same amount from every magnitude, down to zero: it is exact, and sparse.

    Args:
        radius: at least 0; a leaf.
        view: what a group is; by default the whole leaf.

    >>> L1Ball(3.0).project(jnp.array([3.0, -2.0, 0.5])).tolist()
    [2.0, -1.0, 0.0]

    References: Duchi et al., Efficient Projections onto the l1-Ball for Learning in High Dimensions, ICML 2008.
    """

    radius: ArrayLike
    view: View = dataclasses.field(default=whole(), metadata={"static": True})

    def _decide(self, parts, *, shape, names):
        return ball_threshold(parts, self.radius, names)

    def _entries(self, found, parts):
        return jnp.where(found.found + found.rest > 0, jnp.sign(parts) * found.above(parts, magnitude_beyond), parts)

    def check(self, x) -> None:
        super().check(x)
        check_range("radius", self.radius, 0, np.inf)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class L2Ball(_OfGroups):
    """The Euclidean norm of every group is a radius at most: ``{w : for every group g, ||w_g||_2 <= radius}``.

    With ``view=outputs()`` no filter grows beyond the radius: max-norm regularization. The projection is exact.

    Args:
        radius: at least 0; a leaf.
        view: what a group is; by default the whole leaf.

    >>> L2Ball(2.5).project(jnp.array([3.0, 4.0])).tolist()
    [1.5, 2.0]

    References: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014.
    """

    radius: ArrayLike
    view: View = dataclasses.field(default=whole(), metadata={"static": True})

    def _decide(self, parts, *, shape, names):
        factor = unit_over(parts, names)
        (energy,) = sums_of_runs([jnp.square(in_runs(anew(parts, factor), 0) * factor[..., None])], names)
        return factor, jnp.sqrt(jnp.where(energy > 0, energy, 1))[..., 0]

    def _entries(self, found, parts):
        factor, norm = found
        return jnp.where(norm > self.radius * factor, parts * factor * (self.radius / norm), parts)

    def check(self, x) -> None:
        super().check(x)
        check_range("radius", self.radius, 0, np.inf)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Simplex(_OfGroups):
    """Every group is non-negative and sums to a total: ``{w >= 0 : for every group g, sum(w_g) = total}``.

    The projection takes the same amount from every weight, down to zero; it is exact.

    Args:
        total: at least 0; a leaf.
        view: what a group is; by default the whole leaf.

    >>> Simplex().project(jnp.array([1.0, 0.5, -2.0])).tolist()
    [0.75, 0.25, 0.0]

    References: Michelot, A Finite Algorithm for Finding the Projection of a Point onto the Canonical Simplex of R^n,
    JOTA 1986.
    """

    total: ArrayLike = 1.0
    view: View = dataclasses.field(default=whole(), metadata={"static": True})

    def _decide(self, parts, *, shape, names):
        if np.ndim(self.view.sizes(shape).elements) == 0:
            return simplex_threshold(parts, self.total, names=names)
        real = self.view.split(jnp.ones(shape, bool))
        return simplex_threshold(parts, self.total, real | ~jnp.any(real, axis=2, keepdims=True), names)

    def _entries(self, found, parts):
        return found.above(parts, jnp.subtract)

    def check(self, x) -> None:
        super().check(x)
        check_range("total", self.total, 0, float(np.finfo(np.float32).max))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Box(Constraint):
    """Every weight lies between two bounds: ``{w : low <= w <= high}``. The projection clips; it is exact.

    ``Box(low=0)`` is the non-negative orthant, ``Box(-r, r)`` the ball of radius r in the maximum norm.

    Args:
        low: one bound for all weights, or one for each in the shape of the leaf; a leaf of the pytree, as `high`.
        high: likewise.

    >>> Box(-1.0, 1.0).project(jnp.array([3.0, -2.0, 0.5])).tolist()
    [1.0, -1.0, 0.5]
    """

    convex = True  # no annotation: no field
    low: ArrayLike = -np.inf
    high: ArrayLike = np.inf

    def project(self, x: jax.Array) -> jax.Array:
        low, high = (jnp.asarray(bound, x.dtype) for bound in (self.low, self.high))
        return finite_or_nan(x, jnp.clip(x, low, high))

    def check(self, x) -> None:
        super().check(x)
        for name, bound in (("low", self.low), ("high", self.high)):
            if np.shape(bound) not in ((), x.shape):
                raise ValueError(f"{name} of shape {np.shape(bound)} given for a leaf of shape {x.shape}")
        if not any(isinstance(bound, jax.core.Tracer) for bound in (self.low, self.high)):
            low, high = (np.asarray(bound, np.float64) for bound in (self.low, self.high))
            if not np.all((low <= high) & (low < np.inf) & (high > -np.inf)):  # also false for NaN
                raise ValueError(f"low must not exceed high, found low={self.low} and high={self.high}")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Convex(Constraint):
    """Every group lies in a closed convex set that is known by its projection, as those of `optax.projections`.

    The tangent, ``project(x + v) - x``, is a member for every convex set, and nearest if the projection is. The
    function is given whole groups: on a mesh those that several devices hold parts of are brought together.

    Args:
        projection: ``projection(group, *numbers)``, for a vector: the nearest point of the set, of the same shape.
        numbers: what else it takes: numbers and arrays; leaves.
        view: what a group is; by default the whole leaf. Groups must have one size.

    >>> import optax
    >>> half = Convex(optax.projections.projection_halfspace, (jnp.array([1.0, 1.0]), 1.0))
    >>> half.project(jnp.array([2.0, 1.0])).tolist()
    [1.0, 0.0]
    """

    convex = True  # no annotation: no field
    projection: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    numbers: tuple[ArrayLike, ...] = ()
    view: View = dataclasses.field(default=whole(), metadata={"static": True})

    def project(self, x: jax.Array) -> jax.Array:
        parts = self.view.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        numbers = [jnp.asarray(number, parts.dtype) for number in self.numbers]
        near = jax.vmap(jax.vmap(lambda group: self.projection(group, *numbers)))(parts)
        return finite_or_nan(x, self.view.merge(near, x.shape).astype(x.dtype))

    def check(self, x) -> None:
        super().check(x)
        sizes = self.view.sizes(x.shape)
        if np.ndim(sizes.elements):
            raise ValueError(
                f"{self.view} cuts a leaf of shape {x.shape} into groups of several sizes, but Convex needs one: "
                "choose tiles that divide it, or a set that knows of padding (L1Ball, L2Ball, Simplex, Box)"
            )
