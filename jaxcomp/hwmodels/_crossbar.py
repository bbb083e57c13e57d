"""Crossbars: weights as conductances of cells, sums read from columns, inputs fed bit by bit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product
from jaxcomp.hwmodels._adc import Converter, needed_bits
from jaxcomp.hwmodels._chip import Chip
from jaxcomp.hwmodels._device import Device, ProductCost
from jaxcomp.hwmodels._mode import Exact, Mode, Smooth
from jaxcomp.hwmodels._operands import folds, operands
from jaxcomp.hwmodels._stored import Stored


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Crossbar(Device):
    r"""Arrays of ``rows x columns`` cells that hold weights, one input bit (or a few) on every row at a time.

    A weight of ``w`` bits takes ``c = ceil((w - sign_bits) / cell_bits)`` cells. What compression leaves of a product,
    `depth` inputs by `filters` outputs, takes

        ceil(depth / rows) * ceil(filters * c / columns) * signs         cells in neighbouring columns
        ceil(depth / rows) * ceil(filters / columns) * c * signs         cells in arrays of their own

    arrays for every group of a convolution. Only `fragment` rows are read together, so with ``F = ceil(depth /
    fragment)`` fragments in all, ``f`` of them in the fullest array, and ``n = ceil(activation_bits / input_bits) *
    input_share`` input cycles,

        latency      = rows_of_the_product * n * f * columns / (converters * rate_hz) / replicas
        conversions  = rows_of_the_product * n * F * filters * c * signs, each needing `needed_bits(fragment, ...)` bits

    All arrays of a product work at once, and its weights never move: as many chips as it takes. Energy is of
    conversions and their additions, of rows driven, of cells read, and of activations that pass buffer, bus and router,
    where every window is read anew. Arrays gain from removed outputs and inputs, not from single zeros; conversions do
    not know which inputs are zero other than by `input_share`. Smooth counts of arrays and cells are each less than one
    fold short, and at most 0.6 % above.

    Measured: ISAAC's power and area within 0.3 % of every total of its table, 41.3 TOPS at 16 bits (the published
    479 GOPS per mm2 against 483); 8 and 4 bits of converters; FORMS' factors of 4 for 8 instead of 32 bits and of 2 for
    one array instead of two, exact. Array counts equal those of `jaxcomp.crossbars`. Tests:
    ``tests/hwmodels/test_crossbar.py``.
    **Not validated on**: energy or latency of any network; FORMS' frames per second; peripherals of memristor tiles,
    for which ISAAC's stand in, so that only ratios mean something; writing of cells, so products of two activations
    cost as if their right side were already stored. The table's powers (16 mW for 8 converters) and its energy
    per conversion (1.67 pJ at 1.2 GS/s) differ by 7 % at the 1.28 GS/s that 100 ns a cycle needs; power is taken from
    the former, energy from the latter.

    Args:
        rows, columns: of an array.
        cell_bits: of a cell.
        input_bits: driven at a time.
        fragment: rows read together.
        signs: arrays for every block of weights: 2 where positive and negative weights are apart, 1 where an offset or
            shared signs (`jaxcomp.Polarized`) make do.
        sign_bits: of a weight that cells need not hold.
        input_share: of input cycles that are left when those in which no input of a fragment has a bit are skipped:
            a number or ``[products]``; `effective_input_cycles` over the bits of an activation.
        replicas: copies of every product's weights that share its rows.
        converters: of an array.
        rate_hz: conversions a second, of each.
        converter: what one costs.
        cell_j, drive_j, add_j: joules to read a cell for a cycle, to drive a row through the arrays of a group, to
            shift and add a conversion.
        buffer_j, bus_j, router_j: joules a bit.
        chip: power and area of the parts.
        side_by_side: whether the cells of a weight are in neighbouring columns; static.

    >>> from jaxcomp._workload import Product
    >>> layer = Product("layer", "layer/kernel", 1, 1, 512, 512)
    >>> both = Stored(weight_bits=32, activation_bits=16), Stored(weight_bits=8, activation_bits=16)
    >>> two, one = Crossbar.forms(signs=2), Crossbar.forms()
    >>> int(two.crossbars(layer, both[0])), int(two.crossbars(layer, both[1])), int(one.crossbars(layer, both[1]))
    (512, 128, 64)

    References: Shafiee et al., ISAAC, ISCA 2016; Yuan et al., FORMS, ISCA 2021, arXiv 2106.09144; Yuan et al., An
    Ultra-Efficient Memristor-Based DNN Framework, ISLPED 2019, arXiv 1908.11691.
    """

    rows: Any = 128
    columns: Any = 128
    cell_bits: Any = 2
    input_bits: Any = 1
    fragment: Any = 128
    signs: Any = 1
    sign_bits: Any = 0
    input_share: Any = 1.0
    replicas: Any = 1
    converters: Any = 1
    rate_hz: Any = 1.28e9  # 128 columns in 100 ns; the table has 1.2, the text of ISAAC 1.28
    converter: Converter = Converter.isaac()
    # ISAAC's, 32 nm, per action: isaac_forms_component_actions.csv; cells: 2.4 mW of 8 arrays for 100 ns.
    cell_j: Any = 2.4e-3 / 8 * 100e-9 / 128**2
    drive_j: Any = 0.41667e-12
    add_j: Any = 0.021e-12
    buffer_j: Any = 20.45e-12 / 256
    bus_j: Any = 0.054e-12
    router_j: Any = 20.74e-12 / 256
    chip: Chip = Chip.isaac()
    side_by_side: bool = dataclasses.field(default=True, metadata={"static": True})

    @classmethod
    def isaac(cls) -> "Crossbar":
        """Offset weights in one array, all 128 rows at once, one converter of 8 bits an array."""
        return cls()

    @classmethod
    def forms(cls, fragment: Any = 8, signs: Any = 1) -> "Crossbar":
        """Fragments of rows, 4 converters an array (32 for 8 arrays); two signs for weights not polarized."""
        return cls(
            fragment=fragment,
            signs=signs,
            converters=4,
            rate_hz=2.1e9,
            converter=Converter.forms(),
            chip=Chip.forms(),
        )

    @classmethod
    def memristor(cls, rows: Any = 32, columns: Any = 32) -> "Crossbar":
        """Cells of 4 bits, magnitudes in positive and negative arrays: 4 arrays a block for 9 bits, 2 for 5."""
        return cls(
            rows=rows,
            columns=columns,
            cell_bits=4,
            fragment=rows,
            signs=2,
            sign_bits=1,
            chip=Chip.isaac(rows, columns),
            side_by_side=False,
        )

    @property
    def area_mm2(self) -> Any:
        return self.chip.area_mm2

    @property
    def converter_bits(self) -> jax.Array:
        """What a conversion needs to lose nothing."""
        return needed_bits(self.fragment, self.cell_bits, self.input_bits)

    def peak_ops(self, weight_bits: Any = 16, activation_bits: Any = 16) -> jax.Array:
        """Operations a second of the whole chip when all its cells are used, a multiplication and an addition each."""
        cells = self._cells(Stored(weight_bits=weight_bits), Exact()) * self.signs
        weights = self.chip.tiles * self.chip.groups * self.chip.arrays * self.rows * self.columns / cells
        cycles = self._input_cycles(Stored(activation_bits=activation_bits), Exact())
        return 2 * weights / (cycles * self._reads(self.rows, Exact()) * self._read_s)

    def crossbars(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """Arrays that hold the weights of products, copies in a stack of layers and replicas counted."""
        copies = jnp.where(jnp.asarray(product.weighted) > 0, product.copies, 1)
        return self._arrays(product, stored, mode) * product.groups * copies * self.replicas

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """Reads of fragments one after the other, by the fullest array of every product."""
        o = operands(product, stored)
        reads = self._reads(o.depth, mode) * self._input_cycles(stored, mode)
        return product.repeat * o.rows * reads / self.replicas

    def product(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> ProductCost:
        o = operands(product, stored)
        cells = self._cells(stored, mode) * self.signs
        inputs = o.runs * o.rows * self._input_cycles(stored, mode)
        conversions = inputs * folds(o.depth, self.fragment, mode) * o.columns * cells
        # A driver serves the arrays of a group, one after the other in columns.
        served = folds(o.columns * cells, self.columns * self.chip.arrays, mode)
        windows, results = o.runs * o.rows * o.depth, o.writes * product.repeat
        latency = self.cycles(product, stored, mode) * self._read_s
        held = self._arrays(product, stored, mode) * self.rows * self.columns
        return ProductCost(
            latency_s=latency,
            latency_terms={"conversion": latency},
            energy_terms={
                "conversion": conversions * self.converter.energy_j(self.converter_bits),
                "addition": conversions * self.add_j,
                "drivers": inputs * o.depth * served * self.drive_j,
                "cells": inputs * o.depth * o.columns * cells * self.cell_j,
                "buffer": (windows + results) * stored.activation_bits * self.buffer_j,
                "bus": windows * stored.activation_bits * self.bus_j,
                "router": results * stored.activation_bits * self.router_j,
            },
            weight_bytes=stored.weight_bytes(product),
            utilization=jnp.minimum(o.depth * o.columns * cells / jnp.maximum(held, 1), 1),
        )

    def _cells(self, stored: Stored, mode: Mode) -> jax.Array:
        """For the magnitude of a weight."""
        return folds(stored.weight_bits - self.sign_bits, self.cell_bits, mode)

    def _input_cycles(self, stored: Stored, mode: Mode) -> jax.Array:
        return folds(stored.activation_bits, self.input_bits, mode) * self.input_share

    def _arrays(self, product: Product, stored: Stored, mode: Mode) -> jax.Array:
        """For one group of a product."""
        o, cells = operands(product, stored), self._cells(stored, mode)
        down = folds(o.depth, self.rows, mode)
        if self.side_by_side:
            return down * folds(o.columns * cells, self.columns, mode) * self.signs
        return down * folds(o.columns, self.columns, mode) * cells * self.signs

    def _reads(self, depth: Any, mode: Mode) -> jax.Array:
        """Fragments of the fullest array."""
        return jnp.minimum(folds(depth, self.fragment, mode), folds(self.rows, self.fragment, mode))

    @property
    def _read_s(self) -> Any:
        """To convert one fragment of every column."""
        return self.columns / (self.converters * self.rate_hz)


def effective_input_cycles(x: jax.Array, fragment: int, mode: Mode = Exact()) -> jax.Array:
    r"""Input cycles of every fragment when leading zeros common to its inputs are skipped.

    ``bits(max of a fragment)``, where ``bits(v) = ceil(log2(1 + v))`` is the position of the highest bit: none for a
    fragment of zeros. In smooth mode ``log2(1 + m)``, where ``m`` is the mode's maximum: less than one cycle below, and
    above by ``log2(fragment) / power`` at most.

    Args:
        x: activations as whole numbers, none negative, ``[..., inputs]``; inputs in the order of the array's rows. Any
            dtype; up to 2^24 in float32.
        fragment: inputs read together. The last fragment may have fewer.

    Returns:
        ``[..., fragments]`` float32.

    >>> effective_input_cycles(jnp.array([0, 5, 1, 1, 0, 0, 8]), 2).tolist()
    [3.0, 1.0, 0.0, 4.0]

    References: Yuan et al., FORMS, ISCA 2021.
    """
    if fragment < 1:
        raise ValueError(f"a fragment needs at least one input, found {fragment}")
    x = jnp.asarray(x, jnp.float32)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % fragment)])
    columns = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, fragment), -1, 0)
    largest = mode.maximum(*columns)
    if isinstance(mode, Smooth):
        return jnp.log2(1 + largest)
    return jnp.where(largest > 0, jnp.frexp(largest)[1], 0).astype(jnp.float32)
