"""An array behind a buffer: what arrays share whose operands are loaded while they compute."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._workload import Product
from jaxcomp.hwmodels._device import Device, ProductCost
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._operands import Operands, operands, traffic
from jaxcomp.hwmodels._stored import Stored


class Buffered(Device):
    """An array of ``rows x columns`` units that needs `cycles`, while operands pass the edge of the chip:

        latency_s = max(cycles / clock_hz, bytes off chip / bandwidth),

    with the least traffic if half of the buffer holds partial sums (`jaxcomp.hwmodels._operands.readings`).

    A subclass has these numbers, and defines `cycles`, and `_energy` if it knows it.
    """

    rows: Any
    columns: Any
    clock_hz: Any
    bandwidth: Any
    buffer_bytes: Any
    word_bits: Any  # of a partial sum

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """Of the array alone, no operand late."""
        raise NotImplementedError(f"{type(self).__name__} must define cycles(product, stored, mode)")

    def _peak(self, o: Operands) -> Any:
        """Multiplications a cycle when all units work."""
        return self.rows * self.columns

    def _energy(self, product: Product, o: Operands, activations: Any, moved: Any, mode: Mode) -> dict[str, jax.Array]:
        """Joules by component, of so many activations in and out of the chip and so many bytes in all."""
        return {}

    def product(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> ProductCost:
        o = operands(product, stored)
        cycles = self.cycles(product, stored, mode)
        activations, moved = traffic(product, o, self.buffer_bytes * 8 / self.word_bits / 2)
        terms = {"compute": cycles / self.clock_hz, "memory": moved / self.bandwidth}
        return ProductCost(
            latency_s=mode.maximum(*terms.values()),
            latency_terms=terms,
            energy_terms=self._energy(product, o, activations, moved, mode),
            weight_bytes=stored.weight_bytes(product),
            utilization=o.macs / (jnp.maximum(cycles, 1) * self._peak(o)),
        )
