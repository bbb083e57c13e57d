"""Inputs in strips that share their outputs: of each strip the outputs in use are computed dense, and added up."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._format import Format, dot, result_dtype, sum_dtype
from jaxcomp.compiler.formats._plan import widths
from jaxcomp.compiler.formats._prices import Prices, Proposal


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Scattered(Format):
    """The dual of `Strips`: as many outputs for every strip of inputs, but others.

    Inputs are read as they lie. What is added up are outputs of all rows at a time, side by side: adding outputs row
    by row took seventeen times as long at 64 rows.

    Attributes:
        values: ``[*stack, strips, outputs, width]``.
        index: ``[*stack, strips, outputs]``, which outputs a strip has a part in.
        depth, columns: inputs and outputs in all; the last strip may be filled up.
    """

    values: jax.Array
    index: jax.Array
    depth: int = dataclasses.field(metadata={"static": True})
    columns: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, self.values, preferred_element_type)
        wide = sum_dtype(dtype)
        strips, outputs, width = self.values.shape
        batch, x = x.shape[:-1], x.reshape(-1, self.depth)
        x = jnp.pad(x, ((0, 0), (0, strips * width - self.depth))).reshape(-1, strips, width)
        parts = dot(self.values, x, (2, 2), wide, batch=(0, 1))
        y = jnp.zeros((self.columns, len(x)), wide)
        y = y.at[self.index.reshape(-1)].add(parts.reshape(strips * outputs, -1), mode="clip")
        return y.T.astype(dtype).reshape(*batch, self.columns)

    def dense(self) -> np.ndarray:
        values, index = np.asarray(self.values), np.asarray(self.index)
        *stack, strips, _, width = values.shape
        out = np.zeros((*stack, strips, self.columns, width), values.dtype)
        np.put_along_axis(out, index[..., None], values, axis=-2)
        return np.swapaxes(out, -1, -2).reshape(*stack, strips * width, self.columns)[..., : self.depth, :]

    def describe(self) -> str:
        strips, outputs, width = self.values.shape[-3:]
        return f"{strips} strip{'s' * (strips > 1)} of {width} inputs, {outputs} of {self.columns} outputs each"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """The cheapest width of strips of inputs."""
    *_, depth, columns = matrix.shape
    mask = matrix.reshape(-1, depth, columns).swapaxes(1, 2) != 0
    found: list[tuple[float, int, np.ndarray]] = []
    for width, used in widths(mask).items():
        outputs = int(used.sum(axis=1).max())
        cost = used.shape[2] * outputs * (width + prices.gathered)
        if outputs:
            found.append((cost, width, used))
    if not found:
        return []
    cost, width, used = min(found, key=lambda each: each[0])
    return [Proposal(cost, 2, lambda: _packed(matrix, width, used))]


def _packed(matrix: np.ndarray, width: int, used: np.ndarray) -> Scattered:
    *stack, depth, columns = matrix.shape
    matrices, strips = matrix.reshape(-1, depth, columns), used.shape[2]
    tiles = np.pad(matrices, ((0, 0), (0, strips * width - depth), (0, 0))).reshape(-1, strips, width, columns)
    outputs = int(used.sum(axis=1).max())
    # A stable sort puts the outputs in use first, in order; others are given zeros.
    index = np.argsort(~used, axis=1, kind="stable")[:, :outputs].swapaxes(1, 2)
    values = np.take_along_axis(tiles.swapaxes(2, 3), index[..., None], axis=2)
    return Scattered(
        jnp.asarray(values.reshape(*stack, strips, outputs, width)),
        jnp.asarray(index.astype(np.int32).reshape(*stack, strips, outputs)),
        depth,
        columns,
    )
