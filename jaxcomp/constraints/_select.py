"""The k largest of many scores, exactly, with a k that may be traced, and without a sort.

Non-negative floats order as their bit patterns do, so the k-th largest score is found by narrowing an interval
of integers. A strided sample says where to look; then every pass over the scores counts five thresholds at once,
packed six bits each into one integer, placed where the counts seen so far say the answer lies; thresholds that part
no scores fell among ties, and the interval is drawn together about them. A handful of passes settle what a bisection
of the 31 bits needs 31 for, and XLA's sort on a CPU many times longer.
Ties at the threshold are kept in order of position, so the result holds exactly k entries for every input.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcomp.constraints._digits import largest_by_digits

_BITS = 6  # of a packed count
_ROWS = 2**_BITS - 1  # longest column whose counts fit them
_PLACES = (-6.0, -1.0, 0.0, 1.0, 6.0)  # of the thresholds, in standard deviations about the expected one
_SHIFTS = tuple(_BITS * i for i in range(len(_PLACES)))
_LARGE = 500_000  # from here on a sample saves more than it takes to compile
_SAMPLE = 4096  # scores read to place the first thresholds
_SMALL = 32  # up to here comparing all pairs beats searching
_STRIDE = 512  # rows that lie a multiple of it apart compete for the same lines of a cache


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


def stored(scores: jax.Array) -> jax.Array:
    """The same scores, without a derivative, computed once for all of their uses.

    XLA may compute scores anew for each use, and round a multiplication and an addition together for one and apart for
    another. A score that differs from itself would count twice, or not at all. What comes out of a loop is stored; that
    this one makes one turn at most and changes nothing, XLA cannot know.
    """
    if scores.size == 0:
        return scores
    whole = jnp.int64 if scores.dtype.itemsize == 8 else jnp.int32 if scores.dtype.itemsize == 4 else jnp.int16
    bits = lax.bitcast_convert_type(lax.stop_gradient(scores), whole).ravel()
    zero, turns = jnp.zeros((), whole), (bits[0] >= 0).astype(whole)
    bits = lax.while_loop(lambda c: c[0] < turns, lambda c: (c[0] + 1, c[1] ^ c[0]), (zero, bits))[1]
    return lax.bitcast_convert_type(bits, scores.dtype).reshape(scores.shape)


def select_stored(scores: jax.Array, k: ArrayLike) -> jax.Array:
    """`select_top` of scores that come from `stored`, in whatever order."""
    *batch, n = scores.shape
    k = jnp.broadcast_to(jnp.clip(jnp.asarray(k, jnp.int32), 0, n), batch)
    if scores.size == 0:
        return jnp.zeros(scores.shape, bool)
    bits, k = _bits(lax.stop_gradient(scores)).reshape(-1, n), k.reshape(-1)
    if n <= _SMALL:
        keep = jax.vmap(_by_rank)(bits, k)
    elif k.size == 1:
        keep = _by_search(bits[0], k[0])
    else:
        keep = largest_by_digits(bits, k)
    return keep.reshape(scores.shape)


def _bits(scores: jax.Array) -> jax.Array:
    """Integers in the order of the scores; narrow floats widen to float32 without loss."""
    scores = jnp.where(jnp.isnan(scores), jnp.nan, jnp.abs(scores))  # one -0.0, one NaN, whatever their other bits
    if scores.dtype.itemsize < 4:
        scores = scores.astype(jnp.float32)
    return lax.bitcast_convert_type(scores, jnp.int64 if scores.dtype.itemsize == 8 else jnp.int32)


def _by_rank(bits: jax.Array, k: jax.Array) -> jax.Array:
    """Keep the entries that fewer than ``k`` others beat: n² comparisons, one pass, no loop."""
    position = jnp.arange(bits.size)
    beats = (bits[None, :] > bits[:, None]) | (
        (bits[None, :] == bits[:, None]) & (position[None, :] < position[:, None])
    )
    return jnp.sum(beats, axis=1) < k


def _by_search(bits: jax.Array, k: jax.Array) -> jax.Array:
    n = bits.size
    rows = _in_rows(bits)
    # [low, high) holds the k-th largest: `above` scores reach low, `over` of them reach high, over < k <= above.
    if n > _LARGE:
        sample = bits[:: n // _SAMPLE | 1]  # an odd stride does not fall in step with rows of even length
        rank = k * (sample.size / n)
        margin = 2.5 * jnp.sqrt(rank * (1 - k / n)) + 2
        low, high = jax.vmap(_rank_value, (None, 0))(sample, jnp.stack([rank + margin, rank - margin]))
        high = jnp.maximum(high, low + 1)
        # The successors settle at once the scores of which many are equal (rounded, constant, mostly zero).
        guess = jnp.stack([low, low + 1, low + 1 + (high - low - 1) // 2, high, high + 1])
        bracket = _narrow(_everything(bits), guess, rows, k)
    else:
        bracket = _close(_everything(bits), rows)
    low, high, above, over = _search(rows, bracket, k)
    last = lax.cond(above == k, lambda: jnp.int32(n), lambda: _last_tie(rows, low, k - over))
    keep = (bits >= high) | ((bits >= low) & (jnp.arange(n) <= last))
    return keep & (k > 0)


def _in_rows(bits: jax.Array) -> jax.Array:
    """``[<= _ROWS, columns]``, filled up with -1, which no threshold reaches; not a copy if a divisor serves."""
    divisors = (rows for rows in range(_ROWS, _ROWS // 2, -1) if bits.size % rows == 0 and bits.size // rows % _STRIDE)
    rows = next(divisors, min(_ROWS, bits.size))
    columns = -(-bits.size // rows)
    columns += columns % _STRIDE == 0
    return jnp.pad(bits, (0, rows * columns - bits.size), constant_values=-1).reshape(rows, columns)


def _rank_value(bits: jax.Array, rank: jax.Array) -> jax.Array:
    """The value of a given rank in a small sample."""
    n = bits.size
    rank = jnp.clip(rank.astype(jnp.int32), 1, n)
    rows = _in_rows(bits)
    return _search(rows, _close(_everything(bits), rows), rank)[0]


def _everything(bits):
    """The bracket of all scores: up to a NaN, the largest there is."""
    nan = _bits(jnp.full((), jnp.nan, jnp.float64 if bits.dtype.itemsize == 8 else jnp.float32))
    return jnp.zeros_like(nan), nan + 1, jnp.int32(bits.size), jnp.int32(0)


def _close(bracket, rows):
    """The bracket drawn together about the scores in it; if they are all equal, that settles them."""
    low, high, above, over = bracket
    least = jnp.min(jnp.where(rows >= low, rows, high), axis=0)
    most = jnp.max(jnp.where(rows < high, rows, low), axis=0)
    # In two stages, kept apart: XLA reduces an array to one number in scalar code.
    least, most = lax.optimization_barrier((least, most))
    return jnp.min(least), jnp.max(most) + 1, above, over


def _search(rows, bracket, k):
    """Narrow until exactly k scores reach ``low``, or all of ``[low, high)`` are ties at ``low``."""

    def unsettled(carry):
        (low, high, above, _), _, _ = carry
        return (above != k) & (high - low > 1)

    def narrow(carry):
        bracket, _, step = carry
        inside = bracket[2] - bracket[3]
        return _narrow(bracket, _probes(bracket, k, step), rows, k), inside, step + 1

    def narrow_or_close(carry):
        (_, _, above, over), before, step = carry
        return lax.cond(above - over == before, lambda c: (_close(c[0], rows), jnp.int32(0), step), narrow, carry)

    # Thresholds that part no scores fell among ties. In a small array a bisection of their bits is soon done.
    large = rows.size > _LARGE
    topmost = bracket[3] == 0  # where `high` may lie far beyond the largest score
    carry = bracket, jnp.where(topmost & large, bracket[2], 0), 0
    return lax.while_loop(unsettled, narrow_or_close if large else narrow, carry)[0]


def _probes(bracket, k, step):
    """Thresholds about the place that the counts point to; every third time spread evenly over the interval,

    which bounds the number of passes whatever the distribution.
    """
    low, high, above, over = bracket
    inside = jnp.maximum(above - over, 1).astype(jnp.float32)
    centre = (above - k + 0.5).astype(jnp.float32) / inside
    deviation = jnp.sqrt(jnp.maximum(centre * (1 - centre), 0.0) / inside)
    guess = jnp.clip(centre + deviation * jnp.array(_PLACES), 0, 1)
    evenly = jnp.arange(1, len(_PLACES) + 1) / (len(_PLACES) + 1)
    offset = jnp.where(step % 3 == 2, evenly, guess) * (high - low).astype(jnp.float32)
    return low + jnp.clip(offset.astype(low.dtype), 1, jnp.maximum(high - low - 1, 1))


def _narrow(bracket, thresholds, rows, k):
    """Sorted thresholds cut the interval; the piece in which the count falls below k is the next one."""
    low, high, above, over = bracket
    counts = jnp.concatenate([above[None], _count(rows, thresholds), over[None]])
    edges = jnp.concatenate([low[None], thresholds, high[None]])
    piece = jnp.sum(counts >= k) - 1
    return edges[piece], edges[piece + 1], counts[piece], counts[piece + 1]


def _count(rows, thresholds):
    """How many entries reach each threshold, in one pass: column sums hold all the counts, packed."""
    hits = sum((rows >= thresholds[i]).astype(jnp.int32) << shift for i, shift in enumerate(_SHIFTS))
    packed = jnp.sum(hits, axis=0, dtype=jnp.int32)
    return jnp.sum((packed[None, :] >> jnp.array(_SHIFTS)[:, None]) & _ROWS, axis=1, dtype=jnp.int32)


def _last_tie(rows, value, wanted):
    """The position of the ``wanted``-th entry equal to ``value``: its row, then by the same means its place there."""
    per_row = jnp.sum(rows == value, axis=1, dtype=jnp.int32)
    upto = jnp.cumsum(per_row)
    row = jnp.argmax(upto >= wanted)
    within = wanted - (upto[row] - per_row[row])
    entries = rows[row]
    if entries.size > _ROWS**2:
        column = _last_tie(_in_rows(entries), value, within)
    else:
        column = jnp.argmax(jnp.cumsum(entries == value) >= within)
    return (row * rows.shape[1] + column).astype(jnp.int32)
