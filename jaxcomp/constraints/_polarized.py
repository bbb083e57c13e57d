"""Sets of arrays whose groups share one sign, as a crossbar column that holds magnitudes needs."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxcomp.constraints._constraint import Constraint, Footprint, dense_footprint, finite_or_nan
from jaxcomp.constraints._views import View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Polarized(Constraint):
    """In every group all weights are >= 0 or all are <= 0.

    The projection keeps the side of larger energy and zeroes the other: with ``P`` and ``N`` the sums of squares of
    the positive and negative weights it keeps the positives if ``P >= N``. It is exact; its squared error is
    ``min(P, N)``. (The published rule goes by the sign of the plain sum and can pick the worse side.)

    Args:
        view: what a group is, as ``fragments(8)``.

    >>> from jaxcomp.constraints import fragments, Layout
    >>> Polarized(fragments(3, layout=Layout("oi"))).project(jnp.array([[1.0, -3.0, 1.0]])).tolist()
    [[0.0, -3.0, 0.0]]

    References: Yuan et al., FORMS: Fine-grained Polarized ReRAM-based In-situ Computation, ISCA 2021.
    """

    view: View = dataclasses.field(metadata={"static": True})

    def project(self, x: jax.Array) -> jax.Array:
        parts = self.view.split(x)
        kept = jnp.where(parts * _sign(parts).astype(x.dtype) > 0, parts, jnp.zeros((), x.dtype))
        return finite_or_nan(x, self.view.merge(kept, x.shape))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """``v``, cut where it would carry a weight past zero to the other sign than its group's."""
        parts, move = self.view.split(x), self.view.split(v)
        crosses = (parts + move) * _sign(parts) < 0
        return self.view.merge(jnp.where(crosses, -parts.astype(v.dtype), move), x.shape)

    def footprint(self, x: jax.Array) -> Footprint:
        """Magnitudes, and one sign bit a group."""
        dense = dense_footprint(x, self.view.layout)
        signs = self.view.sizes(x.shape).total
        return dataclasses.replace(dense, value_bits=dense.value_bits - 1, side_bits=jnp.float32(signs))

    def check(self, x) -> None:
        super().check(x)
        self.view.sizes(x.shape)


def _sign(parts: jax.Array) -> jax.Array:
    """The sign of larger energy of every group, +1 where they are equal; weights are first brought to about 1."""
    parts = parts.astype(jnp.promote_types(parts.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(parts), axis=2, keepdims=True)
    unit = parts / jnp.where(largest > 0, largest, 1)
    energy = jnp.sum(unit * jnp.abs(unit), axis=2, keepdims=True)
    return jnp.where(energy >= 0, 1.0, -1.0)
