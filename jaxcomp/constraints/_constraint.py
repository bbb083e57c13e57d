"""What must hold of a weight: the five questions a constraint answers, each with a default but the first."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._views import Layout
from jaxcomp.constraints.forms import Forms

SCALE_BITS = 32  # a scale, a shared value or a codebook entry is stored as one float32


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Footprint:
    """What storing a leaf takes, and how its non-zeros lie: what reports, devices and the compiler read.

    Attributes:
        size: weights in the dense leaf.
        nonzeros: weights that are not zero.
        values: numbers stored (a kept group is stored whole; tied weights are stored once).
        value_bits: bits per stored number.
        index_bits: bits, in all, that say where the stored numbers belong.
        side_bits: bits, in all, of scales, signs and codebooks.
        row_density: share of outputs with a non-zero weight.
        column_density: share of inputs with a non-zero weight.
        group_density: share of the constraint's groups (blocks, kernels, fragments …) with a non-zero weight.
    """

    size: int = dataclasses.field(metadata={"static": True})
    nonzeros: jax.Array
    values: jax.Array
    value_bits: jax.Array
    index_bits: jax.Array
    side_bits: jax.Array
    row_density: jax.Array
    column_density: jax.Array
    group_density: jax.Array

    @property
    def bits(self) -> jax.Array:
        """Honest storage: values, indices and side information."""
        return self.values * self.value_bits + self.index_bits + self.side_bits


class Constraint:
    """A set of arrays. `project` alone makes one; the other methods have defaults that follow from it.

    Subclasses are frozen dataclasses registered with `jaxcomp.register_dataclass`: numbers that one may want
    to sweep or differentiate are leaves, choices that decide shapes are fields with ``metadata={"static": True}``.

    >>> import dataclasses, jax, jax.numpy as jnp, jaxcomp as jc
    >>> @jc.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Ball(jc.Constraint):
    ...     radius: float = 1.0
    ...     def project(self, x):
    ...         return (x * jnp.minimum(1, self.radius / jnp.linalg.norm(x))).astype(x.dtype)
    >>> float(Ball().violation(jnp.array([3.0, 4.0])))
    4.0

    `jaxcomp.testing.check_constraint` tells whether a class of one's own keeps to all that is said here.
    """

    def project(self, x: jax.Array) -> jax.Array:
        """The nearest member of the set: ``argmin_z ||x - z||_2`` subject to ``z`` in the set; same shape, dtype.

        Pure. Where ``x`` holds NaN or infinity the result is NaN throughout, never a silently wrong member.
        """
        raise NotImplementedError(f"{type(self).__name__} must define project(x)")

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The update ``v`` at a member ``x``, without what would leave the set: ``x + tangent(x, v)`` is a member."""
        return self.project(x + v) - x

    def violation(self, x: jax.Array) -> jax.Array:
        """``||x - project(x)||_2``, a float32 scalar: 0 exactly on the set."""
        return norm(x.astype(jnp.float32) - self.project(x).astype(jnp.float32))

    def footprint(self, x: jax.Array) -> Footprint:
        """What storing the member ``x`` takes; by default every weight at the width of its dtype."""
        return dense_footprint(x)

    def forms(self, x: jax.Array) -> Forms:
        """What of the member ``x`` storage can leave out, from the outermost form to the innermost; default: nothing.

        Called outside of `jax.jit`, with numbers that are known. `jaxcomp.save` finds out what holds of ``x`` and how
        much it saves, so that a form may be named which only some members have.
        """
        return ()

    def fit(self, x: jax.Array) -> "Constraint":
        """This constraint with constants that depend on the pretrained ``x`` filled in; default: unchanged."""
        return self

    @property
    def convex(self) -> bool:
        """Whether the set is known to be convex; a class whose sets all are says ``convex = True``."""
        return False

    def exact(self, shape: tuple[int, ...]) -> bool:
        """Whether `project` gives the nearest member of a leaf of this shape, rather than only some member."""
        return True

    def check(self, x: Any) -> None:
        """Raise `ValueError` if the constraint cannot apply to a leaf of this shape and dtype. Reads no values of x."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"needs floating-point weights, found dtype {x.dtype}: cast the leaf or leave it out")
        if 0 in x.shape:
            raise ValueError(f"needs at least one weight, found shape {x.shape}: leave the leaf out")


def norm(x: jax.Array) -> jax.Array:
    """The Euclidean norm over all axes; its derivative at zero is 0, not NaN."""
    energy = jnp.sum(jnp.square(x))
    return jnp.where(energy == 0, 0, jnp.sqrt(jnp.where(energy == 0, 1, energy)))


def finite_or_nan(x: jax.Array, y: jax.Array) -> jax.Array:
    """``y`` where all of ``x`` is finite, else NaN: bad weights must not look like good ones."""
    return jnp.where(all_finite(x), y, jnp.nan)


def all_finite(*arrays: jax.Array) -> jax.Array:
    """Whether no array holds NaN or infinity."""
    return jnp.stack([not_finite(x) for x in arrays]).sum() == 0


def not_finite(x: jax.Array) -> jax.Array:
    """0 if an array is finite, else NaN. XLA reads it faster to sum zeros than to ask whether all of it is finite."""
    still = lax.stop_gradient(x)
    return jnp.sum(still - still, dtype=jnp.float32)


def to_unit(parts: jax.Array) -> jax.Array:
    """A power of two for every group of ``[pools, groups, elements]`` that brings its largest weight to about 1.

    Squares then neither vanish nor overflow, nor does the factor or its inverse. Derivatives hold it fixed.
    """
    # Of the largest, the bits of the exponent alone, which are few operations where `frexp` is many, and every weight
    # of a group may repeat them. Its inverse is the exponent that adds up with it to that of all ones.
    kind = jnp.finfo(parts.dtype)
    largest = lax.stop_gradient(jnp.max(jnp.abs(parts), axis=2, keepdims=True))
    bits, all_ones = lax.bitcast_convert_type(largest, f"int{kind.bits}"), 2**kind.nexp - 1
    exponent = jnp.where(bits == 0, all_ones // 2, bits >> kind.nmant)
    return lax.bitcast_convert_type(jnp.clip(all_ones - exponent, 1, all_ones - 2) << kind.nmant, parts.dtype)


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Raise if a hyper-parameter whose value is known lies outside ``[low, high]``; tracers pass."""
    if isinstance(value, jax.core.Tracer):
        return
    found = np.asarray(value, np.float64)
    if not np.all((found >= low) & (found <= high)):  # also false for NaN
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], found {value}")


def dense_footprint(x: jax.Array, layout: Layout | None = None) -> Footprint:
    """Every weight stored at the width of its dtype, none marked. Without a layout that fits, no axis is sparse.

    Every weight counts as a group: a constraint with larger ones replaces `group_density`.
    """
    rows = columns = jnp.float32(1)
    if layout is not None or 1 <= x.ndim <= 5:
        used = (layout or Layout.of(x.ndim)).to_matrix(x) != 0
        rows, columns = (jnp.mean(jnp.any(used, axis), dtype=jnp.float32) for axis in (1, 0))
    return Footprint(
        size=x.size,
        nonzeros=jnp.sum(x != 0, dtype=jnp.int32),
        values=jnp.int32(x.size),
        value_bits=jnp.float32(8 * x.dtype.itemsize),
        index_bits=jnp.float32(0),
        side_bits=jnp.float32(0),
        row_density=rows,
        column_density=columns,
        group_density=jnp.mean(x != 0, dtype=jnp.float32),
    )
