"""The k-th largest of many integers, with a k that may be traced, by narrowing an interval that holds it.

A strided sample says where to look; then every pass over the integers counts those that reach five thresholds at once,
placed where the counts seen so far say the answer lies; thresholds that part no integers fell among ties, and the
interval is drawn together about them. A handful of passes settle what a bisection of 31 bits needs 31 for, and XLA's
sort on a CPU many times longer.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

BITS = 6  # of a packed count
PLACES = (-6.0, -1.0, 0.0, 1.0, 6.0)  # of the thresholds, in standard deviations about the expected one
LARGE = 500_000  # from here on a sample saves more than it takes to compile
_ROWS = 2**BITS - 1  # longest column whose counts fit them
_SAMPLE = 4096  # integers read to place the first thresholds
_SHIFTS = tuple(BITS * i for i in range(len(PLACES)))
_STRIDE = 512  # rows that lie a multiple of it apart compete for the same lines of a cache


class Integers(Protocol):
    """Many integers, none of them negative, that the search asks about and never sees."""

    size: int

    def count(self, thresholds: jax.Array) -> jax.Array:
        """How many reach each of five thresholds."""

    def extent(self, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least that is not below ``low`` and the largest that is below ``high``."""

    def sample(self, stride: int) -> jax.Array:
        """About every ``stride``-th of them."""

    def last_tie(self, value: jax.Array, wanted: jax.Array) -> jax.Array:
        """The position of the ``wanted``-th of those that equal the value."""


def bounds(integers: Integers, k: jax.Array, most: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``low, high, last``: the k largest are those that reach ``high``, or reach ``low`` at a position up to ``last``.

    Args:
        integers: from 0 to ``most``.
        k: from 0 to their number; of none at all the bounds mean nothing.
        most: the largest there may be.
    """
    n, everything = integers.size, (jnp.zeros_like(most), most + 1, jnp.int32(integers.size), jnp.int32(0))
    # [low, high) holds the k-th largest: `above` of them reach low, `over` of them reach high, over < k <= above.
    if n > LARGE:
        sample = integers.sample(n // _SAMPLE | 1)  # an odd stride does not fall in step with rows of even length
        rank = k * (sample.size / n)
        margin = 2.5 * jnp.sqrt(rank * (1 - k / n)) + 2
        low, high = jax.vmap(_rank_value, (None, 0, None))(sample, jnp.stack([rank + margin, rank - margin]), most)
        high = jnp.maximum(high, low + 1)
        # The successors settle at once the values of which many are equal (rounded, constant, mostly zero).
        guess = jnp.stack([low, low + 1, low + 1 + (high - low - 1) // 2, high, high + 1])
        bracket = _narrow(everything, guess, integers, k)
    else:
        bracket = _close(everything, integers)
    low, high, above, over = search(integers, bracket, k)
    last = lax.cond(above == k, lambda: jnp.int32(n), lambda: integers.last_tie(low, k - over))
    return low, high, last


def _rank_value(sample: jax.Array, rank: jax.Array, most: jax.Array) -> jax.Array:
    """The value of a given rank in a small sample."""
    rows, n = Rows(sample), sample.size
    everything = jnp.zeros_like(most), most + 1, jnp.int32(n), jnp.int32(0)
    return search(rows, _close(everything, rows), jnp.clip(rank.astype(jnp.int32), 1, n))[0]


def search(integers: Integers, bracket: Any, k: jax.Array) -> Any:
    """Narrow until exactly k integers reach ``low``, or all of ``[low, high)`` are ties at ``low``."""

    def unsettled(carry):
        (low, high, above, _), _, _ = carry
        return (above != k) & (high - low > 1)

    def narrow(carry):
        bracket, _, step = carry
        inside = bracket[2] - bracket[3]
        return _narrow(bracket, _probes(bracket, k, step), integers, k), inside, step + 1

    def narrow_or_close(carry):
        (_, _, above, over), before, step = carry
        closer = lambda c: (_close(c[0], integers), jnp.int32(0), step)  # noqa: E731
        return lax.cond(above - over == before, closer, narrow, carry)

    # Thresholds that part no integers fell among ties. Of few integers a bisection of their bits is soon done.
    large = integers.size > LARGE
    topmost = bracket[3] == 0  # where `high` may lie far beyond the largest
    carry = bracket, jnp.where(topmost & large, bracket[2], 0), 0
    return lax.while_loop(unsettled, narrow_or_close if large else narrow, carry)[0]


def _close(bracket, integers):
    """The bracket drawn together about what is in it; if that is all equal, this settles it."""
    low, high, above, over = bracket
    least, most = integers.extent(low, high)
    return least, most + 1, above, over


def _probes(bracket, k, step):
    """Thresholds about the place that the counts point to; every third time spread evenly over the interval,

    which bounds the number of passes whatever the distribution.
    """
    low, high, above, over = bracket
    inside = jnp.maximum(above - over, 1).astype(jnp.float32)
    centre = (above - k + 0.5).astype(jnp.float32) / inside
    deviation = jnp.sqrt(jnp.maximum(centre * (1 - centre), 0.0) / inside)
    guess = jnp.clip(centre + deviation * jnp.array(PLACES), 0, 1)
    evenly = jnp.arange(1, len(PLACES) + 1) / (len(PLACES) + 1)
    offset = jnp.where(step % 3 == 2, evenly, guess) * (high - low).astype(jnp.float32)
    return low + jnp.clip(offset.astype(low.dtype), 1, jnp.maximum(high - low - 1, 1))


def _narrow(bracket, thresholds, integers, k):
    """Sorted thresholds cut the interval; the piece in which the count falls below k is the next one."""
    low, high, above, over = bracket
    counts = jnp.concatenate([above[None], integers.count(thresholds), over[None]])
    edges = jnp.concatenate([low[None], thresholds, high[None]])
    piece = jnp.sum(counts >= k) - 1
    return edges[piece], edges[piece + 1], counts[piece], counts[piece + 1]


def pack(integers: jax.Array, thresholds: jax.Array) -> jax.Array:
    """A bit for each threshold reached, so far apart that sums of up to 63 of these numbers hold all the counts."""
    reached = ((integers >= thresholds[i]).astype(jnp.int32) << shift for i, shift in enumerate(_SHIFTS))
    return functools.reduce(jnp.add, reached)


def unpack(packed: jax.Array) -> jax.Array:
    """The counts that a vector of such sums holds, added up."""
    return jnp.sum((packed[None, :] >> jnp.array(_SHIFTS)[:, None]) & _ROWS, axis=1, dtype=jnp.int32)


class Rows:
    """Integers in one array on one device, stored as ``[<= 63, columns]``: the sum of a column packs five counts.

    They are filled up with -1, which no threshold reaches; that is no copy if a divisor serves.
    """

    def __init__(self, integers: jax.Array):
        self.size = n = integers.size
        divisors = (rows for rows in range(_ROWS, _ROWS // 2, -1) if n % rows == 0 and n // rows % _STRIDE)
        rows = next(divisors, min(_ROWS, n))
        columns = -(-n // rows)
        columns += columns % _STRIDE == 0
        self._all = integers
        self._rows = jnp.pad(integers, (0, rows * columns - n), constant_values=-1).reshape(rows, columns)

    def count(self, thresholds: jax.Array) -> jax.Array:
        return unpack(jnp.sum(pack(self._rows, thresholds), axis=0, dtype=jnp.int32))

    def extent(self, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
        least = jnp.min(jnp.where(self._rows >= low, self._rows, high), axis=0)
        most = jnp.max(jnp.where(self._rows < high, self._rows, low), axis=0)
        # In two stages, kept apart: XLA reduces an array to one number in scalar code.
        least, most = lax.optimization_barrier((least, most))
        return jnp.min(least), jnp.max(most)

    def sample(self, stride: int) -> jax.Array:
        return self._all[::stride]

    def last_tie(self, value: jax.Array, wanted: jax.Array) -> jax.Array:
        """Its row, then by the same means its place there."""
        per_row = jnp.sum(self._rows == value, axis=1, dtype=jnp.int32)
        upto = jnp.cumsum(per_row)
        row = jnp.argmax(upto >= wanted)
        within, entries = wanted - (upto[row] - per_row[row]), self._rows[row]
        if entries.size > _ROWS**2:
            column = Rows(entries).last_tie(value, within)
        else:
            column = jnp.argmax(jnp.cumsum(entries == value) >= within)
        return (row * self._rows.shape[1] + column).astype(jnp.int32)
