"""The levels that published work takes, by name: evenly spaced, powers of two and their sums, states of a cell."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import check_range
from jaxcomp.constraints._level import Levels as Levels
from jaxcomp.constraints._level import codes_in as codes_in
from jaxcomp.constraints._level import nearest_of as nearest_of
from jaxcomp.constraints._level import scale_of as scale_of
from jaxcomp.constraints._level import with_secant as with_secant
from jaxcomp.constraints._ternary_scale import ternary_scale


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Uniform(Levels):
    """Evenly spaced levels: ``0, ±1, …, ±(2^(bits-1) - 1)``, or ``±1, …, ±2^(bits-1)`` with ``zero=False``.

    Args:
        bits: per weight; a leaf, may be traced.
        zero: whether zero is one of the levels. ``False`` where pruned zeros are stored by index.
    """

    bits: ArrayLike
    zero: bool = dataclasses.field(default=True, metadata={"static": True})

    def nearest(self, u):
        return jnp.clip(jnp.round(u), 0 if self.zero else 1, self.largest(0))

    def largest(self, j):
        return jnp.maximum(codes_in(jnp.asarray(self.bits) - 1) - self.zero - j, 1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class PowerOfTwo(Levels):
    """Levels ``±1, ±1/2, ±1/4, …``: a product with one is a shift.

    With zero as a level there are ``2^(bits-1) - 1`` magnitudes, without ``2^(bits-1)``.
    """

    bits: ArrayLike
    zero: bool = dataclasses.field(default=True, metadata={"static": True})

    def nearest(self, u):
        least = self.largest(10**6)
        kind = jnp.finfo(u.dtype)
        exponent = (2**kind.nexp - 1) << kind.nmant
        bits = lax.bitcast_convert_type(jnp.maximum(u, least).astype(u.dtype), f"int{kind.bits}")
        below = lax.bitcast_convert_type(bits & exponent, u.dtype)  # the largest power of two that is not more
        level = jnp.clip(jnp.where(u < 1.5 * below, below, 2 * below), least, 1)
        return jnp.where(u < least / 2, 0, level) if self.zero else level

    def largest(self, j):
        last = codes_in(jnp.asarray(self.bits) - 1) - self.zero - 1
        return jnp.ldexp(1.0, -jnp.minimum(j, last).astype(jnp.int32))  # exp2 is not exact


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AdditivePowersOfTwo(Levels):
    """Sums of ``n = (bits - 1) / 2`` powers of two: a product with one is n shifts and their sum.

    Each term is zero or one of three powers, ``2^-i, 2^-(i+n), 2^-(i+2n)`` for the i-th: dense near zero as
    `PowerOfTwo` is, yet not coarse near one. An odd bit is a term of its own, zero or the single power that follows
    the first two of every other term, as in the authors' code. So 4 bits are ``0, 1, 1/2, 1/8`` plus ``0, 1/4``.

    Args:
        bits: per weight, 2 to 7, rounded down to a whole number; a leaf, may be traced.

    References: Li, Dong and Wang, Additive Powers-of-Two Quantization, ICLR 2020.
    """

    bits: ArrayLike

    def nearest(self, u):
        return nearest_of(self._row(), u)

    def largest(self, j):
        count = 2 ** self._magnitude_bits()
        return jnp.take(self._row(), jnp.maximum(count - 1 - j, 1))

    def check(self):
        check_range("bits", self.bits, 2, 7)

    def _magnitude_bits(self):
        whole = jnp.floor(jnp.asarray(self.bits, jnp.float32) + 1e-5)
        return jnp.clip(whole.astype(jnp.int32) - 1, 1, 6)

    def _row(self):
        return jnp.take(jnp.asarray(_sums_of_powers()), self._magnitude_bits(), axis=0)


@functools.cache
def _sums_of_powers() -> np.ndarray:
    """Row b holds the ``2^b`` sums of powers that b bits hold, ascending; the rest of it repeats the largest."""
    table = np.zeros((7, 2**6), np.float32)
    for bits in range(1, 7):
        terms, power = [[0.0] for _ in range(bits // 2)], 1.0
        for turn in range(3):
            if turn == 2 and bits % 2:
                terms.insert(0, [0.0])
            for term in terms:
                term.append(power)
                power /= 2
        sums = functools.reduce(np.add.outer, map(np.array, terms)).ravel()
        table[bits] = np.pad(np.sort(sums), (0, 2**6 - sums.size), mode="edge")
    return table


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Conductances(Levels):
    """The states of a memory cell: magnitudes ``low, …, high`` in equal steps, ``±`` by a pair of arrays.

    Zero is not a state: a pruned weight stays zero, as its cells are not built. In `Quantized` a scale turns a
    conductance into a weight, so that only ``low / high`` matters. To fix the scale, use
    ``Codebook(Conductances(low, high, states).values())``.

    Args:
        low: conductance of the least state, in any unit; above zero.
        high: conductance of the largest state, in the same unit.
        states: of a cell, a whole number, two or more; a leaf, may be traced. Of two arrays: 1 + log2(states) bits.

    References: Yuan et al., An Ultra-Efficient Memristor-Based DNN Framework, ISLPED 2019.
    """

    low: ArrayLike
    high: ArrayLike
    states: ArrayLike

    @property
    def bits(self):
        return 1 + jnp.log2(jnp.asarray(self.states, jnp.float32))

    def nearest(self, u):
        return self.low + self._step() * jnp.clip(jnp.round((u - self.low) / self._step()), 0, self._last())

    def largest(self, j):
        return self.low + self._step() * jnp.maximum(self._last() - j, 0)

    def finer(self):
        return dataclasses.replace(self, states=2 * self.states)

    def values(self) -> jax.Array:
        """All levels, ascending: minus and plus every state. Needs a known number of states."""
        magnitudes = jnp.linspace(self.low, self.high, int(np.asarray(self.states)), dtype=jnp.float32)
        return jnp.concatenate([-magnitudes[::-1], magnitudes])

    def check(self):
        check_range("states", self.states, 2, 2**15)
        check_range("low", self.low, float(np.finfo(np.float32).tiny), np.inf)
        if not isinstance(self.low, jax.core.Tracer):
            check_range("high", self.high, float(np.nextafter(np.max(self.low), np.inf, dtype=np.float32)), np.inf)

    def _last(self):
        return jnp.maximum(jnp.round(jnp.asarray(self.states, jnp.float32)) - 1, 1)

    def _step(self):
        return (jnp.asarray(self.high, jnp.float32) - self.low) / self._last()


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Binary(Levels):
    """Levels ``±1``. The scale is exact: the mean magnitude of the weights that are not zero.

    Complex binary weights, ``a (±1 ± i)``, are these too. Store the two parts as an axis of length 2 and call it a
    tap: with ``layout = Layout("ioc")``, ``Quantized(Binary(), outputs(layout))`` gives every output one scale for
    both parts, and ``Sparse(density, kernels(layout))`` drops both parts of a weight or neither.

    References: Li et al., BCNN: Binary Complex Neural Network, 2021.
    """

    exact_scale: ClassVar[bool] = True

    @property
    def bits(self):
        return 1.0

    def nearest(self, u):
        return jnp.ones_like(u)

    def largest(self, j):
        return jnp.ones(jnp.shape(j))

    def best_scale(self, x, unit, names=()):
        v = jnp.abs(x) * unit
        return scale_of(v, jnp.where(v > 0, 1.0, 0.0).astype(v.dtype), names)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Ternary(Levels):
    """Levels ``0, ±1``. The scale is exact, to rounding: the mean of the t largest magnitudes, t best of all."""

    exact_scale: ClassVar[bool] = True

    @property
    def bits(self):
        return 2.0

    def nearest(self, u):
        return jnp.where(u > 0.5, 1.0, 0.0).astype(u.dtype)

    def largest(self, j):
        return jnp.ones(jnp.shape(j))

    def best_scale(self, x, unit, names=()):
        return ternary_scale(x, unit, names)
