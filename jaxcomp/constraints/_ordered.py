"""Numbers in order along an axis that goes on over the devices of a mesh; without a mesh, on one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcomp.constraints._lanes import descending
from jaxcomp.constraints._shards import largest, total


def descending_over(x: jax.Array, names: Sequence[str] = ()) -> tuple[jax.Array, ArrayLike]:
    """Numbers that are not negative, sorted along the last axis, and how many come before this device's.

    Neighbours merge what they hold and part it, first those at even places with the next, then those at odd: as many
    times as there are devices, and no device ever holds more than it has and its neighbour has.
    """
    mine, n = descending(x), x.shape[-1]
    if not names:
        return mine, 0
    names, place = tuple(names), lax.axis_index(tuple(names))
    count = lax.axis_size(names)

    def exchange(mine, first):
        pairs = [(i, i + 1) for i in range(first, count - 1, 2)]
        theirs = lax.ppermute(mine, names, pairs + [(j, i) for i, j in pairs])
        both = descending(jnp.concatenate([mine, theirs], axis=-1))
        left = (place - first) % 2 == 0
        alone = jnp.where(left, place + 1 == count, place == 0)
        return jnp.where(alone, mine, jnp.where(left, both[..., :n], both[..., n:]))

    mine = lax.fori_loop(0, -(-count // 2), lambda _, mine: exchange(exchange(mine, 0), 1), mine)
    return mine, (place * n).astype(x.dtype)


def cumsum_over(x: jax.Array, names: Sequence[str] = ()) -> jax.Array:
    """Sums of the numbers so far along the last axis."""
    so_far = jnp.cumsum(x, axis=-1)
    if not names:
        return so_far
    sums = lax.all_gather(so_far[..., -1:], tuple(names))
    earlier = (jnp.arange(len(sums)) < lax.axis_index(tuple(names))).reshape(-1, *[1] * x.ndim)
    return so_far + jnp.sum(jnp.where(earlier, sums, 0), axis=0)


def of_best(x: jax.Array, score: jax.Array, names: Sequence[str] = ()) -> jax.Array:
    """``[..., 1]``: of the last axis, the number of the largest score; of equal ones, of the first."""
    best = jnp.argmax(score, axis=-1, keepdims=True)
    found = jnp.take_along_axis(x, best, axis=-1)
    if not names:
        return found
    top = jnp.take_along_axis(score, best, axis=-1)
    place = lax.axis_index(tuple(names))
    first = -largest(jnp.where(top == largest(top, names), -place, -lax.axis_size(tuple(names))), names)
    return total(jnp.where(place == first, found, 0), names)
