"""What is found of every group of a view, by the devices of a mesh that hold a part of it each.

On a mesh every device splits its own piece of a leaf into pools, groups and elements. A group that goes on beyond the
piece is completed by sums over the axes of the mesh along which it is dealt out. A piece holds whole tiles: where those
of a leaf cut tiles apart, the leaf is dealt out along another axis meanwhile.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp.constraints._constraint import to_unit
from jaxcomp.constraints._shards import largest, shardwise
from jaxcomp.constraints._view import View


def groupwise(of_groups: Callable, view: View, numbers: Any, *arrays: jax.Array) -> jax.Array:
    """``of_groups(numbers, *parts, shape=, names=)`` of the groups of leaves of one shape, merged again.

    Args:
        of_groups: a function that is defined once, as what is compiled is kept by it. ``parts`` are those of the
            arrays, each ``[pools, groups, elements]`` in float32 at least, ``shape`` that of the leaf, or of a device's
            piece of it, and ``names`` the axes of the mesh along which the other elements of the groups lie: sums over
            elements go on over these. On one device there are none. It returns an array like the parts.
        view: what a group is.
        numbers: a pytree of what else it takes; the same on all devices.
        arrays: leaves of one shape. The result has the dtype of the last.
    """
    numbers = jax.tree.map(jnp.asarray, numbers)
    return _of_leaves(of_groups, view, arrays[0].shape)(numbers, arrays)[0]


@functools.lru_cache(maxsize=1024)
def _of_leaves(of_groups: Callable, view: View, shape: tuple[int, ...]) -> Callable:
    grains = view.grains(shape)

    def near(numbers, arrays, names):
        wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays]
        found = of_groups(numbers, *map(view.split, wide), shape=arrays[0].shape, names=names)
        return (view.merge(found, arrays[0].shape).astype(arrays[-1].dtype),)

    def of_whole(numbers, arrays):
        return near(numbers, arrays, ())

    def of_shards(numbers, shards):
        along = [names for names, grain in zip(shards[0].names, grains, strict=True) if grain.shared]
        return near(numbers, [shard.piece for shard in shards], sum(along, ()))

    return shardwise(of_whole, of_shards, keeps=True, units=[grain.unit for grain in grains])


def unit_over(parts: jax.Array, names: Sequence[str]) -> jax.Array:
    """`to_unit` of groups that go on over these axes of a mesh."""
    return to_unit(largest(jnp.max(jnp.abs(parts), axis=2, keepdims=True), names)) if names else to_unit(parts)
