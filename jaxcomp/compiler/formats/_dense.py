"""The matrix as it is."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._format import Format, dot, result_dtype


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Format):
    """All weights, those that are zero too: what every other format is measured against.

    Attributes:
        values: ``[*stack, depth, columns]``.
    """

    values: jax.Array

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, self.values, preferred_element_type)
        return dot(x, self.values, (x.ndim - 1, 0), dtype)

    def dense(self) -> np.ndarray:
        return np.asarray(self.values)

    def describe(self) -> str:
        depth, columns = self.values.shape[-2:]
        return f"dense, {depth} by {columns}"
