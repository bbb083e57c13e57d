"""BISMO: matrix products bit by bit, so that time grows with the product of the two widths."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product
from jaxcomp.hwmodels._device import Device, ProductCost
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._operands import Operands, folds, operands
from jaxcomp.hwmodels._share import share
from jaxcomp.hwmodels._stored import Stored


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BitSerial(Device):
    r"""A grid of binary dot products of `dot_bits` bits, run once for every pair of a weight's bit and an activation's.

    With ``w`` and ``a`` bits, ``N`` filters and ``K = ceil(depth / dot_bits)`` words along a dot product, the slowest
    of three streams counts, for every group and repetition:

        arithmetic    images * ceil(N / rows) * ceil(pixels / columns) * K * w * a
        activations   images * pixels * K * a
        weights       images * N * K * w

    A convolution goes image by image, and reads its weights for each. A dense layer is one image whose pixels are its
    rows. A depthwise convolution reuses nothing and fills no dot product; what goes in and out passes a narrower port,
    counted at the size of the output:

        activations   2 * images * channels * pixels * a / depthwise_bits
        weights       images * channels * w

    These terms describe a published table; they are not published themselves, and BISMO has no depthwise mode.

    Measured on ``haq_bismo_cloud_latency_mobilenetv2.csv`` (MobileNetV2, batch 16, 53 layers, 1 to 8 bits, 3392 rows):
    median error 2.2 %, mean 5.4 %, 90th percentile 14.7 %, largest 40 % (small tiles); rank correlation 0.9986; totals
    of uniform policies 1.4 to 1.9 % low. The published policy for a budget of 0.6 costs 0.5965 of all 8 bits by the
    table and 0.5934 by this. Test: ``tests/hwmodels/test_bit_serial.py``.
    Not validated on: `edge`, grouped convolutions that are not depthwise, sparsity, any board; energy is NaN. The terms
    were found on all rows of that table, so it is no held-out check of them. Smooth mode is exact in the bits but for
    where two streams tie (1.7 % above); a partial tile may count less, by 22 % at most on the table.

    Args:
        rows, columns: of the grid of dot products, for filters and for pixels.
        dot_bits: of a dot product and of the port that feeds it.
        depthwise_bits: a cycle, of activations of a depthwise convolution.
        clock_hz: cycles a second. HAQ's table is in cycles; 200 MHz is the clock of BISMO's own design.

    >>> from jaxcomp._workload import Product
    >>> expand = Product("expand", "expand/kernel", 16, 1, 24, 144, 1, 1, 56, 56, 56, 56)
    >>> cloud = BitSerial.cloud()
    >>> [int(cloud.cycles(expand, Stored(weight_bits=w, activation_bits=a))) for w, a in ((8, 8), (4, 8), (4, 4))]
    [1806336, 903168, 451584]

    References: Umuroglu et al., BISMO, FPL 2018, arXiv 1806.08862; Wang et al., HAQ, CVPR 2019, arXiv 1811.08886.
    """

    rows: Any = 16
    columns: Any = 16
    dot_bits: Any = 256.0
    depthwise_bits: Any = 32.0
    clock_hz: Any = 200e6

    @classmethod
    def cloud(cls) -> "BitSerial":
        """HAQ's larger design (VU9P): 16 x 16 dot products of 256 bits. It runs batches of 16."""
        return cls()

    @classmethod
    def edge(cls) -> "BitSerial":
        """HAQ's smaller one (Zynq-7020): 8 x 8 dot products, as in BISMO's 6.5 binary Tera-operations a second.

        Its batches are of 1; its port has a quarter of the width, and so, here, has that of depthwise layers.
        """
        return cls(rows=8, columns=8, depthwise_bits=8.0)

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """The slowest of the three streams."""
        return mode.maximum(*self._streams(product, operands(product, stored), mode).values())

    def product(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> ProductCost:
        o = operands(product, stored)
        streams = self._streams(product, o, mode)
        latency_s = mode.maximum(*streams.values()) / self.clock_hz
        work = o.macs * o.weight_bits * o.activation_bits
        peak = self.rows * self.columns * self.dot_bits * self.clock_hz
        return ProductCost(
            latency_s=latency_s,
            latency_terms={name: cycles / self.clock_hz for name, cycles in streams.items()},
            energy_terms={},
            weight_bytes=stored.weight_bytes(product),
            utilization=share(work, latency_s * peak),
        )

    def _streams(self, product: Product, o: Operands, mode: Mode) -> dict[str, jax.Array]:
        """Cycles that each stream would take alone."""
        pixels = product.out_h * product.out_w
        images = jnp.where(pixels > 1, product.batch, 1)
        pixels = jnp.where(pixels > 1, pixels, product.batch)
        words = folds(o.depth, self.dot_bits, mode)
        tiles = folds(o.columns, self.rows, mode) * folds(pixels, self.columns, mode)
        passes = o.runs * images
        alone = product.depthwise
        moved = jnp.where(alone, 2 * o.columns * pixels / self.depthwise_bits, pixels * words)
        return {
            "arithmetic": jnp.where(alone, 0, passes * tiles * words * o.weight_bits * o.activation_bits),
            "activations": passes * moved * o.activation_bits,
            "weights": passes * o.columns * jnp.where(alone, 1, words) * o.weight_bits,
        }
