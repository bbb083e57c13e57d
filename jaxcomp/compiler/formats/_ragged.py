"""Strips of outputs that share their inputs, each with as many as it needs: a kernel of our own, for CPUs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._coded import in_eight_bits
from jaxcomp.compiler.formats._own_kernel import CALL, OwnKernel
from jaxcomp.compiler.formats._plan import by_support
from jaxcomp.compiler.formats._prices import Prices, Proposal
from jaxcomp.compiler.formats._strips import Strips
from jaxcomp.compiler.formats._take import take

_WIDTHS = 32, 16  # two vectors and one, of the longest there are


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Ragged(OwnKernel):
    """Strips side by side, the weights of one after those of another; blocks are strips whose inputs come in runs.

    Nothing is gathered, nothing is added up elsewhere: the sums of a few rows and one strip stay in registers while
    the weights of the strip go by. All threads of XLA take part.

    Attributes:
        values: ``[*stack, inputs of all strips, width]``, float32, or int8 if there is a scale.
        scale: ``[*stack, strips * width]``, of each output, in the order of the strips; None for weights as they are.
        index: ``[*stack, inputs of all strips]``, which input they belong to.
        starts: ``[*stack, strips + 1]``, where the inputs of each strip begin. Of a stack some have fewer than others.
        order: ``[*stack, strips * width]``, where each output belongs, ascending in a strip; -1 where there is none.
        depth, columns: inputs and outputs in all.
        most: inputs of the strip that has most.
    """

    values: jax.Array
    scale: jax.Array | None
    index: jax.Array
    starts: jax.Array
    order: jax.Array
    depth: int = dataclasses.field(metadata={"static": True})
    columns: int = dataclasses.field(metadata={"static": True})
    most: int = dataclasses.field(metadata={"static": True})

    @property
    def kernel(self) -> str:
        return "jaxcomp_strips" if self.scale is None else "jaxcomp_coded_strips"

    def plain(self, x: jax.Array) -> jax.Array:
        """As `Strips`, all filled up to the longest."""
        at = self.starts[:-1, None] + jnp.arange(self.most)[None]
        there = at < self.starts[1:, None]
        values = jnp.where(there[..., None], self.values.at[at].get(mode="clip"), 0)
        y = Strips(values, self.index.at[at].get(mode="clip"), self.depth)(x)
        y = y if self.scale is None else y * self.scale[None]
        places = jnp.where(self.order < 0, self.columns, self.order)
        numbers = jnp.arange(len(places), dtype=jnp.int32)
        return take(y, jnp.zeros(self.columns, jnp.int32).at[places].set(numbers, mode="drop"), 1)

    def dense(self) -> np.ndarray:
        stack = self.starts.shape[:-1]
        out = np.zeros((*stack, self.depth, self.columns), np.float32)
        each = jax.tree.map(np.asarray, self)
        for place in np.ndindex(*stack):
            values, index, starts, order = (x[place] for x in (each.values, each.index, each.starts, each.order))
            matrix = np.zeros((len(starts) - 1, self.depth, values.shape[-1]), np.float32)
            used = starts[-1]
            owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
            matrix[owner, index[:used]] = values[:used]
            matrix = matrix.swapaxes(0, 1).reshape(self.depth, -1)
            if each.scale is not None:
                matrix *= each.scale[place]
            out[place][:, order[order >= 0]] = matrix[:, order >= 0]
        return out

    def describe(self) -> str:
        *_, inputs, width = self.values.shape
        strips = self.starts.shape[-1] - 1
        mean = f"{inputs / strips:,.4g} of {self.depth} inputs"
        codes = "" if self.scale is None else ", in 8 bits"
        return f"{strips} strip{'s' * (strips > 1)} of {width} outputs, {mean} each on average{codes}, own kernel"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """The better width of strips, outputs in order or brought together; in eight bits too where those are exact."""
    depth, columns = matrix.shape[-2:]
    matrices = matrix.reshape(-1, depth, columns)
    mask = matrices != 0
    found: list[tuple[int, int, np.ndarray]] = []
    for places in (np.broadcast_to(np.arange(columns), (len(mask), columns)), by_support(mask)):
        for width in _WIDTHS:
            order = _in_strips(places, width)
            found.append((int(_used(mask, order, width).sum(axis=(1, 2)).max()) * width, width, order))
    weights, width, order = min(found, key=lambda each: each[0])  # the first of equals: wide, and in order
    if not weights:
        return []
    said = prices.place * weights / width
    proposals = [Proposal(weights + said, CALL, functools.partial(_packed, matrix, None, width, order))]
    if coded := in_eight_bits(matrix):
        pack = functools.partial(_packed, *coded, width, order)
        proposals.append(Proposal(prices.coded * weights + said, CALL, pack))
    return proposals


def _in_strips(places: np.ndarray, width: int) -> np.ndarray:
    """``[stack, strips * width]``: ascending in every strip, the last one filled up."""
    stack, columns = places.shape
    filled = np.pad(places, ((0, 0), (0, -columns % width)), constant_values=columns)
    filled = np.sort(filled.reshape(stack, -1, width), axis=2).reshape(stack, -1)
    return np.where(filled == columns, -1, filled).astype(np.int32)


def _used(mask: np.ndarray, order: np.ndarray, width: int) -> np.ndarray:
    """``[stack, strips, depth]``: the inputs of every strip."""
    ordered = np.take_along_axis(mask, np.maximum(order, 0)[:, None], axis=2) & (order >= 0)[:, None]
    return np.any(ordered.reshape(*mask.shape[:2], -1, width), axis=3).swapaxes(1, 2)


def _packed(matrix: np.ndarray, scale: np.ndarray | None, width: int, order: np.ndarray) -> Ragged:
    *stack, depth, columns = matrix.shape
    matrices = matrix.reshape(-1, depth, columns)
    used = _used(matrices != 0, order, width)
    counts = used.sum(axis=2)
    starts = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0))).astype(np.int32)
    if scale is not None:
        scale = np.take_along_axis(scale.reshape(len(order), -1), np.maximum(order, 0), axis=1)
    total = int(starts[:, -1].max())
    values = np.zeros((len(matrices), total, width), matrices.dtype)
    index = np.zeros((len(matrices), total), np.int32)
    for number, (one, places) in enumerate(zip(matrices, order, strict=True)):
        strip, source = np.nonzero(used[number])  # strip by strip
        tiles = np.where(places < 0, 0, one[:, np.maximum(places, 0)]).reshape(depth, -1, width)
        values[number, : len(strip)], index[number, : len(strip)] = tiles[source, strip], source

    def stacked(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x.reshape(*stack, *x.shape[1:]))

    kept = None if scale is None else stacked(scale)
    arrays = stacked(values), kept, stacked(index), stacked(starts), stacked(order)
    return Ragged(*arrays, depth, columns, int(counts.max()))
