"""Eyeriss: rows of filters held still, rows of inputs and results reused between neighbours, four levels of memory."""

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
class RowStationary(Buffered):
    r"""Eyeriss: an array of processing elements, each with the products of one row of a filter and one of the input.

    A set of ``kernel_h x out_h`` elements makes the results of one filter, one channel and one image; it is folded
    where it is larger than the array, and stands there several times where it is smaller. With the row of a filter
    sliding over a row of the input in ``out_w * kernel_w`` cycles,

        units  = batch * filters * channels * ceil(kernel_h / rows) * ceil(out_h / columns)
        cycles = ceil(units / copies) * out_w * kernel_w
        copies = max(1, floor(rows / kernel_h)) * max(1, floor(columns / out_h))

    for every group and repetition. Energy is counted in words by level: `register_accesses` register accesses and one
    multiplication for each product; a move between neighbours for every row that joins a result; off chip the least
    that half the buffer's room for partial sums allows (`readings`), and through the buffer twice what is not a
    weight (weights pass it by). ``latency_s`` is the larger of cycles and off-chip bytes over the bandwidth.

    Single zeros save nothing (the chip gates its multipliers; this does not); words have a fixed width, except off
    chip, where weights and activations move at their stored bits.

    Measured: on ``eyeriss_isca16_energy_breakdown.csv`` (AlexNet, batch 16), arithmetic and registers of all eight
    layers equal to the three digits printed, off-chip energy within 5.4 %. That *half* the buffer holds partial sums
    was chosen on CONV1, CONV3, CONV5 and FC1 (with all of it the convolutions are 22 to 28 % low); the other four
    layers, within 3.9 %, are the test. Times of the chip's AlexNet (batch 4) are 84 to 96 % of the measured processing
    times of CONV1 to CONV5, and no less than MACs / (active elements x clock). Tests:
    ``tests/hwmodels/test_row_stationary.py``.
    Not validated on: buffer and array energy, the total, loading that is not overlapped (0.5 to 4.4 ms a layer on the
    chip), networks other than AlexNet.

    Args:
        rows, columns: of the array.
        clock_hz: cycles a second.
        bandwidth: bytes a second off chip; infinite by default.
        buffer_bytes: of the global buffer.
        word_bits: of an operand and a partial sum.
        register_accesses: of registers a multiplication.
        mac_j, register_j, array_j, buffer_j, offchip_j: joules of a multiplication, and of a word's access to a
            register file, a neighbour, the buffer and off-chip memory.

    >>> from jaxcomp._workload import Product
    >>> conv3 = Product("conv3", "conv3/kernel", 4, 1, 256, 384, 3, 3, 13, 13, 13, 13)
    >>> f"{float(RowStationary.eyeriss().product(conv3).latency_s) * 1e3:.2f} ms (measured: 21.8 ms)"
    '19.17 ms (measured: 21.8 ms)'

    References: Chen, Emer and Sze, Eyeriss: a spatial architecture for energy-efficient dataflow, ISCA 2016; Chen et
    al., Eyeriss: an energy-efficient reconfigurable accelerator, JSSC 2017.
    """

    rows: Any = 12
    columns: Any = 14
    clock_hz: Any = 200e6
    bandwidth: Any = jnp.inf
    buffer_bytes: Any = 108 * 1024
    word_bits: Any = 16.0
    register_accesses: Any = 4.0
    mac_j: Any = 2.0e-12
    register_j: Any = 1.0e-12
    array_j: Any = 4.0e-12
    buffer_j: Any = 15.0e-12
    offchip_j: Any = 460e-12

    @classmethod
    def eyeriss(cls) -> "RowStationary":
        """The 65 nm chip: 168 elements, 108 KB; energies as fitted to it in ``energy_per_access.csv``."""
        return cls()

    @classmethod
    def isca16(cls, mac_j: Any = 1.0) -> "RowStationary":
        """The design of the ISCA paper: 256 elements, 128 KB, energies 1 : 1 : 2 : 6 : 200 of a multiplication's."""
        relative = {"register_j": 1, "array_j": 2, "buffer_j": 6, "offchip_j": 200}
        energies = {name: times * mac_j for name, times in relative.items()}
        return cls(rows=16, columns=16, buffer_bytes=128 * 1024, mac_j=mac_j, **energies)

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """Of the array alone, no operand late."""
        o = operands(product, stored)
        channels = o.depth / (product.kernel_h * product.kernel_w)
        pieces = folds(product.kernel_h, self.rows, mode) * folds(product.out_h, self.columns, mode)
        copies = _whole(self.rows / product.kernel_h, mode) * _whole(self.columns / product.out_h, mode)
        units = product.batch * o.columns * channels * pieces
        return o.runs * folds(units, copies, mode) * product.out_w * product.kernel_w

    def _energy(self, product: Product, o: Operands, activations: Any, moved: Any, mode: Mode) -> dict[str, jax.Array]:
        """Joules of multiplications and of every level of memory."""
        return {
            "arithmetic": o.macs * self.mac_j,
            "registers": o.macs * self.register_accesses * self.register_j,
            "array": o.macs / product.kernel_w * self.array_j,
            "buffer": 2 * activations * self.buffer_j,
            "off chip": moved * 8 / self.word_bits * self.offchip_j,
        }


def _whole(x: Any, mode: Mode) -> jax.Array:
    """Whole copies that fit, one at least."""
    return mode.maximum(1.0, -mode.ceil(-x))
