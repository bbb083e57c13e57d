"""Sets of arrays whose entries are levels times a scale that a group shares."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxcomp.constraints._constraint import SCALE_BITS, Constraint, Footprint, dense_footprint, finite_or_nan, to_unit
from jaxcomp.constraints._levels import Levels, scale_of, with_secant
from jaxcomp.constraints._views import View, whole


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized(Constraint):
    """Every weight is its group's scale times a level: ``{w : w_gi = a_g q_gi, q_gi a level, a_g >= 0}``.

    The projection is exact for `Binary` (among arrays with the zeros of ``x``) and `Ternary`. For other levels the
    scale is alternately minimised from the best of 56 starts; another scale may be better. Against all codes, over 400
    draws of 6 normal weights, squared error is least possible in 100, 99 and 97 % of draws at 2, 3 and 4 bits, whatever
    the levels; its ratio to the least is in the mean 1.00 at all three, at most 1.01, 1.01 and 1.40.

    Differentiated by ``x``, the projection holds the levels fixed: it is `tangent`. By ``bits`` it is the secant, the
    step to the projection at one bit more, so that bits can be allotted by gradients. (A squared error then has the
    slope of its own secant less the squared length of that step: the right sign, and two to four times the size.)

    Args:
        levels: `Uniform`, `PowerOfTwo`, `AdditivePowersOfTwo`, `Conductances`, `Ternary` or `Binary`.
        view: what shares a scale; by default the whole leaf.

    >>> from jaxcomp.constraints import Binary
    >>> Quantized(Binary()).project(jnp.array([1.0, -3.0])).tolist()
    [2.0, -2.0]

    References: Ye et al., Progressive DNN Compression, 2019 (levels in ADMM); Li et al., Ternary Weight Networks, 2016.
    """

    levels: Levels
    view: View = dataclasses.field(default=whole(), metadata={"static": True})

    def project(self, x: jax.Array) -> jax.Array:
        parts = self.view.split(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        factor = to_unit(parts)
        unit = parts * factor
        bits = jnp.asarray(self.levels.bits, jnp.float32)
        near = with_secant(_nearest(self.levels, unit), bits, Partial(_nearest_finer, self.levels, unit)) / factor
        return finite_or_nan(x, self.view.merge(near, x.shape).astype(x.dtype))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The part of ``v`` that moves the scales: levels stay, each group is multiplied by a number."""
        parts, move = (self.view.split(a).astype(jnp.promote_types(a.dtype, jnp.float32)) for a in (x, v))
        parts = parts * to_unit(parts)
        return self.view.merge(parts * scale_of(move, parts), x.shape).astype(v.dtype)

    def footprint(self, x: jax.Array) -> Footprint:
        """Codes of ``levels.bits`` bits and a scale a group."""
        return dataclasses.replace(
            dense_footprint(x, self.view.layout),
            value_bits=jnp.asarray(self.levels.bits, jnp.float32),
            side_bits=jnp.float32(SCALE_BITS * self.view.sizes(x.shape).total),
        )

    def exact(self, shape: tuple[int, ...]) -> bool:
        return self.levels.exact_scale

    def check(self, x) -> None:
        super().check(x)
        if not isinstance(self.levels, Levels):
            raise ValueError(f"levels must be Levels, as Uniform(4) or Binary(), found {self.levels!r}")
        self.levels.check()
        self.view.sizes(x.shape)


def _nearest(levels: Levels, unit: jax.Array) -> jax.Array:
    """Derivatives to ``unit`` hold the levels fixed; those to other numbers of the levels hold which one is taken."""
    still = lax.stop_gradient(jnp.abs(unit))
    codes = jnp.sign(unit) * levels.codes(still, lax.stop_gradient(levels.best_scale(still)))
    return codes * scale_of(unit, codes)


def _nearest_finer(levels: Levels, unit: jax.Array) -> jax.Array:
    return _nearest(levels.finer(), unit)
