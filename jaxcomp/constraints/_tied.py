"""Sets of arrays whose groups share one value, or one magnitude."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.constraints._constraint import Constraint, Footprint, dense_footprint, finite_or_nan
from jaxcomp.constraints._groupwise import groupwise
from jaxcomp.constraints._shards import total
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
        return finite_or_nan(x, groupwise(Tied._tied, self.view, self, x))

    def _tied(self, parts: jax.Array, *, shape: tuple[int, ...], names: Sequence[str]) -> jax.Array:
        if self.signs == "free":
            return jnp.where(parts < 0, -1, 1) * self._mean(jnp.abs(parts), shape, names)
        return jnp.broadcast_to(self._mean(parts, shape, names), parts.shape)

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The mean of ``v`` over every group; where signs are free, that of its pull on the magnitudes."""
        if self.signs == "free":
            return groupwise(Tied._pulled, self.view, self, x, v)
        return groupwise(Tied._tied, self.view, self, v)

    def _pulled(self, parts: jax.Array, move: jax.Array, *, shape: tuple[int, ...], names: Sequence[str]) -> jax.Array:
        sign = jnp.where(parts < 0, -1, 1).astype(move.dtype)
        # A magnitude does not pass zero: there the signs, which are not stored twice, would be lost.
        return sign * jnp.maximum(self._mean(sign * move, shape, names), -jnp.abs(parts))

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

    def _mean(self, parts: jax.Array, shape: tuple[int, ...], names: Sequence[str]) -> jax.Array:
        """Over the real elements of every group; padding is zero and does not count."""
        count = np.asarray(self.view.sizes(shape).elements, np.float32)
        count = count[..., None] if count.ndim else count
        sums = jnp.sum(parts, axis=2, keepdims=True)
        return total(sums, names) / total(jnp.asarray(np.maximum(count, 1)), names)
