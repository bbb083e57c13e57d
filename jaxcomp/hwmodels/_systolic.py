"""Systolic arrays: whole folds of a matrix product on a grid of multipliers, and the memories around it."""

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

DATAFLOWS = ("weights", "outputs", "inputs")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Systolic(Buffered):
    r"""An array of ``rows x columns`` multipliers that hold one operand still while the others stream past.

    A product ``[P, W] @ [W, N]`` (pixels, window, filters) is cut into folds that fill the array:

        stationary   along rows   along columns   streamed   bracket
        weights      W            N               P          2 rows + columns + P - 2
        outputs      P            N               W          rows + columns + W - 2
        inputs       W            P               N          2 rows + columns + N - 2

        cycles = ceil(along rows / rows) * ceil(along columns / columns) * bracket - 1

    for every group and repetition, SCALE-Sim's count when no data are late. ``latency_s`` is the larger of
    ``cycles / clock_hz`` and off-chip bytes over the bandwidth. Half of the buffer (the other half is being filled)
    holds partial sums, one of `word_bits` each, and off-chip traffic is the least that this allows (`readings`).

    The array has one width: low bits save memory traffic, not cycles. It gains from removed outputs and inputs, not
    from single zeros. Energy is of multiplications, of the words that the array takes from the buffer and puts there,
    and of off-chip traffic.

    Measured against ``scalesim_compute_cycles.csv`` (SCALE-Sim 3.0.0; 156 rows, four arrays, three dataflows): cycles
    equal in every row, and so are buffer reads, and writes for stationary weights and inputs. For stationary outputs
    the tool counts ``rows + columns`` writes a fold more than there are results; this counts results.
    In smooth mode either count of folds is less than one fold short and at most 0.6 % above: on the table's rows
    cycles differ by 0.9 % in the mean, 0.0 % in the median and 23 % at most (where a fold is hardly begun).
    Tests: ``tests/hwmodels/test_systolic.py``.
    Not validated on: energy, any chip. *Not reproduced*: stalls. For a product of 256 x 256 x 128 at 10 words a cycle
    SCALE-Sim counts 52 447, 52 447 and 19 984 cycles for stationary weights, outputs and inputs, since its small
    buffers fetch operands again; this has 13 107, 13 107 and 14 207, as everything moves once.
    Cycles are whole numbers in float32 up to 2^24, and right to one part in 10^6 above; give a product of float64
    numbers under ``jax.enable_x64`` for whole ones up to 2^53.

    Args:
        rows, columns: of the array.
        stationary: "weights", "outputs" or "inputs"; static.
        clock_hz: cycles a second.
        bandwidth: bytes a second to and from off-chip memory; infinite by default.
        buffer_bytes: of all on-chip buffers together; infinite by default: everything moves once.
        word_bits: of an operand and a partial sum in the array and its buffers.
        mac_j, buffer_j, offchip_j: joules of a multiplication with its addition and registers, and to move a bit
            between array and buffer, and off chip.

    Raises:
        ValueError: from `product`, for an unknown dataflow.

    >>> from jaxcomp._workload import Product, Workload
    >>> conv = Product("conv1", "conv1/kernel", 1, 1, 3, 96, 11, 11, 224, 224, 55, 55, 4)
    >>> int(Systolic(32, 32).cycles(conv))
    112283
    >>> f"{float(Systolic.tpu().cost(Workload((conv,))).latency_s) * 1e6:.1f} us"
    '14.0 us'

    References: Samajdar et al., SCALE-Sim, arXiv 1811.02883 and ISPASS 2020.
    """

    rows: Any = 32
    columns: Any = 32
    stationary: str = dataclasses.field(default="weights", metadata={"static": True})
    clock_hz: Any = 1e9
    bandwidth: Any = jnp.inf
    buffer_bytes: Any = jnp.inf
    word_bits: Any = 8.0
    mac_j: Any = jnp.nan
    buffer_j: Any = jnp.nan
    offchip_j: Any = jnp.nan

    @classmethod
    def tpu(cls) -> "Systolic":
        """The size of the first TPU, with the energies of ZigZag's ``tpu_like``, an example and no measurement.

        256 x 256 at 700 MHz are 91.8 of the published 92 Tera-operations a second; 28 MiB on chip, 34 GB/s off chip
        (Jouppi et al., ISCA 2017). Energies from ``energy_per_access.csv``.
        """
        return cls(
            rows=256,
            columns=256,
            clock_hz=700e6,
            bandwidth=34e9,
            buffer_bytes=28 * 2**20,
            mac_j=(0.04 + 0.095 + 2 * 0.021) * 1e-12,  # multiplier, weight register, partial sum in and out
            buffer_j=(416.16 + 378.4) / 2 / 2048 * 1e-12,  # mean of a read and a write
            offchip_j=(700 + 750) / 2 / 64 * 1e-12,
        )

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """Of the array alone, no operand late."""
        o = operands(product, stored)
        tall, wide = self._folds(o, mode)
        _, _, streamed, fill = self._laid(o)
        pieces = tall * wide
        return o.runs * jnp.where(pieces > 0, pieces * (fill + self.columns + streamed - 2) - 1, 0)

    def accesses(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> dict[str, jax.Array]:
        """Words that the array takes from the buffers, windows unrolled, and puts there, by operand."""
        return self._accesses(operands(product, stored), mode)

    def _energy(self, product: Product, o: Operands, activations: Any, moved: Any, mode: Mode) -> dict[str, jax.Array]:
        """Joules of multiplications, of the buffer beside the array, and off chip."""
        return {
            "arithmetic": o.macs * self.mac_j,
            "buffer": sum(self._accesses(o, mode).values()) * self.word_bits * self.buffer_j,
            "off chip": moved * 8 * self.offchip_j,
        }

    def _laid(self, o: Operands) -> tuple[Any, Any, Any, Any]:
        """What lies along rows and along columns, what is streamed, and the cycles to fill rows and drain them."""
        if self.stationary == "weights":
            return o.depth, o.columns, o.rows, 2 * self.rows
        if self.stationary == "outputs":
            return o.rows, o.columns, o.depth, self.rows
        if self.stationary == "inputs":
            return o.depth, o.rows, o.columns, 2 * self.rows
        raise ValueError(f"stationary is {self.stationary!r}, expected one of {DATAFLOWS}")

    def _folds(self, o: Operands, mode: Mode) -> tuple[jax.Array, jax.Array]:
        tall, wide, _, _ = self._laid(o)
        return folds(tall, self.rows, mode), folds(wide, self.columns, mode)

    def _accesses(self, o: Operands, mode: Mode) -> dict[str, jax.Array]:
        tall, wide = self._folds(o, mode)
        passes = {  # how often inputs, weights and results are moved
            "weights": (wide, 1, tall),
            "outputs": (wide, tall, 1),
            "inputs": (1, wide, tall),
        }[self.stationary]
        sizes = (o.rows * o.depth, o.depth * o.columns, o.rows * o.columns)
        names = ("inputs", "weights", "results")
        return {name: o.runs * size * times for name, size, times in zip(names, sizes, passes, strict=True)}
