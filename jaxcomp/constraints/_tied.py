"""Sets of arrays whose groups share one value, or one magnitude."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.constraints._constraint import Constraint, Footprint, dense_footprint, finite_or_nan
from jaxcomp.constraints._views import View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tied(Constraint):
    """The weights of a group are equal; with ``signs="free"`` only their magnitudes are.

    With ``view=diagonals(b)`` the set is that of block-circulant matrices. The projection puts the mean of every
    group in its place (of the magnitudes, each with its own sign, where signs are free); it is exact.

    Args:
        view: what a group is.
        signs: ``"tied"`` or ``"free"``.

    >>> from jaxcomp.constraints import diagonals, Layout
    >>> Tied(diagonals(2, layout=Layout("oi"))).project(jnp.array([[1.0, 2.0], [4.0, 3.0]])).tolist()
    [[2.0, 3.0], [3.0, 2.0]]

    References: Li et al., FTRANS: Energy-Efficient Acceleration of Transformers using FPGA, ISLPED 2020 (circulant).
    """

    view: View = dataclasses.field(metadata={"static": True})
    signs: str = dataclasses.field(default="tied", metadata={"static": True})

    @property
    def convex(self) -> bool:
        return self.signs == "tied"

    def project(self, x: jax.Array) -> jax.Array:
        parts = self.view.split(x)
        if self.signs == "free":
            tied = jnp.where(parts < 0, -1, 1) * self._mean(jnp.abs(parts), x.shape)
        else:
            tied = self._mean(parts, x.shape)
        tied = jnp.broadcast_to(tied, parts.shape).astype(x.dtype)
        return finite_or_nan(x, self.view.merge(tied, x.shape))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The mean of ``v`` over every group; where signs are free, that of its pull on the magnitudes."""
        move = self.view.split(v)
        if self.signs == "free":
            parts = self.view.split(x)
            sign = jnp.where(parts < 0, -1, 1).astype(v.dtype)
            # A magnitude does not pass zero: there the signs, which are not stored twice, would be lost.
            change = jnp.maximum(self._mean(sign * move, x.shape), -jnp.abs(parts))
            tied = sign * change.astype(v.dtype)
        else:
            tied = jnp.broadcast_to(self._mean(move, x.shape), move.shape).astype(v.dtype)
        return self.view.merge(tied, x.shape)

    def footprint(self, x: jax.Array) -> Footprint:
        """One number a group; where signs are free, a bit a weight besides."""
        dense = dense_footprint(x, self.view.layout)
        free = self.signs == "free"
        return dataclasses.replace(
            dense,
            values=jnp.int32(self.view.sizes(x.shape).total),
            value_bits=dense.value_bits - free,
            side_bits=jnp.float32(x.size * free),
        )

    def check(self, x) -> None:
        super().check(x)
        if self.signs not in ("tied", "free"):
            raise ValueError(f"signs must be 'tied' or 'free', found {self.signs!r}")
        self.view.sizes(x.shape)

    def _mean(self, parts: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Over the real elements of every group; padding is zero and does not count."""
        count = np.asarray(self.view.sizes(shape).elements, np.float32)
        count = count[..., None] if count.ndim else count
        wide = parts.astype(jnp.promote_types(parts.dtype, jnp.float32))
        return jnp.sum(wide, axis=2, keepdims=True) / np.maximum(count, 1)
