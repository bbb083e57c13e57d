"""What levels are: magnitudes that a weight may take in units of its scale; and the scale that suits them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxcomp.constraints._constraint import check_range
from jaxcomp.constraints._lanes import anew_if_large, beside, in_lanes, max_in_lanes, sums_in_lanes
from jaxcomp.constraints._shards import total

_TOPS, _ROUNDS = 16, 3  # starts that put the maximum on a level; refinements of the best start
_REACH = np.geomspace(0.5, 16, 40)  # the other starts: what the maximum comes to, in largest levels


class Levels:
    """Magnitudes, symmetric about zero, that a weight may take in units of its scale.

    An exact zero stays zero under every set of levels: it is a pruned weight, stored by its index and not by a level.

    A number of bits need not be whole. There are as many levels as its codes hold, ``⌊2^bits⌋``: ``log2(6)`` bits
    are six levels, three to a side, stored several to a word. (`AdditivePowersOfTwo` rounds the bits down instead.)
    The derivative of a projection to ``bits`` is its secant, the step to the projection at one bit more.
    """

    exact_scale: ClassVar[bool] = False
    bits: Any  # per weight

    def nearest(self, u: jax.Array) -> jax.Array:
        """The nearest level to each ``u >= 0``."""
        raise NotImplementedError

    def largest(self, j: int) -> ArrayLike:
        """The j-th largest level, from 0; the smallest non-zero one if there are fewer."""
        raise NotImplementedError

    def finer(self) -> "Levels":
        """These levels at one bit more."""
        return dataclasses.replace(self, bits=self.bits + 1)  # type: ignore[type-var]

    def check(self) -> None:
        """Raise `ValueError` if there cannot be such levels."""
        check_range("bits", self.bits, 2 if getattr(self, "zero", False) else 1, 16)

    def best_scale(self, x: jax.Array, unit: jax.Array, names: Sequence[str] = ()) -> jax.Array:
        """The scale of every group of ``v = |x| unit`` (``[..., n]``): ``[..., 1]``, by alternating minimisation.

        Given the scale the nearest levels are best, given the levels q the scale ``<v, q> / <q, q>`` is: neither
        step raises the error. The start is the best of several scales, those that put the largest weight on a level
        and a grid of others. The result is a local minimum, and 0 error on every array already in the set whose
        largest entry takes one of the sixteen largest levels.

        On a mesh ``names`` are its axes along which other devices hold the rest of these groups.
        """
        levels, lanes = jax.tree.map(lax.stop_gradient, self), in_lanes(x, 0)
        top = max_in_lanes(jnp.abs(lanes), x.ndim, names) * unit
        largest = jnp.stack([jnp.asarray(levels.largest(j), x.dtype) for j in range(_TOPS)])
        tries = jnp.concatenate([1 / largest, 1 / (largest[0] * jnp.asarray(_REACH, x.dtype))])

        def better(best, factor):
            found = levels._refit(lanes, unit, top * factor, names)
            return jax.tree.map(functools.partial(jnp.where, found[0] < best[0]), found, best), None

        (_, best), _ = lax.scan(better, (jnp.full_like(top, jnp.inf), top), tries)
        return lax.fori_loop(0, _ROUNDS, lambda _, scale: levels._refit(lanes, unit, scale, names)[1], best)

    def _refit(
        self, lanes: jax.Array, unit: jax.Array, scale: jax.Array, names: Sequence[str]
    ) -> tuple[jax.Array, jax.Array]:
        """Squared error and scale that are best for the levels nearest at another scale.

        Both follow from sums over what is missed at that one, in units of it, all of one pass: ``a² |v / a - q|²`` is
        least if ``a`` grows by the share ``<miss, q> / <q, q>``, and there ``a² (<miss, miss> - <miss, q>² / <q, q>)``.
        """
        u = jnp.abs(anew_if_large(lanes, scale)) * beside(unit / jnp.where(scale > 0, scale, 1), lanes)
        codes = jnp.where(u > 0, self.nearest(u), 0)
        miss = u - codes
        missed, along, length = sums_in_lanes((miss * miss, miss * codes, codes * codes), scale.ndim, names)
        step = along / jnp.where(length > 0, length, 1)
        return jnp.square(scale) * jnp.maximum(missed - along * step, 0), scale + scale * step

    def codes(self, v: jax.Array, scale: jax.Array) -> jax.Array:
        """The level of every ``v >= 0`` at these scales; zero where ``v`` is."""
        return jnp.where(v > 0, self.nearest(v / jnp.where(scale > 0, scale, 1)), 0)


def codes_in(bits: ArrayLike) -> jax.Array:
    """How many codes so many bits hold, ``⌊2^bits⌋``; what falls short of a whole number by rounding is one."""
    return jnp.floor(2.0 ** jnp.asarray(bits, jnp.float32) * (1 + 1e-5))


def nearest_of(values: jax.Array, u: jax.Array) -> jax.Array:
    """The nearest to every ``u`` of ascending values; the lower halfway between two."""
    cuts = jnp.pad(values[:-1] / 2 + values[1:] / 2, (0, values.size), constant_values=jnp.inf)
    # A bisection with all its steps written out is a single pass over the weights; `searchsorted` stores each step.
    place = jnp.zeros(u.shape, jnp.int32)
    for step in reversed([2**i for i in range((values.size - 1).bit_length())]):
        place = jnp.where(jnp.take(cuts, place + (step - 1), mode="clip") < u, place + step, place)
    return jnp.take(values, place, mode="clip")


def scale_of(v: jax.Array, q: jax.Array, names: Sequence[str] = ()) -> jax.Array:
    """The best scale for given levels, ``<v, q> / <q, q>``, over the last axis, and over those of a mesh."""
    energy = total(jnp.sum(jnp.square(q), axis=-1, keepdims=True), names)
    return total(jnp.sum(v * q, axis=-1, keepdims=True), names) / jnp.where(energy > 0, energy, 1)


@jax.custom_jvp
def with_secant(near: jax.Array, bits: jax.Array, finer: jax.tree_util.Partial) -> jax.Array:
    """``near``, whose derivative to ``bits`` is the step to ``finer()``; that is called only to differentiate."""
    return near


@functools.partial(with_secant.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    near, _, finer = primals
    change, more_bits, _ = tangents
    if isinstance(change, SymbolicZero):
        change = jnp.zeros_like(near)
    if not isinstance(more_bits, SymbolicZero):
        change += more_bits.astype(near.dtype) * (finer() - near)
    return near, change
