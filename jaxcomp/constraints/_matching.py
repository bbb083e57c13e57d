"""How many weights of every row to keep in every bank, for the largest total: a matching with capacities."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def exchange(ladder: jax.Array, kept: jax.Array, score: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The counts of largest total score that have the same sums over rows and over banks.

    A row may take a place in some bank from another, which takes one from a third in some bank, and so on until the
    first has given one: no sum changes. Where no such cycle gains, nothing does (negative cycle cancelling, on flows).

    Args:
        ladder: ``[strips, rows, banks, depth]``, what may be kept in descending order; minus infinity where there is
            nothing to keep.
        kept: ``[strips, rows, banks]``, integers, how many of them to start from.
        score: of every rung, not decreasing and not negative. Of those that are looked at it is computed, not stored.
    """
    strips, rows, banks, depth = ladder.shape
    # Gains that rounding may have made up are none, so that every exchange raises the total and the loop ends.
    certain = 1 - 2 * rows * jnp.finfo(ladder.dtype).eps
    everyone = jnp.broadcast_to(jnp.arange(rows), (strips, rows))

    def rung(i):
        """The score of the i-th from 1; before the first is infinity, after the last minus infinity."""
        found = jnp.take_along_axis(ladder, jnp.clip(i - 1, 0, depth - 1)[..., None], axis=3)[..., 0]
        found = jnp.where(i < 1, jnp.inf, jnp.where(i > depth, -jnp.inf, found))
        return jnp.where(jnp.isinf(found), found, score(found))

    def step(carry):
        kept, _ = carry
        gain = (certain * rung(kept + 1))[:, :, None, :] - rung(kept)[:, None, :, :]  # [strip, taker, giver, bank]
        best, bank = jnp.max(gain, axis=3), jnp.argmax(gain, axis=3)
        giver = _pairs(best)
        if rows > 2:
            giver = lax.cond(jnp.any(giver != everyone), lambda: giver, lambda: jax.vmap(_cycle)(best))
        taken = jax.nn.one_hot(jnp.take_along_axis(bank, giver[..., None], axis=2)[..., 0], banks, dtype=kept.dtype)
        given = jnp.einsum("sij,sib->sjb", jax.nn.one_hot(giver, rows, dtype=kept.dtype), taken)
        return kept + taken - given, jnp.any(giver != everyone)

    return lax.while_loop(lambda carry: carry[1], step, (kept, jnp.bool_(True)))[0]


def _pairs(gain: jax.Array) -> jax.Array:
    """Whom each row takes from, itself if nobody: rows that are each other's best partner, all at once."""
    both, oneself = gain + gain.swapaxes(1, 2), jnp.arange(gain.shape[1])[None, :]
    partner = jnp.argmax(both, axis=2)
    mutual = jnp.take_along_axis(partner, partner, axis=1) == oneself
    return jnp.where(mutual & (jnp.max(both, axis=2) > 0), partner, oneself)


def _cycle(gain: jax.Array) -> jax.Array:
    """Whom each row of one strip takes from, itself if nobody, along one of the shortest cycles that gain.

    The best walks of two steps between any rows, of three and so on, until one comes back to its start with a gain.
    """
    rows = len(gain)

    def longer(most, _):
        through = most[:, :, None] + gain[None, :, :]
        most, via = jnp.max(through, axis=1), jnp.argmax(through, axis=1)
        return most, (via, jnp.diagonal(most))

    _, (via, closed) = lax.scan(longer, gain, length=rows - 1)
    gains = jnp.any(closed > 0, axis=1)
    shortest = jnp.argmax(gains)
    start = jnp.argmax(closed[shortest])

    def back(carry, layer):
        node, giver = carry
        via, length = layer
        before = via[start, node]
        longer = before, giver.at[before].set(node)
        return jax.tree.map(lambda new, old: jnp.where(length <= shortest, new, old), longer, carry), None

    (node, giver), _ = lax.scan(back, (start, jnp.arange(rows)), (via, jnp.arange(rows - 1)), reverse=True)
    giver = giver.at[start].set(node)
    # The shortest visits no row twice, but for rounding.
    simple = jnp.all(jnp.sort(giver) == jnp.arange(rows))
    return jnp.where(simple & jnp.any(gains), giver, jnp.arange(rows))
