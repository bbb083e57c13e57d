"""Tables of what was measured, read between their rows."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MeasuredTable:
    r"""Seconds at the points of a grid; between them, linear in all logarithms.

    Along an axis two neighbours are joined by the power law through both, ``t = t0 * (x / x0) ** slope``, and beyond
    the outermost rows their law goes on. Exact at every row, continuous, and differentiable but for a kink at each
    row; derivatives by the measured values exist as well.

    Args:
        axes: for each axis its points, rising, above zero: bits, densities, channels, pixels; at least two each.
        seconds: measured at the points, of the axes' lengths, above zero.

    Raises:
        ValueError: from a call, where the table's shape is not that of its axes, or coordinates are too many or few.

    >>> table = MeasuredTable((jnp.array([1.0, 2.0, 8.0]),), jnp.array([1e-3, 4e-3, 8e-3]))
    >>> [f"{float(table(channels)) * 1e3:.2f} ms" for channels in (2.0, 4.0)]
    ['4.00 ms', '5.66 ms']
    """

    axes: tuple[Any, ...]
    seconds: Any

    def __call__(self, *coordinates: Any) -> jax.Array:
        """Seconds at coordinates, one for each axis: numbers or arrays of one shape."""
        shape = tuple(jnp.shape(axis)[0] for axis in self.axes)
        if jnp.shape(self.seconds) != shape or len(coordinates) != len(shape) or min(shape) < 2:
            raise ValueError(
                f"seconds of shape {jnp.shape(self.seconds)} and {len(coordinates)} coordinates, expected shape "
                f"{shape}, of the axes, of two points or more, and a coordinate for each axis"
            )
        places = [_place(axis, jnp.asarray(x)) for axis, x in zip(self.axes, coordinates, strict=True)]
        logs = jnp.log(jnp.asarray(self.seconds))
        total = jnp.float32(0)
        for corner in range(2 ** len(places)):
            ends = [(corner >> axis) & 1 for axis in range(len(places))]
            weight = math.prod(share if end else 1 - share for (_, share), end in zip(places, ends, strict=True))
            total = total + weight * logs[tuple(low + end for (low, _), end in zip(places, ends, strict=True))]
        return jnp.exp(total)


def _place(axis: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The row below, and how far it is to the next one, in logarithms."""
    low = jnp.clip(jnp.searchsorted(jnp.asarray(axis), x, side="right") - 1, 0, jnp.shape(axis)[0] - 2)
    here, there = jnp.log(jnp.asarray(axis)[low]), jnp.log(jnp.asarray(axis)[low + 1])
    return low, (jnp.log(x) - here) / (there - here)
