"""Sums along the last axis, in the order in which a processor adds fastest and rounding grows least.

Of a sum over few lines of many lanes XLA on a CPU writes out the additions and takes many lanes at once, also where
several sums share a pass. What is longer it adds in scalar code, or stores the terms first. So the axis is cut into
runs of few lines of lanes: lines are added to one another, and a sum a lane and run is left.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxcomp.constraints._shards import largest, total

LANES = 16
LINES = 8  # of a run, at most
_FEW = 12  # numbers whose additions XLA writes out
_LARGE = 2**20  # numbers, beyond which memory counts for more than a tenth of the time
_RUN = 1024  # numbers that are added one after another; in longer sums the rounding would show


def in_lanes(x: jax.Array, fill: float) -> jax.Array:
    """``[..., n]`` as ``[..., runs, lines, lanes]``, filled up at the end where it must be.

    If n is small, the lanes are what stands on the last axis but one: ``[..., n, lanes]``.
    """
    *batch, n = x.shape
    if n <= _FEW:
        return x.swapaxes(-1, -2) if batch else x[:, None]
    lines = -(-n // LANES)
    runs = -(-lines // LINES)
    lines = -(-lines // runs)
    missing = runs * lines * LANES - n
    if missing:
        x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, missing)], constant_values=fill)
    return x.reshape(*batch, runs, lines, LANES)


def beside(numbers: jax.Array, lanes: jax.Array) -> jax.Array:
    """``[..., 1]``, as it broadcasts with lanes."""
    if lanes.ndim <= max(numbers.ndim, 2):
        return numbers.reshape(*numbers.shape[:-2], 1, -1)
    return numbers.reshape(*numbers.shape, 1, 1)


def from_lanes(lanes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `in_lanes` for an array of this shape."""
    *batch, n = shape
    if n <= _FEW:
        return lanes.swapaxes(-1, -2) if batch else lanes[:, 0]
    return lanes.reshape(*batch, -1)[..., :n]


def sum_lines(x: jax.Array) -> jax.Array:
    """Lanes summed over lines."""
    # Kept apart, or XLA makes one sum of this and of what sums its result.
    return lax.optimization_barrier(jnp.sum(x, axis=-2, dtype=x.dtype))


def sums_in_lanes(terms: Sequence[jax.Array], ndim: int, names: Sequence[str] = ()) -> list[jax.Array]:
    """The sums of several terms in lanes, in one pass, each as ``[..., 1]`` with so many axes.

    As all sums here, they go on over the axes of a mesh that are named.
    """
    return [long_sum(_of_rows(x, terms[0].ndim, ndim), names) for x in _add_along(-2, *terms)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _add_along(axis, *terms):
    nothing = [jnp.zeros((), x.dtype) for x in terms]
    add = functools.partial(jax.tree.map, jnp.add)
    return lax.optimization_barrier(lax.reduce(list(terms), nothing, add, (terms[0].ndim + axis,)))


@_add_along.defjvp
def _(axis, terms, changes):
    sums = _add_along(axis, *terms)
    counts = [np.zeros(total.shape, jax.dtypes.float0) for total in sums]
    pairs = zip(changes, counts, strict=True)
    return sums, [count if change.dtype == count.dtype else jnp.sum(change, axis=axis) for change, count in pairs]


def anew(x: jax.Array, *known: jax.Array) -> jax.Array:
    """The same array, read once more when these are known.

    XLA would make what two passes have in common once, and store it: as much as the array again.
    """
    return lax.optimization_barrier((x, *known))[0]


def anew_if_large(x: jax.Array, *known: jax.Array) -> jax.Array:
    """`anew` of many numbers. What is made of few may be stored: many passes of much arithmetic are then shorter."""
    return anew(x, *known) if x.size > _LARGE else x


def max_in_lanes(x: jax.Array, ndim: int, names: Sequence[str] = ()) -> jax.Array:
    """The largest of numbers in lanes, as ``[..., 1]`` with so many axes."""
    of_lines = lax.optimization_barrier(jnp.max(x, axis=-2))
    return largest(jnp.max(_of_rows(of_lines, x.ndim, ndim), axis=-1, keepdims=True), names)


def long_sum(x: jax.Array, names: Sequence[str] = ()) -> jax.Array:
    """The sum over the last axis, which stays: of runs, then of their sums, for the error grows with the length.

    Of integers, however few bits each has, it is one of 32.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.int32))
    while x.shape[-1] > _RUN:
        # Kept apart, or XLA makes one sum of the two.
        x = lax.optimization_barrier(jnp.sum(in_runs(x, 0), axis=-1, dtype=x.dtype))
    return total(jnp.sum(x, axis=-1, keepdims=True, dtype=x.dtype), names)


def in_runs(x: jax.Array, fill: float) -> jax.Array:
    """The last axis as rows of equal length, not longer than a run: filled up, and no copy where that is not needed."""
    *batch, n = x.shape
    rows = -(-n // _RUN)
    length = -(-n // rows)
    padded = jnp.pad(x, [(0, 0)] * len(batch) + [(0, rows * length - n)], constant_values=fill)
    return padded.reshape(*batch, rows, length)


def from_runs(runs: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `in_runs` for an array of this shape."""
    return runs.reshape(*shape[:-1], -1)[..., : shape[-1]]


def sums_of_runs(terms: Sequence[jax.Array], names: Sequence[str] = ()) -> list[jax.Array]:
    """The sums of several terms in runs over the last two axes, which stay, in one pass."""
    return [total(jnp.sum(x, axis=-1)[..., None, None], names) for x in _add_along(-1, *terms)]


def max_of_runs(runs: jax.Array, names: Sequence[str] = ()) -> jax.Array:
    """The largest over the last two axes, which stay."""
    of_runs = lax.optimization_barrier(jnp.max(runs, axis=-1))
    return largest(jnp.max(of_runs, axis=-1)[..., None, None], names)


def descending(x: jax.Array) -> jax.Array:
    """Numbers that are not negative, sorted along the last axis, the largest first."""
    # Their bits are ordered as they are, and XLA on a CPU sorts integers five times as fast.
    bits = lax.bitcast_convert_type(x, f"int{jnp.finfo(x.dtype).bits}")
    return lax.bitcast_convert_type(-jnp.sort(-bits, axis=-1), x.dtype)


def in_order(x: jax.Array) -> jax.Array:
    """The same array, in memory in the order of its axes: else XLA may turn it at every use instead of once."""
    return with_layout_constraint(jnp.asarray(x), Layout(tuple(range(x.ndim))))


def _of_rows(x, before, ndim):
    """What is left of lanes of so many axes, as ``[..., numbers]``: one a row where lanes are rows."""
    if before <= max(ndim, 2):
        return x[..., None] if ndim > 1 else x
    return x.reshape(*x.shape[: ndim - 1], -1)
