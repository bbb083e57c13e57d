"""Outputs in strips that share their inputs: of each strip the inputs in use are gathered and multiplied dense."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._assemble import assemble
from jaxcomp.compiler.formats._format import Format, dot, result_dtype
from jaxcomp.compiler.formats._plan import plans
from jaxcomp.compiler.formats._prices import Prices, Proposal
from jaxcomp.compiler.formats._take import take


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Strips(Format):
    """Strips of as many outputs each; a strip has as many inputs as the next, but others.

    One gather brings the inputs of all strips together, one product batched over strips does the rest: on a CPU this
    is faster than a loop over strips, whose steps are each too small.

    Attributes:
        values: ``[*stack, strips, inputs, width]``.
        index: ``[*stack, strips, inputs]``, which inputs a strip reads.
        depth: inputs in all.
    """

    values: jax.Array
    index: jax.Array
    depth: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, self.values, preferred_element_type)
        strips, inputs, width = self.values.shape
        batch, read = x.shape[:-1], take(x.reshape(-1, self.depth), self.index, 1)
        if strips == 1:
            return dot(read, self.values[0], (1, 0), dtype).reshape(*batch, width)
        read = read.reshape(-1, strips, inputs).transpose(1, 0, 2)
        y = dot(read, self.values, (2, 1), dtype, batch=(0, 0))
        return y.transpose(1, 0, 2).reshape(*batch, strips * width)

    def dense(self) -> np.ndarray:
        values, index = np.asarray(self.values), np.asarray(self.index)
        *stack, strips, _, width = values.shape
        out = np.zeros((*stack, strips, self.depth, width), values.dtype)
        np.put_along_axis(out, index[..., None], values, axis=-2)
        return np.moveaxis(out, -3, -2).reshape(*stack, self.depth, strips * width)

    def describe(self) -> str:
        strips, inputs, width = self.values.shape[-3:]
        return f"{strips} strip{'s' * (strips > 1)} of {width} outputs, {inputs} of {self.depth} inputs each"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """A form for each of the two widths of strips that suit best."""
    found = plans(matrix.reshape(-1, *matrix.shape[-2:]) != 0, prices)
    return [Proposal(plan.cost, plan.calls, functools.partial(assemble, matrix, plan, _strips)) for plan in found[:2]]


def _strips(values: np.ndarray, index: np.ndarray, depth: int) -> Strips:
    return Strips(jnp.asarray(values), jnp.asarray(index), depth)
