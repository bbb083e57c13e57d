"""A share of what may be nothing."""

from typing import Any

import jax
import jax.numpy as jnp

TINY = 1e-30  # below all costs, times and densities, and its inverse is finite in float32


def share(part: Any, whole: Any) -> jax.Array:
    """``part / whole``, and 0 where both are 0."""
    return part / jnp.maximum(whole, TINY)
