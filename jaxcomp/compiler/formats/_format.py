"""What a packed matrix is to the rest of the compiler."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Format:
    """A matrix ``[depth, columns]`` held in the form in which its product with rows is done.

    A format is a frozen dataclass registered as a pytree: its arrays are leaves, whatever decides a shape is static.
    A stack of matrices (the steps of a scan, the groups of a convolution) is one format whose arrays all have the
    same leading axes. It is called on one matrix at a time: a scan slices the arrays, `jax.vmap` maps them.
    """

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        """``[*rows, columns]``, the product of ``x`` of shape ``[*rows, depth]`` with the matrix.

        Args:
            x: rows; differentiable.
            preferred_element_type: dtype of the result, as of `jax.lax.dot_general`; by default the wider of the two.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")

    def dense(self) -> np.ndarray:
        """``[*stack, depth, columns]``: the matrix to the last bit, but for the signs of zeros. Done by numpy."""
        raise NotImplementedError(f"{type(self).__name__} defines no dense")

    def describe(self) -> str:
        """The structure in a few words."""
        raise NotImplementedError(f"{type(self).__name__} defines no describe")

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def result_dtype(x: jax.Array, values: Any, preferred_element_type: Any) -> Any:
    """Dtype of the product of two operands."""
    return jnp.dtype(preferred_element_type or jnp.promote_types(x.dtype, values.dtype))


def sum_dtype(dtype: Any) -> Any:
    """What numbers of this dtype are added up in."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def dot(
    a: jax.Array, b: jax.Array, contracted: tuple[int, int], dtype: Any, batch: tuple[int, int] | None = None
) -> jax.Array:
    """The product over one axis of each, one by one along another of each if asked for, in this dtype.

    XLA for CPU fails on some products of bfloat16 that are wanted in float32, such as that of what was gathered
    (jax 0.10.2: "Unsupported element type for DotThunk"), so there the operands are widened before.
    """
    if jax.default_backend() == "cpu":
        a, b = a.astype(dtype), b.astype(dtype)
    batches = ((batch[0],), (batch[1],)) if batch else ((), ())
    dimensions = (((contracted[0],), (contracted[1],)), batches)
    return lax.dot_general(a, b, dimensions, preferred_element_type=dtype)
