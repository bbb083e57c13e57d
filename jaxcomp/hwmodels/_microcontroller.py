"""Microcontrollers: what fits into their memories, and how long it takes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product, Tensor, Workload
from jaxcomp.hwmodels._device import Cost, Device, ProductCost
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._operands import operands
from jaxcomp.hwmodels._share import share
from jaxcomp.hwmodels._stored import Stored

_KIB = 1024


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Microcontroller(Device):
    r"""A core with a little SRAM for activations and Flash for weights, which are read from there as they are used.

        latency = repeat * (MACs / (MACs a cycle * clock_hz) + launch_s)
        SRAM    = most bytes of activations at once, over all products
        Flash   = stored weights, each once, + code_bytes

    `live` counts activations as MCUNet's authors do. By default a residual is left out while the product that it will
    be added to runs; ``strict`` counts it. With ``in_place`` the result of a depthwise convolution overwrites its
    input, channel by channel, and takes one plane beside it. Where everything then lies is packed by `first_fit`.

    Measured: 311 040 bytes for MobileNetV2 of factor 0.35 at 144 pixels, exact, and 290 304 in place; 61 440 and
    57 344 for factor 0.3 at 64 pixels: the counts of the authors' code in the literature page. Those that are not in
    place stay the same if strict. The published 308 kB and 61 kB of the engine are 1.0 % and 0.7 % below. Of
    ``mcu_engine_measurements.csv`` (STM32H743) and ``mcunet_model_zoo.csv`` (STM32F746), whose networks are dealt to
    two halves by a hash of their names, one half gave the constants and the other these errors, from published MACs
    and parameters:

        latency   5 networks, median 6.9 %, largest 21 %
        Flash     6 networks, median 6.5 %, largest 15 %

    Test: ``tests/hwmodels/test_microcontroller.py``.
    Not validated on: rates by kind of layer, which nobody publishes: dense and depthwise layers have the one rate of
    whole networks. Nor on clocks other than the H743's, a Cortex-M4 (taken for half the rate), fewer bits than 8,
    which save memory if packed and no time, energy (NaN), and buffers of the engine's own kernels, which are left out.
    Smooth mode changes the peak alone: it is above the exact one, by ``products ** (1 / 64)`` at most, 6 % for 50.

    Args:
        sram_bytes, flash_bytes: room for activations, and for weights and code.
        clock_hz: cycles a second.
        macs_per_cycle, depthwise_per_cycle: multiplications with additions.
        launch_s: seconds that every product takes beside; 0 for generated code.
        code_bytes: of Flash that hold code, biases and scales.
        strict: whether a residual counts while the product that it is added to runs; static.
        in_place: whether depthwise convolutions overwrite their input; static.

    >>> tensors = (Tensor("x", 100, -1, 0, 0), Tensor("h", 600, 0, 1, 1), Tensor("y", 150, 1, 2))
    >>> layers = Product("expand", "a", 1, 1, 1, 6), Product("depthwise", "b", 1, 6, 6, 6, 3, 3, 10, 10, 5, 5)
    >>> cost = Microcontroller.f746(in_place=True).cost(Workload(layers, tensors))
    >>> float(cost.activation_bytes), bool(Microcontroller.f746().fits(cost))
    (700.0, True)

    References: Lin et al., MCUNet, NeurIPS 2020, arXiv 2007.10319.
    """

    sram_bytes: Any
    flash_bytes: Any
    clock_hz: Any
    macs_per_cycle: Any
    depthwise_per_cycle: Any
    launch_s: Any = 0.0
    code_bytes: Any = 0.0
    strict: bool = dataclasses.field(default=False, metadata={"static": True})
    in_place: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def f412(cls, **choices: bool) -> "Microcontroller":
        """STM32F412, Cortex-M4 at 100 MHz: 256 KiB of SRAM and 1 MiB of Flash."""
        return _stm32(cls, 256, 1024, 100e6, 0.5, choices)

    @classmethod
    def f746(cls, **choices: bool) -> "Microcontroller":
        """STM32F746, Cortex-M7 at 216 MHz: 320 KiB of SRAM and 1 MiB of Flash."""
        return _stm32(cls, 320, 1024, 216e6, 1.0, choices)

    @classmethod
    def f765(cls, **choices: bool) -> "Microcontroller":
        """STM32F765, Cortex-M7 at 216 MHz: 512 KiB of SRAM and 1 MiB of Flash."""
        return _stm32(cls, 512, 1024, 216e6, 1.0, choices)

    @classmethod
    def h743(cls, **choices: bool) -> "Microcontroller":
        """STM32H743, Cortex-M7 at 480 MHz: 2 MiB of Flash, and the 512 KiB of SRAM that MCUNet uses of it."""
        return _stm32(cls, 512, 2048, 480e6, 1.0, choices)

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """Of multiplications, launches left out."""
        per_cycle = jnp.where(product.depthwise, self.depthwise_per_cycle, self.macs_per_cycle)
        return operands(product, stored).macs / per_cycle

    def product(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> ProductCost:
        arithmetic = self.cycles(product, stored, mode) / self.clock_hz
        launch = product.repeat * self.launch_s
        peak = jnp.maximum(self.macs_per_cycle, self.depthwise_per_cycle) * self.clock_hz
        macs = operands(product, stored).macs
        return ProductCost(
            latency_s=arithmetic + launch,
            latency_terms={"arithmetic": arithmetic, "launch": launch},
            energy_terms={},
            weight_bytes=stored.weight_bytes(product),
            utilization=share(macs, (arithmetic + launch) * peak),
        )

    def live(self, workload: Workload) -> jax.Array:
        """Numbers in memory together while each product runs, or until the next one, ``[products]``."""
        counted = [self._counted(workload.tensors, number) for number in range(len(workload))]
        kept, made, between = np.array(counted, np.float32).T
        if self.in_place:
            layers = workload.stacked
            made = jnp.where(layers.depthwise, jnp.minimum(made, layers.out_h * layers.out_w), made)
        return jnp.maximum(kept + made, between)

    def fits(self, cost: Cost) -> jax.Array:
        """Whether activations fit into SRAM, and weights with code into Flash."""
        flash = cost.weight_bytes + self.code_bytes
        return (cost.activation_bytes <= self.sram_bytes) & (flash <= self.flash_bytes)

    def _counted(self, tensors: Sequence[Tensor], number: int) -> tuple[int, int, int]:
        """Elements that stay while a product runs, that it makes in place of its input, and that live after it."""
        counted = [tensor for tensor in tensors if self.strict or not _awaits(tensor, number)]
        # Whatever else still needs the input, the result cannot take its place.
        freed = any(tensor.read == tensor.dies == number for tensor in counted)
        here, between = (
            [tensor for tensor in counted if tensor.born <= moment <= tensor.dies] for moment in (number, number + 0.5)
        )
        made = sum(tensor.elements for tensor in here if freed and tensor.born == number)
        after = sum(tensor.elements for tensor in between)
        if number == 0:  # and before it
            after = max(after, *(sum(t.elements for t in counted if t.born <= m <= t.dies) for m in (-1, -0.5)))
        return sum(tensor.elements for tensor in here) - made, made, after


def _awaits(tensor: Tensor, number: int) -> bool:
    """Whether a tensor only waits to be added to what the product makes."""
    return tensor.born < number and tensor.read < number and tensor.dies == number + 0.5


def _stm32(
    cls: type[Microcontroller], sram_kib: int, flash_kib: int, clock_hz: float, rate: float, choices: dict[str, bool]
):
    """A member of the family; `rate` is relative to the Cortex-M7."""
    # Medians of the calibrating halves: 4.45 ms for a million MACs at 480 MHz, and 202 kB of Flash beside parameters.
    per_cycle = 0.4683 * rate
    return cls(sram_kib * _KIB, flash_kib * _KIB, clock_hz, per_cycle, per_cycle, 0.0, 202e3, **choices)
