"""Matrices of low rank."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import Constraint, Footprint, check_range, dense_footprint, finite_or_nan
from jaxcomp.constraints._views import Layout
from jaxcomp.constraints.forms import Factors


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank(Constraint):
    """The leaf's matrix, outputs by inputs, has a rank of at most r: ``{W = U V : U has r columns, V r rows}``.

    The projection keeps the r largest singular values; it is exact. It takes a singular value decomposition, and so
    does the tangent, ``project(x + v) - x``.

    Args:
        rank: a whole number; a leaf, may be traced.
        layout: how the leaf is laid out; by default as flax does it.

    >>> LowRank(1).project(jnp.array([[2.0, 0.0], [0.0, 1.0]])).tolist()
    [[2.0, 0.0], [0.0, 0.0]]

    References: Eckart and Young, The Approximation of One Matrix by Another of Lower Rank, Psychometrika 1936; Denton
    et al., Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation, NIPS 2014.
    """

    rank: ArrayLike
    layout: Layout | None = dataclasses.field(default=None, metadata={"static": True})

    def project(self, x: jax.Array) -> jax.Array:
        layout = self._layout(x.shape)
        # Bad weights are left out of the decomposition, which need not come back from them.
        matrix = layout.to_matrix(jnp.where(jnp.isfinite(x), x, 0)).astype(jnp.promote_types(x.dtype, jnp.float32))
        left, values, _ = jnp.linalg.svd(matrix, full_matrices=False)
        kept = (jnp.arange(values.size) < self.rank)[None, :]
        # Singular vectors are orthogonal to several roundings, a QR's to one: a projection is then its own.
        basis = jnp.where(kept, jnp.linalg.qr(jnp.where(kept, left, 0))[0], 0)
        near = _product(basis, _product(basis.T, matrix))
        return finite_or_nan(x, layout.from_matrix(near, x.shape).astype(x.dtype))

    def footprint(self, x: jax.Array) -> Footprint:
        """Two factors, ``rank * (outputs + inputs)`` values, or every weight if these are fewer."""
        factors = jnp.asarray(self.rank, jnp.float32) * sum(self._layout(x.shape).matrix_shape(x.shape))
        values = jnp.minimum(factors, x.size).astype(jnp.int32)
        return dataclasses.replace(dense_footprint(x, self.layout), values=values)

    def forms(self, x):
        return (Factors(self.layout, int(np.asarray(self.rank))),)

    def check(self, x: Any) -> None:
        super().check(x)
        check_range("rank", self.rank, 0, min(self._layout(x.shape).matrix_shape(x.shape)))
        if not isinstance(self.rank, jax.core.Tracer) and not np.all(np.asarray(self.rank) % 1 == 0):
            raise ValueError(f"rank must be a whole number, found {self.rank}")

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        return self.layout or Layout.of(len(shape))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
