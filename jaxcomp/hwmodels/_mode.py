"""Exact or smooth: what rounding up and taking the largest of several terms mean, in one place for all devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass


@dataclasses.dataclass(frozen=True)
class Exact:
    """What the hardware does: whole tiles, whole cycles, the slowest term."""

    def ceil(self, x: Any) -> jax.Array:
        return jnp.ceil(x)

    def maximum(self, *terms: Any) -> jax.Array:
        return functools.reduce(jnp.maximum, terms)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Smooth:
    r"""A relaxation with a derivative nearly everywhere.

    ``ceil(x)`` rises from one integer ``n`` to the next by a sigmoid in ``f = x - n``, at ``f = offset``, of width
    `width`, stretched to go from exactly ``n`` to exactly ``n + 1``. So integers are exact, and
    ``ceil(x) - 1 <= smooth <= ceil(x)``. A large width gives ``x`` itself.

    ``maximum`` is the p-norm of terms that are not negative, ``p = power``; of ``n`` terms it lies between the
    largest and ``n ** (1 / p)`` times that: 1.7 % above for three terms and ``p = 64``.
    """

    width: Any = 0.02
    offset: Any = 0.1
    power: Any = 64.0

    def ceil(self, x: Any) -> jax.Array:
        x = jnp.asarray(x, jnp.float32)
        below = jax.lax.stop_gradient(jnp.floor(x))
        low, high, rise = (jax.nn.sigmoid((f - self.offset) / self.width) for f in (0.0, 1.0, x - below))
        return below + (rise - low) / (high - low)

    def maximum(self, *terms: Any) -> jax.Array:
        largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, terms))
        unit = jnp.where(largest > 0, largest, 1)  # powers of ratios neither vanish all together nor overflow
        total = sum((jnp.maximum(term, 0) / unit) ** self.power for term in terms)
        return jnp.where(largest > 0, unit * jnp.where(total > 0, total, 1) ** (1 / self.power), largest)


Mode = Exact | Smooth
