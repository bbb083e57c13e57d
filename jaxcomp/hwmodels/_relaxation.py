"""A continuum of choices: gradient descent on losses while a smooth cost stays at its budget."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike


def descended(
    loss: Callable[[jax.Array], jax.Array],
    cost: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    budget: ArrayLike,
    *,
    steps: int = 400,
    rate: float = 0.03,
) -> jax.Array:
    r"""Numbers from 0 to 1 of little loss, whose cost is within a budget where it can be.

    After every step all numbers are shifted down alike, ``u = clip(z - t, 0, 1)``, by the least ``t >= 0`` that keeps
    the budget. What a step follows is the slope along that surface: with ``m`` one where a number is inside its
    bounds, and where the budget binds,

        g = grad loss - (m . grad loss / m . grad cost) grad cost.

    Steps are Adam's, which makes them independent of the scale of losses, along a half cosine.

    Args:
        loss, cost: of numbers of this shape; differentiable; the cost does not fall as they rise.
        shape: of the numbers.
        budget: of the cost.
        steps: of Adam.
        rate: of Adam at the start.
    """
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def shifted(z):
        def halve(ends, _):
            low, high = ends
            middle = (low + high) / 2
            kept = cost(jnp.clip(z - middle, 0, 1)) <= budget
            return (jnp.where(kept, low, middle), jnp.where(kept, middle, high)), None

        kept = cost(jnp.clip(z, 0, 1)) <= budget
        (_, t), _ = lax.scan(halve, (jnp.float32(0), jnp.max(z)), None, length=24)
        return jnp.clip(z - jnp.where(kept, 0, t), 0, 1), ~kept

    def step(state, _):
        u, bound, moments = state
        down, dear = jax.grad(loss)(u), jax.grad(cost)(u)
        inside = (u > 0) & (u < 1)
        slope = jnp.sum(dear, where=inside)
        price = jnp.sum(down, where=inside) / jnp.where(slope != 0, slope, 1)
        g = jnp.where(bound & (slope != 0), down - price * dear, down)
        updates, moments = adam.update(g, moments)
        return (*shifted(u + updates), moments), None

    u, bound = shifted(jnp.full(shape, 0.5))
    return lax.scan(step, (u, bound, adam.init(u)), None, length=steps)[0][0]
