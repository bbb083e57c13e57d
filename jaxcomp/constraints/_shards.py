"""What is asked of whole arrays, answered by the devices of a mesh that hold a piece of each.

XLA partitions a program by itself, but brings an array together wherever its axes are run into one or cut in a way that
its shards do not follow. Here every device does with its own piece what one device does with a whole array, and what it
counts is added up over the mesh.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Shard:
    """A device's piece of an array: the array's shape, and the axes of the mesh that each of its own is cut along."""

    piece: jax.Array
    shape: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]

    def places_of(self, piece: jax.Array, origin: Any) -> jax.Array:
        """The position of every entry in the whole array, row by row, from ``origin`` on."""
        first = [lax.axis_index(names) * n if names else 0 for n, names in zip(piece.shape, self.names, strict=True)]
        return places(piece.shape, origin, first, self.shape)


def places(
    shape: Sequence[int], origin: Any = 0, first: Sequence[Any] | None = None, whole: Sequence[int] | None = None
) -> jax.Array:
    """The position of every entry of an array, or of a piece of a whole that starts at the indices ``first``."""
    # From each axis's own index, which XLA computes shard by shard; a range in this shape it would compute whole.
    place, whole = jnp.full(shape, origin, jnp.int32), whole or shape
    for axis, start in enumerate(first or [0] * len(shape)):
        if whole[axis] > 1:
            place += (lax.broadcasted_iota(jnp.int32, shape, axis) + start) * math.prod(whole[axis + 1 :])
    return place


def total(x: jax.Array, names: Sequence[str]) -> jax.Array:
    """The sum of what the devices along these axes of a mesh found; where there are none, what this one did."""
    return lax.psum(x, tuple(names)) if names else x


def largest(x: jax.Array, names: Sequence[str]) -> jax.Array:
    """The largest of what the devices along these axes of a mesh found, likewise."""
    return lax.pmax(x, tuple(names)) if names else x


def shardwise(of_whole: Callable, of_shards: Callable, *, keeps: bool, units: Sequence[int] | None = None) -> Callable:
    """``of_whole(numbers, arrays)``, which a mesh computes as ``of_shards(numbers, shards)`` on each of its devices.

    Args:
        of_whole: a function of a pytree of numbers and a tuple of arrays, on one device and under `jax.vmap`.
        of_shards: the same of the numbers, which all devices have, and a tuple of `Shard`; it may use the collectives
            of the mesh.
        keeps: whether the result is a tuple of arrays that lie as the last of those given do; else it is a tuple of
            scalars.
        units: for every axis, a number of entries of which a piece must hold a multiple. All arrays have one shape,
            then, and lie as the first does. Where its shards are no such pieces, it is dealt out anew meanwhile.

    Derivatives are those of ``of_whole``, which XLA partitions by itself.
    """

    # Compiled as one function, whose constants are its own: what is partitioned may have none.
    partitioned, of_whole = custom_partitioning(jax.jit(of_whole)), jax.jit(of_whole)

    def partition(mesh, given, results):
        _, arrays = given
        names = tuple(_names(array, mesh, units) for array in arrays)
        names = (names[0],) * len(arrays) if units else names
        lie = tuple(NamedSharding(mesh, PartitionSpec(*(one or None for one in each))) for each in names)
        nowhere = NamedSharding(mesh, PartitionSpec())

        def compute(numbers, pieces):
            shards = zip(pieces, arrays, names, strict=True)
            return of_shards(numbers, tuple(Shard(piece, array.shape, each) for piece, array, each in shards))

        found = lie[len(lie) - len(results) :] if keeps else jax.tree.map(lambda _: nowhere, results)
        return mesh, compute, found, (jax.tree.map(lambda _: nowhere, given[0]), lie)

    def rule(mesh, values, results):
        shapes = [list(value.shape) for value in values]
        first = [shapes.index(shape) if units else i for i, shape in enumerate(shapes)]
        axes = tuple(tuple(f"a{i}_{axis}" for axis in range(len(shapes[i]))) for i in first)
        mappings: Any = axes, axes[len(axes) - len(results) :] if keeps else ((),) * len(results)
        return SdyShardingRule(*mappings)

    partitioned.def_partition(partition, sharding_rule=rule)

    @jax.custom_batching.custom_vmap
    def batched(numbers, arrays):
        return partitioned(numbers, arrays)

    @batched.def_vmap
    def _(axis_size, mapped, numbers, arrays):
        axes = jax.tree.map(lambda one: 0 if one else None, mapped)
        found = jax.vmap(of_whole, tuple(axes), axis_size=axis_size)(numbers, arrays)
        return found, jax.tree.map(lambda _: True, found)

    @jax.custom_jvp
    def differentiable(numbers, arrays):
        return batched(numbers, arrays)

    @differentiable.defjvp
    def _(primals, tangents):
        return jax.jvp(of_whole, primals, tangents)

    return jax.jit(differentiable)  # an operation at a time, XLA would bring arrays together


def _names(array: Any, mesh: Any, units: Sequence[int] | None) -> tuple[tuple[str, ...], ...]:
    """The axes of the mesh along which each axis is cut into pieces of whole units.

    Where it lies so, as it lies; else of all ways to deal these out, one that keeps most devices busy and moves least.
    """
    spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else ()
    lies = [() if one is None else (one,) if isinstance(one, str) else tuple(one) for one in spec]
    homes = [(name, axis) for axis, names in enumerate(lies) for name in names]
    nowhere = len(array.shape)

    def dealt(way):
        stay = [(name, axis) for (name, home), axis in zip(homes, way, strict=True) if axis == home]
        come = [(name, axis) for (name, home), axis in zip(homes, way, strict=True) if axis != home]
        return tuple(tuple(name for name, axis in stay + come if axis == i) for i in range(nowhere)), len(stay)

    def busy(names):
        return math.prod(mesh.shape[name] for name in names)

    def fits(found):
        each = zip(array.shape, units or (1,) * nowhere, found[0], strict=True)
        return all(n % (unit * busy(names)) == 0 for n, unit, names in each)

    ways = map(dealt, itertools.product(range(nowhere + 1), repeat=len(homes)))
    return max(filter(fits, ways), key=lambda found: (math.prod(map(busy, found[0])), found[1]))[0]


def used_names(shards: Sequence[Shard]) -> tuple[str, ...]:
    """The axes of the mesh that any of the arrays is cut along."""
    return tuple(dict.fromkeys(name for shard in shards for one in shard.names for name in one))


def owned(shard: Shard, names: Sequence[str]) -> jax.Array:
    """Whether this device answers for its piece, of which others along these axes may hold copies."""
    others = [name for name in names if not any(name in one for one in shard.names)]
    return functools.reduce(jnp.logical_and, (lax.axis_index(name) == 0 for name in others), jnp.array(True))
