"""What is left of products once compressed: their sizes without removed rows and columns, and the bits that move."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._workload import Product
from jaxcomp.hwmodels._mode import Mode
from jaxcomp.hwmodels._stored import Stored


@dataclasses.dataclass(frozen=True)
class Operands:
    """``runs`` products ``[rows, depth] @ [depth, columns]`` of what compression left, and what they move.

    Removed inputs make them less deep and removed outputs less wide; a single zero changes no size.

    Attributes:
        runs: independent products, groups and repetitions.
        rows, depth, columns: of each.
        reads, writes: activations in and out of one repetition, all groups together.
        weights: numbers on the right side of one repetition that belong to kept rows and columns.
        weight_bits: of a number on the right side: an activation's, where both sides are activations.
        activation_bits: of a number on the left side, and of a result.
        weight_bytes: of the right side, as stored.
    """

    runs: Any
    rows: Any
    depth: Any
    columns: Any
    reads: Any
    writes: Any
    weights: Any
    weight_bits: Any
    activation_bits: Any
    weight_bytes: Any

    @property
    def macs(self) -> Any:
        return self.runs * self.rows * self.depth * self.columns


def operands(product: Product, stored: Stored) -> Operands:
    """What a device without use for single zeros sees of products."""
    depth, columns = product.depth * stored.input_density, product.columns * stored.output_density
    leaf = jnp.asarray(product.weighted) > 0
    return Operands(
        runs=product.repeat * product.groups,
        rows=product.rows,
        depth=depth,
        columns=columns,
        reads=product.reads * stored.input_density,
        writes=product.writes * stored.output_density,
        weights=product.groups * depth * columns,
        weight_bits=jnp.where(leaf, stored.weight_bits, stored.activation_bits),
        activation_bits=stored.activation_bits,
        weight_bytes=jnp.where(leaf, stored.weight_bytes(product), product.weights * stored.activation_bits / 8),
    )


def folds(size: Any, unit: Any, mode: Mode) -> jax.Array:
    """How many whole units hold a size: one at least, unless there is nothing to hold.

    So the smooth count is at least 1 too: it falls short of the exact one by less than one fold, and by none where one
    is enough; it is above by no more than 0.6 %.

    A density times a size may be a little off a whole number in float32: 192 of 302 inputs, 192.00002, are six times 32
    and not seven. Right for sizes up to two million.
    """
    share = jnp.asarray(size / unit) * (1 - _ROUNDING)
    return jnp.where(share > 0, mode.ceil(mode.maximum(share, jnp.ones_like(share))), 0)


def readings(left: Any, right: Any, rows: Any, columns: Any, room: Any) -> tuple[jax.Array, jax.Array]:
    r"""How often each side of a product is read from a large memory when partial sums stay in a small one.

    The result is made in tiles of ``p`` rows by ``m`` columns, ``p m <= room``, every tile finished before the next:
    the left side, of ``left`` bytes, is read ``columns / m`` times and the right side ``rows / p`` times. What is read
    in all, ``left * columns / m + right * rows / p``, is least for

        p = sqrt(room * right * rows / (left * columns)),   m = room / p,

    neither beyond the product. Tiles are not rounded to whole ones, so the traffic is a lower bound for such loops.

    Returns:
        How often the left side is read, and the right side; 1 or more. The result is written once.

    References: Hong and Kung, I/O complexity: the red-blue pebble game, STOC 1981 (the order of the least traffic).
    """
    rows, columns = jnp.maximum(rows, 1.0), jnp.maximum(columns, 1.0)
    room = jnp.minimum(room, rows * columns)  # more is of no use, and infinity has no gradient
    best = jnp.sqrt(room * rows * jnp.maximum(right, 1.0) / (jnp.maximum(left, 1.0) * columns))
    m = jnp.clip(room / jnp.clip(best, 1.0, rows), 1.0, columns)
    p = jnp.clip(room / m, 1.0, rows)
    return columns / m, rows / p


def traffic(product: Product, o: Operands, room: Any) -> tuple[jax.Array, jax.Array]:
    """Activations that pass the edge of the chip, and bytes of all that does, as `readings` has it."""
    inputs, weights = o.reads / product.groups * o.activation_bits / 8, o.weight_bytes / product.groups
    left, right = readings(inputs, weights, o.rows, o.columns, room)
    activations = (o.reads * left + o.writes) * product.repeat
    return activations, activations * o.activation_bits / 8 + o.weight_bytes * right * product.repeat


_ROUNDING = 5e-7  # four units in the last place of float32
