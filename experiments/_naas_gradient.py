"""Accelerators by gradient: many starts at once descend the smooth model, then whole steps are costed exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments._naas_space import DIMENSIONS, IMPORTANCE, LEVELS, PAIRS, Envelope, Found, Hardware, Space
from jaxcomp import Product, Smooth

_REAL = Smooth(width=10.0)  # rounding up is nearly the identity
_SHRUNK = (0.0, 0.3, 0.7, 1.5)  # tried when rounding: less of every tile, until something fits
# Loops that a tensor does not depend on inside: weights, inputs or outputs stay.
_STATIONARY = np.array([[d in loops for d in DIMENSIONS[1:]] for loops in ("KCRS", "CPQRS", "KPQ")], np.float32)
_PENALTY = 4.0


@functools.partial(jax.jit, static_argnames=("envelope", "starts", "steps", "rate"))
def descend(layers: Product, key: jax.Array, *, envelope: Envelope, starts: int, steps: int, rate: float) -> jax.Array:
    """Log of the least exact EDP of whole designs within the envelope that so many starts of so many steps reach.

    As in DOSA the variables are real tile factors, hardware is the least that holds all layers, and orders are
    canonical ones. Orders and the two parallel loops are drawn for each start and stay.
    """
    space, count = Space(envelope, IMPORTANCE), layers.inputs.shape[0]
    pairs, orders, tiles, sides = jax.random.split(key, 4)
    tile_count = space.mapping_size - LEVELS * (len(DIMENSIONS) - 1)
    loops = jnp.asarray(PAIRS)[jax.random.randint(pairs, (starts,), 0, len(PAIRS))] + 1
    kinds = jax.random.randint(orders, (starts, count, LEVELS), 0, len(_STATIONARY))
    fixed = loops, jnp.asarray(_STATIONARY)[kinds].reshape(starts, count, -1)
    free = (
        jnp.log(16.0) + 0.5 * jax.random.normal(sides, (starts, 2)),
        jax.random.normal(tiles, (starts, count, tile_count)) - 1,
    )

    def found(free, fixed, rounded) -> tuple[Hardware, Found]:
        (log_sides, tiles), (loops, orders) = free, fixed
        sides = jnp.exp(log_sides)
        sides = jnp.maximum(2 * jnp.floor(sides / 2), 2) if rounded else jnp.maximum(sides, 1)
        hardware = Hardware(sides, loops, jnp.inf, jnp.inf)

        def of_layer(tiles, order, layer):
            mapping = space.mapping(jnp.concatenate([tiles, order]), hardware, layer, rounded)
            return space.cost(mapping, layer) if rounded else space.cost(mapping, layer, _REAL)

        return hardware, jax.vmap(of_layer)(tiles, orders, layers)

    def judged(free, fixed, rounded) -> tuple[jax.Array, jax.Array]:
        hardware, layers = found(free, fixed, rounded)
        units = jnp.prod(hardware.sides)
        kib = units * jnp.max(layers.local_kib) + jnp.max(layers.shared_kib)
        excess = jnp.log(jnp.stack([units / envelope.units, kib / envelope.kib]))
        edp = jnp.log(jnp.sum(layers.cycles)) + jnp.log(jnp.sum(layers.energy))
        return edp, jnp.maximum(excess, 0)

    def loss(free, fixed):
        edp, excess = judged(free, fixed, rounded=False)
        return edp + _PENALTY * jnp.sum(excess)

    adam = optax.adam(rate)

    def step(carry, _):
        free, state = carry
        slopes = jax.vmap(jax.grad(loss))(free, fixed)
        slopes = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), slopes)
        updates, state = adam.update(slopes, state, free)
        return (optax.apply_updates(free, updates), state), None

    (free, _), _ = lax.scan(step, (free, adam.init(free)), None, steps)

    def whole(shrunk):
        edp, excess = jax.vmap(functools.partial(judged, rounded=True))((free[0], free[1] - shrunk), fixed)
        return jnp.min(jnp.where(jnp.all(excess <= 0, -1), edp, jnp.inf))

    return jnp.min(lax.map(whole, jnp.asarray(_SHRUNK)))
