"""Sets of arrays whose groups share one sign, as a crossbar column that holds magnitudes needs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._codebook import Codebook
from jaxcomp.constraints._constraint import Constraint, Footprint, dense_footprint, finite_or_nan
from jaxcomp.constraints._sparse import unit_of_groups
from jaxcomp.constraints._views import View, elements
from jaxcomp.constraints.forms import Sides, Signs


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Polarized(Constraint):
    """In every group all weights are >= 0 or all are <= 0.

    The projection keeps the side of larger energy and zeroes the other: with ``P`` and ``N`` the sums of squares of
    the positive and negative weights it keeps the positives if ``P >= N``. It is exact; its squared error is
    ``min(P, N)``. The published ``rule="sum"`` goes by the sign of the plain sum. From three weights a group on it can
    pick the worse side: of normal weights in 7, 10, 11 and 12 % of groups of 4, 8, 16 and 32, where it loses 19.5,
    28.0, 34.2 and 38.8 % of the energy and the exact rule 18.4, 26.6, 33.1 and 37.9 %.

    With ``within`` the weights are also values of a `Codebook`, and sign and values are chosen together: each side is
    put on the values of its sign, and the side of smaller total error is kept. That is exact where the codebook is.
    Where the scale is free, ``Chain(Polarized(…), Quantized(…))`` lies in both sets, but is not nearest.

    Args:
        view: what a group is, as ``fragments(8)``.
        rule: which side is kept, by ``"energy"`` (with ``within``: by error) or by ``"sum"``.
        within: values that the weights may take besides zero.

    >>> from jaxcomp.constraints import fragments, Layout
    >>> x = jnp.array([[2.0, -3.0, 2.0]])
    >>> Polarized(fragments(3, layout=Layout("oi"))).project(x).tolist()
    [[0.0, -3.0, 0.0]]
    >>> Polarized(fragments(3, layout=Layout("oi")), within=Codebook([-1.0, 0.0, 2.0])).project(x).tolist()
    [[2.0, 0.0, 2.0]]

    References: Yuan et al., FORMS: Fine-grained Polarized ReRAM-based In-situ Computation, ISCA 2021.
    """

    view: View = dataclasses.field(metadata={"static": True})
    rule: str = dataclasses.field(default="energy", metadata={"static": True})
    within: Codebook | None = None

    def project(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        tiles, inside = self.view.tiles(wide)
        plus, minus = (self._side(tiles, sign) for sign in (1, -1))
        if self.within is None or self.rule == "sum":
            unit = tiles * unit_of_groups(tiles, inside)
            favour = unit if self.rule == "sum" else unit * jnp.abs(unit)
        else:
            unit = unit_of_groups(jnp.maximum(jnp.abs(tiles - plus), jnp.abs(tiles - minus)), inside)
            by_plus, by_minus = ((tiles - side) * unit for side in (plus, minus))  # what each side misses
            favour = (by_minus - by_plus) * (by_minus + by_plus)
        positive = self.view.spread(jnp.sum(favour, axis=inside, keepdims=True) >= 0, x.shape)
        kept = jnp.where(positive, self._side(wide, 1), self._side(wide, -1))
        return finite_or_nan(x, kept.astype(x.dtype))

    def _side(self, x: jax.Array, sign: float) -> jax.Array:
        """The nearest to every weight at one sign; where no value has that sign, zero."""
        side = _clamp(x, sign)
        if self.within is None:
            return side
        near = self.within.one_sided(sign).nearest(side)
        return jnp.where(jnp.isfinite(near), near, 0)

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """``v``, cut where it would carry a weight past zero to the other sign than its group's.

        Zero where values are given: they have nowhere to go.
        """
        if self.within is not None:
            return self.within.tangent(x, v)
        (tiles, inside), (move, _) = self.view.tiles(x), self.view.tiles(v)
        return self.view.untile(_stop_at_zero(tiles, move, _sign_of(tiles, inside)), x.shape)

    def footprint(self, x: jax.Array) -> Footprint:
        """Magnitudes, and one sign bit a group; of given values, codes that say which of its sign, or zero."""
        found = _magnitudes(x, self.view)
        if self.within is None:
            return found
        listed = self.within.footprint(x)
        values = jnp.asarray(self.within.values)
        codes = 1 + jnp.maximum(jnp.sum(values > 0), jnp.sum(values < 0))
        return dataclasses.replace(
            found,
            value_bits=jnp.ceil(jnp.log2(codes.astype(jnp.float32))),
            side_bits=found.side_bits + listed.side_bits,
        )

    def forms(self, x):
        return (Signs(self.view),) if self.within is None else (Sides(self.view), *self.within.forms(x))

    def exact(self, shape: tuple[int, ...]) -> bool:
        if self.within is not None:
            return self.rule == "energy" and self.within.exact(shape)
        return self.rule == "energy" or bool(np.max(self.view.sizes(shape).elements) <= 2)

    def check(self, x) -> None:
        super().check(x)
        if self.rule not in ("energy", "sum"):
            raise ValueError(f"rule must be 'energy' or 'sum', found {self.rule!r}")
        if self.within is not None:
            self.within.check(x)
        self.view.sizes(x.shape)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedSign(Constraint):
    """Every weight has the sign it is given, or is zero: ``{w : signs_i w_i >= 0}``. The projection is exact.

    Args:
        signs: 1 or -1 for every weight, or in a shape that broadcasts to the leaf's; 0 leaves a weight free. Left
            out, `fit` (so `jaxcomp.assign`) gives each group the sign of its larger energy, zeros included, and a
            group of zeros the positive one.
        view: what a group is, to `fit` and to count the bits of signs.

    >>> from jaxcomp.constraints import fragments, Layout
    >>> fixed = FixedSign(view=fragments(3, layout=Layout("oi"))).fit(jnp.array([[1.0, -3.0, 0.0]]))
    >>> fixed.project(jnp.array([[2.0, -1.0, 2.0]])).tolist()
    [[0.0, -1.0, 0.0]]

    References: Yuan et al., FORMS: Fine-grained Polarized ReRAM-based In-situ Computation, ISCA 2021 (retraining).
    """

    convex = True  # no annotation: no field
    signs: ArrayLike | None = None
    view: View = dataclasses.field(default=elements(), metadata={"static": True})

    def project(self, x: jax.Array) -> jax.Array:
        return finite_or_nan(x, jnp.where(x * self._signs(x.dtype) < 0, jnp.zeros((), x.dtype), x))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """``v``, cut where it would carry a weight past zero to the other sign than it is given."""
        return _stop_at_zero(x, v, self._signs(x.dtype))

    def footprint(self, x: jax.Array) -> Footprint:
        """Magnitudes, and one sign bit a group."""
        return _magnitudes(x, self.view)

    def forms(self, x):
        return (Signs(self.view),)

    def fit(self, x: jax.Array) -> "FixedSign":
        if self.signs is not None:
            return self
        tiles, inside = self.view.tiles(Polarized(self.view).project(x))
        signs = jnp.broadcast_to(_sign_of(tiles, inside), tiles.shape).astype(jnp.int8)
        return dataclasses.replace(self, signs=self.view.untile(signs, x.shape))

    def check(self, x) -> None:
        super().check(x)
        self.view.sizes(x.shape)
        found = np.shape(self.signs) if self.signs is not None else x.shape
        if len(found) != x.ndim or any(n not in (1, m) for n, m in zip(found, x.shape, strict=True)):
            raise ValueError(f"signs of shape {found} given for a leaf of shape {x.shape}")

    def _signs(self, dtype) -> jax.Array:
        if self.signs is None:
            raise ValueError("FixedSign has no signs yet: give some, or call fit(x) to take those of x")
        return jnp.asarray(self.signs).astype(dtype)


def _clamp(parts: jax.Array, sign: float) -> jax.Array:
    return jnp.where(parts * sign > 0, parts, 0)


def _stop_at_zero(x: jax.Array, v: jax.Array, sign: jax.Array) -> jax.Array:
    return jnp.where((x + v) * sign < 0, -x.astype(v.dtype), v)


def _sign_of(tiles: jax.Array, inside: tuple[int, ...]) -> jax.Array:
    """The sign of every group of a member, +1 where all is zero."""
    return jnp.where(jnp.any(tiles < 0, axis=inside, keepdims=True), -1.0, 1.0)


def _magnitudes(x: jax.Array, view: View) -> Footprint:
    dense = dense_footprint(x, view.layout)
    signs = view.sizes(x.shape).total
    return dataclasses.replace(dense, value_bits=dense.value_bits - 1, side_bits=jnp.float32(signs))
