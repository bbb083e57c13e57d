"""Scores in several arrays, of which every device of a mesh holds pieces, as integers to search among."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxcomp.constraints._search import pack, search, unpack
from jaxcomp.constraints._shards import Shard, owned, used_names

_LANES, _LINES = 16, 32  # XLA would make a tree of sums of more lines, and store their terms


class Pieces:
    """Integers made of the entries of shards at every pass, and never stored: memory is for the shards.

    Args:
        shards: of all arrays, in order.
        integers: what an entry makes, element by element, of a piece and of its places among all entries.
    """

    def __init__(self, shards: Sequence[Shard], integers: Callable):
        sizes = [math.prod(shard.shape) for shard in shards]
        self.size = sum(sizes)
        self._shards, self._integers = shards, integers
        self._origins = [sum(sizes[:i]) for i in range(len(sizes))]
        self._names = used_names(shards)

    def count(self, thresholds: jax.Array) -> jax.Array:
        def ours(integers, thresholds):
            lines, rest = _in_lines(integers)
            packed = lax.optimization_barrier(jnp.sum(pack(lines, thresholds), axis=1, dtype=jnp.int32))
            few = jnp.sum(rest[None, :] >= thresholds[:, None], axis=1, dtype=jnp.int32)
            return unpack(packed.ravel()) + few

        counts = [
            jnp.where(owned(shard, self._names), ours(*self._pass(i, thresholds)), 0)
            for i, shard in enumerate(self._shards)
        ]
        found = functools.reduce(jnp.add, counts)
        return lax.psum(found, self._names) if self._names else found

    def extent(self, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
        def ours(integers, low, high):
            lines, rest = _in_lines(integers)
            least = jnp.min(jnp.where(lines >= low, lines, high), axis=1)
            most = jnp.max(jnp.where(lines < high, lines, low), axis=1)
            least, most = lax.optimization_barrier((least, most))
            least = jnp.min(least, initial=jnp.min(jnp.where(rest >= low, rest, high), initial=high))
            most = jnp.max(most, initial=jnp.max(jnp.where(rest < high, rest, low), initial=low))
            return least, most

        ends = [ours(*self._pass(i, low, high)) for i in range(len(self._shards))]
        least, most = (jnp.stack(each) for each in zip(*ends, strict=True))
        least, most = jnp.min(least), jnp.max(most)
        return (lax.pmin(least, self._names), lax.pmax(most, self._names)) if self._names else (least, most)

    def sample(self, stride: int) -> jax.Array:
        parts = [self._pass(i)[0].ravel()[::stride] for i in range(len(self._shards))]
        sample = jnp.concatenate(parts)
        return lax.all_gather(sample, self._names, tiled=True) if self._names else sample

    def last_tie(self, value: jax.Array, wanted: jax.Array) -> jax.Array:
        """The wanted-th largest distance of a tie to the end."""
        n = self.size

        def distances(piece, place):
            return jnp.where(self._integers(piece, place) == value, n - place, -1)

        ties = Pieces(self._shards, distances)
        there = ties.count(jnp.arange(5, dtype=jnp.int32))[1]
        bracket = jnp.int32(1), jnp.int32(n + 1), there, jnp.int32(0)
        return n - search(ties, bracket, wanted)[0]

    def _pass(self, i: int, *others: jax.Array) -> tuple[jax.Array, ...]:
        """The integers of a shard, made anew for this pass, and what they are compared with."""
        shard = self._shards[i]
        # Tied to what changes from pass to pass, or XLA would make them before the loop, and store them.
        piece, origin, *others = lax.optimization_barrier((shard.piece, jnp.int32(self._origins[i]), *others))
        return self._integers(piece, shard.places_of(piece, origin)), *others


def _in_lines(integers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``[runs, lines, lanes]``, and what is left over."""
    flat = integers.ravel()
    whole = flat.size // (_LANES * _LINES) * _LANES * _LINES
    return flat[:whole].reshape(-1, _LINES, _LANES), flat[whole:]
