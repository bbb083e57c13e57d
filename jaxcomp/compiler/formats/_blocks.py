"""Blocks wherever they fall: each is multiplied by its inputs, and the products are added up by output."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler.formats._format import Format, dot, result_dtype, sum_dtype
from jaxcomp.compiler.formats._prices import Prices, Proposal

_SIDES = (16, 32, 64, 128)
_FULL = 0.5  # of the blocks at least so much is not zero


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks(Format):
    """Blocks of the same shape; some strips of outputs may have more than others, and none need be filled up.

    Inputs are gathered a run at a time, as they lie; all products are one, batched over blocks; a scatter adds them up.

    Attributes:
        values: ``[*stack, blocks, run, width]``.
        source: ``[*stack, blocks]``, which run of inputs a block reads.
        target: ``[*stack, blocks]``, which strip of outputs it is added to, in ascending order.
        depth, columns: inputs and outputs in all.
    """

    values: jax.Array
    source: jax.Array
    target: jax.Array
    depth: int = dataclasses.field(metadata={"static": True})
    columns: int = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array, preferred_element_type: Any = None) -> jax.Array:
        dtype = result_dtype(x, self.values, preferred_element_type)
        wide = sum_dtype(dtype)
        _, run, width = self.values.shape
        batch, x = x.shape[:-1], x.reshape(-1, self.depth // run, run)
        n = len(x)
        numbers = lax.GatherDimensionNumbers((1, 2), (1,), (1,))
        clip = lax.GatherScatterMode.CLIP
        read = lax.gather(x, self.source[:, None], numbers, (n, 1, run), mode=clip)
        products = dot(read, self.values, (2, 1), wide, batch=(0, 0))
        y = jnp.zeros((self.columns // width, n, width), wide)
        y = y.at[self.target].add(products, mode="clip", indices_are_sorted=True)
        return y.transpose(1, 0, 2).astype(dtype).reshape(*batch, self.columns)

    def dense(self) -> np.ndarray:
        values, source, target = (np.asarray(leaf) for leaf in (self.values, self.source, self.target))
        *stack, _, run, width = values.shape
        out = np.zeros((*stack, self.depth // run, self.columns // width, run, width), values.dtype)
        for place in np.ndindex(*stack):
            np.add.at(out[place], (source[place], target[place]), values[place])
        return np.swapaxes(out, -3, -2).reshape(*stack, self.depth, self.columns)

    def describe(self) -> str:
        blocks, run, width = self.values.shape[-3:]
        return f"{blocks} blocks of {run} by {width} of {self.depth // run * (self.columns // width)}"


def propose(matrix: np.ndarray, prices: Prices) -> list[Proposal]:
    """The cheapest shape of block, if most of what the blocks hold is not zero."""
    depth, columns = matrix.shape[-2:]
    mask = matrix.reshape(-1, depth, columns) != 0
    most = np.count_nonzero(mask, axis=(1, 2)).max()
    found: list[tuple[float, int, int]] = []
    for run, width in itertools.product(_SIDES, _SIDES):
        if depth % run or columns % width:
            continue
        used = np.any(mask.reshape(-1, depth // run, run, columns // width, width), axis=(2, 4))
        blocks = int(np.count_nonzero(used, axis=(1, 2)).max())
        if 0 < blocks * run * width * _FULL <= most:
            each = run * width + (run + width) * prices.copied
            found.append((blocks * each, run, width))
    return [Proposal(cost, 2, functools.partial(_packed, matrix, *shape)) for cost, *shape in sorted(found)[:1]]


def _packed(matrix: np.ndarray, run: int, width: int) -> Blocks:
    *stack, depth, columns = matrix.shape
    tiles = matrix.reshape(-1, depth // run, run, columns // width, width).transpose(0, 3, 1, 2, 4)
    used = (tiles != 0).any(axis=(3, 4)).reshape(len(tiles), -1)
    most = int(used.sum(axis=1).max())
    # Those in use first, by strip of outputs; where a layer has fewer, blocks of zeros are among them.
    numbers = np.sort(np.argsort(~used, axis=1, kind="stable")[:, :most], axis=1)
    values = np.take_along_axis(tiles.reshape(len(tiles), -1, run, width), numbers[..., None, None], axis=1)
    target, source = np.divmod(numbers.astype(np.int32), depth // run)
    return Blocks(
        jnp.asarray(values.reshape(*stack, most, run, width)),
        jnp.asarray(source.reshape(*stack, most)),
        jnp.asarray(target.reshape(*stack, most)),
        depth,
        columns,
    )
