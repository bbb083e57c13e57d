"""Sets of arrays whose entries are taken from a given list of values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import (
    SCALE_BITS,
    Constraint,
    Footprint,
    check_range,
    dense_footprint,
    finite_or_nan,
)
from jaxcomp.constraints._levels import nearest_of
from jaxcomp.constraints._views import whole
from jaxcomp.constraints.forms import Codes


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Codebook(Constraint):
    """Every weight is one of the given values: ``{w : w_i in values}``; no scale is free.

    As under `Levels`, an exact zero stays zero: it is a pruned weight, stored by its index. The projection takes the
    nearest value to every other weight. It is exact if zero is one of the values, else among arrays with the zeros of
    ``x``. Differentiated by ``values`` it holds fixed which one each weight takes; by ``x`` it is zero.

    Args:
        values: a list, in any order, evenly spaced or not; a leaf, may be traced.

    >>> Codebook([-1.0, 0.5, 2.0]).project(jnp.array([-3.0, 0.7, 0.0])).tolist()
    [-1.0, 0.5, 0.0]

    References: Yuan et al., An Ultra-Efficient Memristor-Based DNN Framework, ISLPED 2019 (measured device states).
    """

    values: ArrayLike

    def project(self, x: jax.Array) -> jax.Array:
        return finite_or_nan(x, self.nearest(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype))

    def nearest(self, x: jax.Array) -> jax.Array:
        """The nearest value to every weight that is not zero."""
        return jnp.where(x == 0, 0, nearest_of(jnp.sort(jnp.asarray(self.values, x.dtype)), x))

    def one_sided(self, sign: float) -> "Codebook":
        """The values of one sign, and zero; the others are put out of reach."""
        values = jnp.asarray(self.values, jnp.float32)
        return Codebook(jnp.where(sign * values >= 0, values, sign * jnp.inf))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """Zero: a value given has nowhere to go."""
        return jnp.zeros_like(v)

    def footprint(self, x: jax.Array) -> Footprint:
        """Codes, and the list of values."""
        return dataclasses.replace(
            dense_footprint(x),
            value_bits=jnp.ceil(jnp.log2(jnp.float32(self.size))),
            side_bits=jnp.float32(SCALE_BITS * self.size),
        )

    def forms(self, x):
        return (Codes(whole()),)

    def exact(self, shape: tuple[int, ...]) -> bool:
        """Whether zero is known to be one of the values."""
        return any(not isinstance(v, jax.core.Tracer) and bool(np.any(v == 0)) for v in jax.tree.leaves(self.values))

    @property
    def size(self) -> int:
        """How many values there are."""
        return jnp.asarray(self.values).size

    def check(self, x: Any) -> None:
        super().check(x)
        shape = jnp.shape(jnp.asarray(self.values))
        if len(shape) != 1 or shape == (0,):
            raise ValueError(f"values must be a list of one number or more, found shape {shape}")
        most = float(np.finfo(np.float32).max)
        for value in jax.tree.leaves(self.values):
            check_range("values", value, -most, most)
