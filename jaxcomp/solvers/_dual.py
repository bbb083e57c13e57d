"""A dual variable: it climbs where the parameters descend, by an optimiser of its own and within a set of its own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass

PLAIN = optax.sgd(1.0)  # one instance: every new one would compile anew


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Dual:
    """Where a dual variable stands."""

    value: Any  # weights of risks, multipliers, an opponent: a pytree of float32 arrays
    memory: Any  # of its optimiser


def begin(value: Any, optimizer: optax.GradientTransformation) -> Dual:
    """At this value, with an optimiser that has taken no step."""
    value = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), value)
    return Dual(value, optimizer.init(value))


def ascend(
    dual: Dual,
    gradient: Any,
    rate: ArrayLike,
    optimizer: optax.GradientTransformation,
    project: Callable[[Any], Any],
) -> Dual:
    """One step up the gradient, ``rate`` times what an optimiser that minimises would take, and back into the set."""
    updates, memory = optimizer.update(jax.tree.map(jnp.negative, gradient), dual.memory, dual.value)
    moved = jax.tree.map(lambda y, step: y + (rate * step).astype(y.dtype), dual.value, updates)
    return Dual(project(moved), memory)
