"""What formats with a kernel of our own have in common: it does float32, and XLA everything else."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.compiler import native
from jaxcomp.compiler.formats._format import Format, result_dtype

CALL = 0.5  # of the price of an operation of XLA


class OwnKernel(Format):
    """A `native.Kernel`: its leaves are what the kernel takes after the rows, in this order."""

    depth: int
    columns: int

    @property
    def kernel(self) -> str:
        """The name that XLA knows it by."""
        raise NotImplementedError(f"{type(self).__name__} defines no kernel")

    def plain(self, x: jax.Array) -> jax.Array:
        """``[rows, columns]``: the same product in the nearest form of XLA's, filled up."""
        raise NotImplementedError(f"{type(self).__name__} defines no plain")

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, jnp.float32, preferred_element_type)
        rows = x.reshape(-1, self.depth)
        y = native.product(self, rows) if rows.dtype == dtype == jnp.float32 else self.plain(rows)
        return y.astype(dtype).reshape(*x.shape[:-1], self.columns)
