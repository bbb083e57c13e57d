"""Evolution of accelerators: a normal distribution moves towards the best of each generation, one in the other."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments._naas_space import Space
from jaxcomp import Product

_PENALTY = 4  # power of what exceeds a memory; a design that does not fit is never reported


class Normal(NamedTuple):
    """Where the next generation is drawn from."""

    mean: jax.Array
    covariance: jax.Array

    @classmethod
    def start(cls, mean: jax.Array, deviation: float) -> "Normal":
        return cls(mean, deviation**2 * jnp.eye(len(mean)))

    def draw(self, key: jax.Array, count: int) -> jax.Array:
        size = len(self.mean)
        root = jnp.linalg.cholesky(self.covariance + 1e-6 * jnp.eye(size))
        return self.mean[None] + jax.random.normal(key, (count, size)) @ root.T

    def towards(self, drawn: jax.Array, costs: jax.Array) -> "Normal":
        """The mean of the better half, by rank, and a covariance turned to the steps that led there (CMA's rank-mu).

        Steps count from the old mean, so that the distribution grows along a direction that pays. CMA-ES's paths of
        the mean are left out.
        """
        half = drawn.shape[0] // 2
        best = drawn[jnp.argsort(costs)[:half]]
        weights = jnp.log(half + 0.5) - jnp.log(jnp.arange(1, half + 1))
        weights = weights / weights.sum()
        steps = best - self.mean[None]
        size, effective = drawn.shape[1], 1 / jnp.sum(weights**2)
        rate = jnp.minimum(1.0, 2 * effective / ((size + 2) ** 2 / 2 + effective) + 0.1)
        covariance = (1 - rate) * self.covariance + rate * (weights[None] * steps.T) @ steps
        return Normal(self.mean + weights @ steps, covariance)


def best_mapping(space: Space, hardware: Any, layer: Product, key: jax.Array, population: int, generations: int):
    """The mapping of least energy times delay of one layer that an inner evolution finds: cycles and energy."""

    def generation(carry, key):
        normal, best = carry
        drawn = normal.draw(key, population)

        def evaluate(x):
            found = space.cost(space.mapping(x, hardware, layer), layer)
            excess = jnp.maximum(found.local_kib / hardware.local_kib, 1)
            excess *= jnp.maximum(found.shared_kib / hardware.shared_kib, 1)
            edp = jnp.log(found.cycles) + jnp.log(found.energy)
            return jnp.stack([edp + _PENALTY * jnp.log(excess), found.cycles, found.energy, excess])

        found = jax.vmap(evaluate)(drawn)
        # Whole numbers of steps tie often; a design that does not fit loses against any that does.
        feasible = jnp.where(found[:, 3] <= 1, found[:, 0], jnp.inf)
        first = found[jnp.argmin(feasible)]
        best = jnp.where(jnp.min(feasible) < best[0], jnp.stack([jnp.min(feasible), first[1], first[2]]), best)
        return (normal.towards(drawn, found[:, 0]), best), None

    start = Normal.start(jnp.full(space.mapping_size, -1.0), 1.0)
    nothing = jnp.stack([jnp.inf, jnp.inf, jnp.inf])
    (_, best), _ = lax.scan(generation, (start, nothing), jax.random.split(key, generations))
    return best[1], best[2]


@functools.partial(jax.jit, static_argnames=("space", "population", "inner_population", "inner_generations"))
def outer_generation(
    normal: Normal,
    layers: Product,
    key: jax.Array,
    *,
    space: Space,
    population: int,
    inner_population: int,
    inner_generations: int,
) -> tuple[Normal, jax.Array]:
    """One generation of accelerators, each with mappings of its own: the next normal, and log of the best EDP."""
    draw, search = jax.random.split(key)
    drawn = normal.draw(draw, population)

    def evaluate(x, key):
        hardware = space.hardware(x)
        one = functools.partial(best_mapping, space, population=inner_population, generations=inner_generations)
        keys = jax.random.split(key, layers.inputs.shape[0])
        cycles, energy = jax.vmap(one, (None, 0, 0))(hardware, layers, keys)
        return jnp.log(jnp.sum(cycles)) + jnp.log(jnp.sum(energy))

    costs = jax.vmap(evaluate)(drawn, jax.random.split(search, population))
    # What fits nowhere is worse than all others, and by as much for all: it tells no direction.
    worst = jnp.max(jnp.where(jnp.isfinite(costs), costs, -jnp.inf))
    ranked = jnp.where(jnp.isfinite(costs), costs, worst + 1)
    return normal.towards(drawn, ranked), jnp.min(costs)
