"""The mapping that is taken when none is given: closed form, one pass over the levels."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._workload import Product
from jaxcomp.hwmodels._level import Level
from jaxcomp.hwmodels._mapping import DIMENSIONS, Mapping, sizes

_OUTERMOST = "SRCQPKN"  # inside first: sums are finished before the next ones begin


def closed_form(levels: Sequence[Level], product: Product, holds_kib: Callable[[int, jax.Array], jax.Array]) -> Mapping:
    """A mapping that fills the array, then lengthens loops as far as every memory has room.

    First each level lays its `unrolls` over its fan-out; then, from the innermost, each lengthens its `grows`, one
    after the other, every time until a memory of this level or one further out is full. Of the loops of a level those
    lengthened first run inside. Steps are spread evenly: 100 on 32 units are 4 times 25. This is no search. Factors
    are whole and have no derivative.

    Args:
        levels: from the innermost.
        product: what to map.
        holds_kib: KiB in one memory of a level (a number) when the loops inside it have these extents ``[..., 7]``.
    """
    whole = sizes(product)
    inner = range(len(levels) - 1)
    spatial, temporal = [jnp.ones_like(whole) for _ in levels], [jnp.ones_like(whole) for _ in inner]

    def longer(first: int, d: int, limit: ArrayLike) -> jax.Array:
        """How many times longer a loop becomes: no more than a limit, nor than memories from a level on have room."""
        left = jnp.ceil(whole / math.prod([*spatial, *temporal]))[..., d]
        most = jnp.minimum(left, limit)
        for level in inner[first:]:
            inside = math.prod([*spatial[: level + 1], *temporal[: level + 1]], start=jnp.ones(()))
            now, twice = holds_kib(level, inside), holds_kib(level, inside.at[..., d].multiply(2))
            slope, room = twice - now, levels[level].capacity_kib - now  # affine in any one loop
            most = jnp.where(slope > 0, jnp.minimum(most, 1 + room / jnp.where(slope > 0, slope, 1)), most)
        return jnp.ceil(left / jnp.ceil(left / jnp.maximum(jnp.floor(most), 1)))

    for number, level in enumerate(levels):
        free = jnp.asarray(level.fanout, whole.dtype)
        for d in map(DIMENSIONS.index, level.unrolls):
            factor = longer(number, d, free)
            spatial[number] = spatial[number].at[..., d].set(factor)
            free = jnp.floor(free / factor)
    for number in inner:
        for d in map(DIMENSIONS.index, levels[number].grows):
            temporal[number] = temporal[number].at[..., d].set(longer(number, d, jnp.inf))

    order = [level.grows for level in levels[:-1]] + [_OUTERMOST]
    importance = jnp.array([[loops.find(d) for d in DIMENSIONS] for loops in order], whole.dtype)
    importance = jnp.broadcast_to(importance, (*whole.shape[:-1], *importance.shape))
    return lax.stop_gradient(Mapping(jnp.stack(temporal, -2), jnp.stack(spatial, -2), importance))
