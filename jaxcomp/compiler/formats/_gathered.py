"""Outputs each of which has inputs of its own: unstructured zeros, N of M, banks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._assemble import assemble
from jaxcomp.compiler.formats._format import Format, result_dtype, sum_dtype
from jaxcomp.compiler.formats._plan import narrow
from jaxcomp.compiler.formats._prices import Prices, Proposal

_LOOP = 0.7  # of the price of strips of one output


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Gathered(Format):
    """Every output reads as many inputs as the next: the first of all outputs, then the second of all, and so on.

    The rows are turned first, so that what is gathered for an output is its input in all rows, side by side. A loop
    over a few additions each as large as the result is faster on a CPU than one reduction, which is done an output
    at a time. N of M and banks are this with equal counts.

    Attributes:
        values: ``[*stack, inputs, columns]``.
        index: the same shape, which input a weight belongs to.
        depth: inputs in all.
    """

    values: jax.Array
    index: jax.Array
    depth: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, self.values, preferred_element_type)
        wide = sum_dtype(dtype)
        turned = x.reshape(-1, self.depth).T

        def step(total: jax.Array, each: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            index, values = each
            read = jnp.take(turned, index, axis=0, mode="clip").astype(wide)
            return total + read * values[:, None].astype(wide), None

        nothing = jnp.zeros((self.values.shape[1], turned.shape[1]), wide)
        total, _ = lax.scan(step, nothing, (self.index, self.values))
        return total.T.astype(dtype).reshape(*x.shape[:-1], -1)

    def dense(self) -> np.ndarray:
        values = np.asarray(self.values)
        out = np.zeros((*values.shape[:-2], self.depth, values.shape[-1]), values.dtype)
        np.put_along_axis(out, np.asarray(self.index), values, axis=-2)
        return out

    def describe(self) -> str:
        inputs, columns = self.values.shape[-2:]
        return f"{columns} outputs of {inputs} of {self.depth} inputs each"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """One form, of outputs of about as many inputs brought together."""
    plan = narrow(matrix.reshape(-1, *matrix.shape[-2:]) != 0, prices)
    return [Proposal(_LOOP * plan.cost, plan.calls, lambda: assemble(matrix, plan, _gathered))] if plan.buckets else []


def _gathered(values: np.ndarray, index: np.ndarray, depth: int) -> Gathered:
    return Gathered(jnp.asarray(np.swapaxes(values[..., 0], -1, -2)), jnp.asarray(np.swapaxes(index, -1, -2)), depth)
