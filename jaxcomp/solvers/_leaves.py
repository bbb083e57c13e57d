"""Constrained leaves as solvers work on them: in float32 by path, and all of them one vector in norms."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._assign import Spec, members
from jaxcomp._paths import select

Leaves = dict[str, jax.Array]


def wide(spec: Spec, params: Any) -> Leaves:
    """The constrained leaves by path, in float32: duals summed in bfloat16 would stop growing."""
    return {path: x.astype(jnp.float32) for path, x in select(params, members(spec)).items()}


def difference(x: Leaves, y: Leaves) -> Leaves:
    return {path: x[path] - y[path] for path in x}


def energy(x: Leaves) -> jax.Array:
    """The sum of the squares of all leaves."""
    return sum((jnp.sum(jnp.square(leaf)) for leaf in x.values()), jnp.float32(0))


def norm(x: Leaves) -> jax.Array:
    """Of all leaves together."""
    return jnp.sqrt(energy(x))


def distance(x: Leaves, y: Leaves) -> jax.Array:
    return norm(difference(x, y))
