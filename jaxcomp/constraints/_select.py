"""The k largest of many scores, exactly, with a k that may be traced, and without a sort.

Non-negative floats order as their bit patterns do, so the k-th largest score is that of integers, which `_search` finds
in one pool and `_digits` in many. Ties at the threshold are kept in order of position, so the result holds exactly k
entries for every input.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcomp.constraints._digits import largest_by_digits
from jaxcomp.constraints._pieces import Pieces
from jaxcomp.constraints._search import Rows, bounds
from jaxcomp.constraints._shards import Shard, places, shardwise

_MOST = 2**31 - 2  # scores in one pool: counts and positions are 32-bit
_SMALL = 32  # up to here comparing all pairs beats searching


def select_top(scores: jax.Array, k: ArrayLike) -> jax.Array:
    """Mark the ``k`` largest of the last axis; among equals the earlier position wins.

    Args:
        scores: ``[..., n]``, floating point, not negative (a NaN counts as larger than any number).
        k: how many to keep, an integer of shape ``[...]`` or one for all; may be traced. Clipped to ``[0, n]``.

    Returns:
        A mask ``[..., n]`` of booleans with exactly ``k`` true entries along the last axis.

    >>> select_top(jnp.array([3.0, 1.0, 3.0, 3.0]), 2).tolist()
    [True, False, True, False]
    """
    return select_stored(stored(scores), k)


@jax.custom_jvp
def stored(scores: jax.Array) -> jax.Array:
    """The same scores, computed once for all of their uses.

    XLA may compute scores anew for each use, and round a multiplication and an addition together for one and apart for
    another. A score that differs from itself would count twice, or not at all. What comes out of a loop is stored; that
    this one makes one turn at most and changes nothing, XLA cannot know.
    """
    return _stored((), (scores,))[0] if scores.size else scores


@stored.defjvp
def _(primals, tangents):
    return stored(*primals), *tangents


def _store_arrays(numbers: tuple[()], arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    found = []
    for array in arrays:
        whole = f"int{8 * array.dtype.itemsize}"
        bits = lax.bitcast_convert_type(array, whole)
        found.append(lax.bitcast_convert_type(_turned(bits, lambda bits, i: bits ^ i, bits), array.dtype))
    return tuple(found)


def _store_shards(numbers: tuple[()], shards: tuple[Shard, ...]) -> tuple[jax.Array, ...]:
    # In place where that of the array may be used: XLA gives an array of another dtype a place of its own.
    return tuple(_turned(shard.piece, _kept, shard.piece) for shard in shards)


def _store_mask_of_shards(numbers: tuple[()], shards: tuple[Shard, Shard]) -> tuple[jax.Array]:
    # A byte a score. Were it found while scores are used, these could not be overwritten: each needs its neighbours.
    scores, mask = (shard.piece for shard in shards)
    return (_turned(mask, _kept, scores),)


def _kept(piece: jax.Array, i: jax.Array) -> jax.Array:
    return jnp.where(i > 0, jnp.zeros((), piece.dtype), piece)


def _turned(array: jax.Array, unchanged: Callable, witness: jax.Array) -> jax.Array:
    turns = (witness[(0,) * witness.ndim] >= 0).astype(jnp.int8)
    step = lambda carry: (carry[0] + 1, unchanged(carry[1], carry[0].astype(array.dtype)))  # noqa: E731
    return lax.while_loop(lambda carry: carry[0] < turns, step, (jnp.int8(0), array))[1]


_stored = shardwise(_store_arrays, _store_shards, keeps=True)
_stored_on_shards = shardwise(lambda numbers, arrays: arrays[1:], _store_mask_of_shards, keeps=True)


def select_stored(scores: jax.Array, k: ArrayLike, axes: int = 1) -> jax.Array:
    """`select_top` of scores that come from `stored`, in whatever order; a pool may lie along several last axes."""
    batch, pool = scores.shape[: scores.ndim - axes], scores.shape[scores.ndim - axes :]
    n = math.prod(pool)
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, n)
    k = k.reshape(batch) if k.size == math.prod(batch) else jnp.broadcast_to(k, batch)
    if scores.size == 0:
        return jnp.zeros(scores.shape, bool)
    if n > _SMALL and k.size == 1:
        return select_over([scores], k.reshape(()))[0]
    bits = _bits(lax.stop_gradient(scores)).reshape(*batch, n)
    if n <= _SMALL:
        keep = _by_rank(bits, k).reshape(scores.shape)
        return _stored_on_shards((), (lax.stop_gradient(scores), keep))[0]
    return largest_by_digits(bits.reshape(-1, n), k.reshape(-1)).reshape(scores.shape)


def select_over(arrays: Sequence[jax.Array], k: jax.Array) -> list[jax.Array]:
    """Mark the ``k`` largest of the entries of several arrays; among equals the earlier array, the earlier position.

    On a mesh every device searches its pieces of the arrays, in place, and adds up what it counts with the others.

    Args:
        arrays: of scores that come from `stored`, of one dtype, whatever their shapes. A sign is of no account.
        k: a scalar from 0 to their number.

    Raises:
        ValueError: there are 2³¹ scores or more.
    """
    arrays = [lax.stop_gradient(array) for array in arrays]
    if (size := sum(array.size for array in arrays)) > _MOST:
        raise ValueError(f"{size} scores in one pool, whose counts are 32-bit: at most {_MOST}; make several pools")
    low, high, last = _bounds((k,), tuple(arrays))
    keep, origin = [], 0
    for array in arrays:
        bits, place = _bits(array), places(array.shape, origin)
        keep.append(((bits >= high) | ((bits >= low) & (place <= last))) & (k > 0))
        origin += array.size
    return keep


def _bounds_of_whole(numbers, arrays):
    bits = [_bits(array).ravel() for array in arrays]
    return bounds(Rows(bits[0] if len(bits) == 1 else jnp.concatenate(bits)), numbers[0], _most(arrays))


def _bounds_of_shards(numbers, shards):
    integers = Pieces(shards, lambda piece, place: _bits(piece))
    return bounds(integers, numbers[0], _most([shard.piece for shard in shards]))


def _most(arrays):
    """The integer of a NaN, the largest there is."""
    return _bits(jnp.full((), jnp.nan, arrays[0].dtype))


_bounds = shardwise(_bounds_of_whole, _bounds_of_shards, keeps=False)


def _bits(scores: jax.Array) -> jax.Array:
    """Integers in the order of the scores; narrow floats widen to float32 without loss."""
    scores = jnp.where(jnp.isnan(scores), jnp.nan, jnp.abs(scores))  # one -0.0, one NaN, whatever their other bits
    if scores.dtype.itemsize < 4:
        scores = scores.astype(jnp.float32)
    return lax.bitcast_convert_type(scores, jnp.int64 if scores.dtype.itemsize == 8 else jnp.int32)


def _by_rank(bits: jax.Array, k: jax.Array) -> jax.Array:
    """Keep the entries of the last axis that fewer than ``k`` others beat: n² comparisons, one pass, no loop."""
    position = jnp.arange(bits.shape[-1])
    earlier = (position[None, :] < position[:, None]).reshape((1,) * (bits.ndim - 1) + 2 * (bits.shape[-1],))
    mine, others = bits[..., :, None], bits[..., None, :]
    return jnp.sum((others > mine) | ((others == mine) & earlier), axis=-1) < k[..., None]
