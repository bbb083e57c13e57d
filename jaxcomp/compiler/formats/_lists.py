"""Outputs each of which has a list of inputs, as long as it needs: a kernel of our own, for CPUs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._gathered import Gathered
from jaxcomp.compiler.formats._own_kernel import CALL, OwnKernel
from jaxcomp.compiler.formats._prices import Prices, Proposal


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Lists(OwnKernel):
    """Compressed sparse columns: unstructured zeros, N of M, patterns, banks, whatever has no outputs alike.

    The rows are turned, so that what an output reads of an input is its numbers in all rows, one vector or a few.

    Attributes:
        values: ``[*stack, weights]``, float32, those of an output after those of another.
        index: ``[*stack, weights]``, the input that each belongs to.
        starts: ``[*stack, columns + 1]``, where the list of each output begins. Of a stack some have fewer weights.
        depth, columns: inputs and outputs in all.
        most: weights of the output that has most.
    """

    values: jax.Array
    index: jax.Array
    starts: jax.Array
    depth: int = dataclasses.field(metadata={"static": True})
    columns: int = dataclasses.field(metadata={"static": True})
    most: int = dataclasses.field(metadata={"static": True})

    @property
    def kernel(self) -> str:
        return "jaxcomp_lists"

    def plain(self, x: jax.Array) -> jax.Array:
        """As `Gathered`, all filled up to the longest."""
        at = self.starts[None, :-1] + jnp.arange(self.most)[:, None]
        values = jnp.where(at < self.starts[None, 1:], self.values.at[at].get(mode="clip"), 0)
        return Gathered(values, self.index.at[at].get(mode="clip"), self.depth)(x)

    def dense(self) -> np.ndarray:
        stack = self.starts.shape[:-1]
        out = np.zeros((*stack, self.depth, self.columns), np.float32)
        each = jax.tree.map(np.asarray, self)
        for place in np.ndindex(*stack):
            used = each.starts[place][-1]
            owner = np.repeat(np.arange(self.columns), np.diff(each.starts[place]))
            out[place][each.index[place][:used], owner] = each.values[place][:used]
        return out

    def describe(self) -> str:
        mean = self.values.shape[-1] / max(1, self.columns)
        return f"{self.columns} outputs of {mean:,.4g} of {self.depth} inputs each on average, own kernel"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """One form."""
    weights = int(np.count_nonzero(matrix, axis=(-2, -1)).max())
    cost = weights * (prices.listed + prices.place)
    return [Proposal(cost, CALL, lambda: _packed(matrix))] if weights else []


def _packed(matrix: np.ndarray) -> Lists:
    *stack, depth, columns = matrix.shape
    matrices = matrix.reshape(-1, depth, columns)
    counts = np.count_nonzero(matrices, axis=1)
    starts = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0))).astype(np.int32)
    total = int(starts[:, -1].max())
    values, index = np.zeros((len(matrices), total), np.float32), np.zeros((len(matrices), total), np.int32)
    for number, one in enumerate(matrices):
        output, source = np.nonzero(one.T)  # output by output
        values[number, : len(output)], index[number, : len(output)] = one[source, output], source
    kept, places, begins = (jnp.asarray(x.reshape(*stack, -1)) for x in (values, index, starts))
    return Lists(kept, places, begins, depth, columns, int(counts.max()))
