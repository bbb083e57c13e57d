"""Bit Fusion: 2-bit multipliers that join into wider ones, so that time falls in steps of powers of two."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product
from jaxcomp.hwmodels._buffered import Buffered
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._operands import Operands, folds, operands
from jaxcomp.hwmodels._stored import Stored


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BitFusion(Buffered):
    r"""An array of fusion units, each of 16 multipliers of 2 bits that make wider products of several.

    Widths are rounded up to 2, 4, 8, 16. A unit multiplies ``16 / (w / 2 * a / 2)`` pairs of operands a cycle: 16 pairs
    of 2 bits, one of 8 bits, and a pair of 16 bits in four cycles. What it fuses is summed, so lower widths make the
    array deeper:

        cycles = runs * rows_of_the_product * ceil(depth / (rows * pairs)) * ceil(outputs / columns)

    for stationary weights, without the cycles to fill the array. ``latency_s`` is the larger of that and off-chip
    bytes over the bandwidth; half of the buffer holds partial sums of 32 bits, and off-chip traffic is the least that
    this allows. Off chip operands are packed to their own widths, not to powers of two.

    Sizes and the rule of fusion are from the paper, from memory: high for the rule, medium for the size of the
    array, the port and the clock. **Not validated**: no published table of latencies is at hand. Single zeros save
    nothing; energy is NaN.

    Args:
        rows, columns: of the array of fusion units.
        clock_hz: cycles a second.
        bandwidth: bytes a second off chip.
        buffer_bytes: on chip.

    >>> from jaxcomp._workload import Product
    >>> layer = Product("layer", "layer/kernel", 512, 1, 512, 512)
    >>> [int(BitFusion().cycles(layer, Stored(weight_bits=b, activation_bits=b))) for b in (16, 8, 5, 4, 2)]
    [1048576, 262144, 262144, 65536, 16384]

    References: Sharma et al., Bit Fusion, ISCA 2018, arXiv 1712.01507.
    """

    rows: Any = 32
    columns: Any = 16
    clock_hz: Any = 500e6
    bandwidth: Any = 8e9  # 128 bits a cycle
    buffer_bytes: Any = 112 * 1024

    word_bits = 32  # of a partial sum: no choice of this design

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """Of the array alone, no operand late."""
        o = operands(product, stored)
        pairs = 64 / (_fused(o.weight_bits, mode) * _fused(o.activation_bits, mode))
        # Below one pair a cycle a unit takes several cycles, and the array is as deep as it has rows.
        deep, turns = jnp.maximum(pairs, 1), jnp.maximum(1 / pairs, 1)
        pieces = folds(o.depth, self.rows * deep, mode) * folds(o.columns, self.columns, mode)
        return o.runs * o.rows * pieces * turns

    def _peak(self, o: Operands) -> Any:
        """Multiplications a cycle of the widths at hand, were none rounded up."""
        return 64 * self.rows * self.columns / (o.weight_bits * o.activation_bits)


def _fused(bits: Any, mode: Mode) -> jax.Array:
    """The power of two from 2 up that holds so many bits."""
    steps = mode.ceil(jnp.log2(jnp.maximum(bits, 2)) - _ROUNDING)
    return 2.0**steps


_ROUNDING = 1e-5  # log2 of a power of two may come out above a whole number
