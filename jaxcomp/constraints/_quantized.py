"""Sets of arrays whose entries are levels times a scale that a group shares."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import SCALE_BITS, Constraint, Footprint, dense_footprint
from jaxcomp.constraints._groupwise import groupwise, unit_over
from jaxcomp.constraints._lanes import anew_if_large, beside, in_lanes, in_order, sums_in_lanes
from jaxcomp.constraints._levels import Levels, scale_of, with_secant
from jaxcomp.constraints._views import View, whole
from jaxcomp.constraints.forms import Codes, magnitudes


@register_dataclass
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
        bits = jnp.asarray(self.levels.bits, jnp.float32)
        return with_secant(self._near(self.levels, x), bits, Partial(Quantized._nearer, self, x))

    def _near(self, levels: Levels, x: jax.Array) -> jax.Array:
        return groupwise(_scales, _scaled, self.view, levels, x, guarded=True)

    def _nearer(self, x: jax.Array) -> jax.Array:
        return self._near(self.levels.finer(), x)

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The part of ``v`` that moves the scales: levels stay, each group is multiplied by a number."""
        return groupwise(_move_of_scales, _rescaled, self.view, None, x, v)

    def footprint(self, x: jax.Array) -> Footprint:
        """Codes of ``levels.bits`` bits and a scale a group."""
        return dataclasses.replace(
            dense_footprint(x, self.view.layout),
            value_bits=jnp.asarray(self.levels.bits, jnp.float32),
            side_bits=jnp.float32(SCALE_BITS * self.view.sizes(x.shape).total),
        )

    def forms(self, x):
        return (Codes(self.view, magnitudes(self.levels)),)

    def exact(self, shape: tuple[int, ...]) -> bool:
        return self.levels.exact_scale

    def check(self, x) -> None:
        super().check(x)
        if not isinstance(self.levels, Levels):
            raise ValueError(f"levels must be Levels, as Uniform(4) or Binary(), found {self.levels!r}")
        self.levels.check()
        self.view.sizes(x.shape)


def _scales(levels: Levels, parts: jax.Array, *, names: Sequence[str], **_) -> tuple[jax.Array, ...]:
    """A power of two for every group, the scale of its levels in units of that, and the scale that suits these best.

    Derivatives to ``parts`` hold the levels fixed; those to other numbers of the levels hold which one is taken.
    """
    parts = in_order(parts)
    factor = unit_over(parts, names)
    scale = levels.best_scale(*lax.stop_gradient((anew_if_large(parts, factor), factor)), names)
    lanes = in_lanes(anew_if_large(parts, scale), 0)
    unit = lanes * beside(factor, lanes)
    codes = _codes(levels, beside(scale, lanes), unit)
    along, energy = sums_in_lanes((unit * codes, codes * codes), parts.ndim, names)
    return factor, scale, along / jnp.where(energy > 0, energy, 1)


def _scaled(levels: Levels, scales: tuple[jax.Array, ...], parts: jax.Array) -> jax.Array:
    factor, scale, best = scales
    return _codes(levels, scale, parts * factor) * best / factor


def _codes(levels: Levels, scale: jax.Array, unit: jax.Array) -> jax.Array:
    unit, scale = lax.stop_gradient((unit, scale))
    return jnp.sign(unit) * levels.codes(jnp.abs(unit), scale)


def _move_of_scales(_, parts: jax.Array, move: jax.Array, *, names: Sequence[str], **__) -> tuple[jax.Array, jax.Array]:
    factor = unit_over(parts, names)
    return factor, scale_of(move, parts * factor, names)


def _rescaled(_, moved: tuple[jax.Array, jax.Array], parts: jax.Array, __: jax.Array) -> jax.Array:
    factor, scale = moved
    return parts * factor * scale
