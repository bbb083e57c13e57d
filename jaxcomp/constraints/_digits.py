"""The k largest of every pool of many, all pools together: their k-th largest, digit after digit.

Each pass counts, in every pool, the scores that reach three thresholds and so settles two bits of the k-th largest. A
search that looks for it in fewer passes, as that of one long row does, would last as long as it does in the unluckiest
pool. The passes end when no pool is in doubt: of random scores, long before the last bit.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxcomp.constraints._lanes import beside, in_lanes, sum_lines

_BITS = 10  # of a packed count, of at most LANES * LINES


def largest_by_digits(bits: jax.Array, k: jax.Array) -> jax.Array:
    """Mark the ``k`` largest of every row; among equals the earlier position wins.

    Args:
        bits: ``[pools, n]``, integers, not negative.
        k: ``[pools]``, from 0 to n.
    """
    (pools, n), digits = bits.shape, 8 * bits.dtype.itemsize - 1
    lanes, wanted = in_lanes(bits, -1), jnp.maximum(k, 1)[:, None]

    def unsettled(carry):
        _, reach, digit = carry
        return (digit > -2) & jnp.any(reach != wanted)

    def settle(carry):
        value, reach, digit = carry
        steps = jnp.arange(4, dtype=bits.dtype) << jnp.maximum(digit, 0).astype(bits.dtype)
        counts = _count(lanes >= beside(value + step, lanes) for step in steps[1:])
        enough = counts >= wanted
        value = value + steps[jnp.sum(enough, axis=1, keepdims=True)]
        return value, jnp.min(jnp.where(enough, counts, reach), axis=1, keepdims=True), digit - 2

    # `reach` scores reach the value. If they are more than wanted when all digits are known, some equal it.
    start = jnp.zeros((pools, 1), bits.dtype), jnp.full((pools, 1), n, jnp.int32), jnp.int32(digits - 2)
    value, reach, _ = lax.while_loop(unsettled, settle, start)
    everything = jnp.full((pools, 1), n, jnp.int32)
    end = lax.cond(jnp.all(reach == wanted), lambda: everything, lambda: _end_of_ties(lanes, value, n, wanted))
    first = jnp.arange(n)[None, :] < end
    return ((bits > value) | ((bits == value) & first)) & (k > 0)[:, None]


def _end_of_ties(lanes, value, n, wanted):
    """The position before which, with all scores above the value, so many equal it as are wanted; the largest."""
    place = jnp.arange(lanes[0].size).reshape(1, *lanes.shape[1:])
    equal, above = lanes == beside(value, lanes), _count([lanes > beside(value, lanes)])

    def further(i, end):
        next_end = end + (1 << (n.bit_length() - 1 - i))
        fits = above + _count([equal & (place < beside(next_end, lanes))]) <= wanted
        return jnp.where(fits, next_end, end)

    return lax.fori_loop(0, n.bit_length(), further, jnp.zeros(value.shape, jnp.int32))


def _count(masks):
    """``[pools, masks]``: how many entries of up to three masks are true, in one pass."""
    masks = list(masks)
    packed = sum(mask.astype(jnp.int32) << _BITS * i for i, mask in enumerate(masks))
    packed = jnp.sum(sum_lines(packed), axis=2, dtype=jnp.int32)
    shifts = _BITS * jnp.arange(len(masks))[None, None, :]
    return jnp.sum((packed[..., None] >> shifts) & (2**_BITS - 1), axis=1, dtype=jnp.int32)
