"""One of several choices for every item, so that losses add up to little and the cost stays within a budget."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxcomp.constraints._budget import least_sum
from jaxcomp.hwmodels._share import TINY, share

ROUNDING = 1e-6  # within this share of it a cost counts as equal to the budget: float32's rounding of sums


def by_programme(losses: jax.Array, costs: jax.Array, budget: jax.Array, units: int) -> tuple[jax.Array, jax.Array]:
    """The least sum of losses with costs rounded up to whole units of the budget, and with costs rounded down.

    The first keeps the budget; the second allows all that the budget allows, and so is a bound from below.

    Args:
        losses, costs: ``[items, choices]``; a choice of infinite loss is not made.
        budget: of the sum of costs.
        units: into how many the budget is cut.

    Returns:
        The choice of every item, and the bound.
    """
    parts = share(costs, budget) * units

    def solved(rounded):
        whole = jnp.where(rounded <= units, rounded, units + 1).astype(jnp.int32)
        return least_sum(losses, whole, units)[0]

    kept = solved(jnp.ceil(parts * (1 - ROUNDING)))
    relaxed = solved(jnp.floor(parts * (1 - ROUNDING)))
    return kept, total(losses, relaxed)


def by_price(losses: jax.Array, costs: jax.Array, budget: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Lagrangian's choice, ``argmin loss + price * cost`` for every item, at the least price that keeps the budget.

    It finds choices on the lower convex hull of an item alone, so it may leave part of the budget unused. The best
    value of the dual is a bound from below. Costs may be negative, as differences are.
    """
    finite = jnp.where(jnp.isfinite(losses), losses, 0)
    spread = jnp.max(jnp.max(finite, 1) - jnp.min(finite, 1))
    unit = share(jnp.maximum(spread, TINY), jnp.max(jnp.abs(costs)))

    def chosen(price):
        return jnp.argmin(losses + price * costs, axis=1)

    def dual(price):
        return jnp.sum(jnp.min(losses + price * costs, axis=1)) - price * budget

    def halve(ends, _):
        low, high = ends
        middle = jnp.sqrt(low * high)
        kept = total(costs, chosen(middle)) <= budget * (1 + ROUNDING)
        return (jnp.where(kept, low, middle), jnp.where(kept, middle, high)), dual(middle)

    (_, price), duals = lax.scan(halve, (unit * 1e-9, unit * 1e9), None, length=64)
    free = jnp.argmin(losses, axis=1)  # where the budget does not bind, at no price
    fits = total(costs, free) <= budget * (1 + ROUNDING)
    bound = jnp.where(fits, total(losses, free), jnp.max(duals))
    return jnp.where(fits, free, chosen(price)), bound


def improved(
    choice: jax.Array, losses: jax.Array, after: Callable[[jax.Array], jax.Array], budget: jax.Array
) -> jax.Array:
    """The choice changed item by item: first until the budget is kept, then while there is less loss to be had.

    Each time the change is made that loses least for what it saves, or gains most for what it takes.

    Args:
        choice: of every item, of finite loss.
        losses: ``[items, choices]``.
        after: maps a choice to ``[items, choices]``: the cost of all items were this one's choice changed to that.
        budget: of the cost of all items.
    """
    items = jnp.arange(len(choice))
    limit = budget * (1 + ROUNDING)

    def step(state):
        choice, _, count = state
        costs = after(choice)
        now = costs[0, choice[0]]
        gain = losses[items, choice][:, None] - losses
        saved = now - costs
        tiny = ROUNDING * jnp.maximum(jnp.abs(now), TINY)  # a smaller difference is none: it is of two sums
        cheaper = jnp.where(saved > tiny, gain / jnp.maximum(saved, tiny), -jnp.inf)
        better = jnp.where((gain > 0) & (costs <= limit), gain / jnp.maximum(-saved, tiny), -jnp.inf)
        score = jnp.where(now > limit, cheaper, better)
        best = jnp.unravel_index(jnp.argmax(score), score.shape)
        found = score[best] > -jnp.inf
        return jnp.where(found, choice.at[best[0]].set(best[1]), choice), found, count + 1

    def going(state):
        return state[1] & (state[2] < 2 * losses.size)

    return lax.while_loop(going, step, (choice, jnp.asarray(True), 0))[0]


def total(table: jax.Array, choice: jax.Array) -> jax.Array:
    """The sum of a table's entries at the choice of every item."""
    return jnp.sum(jnp.take_along_axis(table, choice[:, None], axis=1))
