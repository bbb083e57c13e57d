"""What is found of every group of a view, by the devices of a mesh that hold a part of it each.

On a mesh every device splits its own piece of a leaf into pools, groups and elements. A group that goes on beyond the
piece is completed by sums over the axes of the mesh along which it is dealt out. A piece holds whole tiles: where those
of a leaf cut tiles apart, the leaf is dealt out along another axis meanwhile.

What is found of a group are numbers that decide its entries one by one, and these are written where they were read: a
leaf that is given away takes its own memory and little else. For views that move entries a device takes its piece a
slice at a time, so that what is moved is a slice.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcomp.constraints._constraint import not_finite, to_unit
from jaxcomp.constraints._lanes import anew
from jaxcomp.constraints._shards import largest, shardwise, total, used_names
from jaxcomp.constraints._view import Grain, View

_SLICE, _SLICES = 2**19, 32  # numbers that are not worth a slice; slices that are enough


def groupwise(
    decide: Callable, entries: Callable, view: View, numbers: Any, *arrays: jax.Array, guarded: bool = False
) -> jax.Array:
    """``entries(numbers, found, *parts)`` of the groups of leaves of one shape, merged again.

    Args:
        decide: ``decide(numbers, *parts, shape=, names=)`` returns what is found of every group: a pytree of
            ``[pools, groups, 1]``. ``parts`` are those of the arrays, each ``[pools, groups, elements]`` in float32 at
            least, ``shape`` that of the leaf, or of a device's piece of it, and ``names`` the axes of the mesh along
            which the other elements of the groups lie: sums over elements go on over these. On one device there are
            none. Like `entries` it is a function that is defined once, as what is compiled is kept by it.
        entries: returns an array like the parts, each of whose entries follows from those at its place and from what
            was found of its group. It may be given leaves that are a single group in their own shape.
        view: what a group is.
        numbers: a pytree of what else these take; the same on all devices.
        arrays: leaves of one shape. The result has the dtype of the last.
        guarded: whether the result is NaN throughout where the last array is not finite.
    """
    numbers = jax.tree.map(jnp.asarray, numbers)
    return _of_leaves(decide, entries, view, arrays[0].shape, guarded)(numbers, arrays)[0]


@functools.lru_cache(maxsize=1024)
def _of_leaves(
    decide: Callable, entries: Callable, view: View, shape: tuple[int, ...], guarded: bool
) -> Callable[..., tuple[jax.Array]]:
    grains = view.grains(shape)

    def of_pieces(numbers, arrays, names):
        wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays]
        parts, piece = list(map(view.split, wide)), arrays[0].shape
        found = decide(numbers, *parts, shape=piece, names=names)
        if view.is_whole:  # in the leaf's own shape: of another XLA would make a copy
            found = jax.tree.map(lambda one: one.reshape(()), found)
            near = entries(numbers, found, *(anew(x, *jax.tree.leaves(found)) for x in wide))
        else:
            near = view.merge(entries(numbers, found, *parts), piece)
        return near.astype(arrays[-1].dtype)

    def of_arrays(numbers, arrays, names):
        found, wrong = of_pieces(numbers, arrays, names), jnp.float32(0)
        if guarded:
            wrong = not_finite(arrays[-1])
            found = jnp.where(wrong == 0, found, jnp.nan)
        return found, wrong

    def of_whole(numbers, arrays):
        return of_arrays(numbers, arrays, ())[:1]

    def of_shards(numbers, shards):
        names = sum((names for names, grain in zip(shards[0].names, grains, strict=True) if grain.shared), ())
        pieces = [shard.piece for shard in shards]
        found, wrong = _in_slices(lambda *arrays: of_arrays(numbers, arrays, names), grains, pieces)
        return (jnp.where(total(wrong, used_names(shards)) == 0, found, jnp.nan) if guarded else found,)

    return shardwise(of_whole, of_shards, keeps=True, units=[grain.unit for grain in grains])


def _in_slices(function: Callable, grains: Sequence[Grain], arrays: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """``function(*arrays)``, an array and a sum, of slices that hold whole groups: each replaces the last array's."""
    shape = arrays[-1].shape
    axis, length = _slice(grains, shape)
    if length == shape[axis]:
        return function(*arrays)

    def rewrite(i, carry):
        x, sums = carry
        slices = [lax.dynamic_slice_in_dim(one, i * length, length, axis) for one in (*arrays[:-1], x)]
        found, more = function(*slices)
        return lax.dynamic_update_slice_in_dim(x, found, i * length, axis), sums + more

    return lax.fori_loop(0, shape[axis] // length, rewrite, (arrays[-1], jnp.float32(0)))


def _slice(grains: Sequence[Grain], shape: Sequence[int]) -> tuple[int, int]:
    """Along which axis slices are cut, that of most tiles, and how long they are."""
    tiles = [1 if grain.shared else n // grain.unit for n, grain in zip(shape, grains, strict=True)]
    axis, size = int(np.argmax(tiles)), math.prod(shape)
    wanted = min(-(-size // max(_SLICE, size // _SLICES)), tiles[axis])
    count = next(n for n in range(wanted, tiles[axis] + 1) if tiles[axis] % n == 0)
    return axis, shape[axis] // count


def unit_over(parts: jax.Array, names: Sequence[str]) -> jax.Array:
    """`to_unit` of groups that go on over these axes of a mesh."""
    return to_unit(largest(jnp.max(jnp.abs(parts), axis=2, keepdims=True), names)) if names else to_unit(parts)
