"""Charge-domain SRAM macros: a column shares the charge of its cells' products, and a converter reads the mean."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product
from jaxcomp.hwmodels._adc import Converter
from jaxcomp.hwmodels._device import Device, ProductCost
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._operands import folds, operands
from jaxcomp.hwmodels._stored import Stored


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SramMacro(Device):
    r"""A macro of ``rows x columns`` cells of which `sharing` in a column share one multiplier, so one of them works.

    A weight of ``w`` bits lies in ``w`` neighbouring columns; an operation multiplies ``rows / sharing`` inputs of
    `input_bits` with one bit of every weight and converts every column. What compression leaves of a product takes

        cycles = rows_of_the_product * ceil(depth * sharing / rows) * ceil(activation_bits / input_bits)
                 * ceil(filters * w / columns)

    for every group and repetition, and an operation whose ``C`` columns are in use

        energy_j = C * (converter(adc_bits) + rows / sharing * cell_j * value) * voltage ** voltage_exponent,
        value    = 1 - value_share * (1 - activation_density).

    Unused rows of an operation cost as much as used ones. Weights stay in the macro, or in as many as they need
    (`storage_bits` against `capacity_bits`); to load them is not modelled. Smooth counts of folds are each less than
    one fold short, and at most 0.6 % above.

    Measured on ``cim_macro_silicon.csv``. Of CAP-RAM's anchors (573.4 GOPS, 35.0 MHz, 11.6 mW, 331.6 pJ) the first
    follows from the size and the clock; the efficiency, 49.4 TOPS/W, is what `cell_j` was set by, once the converter
    was given, so the other two are not tests. Form alone, constants of three other chips:

        voltage squared, one factor      22 nm: 17 % at most, 7.5 % in the mean; 7 nm: 5.1 %, 2.9 %; 65 nm: 2.2 %
        exponent, from every other row   on the rest 8.3 % at most (22 nm, exponent 1.63), 1.9 % (7 nm, 2.20)
        values, from every other row     on the rest above zero 2.9 % at most (7 nm); all-zero outputs: 32 % too high
        bits of inputs                   1, 2, 4 bits exact (65 nm); 8 bits 17 % faster than measured

    Tests: ``tests/hwmodels/test_sram_macro.py``. *Not validated on*: energy of CAP-RAM at another voltage, width or
    layer (none is published); how its energy divides between cells and converters; area (NaN). Throughput counts a
    multiplication by one bit of a weight as two operations, as the paper does; clock and voltage are independent here.

    Args:
        rows, columns: of cells.
        sharing: cells of a column that share a multiplier; 1 where all rows work at once.
        input_bits: of an input driven at a time; CAP-RAM has 8 levels.
        clock_hz: operations a second.
        adc_bits: of a conversion.
        converter: what one costs, at the supply of the constants.
        cell_j: joules of one multiplier and its share of the drivers, likewise.
        value_share: of `cell_j` that is spent only where activations are not zero.
        voltage: supply over the one at which the energies hold.
        voltage_exponent: 2 for switched capacitance; fitted ones are above.

    >>> macro = SramMacro.cap_ram()
    >>> round(float(macro.peak_ops) / 1e9, 1), round(float(macro.operation_j()) * 1e12, 1), int(macro.capacity_bits)
    (573.4, 331.7, 65536)

    References: Chen et al., CAP-RAM, IEEE JSSC 2021, arXiv 2107.02388.
    """

    rows: Any = 512
    columns: Any = 128
    sharing: Any = 8
    input_bits: Any = 3
    clock_hz: Any = 35.0e6
    adc_bits: Any = 7
    # 100 fF a bit at 28 nm, grown to 65 nm: 1.66 pJ at 7 bits, a third of what the survey of converters gives.
    converter: Converter = Converter.switched_capacitor(65.0, voltage=1.0)
    cell_j: Any = 14.501e-15  # what is left of 16384 operations at 49.4 TOPS/W, by column and row
    value_share: Any = 0.0
    voltage: Any = 1.0
    voltage_exponent: Any = 2.0

    @classmethod
    def cap_ram(cls) -> "SramMacro":
        """65 nm, 512 x 128 bits, 64 rows at once, inputs of 8 levels, converters of 7 bits."""
        return cls()

    @property
    def capacity_bits(self) -> Any:
        return self.rows * self.columns

    @property
    def peak_ops(self) -> Any:
        """Operations a second, of one bit of a weight and one input, a multiplication and an addition each."""
        return 2 * self.rows / self.sharing * self.columns * self.clock_hz

    def operation_j(self, activation_density: Any = 1.0) -> Any:
        """Joules of one operation of all columns."""
        return self.columns * (self._conversion_j + self.rows / self.sharing * self._cell_j(activation_density))

    @property
    def power_w(self) -> Any:
        return self.operation_j() * self.clock_hz

    def storage_bits(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> Any:
        """Cells that the weights of products take, without removed rows and columns."""
        o = operands(product, stored)
        return o.weights * self._planes(stored, mode) * product.copies * product.weighted

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """Operations of products, one after the other."""
        wide = operands(product, stored).columns * self._planes(stored, mode)
        return self._passes(product, stored, mode) * folds(wide, self.columns, mode)

    def product(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> ProductCost:
        o = operands(product, stored)
        latency = self.cycles(product, stored, mode) / self.clock_hz
        wide, together = o.columns * self._planes(stored, mode), self.rows / self.sharing
        conversions = self._passes(product, stored, mode) * wide  # columns that are not in use are not converted
        room = folds(o.depth, together, mode) * together * folds(wide, self.columns, mode) * self.columns
        return ProductCost(
            latency_s=latency,
            latency_terms={"operations": latency},
            energy_terms={
                "conversion": conversions * self._conversion_j,
                "cells": conversions * together * self._cell_j(stored.activation_density),
            },
            weight_bytes=stored.weight_bytes(product),
            utilization=jnp.minimum(o.depth * wide / jnp.maximum(room, 1), 1),
        )

    def _planes(self, stored: Stored, mode: Mode) -> jax.Array:
        """Columns of a weight."""
        return folds(stored.weight_bits, 1, mode)

    def _passes(self, product: Product, stored: Stored, mode: Mode) -> jax.Array:
        """Operations of products if all columns fitted."""
        o = operands(product, stored)
        slices = folds(stored.activation_bits, self.input_bits, mode)
        return o.runs * o.rows * slices * folds(o.depth, self.rows / self.sharing, mode)

    @property
    def _conversion_j(self) -> Any:
        return self.converter.energy_j(self.adc_bits) * self.voltage**self.voltage_exponent

    def _cell_j(self, activation_density: Any) -> Any:
        values = 1 - self.value_share * (1 - activation_density)
        return self.cell_j * values * self.voltage**self.voltage_exponent
