"""FTRANS: block-circulant layers by Fourier transforms on an FPGA, one after another or as a pipeline."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product, Workload
from jaxcomp.hwmodels._device import Cost, Device, ProductCost
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._operands import folds
from jaxcomp.hwmodels._stored import Stored


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Layers that run at the same time, each on multipliers of its own.

    Attributes:
        interval_s: seconds from one result to the next: of the slowest stage.
        latency_s: seconds from an input to its result.
        dsps: of each stage.
    """

    interval_s: jax.Array
    latency_s: jax.Array
    dsps: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FpgaCirculant(Device):
    r"""Multipliers of an FPGA that apply circulant blocks of side ``b`` by transforms of length ``b``.

    For a row of a layer with ``f = ceil(outputs / b)`` blocks one way and ``g = ceil(inputs / b)`` the other:

        transforms        f + g              real, each b log2 b multiplications (half of a complex one)
        complex products  f g (b / 2 + 1)    half a spectrum, each 4 multiplications

    ``b = 1`` is a dense layer, and so is a product of two activations: a multiplication for each of its MACs. The
    spectra of weights are taken from memory as the ``b`` numbers of a block, one for each row of the dense block.
    ``latency_s`` is multiplications over ``dsps * clock_hz``, as each layer in its turn has all multipliers. The sum
    over layers is also the least interval of a pipeline that works on all layers at once; `pipeline` has whole
    multipliers for each and is paced by its slowest stage. A multiplication takes
    ``ceil(weight_bits / 18) * ceil(activation_bits / 27)`` slices.

    Operation counts equal the closed form of the literature page. Test: ``tests/hwmodels/test_fpga_circulant.py``.
    Not validated on: any board. FTRANS gives results a second and watts but neither batch nor length behind them,
    so nothing was calibrated on them, and energy is NaN. Traffic off chip, softmax and normalisation are left out.
    Smooth mode: either count of blocks, and of slices, is less than one short and at most 0.6 % above.

    Args:
        dsps: multipliers.
        clock_hz: cycles a second.
        memory_bytes: on the chip.
        block: side of circulant blocks, a power of two: a number, or one for each product; it decides the cost,
            `Stored.density` does not.

    >>> layers = Workload((Product("dense", "w", 128, 1, 768, 768),))
    >>> board = FpgaCirculant.vcu118(block=8)
    >>> [int(x) for x in board.operations(layers.products[0])]
    [192, 46080]
    >>> cost = board.cost(layers, Stored(weight_bits=16, activation_bits=16))
    >>> f"{float(cost.latency_s) * 1e6:.1f} us, {int(cost.weight_bytes)} bytes"
    '17.7 us, 147456 bytes'

    References: Li et al., FTRANS, ISLPED 2020, arXiv 2007.08563; Ding et al., CirCNN, MICRO 2017, arXiv 1708.08917.
    """

    dsps: Any
    clock_hz: Any
    memory_bytes: Any = jnp.inf
    block: Any = 1.0

    @classmethod
    def vcu118(cls, block: Any = 8.0) -> "FpgaCirculant":
        """The board of FTRANS: 6840 multipliers, 345.9 Mbit of block and ultra memory (XCVU9P's data sheet).

        Its clock is not published with the results; 200 MHz is an assumption.
        """
        return cls(6840.0, 200e6, 345.9e6 / 8, block)

    def operations(self, product: Product, mode: Mode = Exact()) -> tuple[jax.Array, jax.Array]:
        """Transforms and complex products for one row, of all groups."""
        out, into = folds(product.columns, self.block, mode), folds(product.depth, self.block, mode)
        return product.groups * (out + into), product.groups * out * into * (self.block / 2 + 1)

    def product(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> ProductCost:
        slices = folds(stored.weight_bits, 18, mode) * folds(stored.activation_bits, 27, mode)
        work = self._multiplications(product, mode)
        terms = {name: count * slices / (self.dsps * self.clock_hz) for name, count in work.items()}
        blocks = folds(product.columns, self.block, mode) * folds(product.depth, self.block, mode)
        kept = jnp.where(self._circulant(product), product.groups * blocks * self.block, product.weights)
        return ProductCost(
            latency_s=sum(terms.values()),
            latency_terms=terms,
            energy_terms={},
            weight_bytes=(kept * stored.weight_bits + stored.side_bits) / 8 * product.weighted,
            utilization=jnp.full_like(terms["products"], jnp.nan),  # all are taken for busy
        )

    def fits(self, cost: Cost) -> jax.Array:
        """Whether weights and activations fit on the chip together."""
        return cost.weight_bytes + cost.activation_bytes <= self.memory_bytes

    def pipeline(self, workload: Workload, stored: Stored = Stored()) -> Pipeline:
        """Multipliers for each layer such that the slowest is as fast as can be: whole ones, at least one for each.

        Exact: found by halving the interval, as fewer multipliers never do for a shorter one.

        Raises:
            ValueError: for more layers than multipliers.
        """
        if float(self.dsps) < len(workload):
            raise ValueError(f"{self.dsps} multipliers for {len(workload)} stages, expected one for each at least")
        seconds = self.product(workload.stacked, stored).latency_s * self.dsps  # on a single multiplier

        def halve(_, found):
            low, high, dsps = found
            middle = (low + high) / 2
            needed = jnp.maximum(jnp.ceil(seconds / middle), 1)
            enough = jnp.sum(needed) <= self.dsps
            return jnp.where(enough, low, middle), jnp.where(enough, middle, high), jnp.where(enough, needed, dsps)

        start = (jnp.sum(seconds) / self.dsps, jnp.max(seconds), jnp.ones_like(seconds))
        _, _, dsps = jax.lax.fori_loop(0, 60, halve, start)
        slowest = jnp.max(seconds / dsps)
        return Pipeline(slowest, slowest * len(workload), dsps)

    def _multiplications(self, product: Product, mode: Mode) -> dict[str, jax.Array]:
        transforms, products = self.operations(product, mode)
        circulant, times = self._circulant(product), product.repeat * product.rows
        length = jnp.asarray(self.block, jnp.result_type(float))
        return {
            "transforms": jnp.where(circulant, times * transforms * length * jnp.log2(length), 0.0),
            "products": jnp.where(circulant, times * products * 4, product.macs),
        }

    def _circulant(self, product: Product) -> jax.Array:
        return (jnp.asarray(product.weighted) > 0) & (jnp.asarray(self.block) > 1)
