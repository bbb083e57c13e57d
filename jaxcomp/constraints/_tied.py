"""Sets of arrays whose groups share one value, or one magnitude."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import Constraint, Footprint, dense_footprint
from jaxcomp.constraints._groupwise import groupwise
from jaxcomp.constraints._shards import total
from jaxcomp.constraints._views import View, elements
from jaxcomp.constraints.forms import Shared, Signs


@register_dataclass
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
        return groupwise(Tied._shared, Tied._tied, self.view, self, x, guarded=True)

    def _shared(self, parts: jax.Array, *, shape: tuple[int, ...], names: Sequence[str]) -> jax.Array:
        return self._mean(jnp.abs(parts) if self.signs == "free" else parts, shape, names)

    def _tied(self, mean: jax.Array, parts: jax.Array) -> jax.Array:
        return jnp.where(parts < 0, -mean, mean) if self.signs == "free" else jnp.broadcast_to(mean, parts.shape)

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """The mean of ``v`` over every group; where signs are free, that of its pull on the magnitudes."""
        if self.signs == "free":
            return groupwise(Tied._pull, Tied._pulled, self.view, self, x, v)
        return groupwise(Tied._shared, Tied._tied, self.view, self, v)

    def _pull(self, parts: jax.Array, move: jax.Array, *, shape: tuple[int, ...], names: Sequence[str]) -> jax.Array:
        return self._mean(jnp.where(parts < 0, -move, move), shape, names)

    def _pulled(self, pull: jax.Array, parts: jax.Array, move: jax.Array) -> jax.Array:
        # A magnitude does not pass zero: there the signs, which are not stored twice, would be lost.
        pull = jnp.maximum(pull, -jnp.abs(parts))
        return jnp.where(parts < 0, -pull, pull)

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

    def forms(self, x):
        return (Signs(elements()), Shared(self.view)) if self.signs == "free" else (Shared(self.view),)

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
