"""A `dot_general` as rows times a packed matrix."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp.compiler._rewrite import Site


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Contraction:
    """A way of doing a `dot_general`: the activation is laid out as rows, and the rows go through a format.

    Attributes:
        format: of the matrix ``[depth, columns]``, its arrays with a leading axis for every batch axis.
        batch: axes of the activation that it shares with the weights.
        depth: axes of it that are summed over.
        columns: sizes of the axes that the weights alone have.
        weights_first: whether those come before the rows in the output.
        dtype: of the output.
    """

    format: Any
    batch: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    depth: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    columns: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    weights_first: bool = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = [axis for axis in range(x.ndim) if axis not in self.batch + self.depth]
        sizes = [[x.shape[axis] for axis in axes] for axes in (self.batch, rows, self.depth)]
        x = x.transpose(*self.batch, *rows, *self.depth).reshape(*sizes[0], *sizes[1], math.prod(sizes[2]))

        def multiplied(packed: Any, x: jax.Array) -> jax.Array:
            return packed(x, self.dtype)

        call: Callable[[Any, jax.Array], jax.Array] = multiplied
        for _ in self.batch:
            call = jax.vmap(call)
        y = call(self.format, x).reshape(*sizes[0], *sizes[1], *self.columns).astype(self.dtype)
        if self.weights_first:
            batch, end = len(sizes[0]), len(sizes[0]) + len(sizes[1])
            y = y.transpose(*range(batch), *range(end, y.ndim), *range(batch, end))
        return y

    def describe(self) -> str:
        return self.format.describe()


def matrix(site: Site) -> np.ndarray:
    """``[*loops, *batch, depth, columns]``, the weights of a `dot_general`."""
    depth, batch, free = _axes(site)
    x = np.asarray(site.weights.array)
    loops = len(site.weights.loops)
    order = [*range(loops), *(loops + axis for axis in (*batch, *depth, *free))]
    shape = site.eqn.invars[site.side].aval.shape
    sizes = [math.prod(shape[axis] for axis in axes) for axes in (depth, free)]
    return x.transpose(order).reshape(*x.shape[:loops], *(shape[axis] for axis in batch), *sizes)


def contraction(site: Site, packed: Any) -> Contraction:
    """The way that puts the packed matrix of a product to use."""
    contracted, batched = site.eqn.params["dimension_numbers"]
    shape = site.eqn.invars[site.side].aval.shape
    return Contraction(
        packed,
        tuple(batched[1 - site.side]),
        tuple(contracted[1 - site.side]),
        tuple(shape[axis] for axis in _axes(site)[2]),
        site.side == 0,
        site.eqn.outvars[0].aval.dtype,
    )


def _axes(site: Site) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Axes of the weights: summed over, shared with the activation, and their own."""
    contracted, batched = (tuple(axes[site.side]) for axes in site.eqn.params["dimension_numbers"])
    ndim = site.eqn.invars[site.side].aval.ndim
    return contracted, batched, tuple(axis for axis in range(ndim) if axis not in contracted + batched)
