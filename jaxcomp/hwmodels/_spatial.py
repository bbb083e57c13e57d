"""Arrays of multipliers under a hierarchy of memories, run by explicit mappings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcomp._pytree import register_dataclass
from jaxcomp._workload import Product
from jaxcomp.hwmodels._dataflow import closed_form
from jaxcomp.hwmodels._device import Device, ProductCost
from jaxcomp.hwmodels._level import Level
from jaxcomp.hwmodels._mapping import Mapping
from jaxcomp.hwmodels._mode import Exact, Mode
from jaxcomp.hwmodels._operands import operands
from jaxcomp.hwmodels._reuse import Reuse, volume
from jaxcomp.hwmodels._stored import Stored


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Spatial(Device):
    r"""An array of multipliers under a hierarchy of memories, run by a mapping: Timeloop's analysis in closed form.

    A `Mapping` splits the seven loops of a convolution over the levels, in time and in space, and orders them. Of a
    tensor, a memory of level ``l`` holds the tile that the loops inside it touch. A tile is brought in

        f(l) = product of the steps of the loops above l, from the outermost to the innermost that the tensor needs

    times: loops further in find it in place. If that innermost loop moves a window over inputs, only new rows or
    columns come. Units that want the same word get it by one read of the level above, and their partial sums are
    added on the way up. With ``A(l)`` the words in and out of all ``n(l)`` memories of a level in use (`Reuse`):

        cycles = max(steps of all loops, A(l) / (n(l) words_per_cycle(l)) for every level)
        energy = macs mac_pj + sum over levels of A(l) (access_pj(l) + access_pj_per_kib(l) capacity_kib(l))

    Every group and repetition runs by itself. Removed inputs and outputs shorten the loops; single zeros and low bits
    only make what moves smaller: a word of weights or inputs has the bytes in which it is stored, and so has an output
    in the outermost level; inside, a partial sum is one word of its memory.

    Measured against ``dosa_timeloop_gemmini_sample.csv`` (2500 mappings of 65 layers on 95 designs, by Timeloop and
    Accelergy), with the published constants and none fitted: cycles have median error 0, mean 0.005 %, at most 1.4 %,
    and rank correlation above 0.99999; energy has median error 0.015 %, mean 0.20 %, at most 14.2 %. The largest
    errors in energy are of layers of few outputs, where DRAM is charged by whole lines (10.7 %), and of two mappings
    in which two loops move along one axis of the inputs, whose overlap is not seen. Without the rule for windows,
    which DOSA's formula has not, the mean is 6.1 %. Test: ``tests/hwmodels/test_spatial.py``.
    In smooth mode, and where factors divide the layer, ``1 <= smooth / exact <= (levels + 1) ** (1 / power)``: 2.5 %
    for four levels. A factor need not be whole there; under ``Smooth(width=10.0)`` rounding up is nearly the
    identity, and factors have useful derivatives.
    Not validated on: hierarchies other than Gemmini's, compressed layers, groups, inputs spread over units by rows
    (their common rows count twice), any chip. Areas are not known.

    Args:
        levels: from the one next to the multipliers to the one outside the chip, which keeps everything.
        mapping: of every product; by default a closed form (weights stay on the array, sums in their memory), which
            is whole and has no derivative, and by which less work may cost more: to go by sizes, give a mapping.
            Nothing checks that a mapping fits: `fits` says it.
        mac_pj: energy of a multiplication and an addition.
        clock_hz: cycles a second.
        partial_bits: of a partial sum on the chip, for its share of the capacity.

    Raises:
        ValueError: from `product`, for a mapping with another number of levels.

    >>> from jaxcomp._workload import Product
    >>> conv = Product("conv", None, 1, 1, 16, 32, 3, 3, out_h=28, out_w=28)
    >>> own = Spatial.gemmini(side=16)
    >>> print(own.mapped(conv).text(conv, own.keeps))
    L3[WIO] N1 - L2[WI] P4 K2 K16X - L1[O] S3 R3 P7 Q28 C16X - L0[W] N1
    >>> mapping = Mapping.parse("L3[WIO] K8 P7 - L2[WI] N1 K4X - L1[O] R3 S3 Q28 C16X - L0[W] P4")
    >>> given = Spatial.gemmini(side=16, mapping=mapping)
    >>> [int(device.cycles(conv)) for device in (own, given)]
    [14112, 56448]

    References: Hong et al., DOSA: Differentiable Model-Based One-Loop Search for DNN Accelerators, MICRO 2023; Parashar
    et al., Timeloop, ISPASS 2019.
    """

    levels: tuple[Level, ...]
    mapping: Mapping | None = None
    mac_pj: Any = 0.0
    clock_hz: Any = 1e9
    partial_bits: Any = 32.0

    @classmethod
    def gemmini(
        cls, side: Any = 16.0, accumulator_kib: Any = 1.0, scratchpad_kib: Any = 128.0, mapping: Mapping | None = None
    ) -> "Spatial":
        """Gemmini's ``side x side`` multipliers: inputs along rows, outputs along columns; DOSA's constants.

        Args:
            side: of the array; the scratchpad moves twice as many words a cycle, an accumulator 2, DRAM 8.
            accumulator_kib: of partial sums, for one column.
            scratchpad_kib: of weights and inputs.
            mapping: of the products; by default the closed form, weights stationary.
        """
        return cls(
            (
                Level("registers", "W", access_pj=0.48746),
                Level("accumulators", "O", side, accumulator_kib, 2.0, 1.94, 0.1005, unrolls="C", grows="QPRSC"),
                Level("scratchpad", "WI", side, scratchpad_kib, 2.0 * side, 0.49, 0.02513, unrolls="K", grows="KRSCQP"),
                Level("dram", "WIO", words_per_cycle=8.0, access_pj=100.0),
            ),
            mapping,
            mac_pj=0.5608,
        )

    @property
    def keeps(self) -> tuple[str, ...]:
        return tuple(level.keeps for level in self.levels)

    def mapped(self, product: Product, stored: Stored = Stored()) -> Mapping:
        """The mapping of products: the device's own, or the closed form."""
        if self.mapping is not None:
            if self.mapping.levels != len(self.levels):
                levels = f"{self.mapping.levels} levels, expected {len(self.levels)}"
                raise ValueError(f"the mapping has {levels}, those of the device: {[x.name for x in self.levels]}")
            return self.mapping
        product = _kept(product, stored)

        def holds_kib(level, extents):
            stride = jnp.asarray(product.stride, extents.dtype)
            return self._kib(level, product, stored, lambda tensor: volume(tensor, extents, stride))

        return closed_form(self.levels, product, holds_kib)

    def needs(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> tuple[Level, ...]:
        """The levels with the capacity and the fan-out that a mapping of each product takes, as arrays."""
        mapping = self.mapped(product, stored)
        product = _kept(product, stored)
        reuse = Reuse.of(mapping, product, mode)
        return tuple(
            dataclasses.replace(
                level,
                fanout=jnp.prod(reuse.spatial[..., number, :], -1),
                capacity_kib=self._kib(number, product, stored, lambda t, n=number: reuse.tile(t, n)),
            )
            for number, level in enumerate(self.levels)
        )

    def fitted(self, product: Product, stored: Stored = Stored()) -> "Spatial":
        """This hierarchy with the least capacities and fan-outs that hold the mappings of all products."""
        needs = jax.tree.map(jnp.max, self.needs(product, stored))
        bounded = zip(self.levels[:-1], needs[:-1], strict=True)
        fields = [{"capacity_kib": need.capacity_kib, "fanout": need.fanout} for _, need in bounded]
        inner = (dataclasses.replace(level, **new) for level, new in zip(self.levels[:-1], fields, strict=True))
        return dataclasses.replace(self, levels=(*inner, self.levels[-1]))

    def fits(self, product: Product, stored: Stored = Stored()) -> jax.Array:
        """Whether the mapping of each product stays within capacities and fan-outs."""
        pairs = zip(self.levels, self.needs(product, stored), strict=True)
        checks = [(n.fanout <= has.fanout) & (n.capacity_kib <= has.capacity_kib) for has, n in pairs]
        return jnp.all(jnp.stack(jnp.broadcast_arrays(*checks)), 0)

    def cycles(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> jax.Array:
        """The slowest of the array and the memories, every one of them busy all the time."""
        return mode.maximum(*self._terms(*self._moved(product, stored, mode)).values())

    def product(self, product: Product, stored: Stored = Stored(), mode: Mode = Exact()) -> ProductCost:
        reuse, words, runs = self._moved(product, stored, mode)
        terms = self._terms(reuse, words, runs)
        cycles = mode.maximum(*terms.values())
        macs = operands(product, stored).macs
        energy = {level.name: w * level.word_pj * 1e-12 for level, w in zip(self.levels, words, strict=True)}
        units = jnp.prod(jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(x.fanout, jnp.float32) for x in self.levels))), 0)
        return ProductCost(
            latency_s=cycles / self.clock_hz,
            latency_terms={name: term / self.clock_hz for name, term in terms.items()},
            energy_terms={"arithmetic": macs * self.mac_pj * 1e-12} | energy,
            weight_bytes=stored.weight_bytes(product),
            utilization=macs / (cycles * units),
        )

    def _moved(self, product: Product, stored: Stored, mode: Mode) -> tuple[Reuse, list[jax.Array], Any]:
        """The reuse of one run, the words in and out of every level in all runs, and the number of runs."""
        reuse = Reuse.of(self.mapped(product, stored), _kept(product, stored), mode)
        runs = product.repeat * product.groups
        words = [jnp.zeros(reuse.iterations.shape) for _ in self.levels]
        for tensor, size in self._word_bytes(product, stored).items():
            for level, accesses in reuse.accesses(tensor, self.keeps).items():
                # A partial sum is one word of the memory made for it; what leaves the chip has an activation's bits.
                inner = tensor == "O" and level < len(self.levels) - 1
                words[level] += runs * accesses * (1.0 if inner else size)
        return reuse, words, runs

    def _terms(self, reuse: Reuse, words: list[jax.Array], runs: Any) -> dict[str, jax.Array]:
        """Cycles that the array and every level alone would need."""
        levels = enumerate(zip(self.levels, words, strict=True))
        # Divided twice: an infinite bandwidth times a derivative of zero would be NaN.
        memory = {level.name: w / reuse.units(n) / level.words_per_cycle for n, (level, w) in levels}
        return {"compute": runs * reuse.iterations} | memory

    def _word_bytes(self, product: Product, stored: Stored) -> dict[str, Any]:
        """Bytes of an element of every tensor in kept rows and columns, with its share of indices, scales and signs."""
        kept = stored.input_density * stored.output_density
        values = jnp.minimum(stored.density / kept, 1) * stored.weight_bits
        weight_bits = values + (stored.index_bits + stored.side_bits / product.weights) / kept
        bits = {"W": jnp.where(jnp.asarray(product.weighted) > 0, weight_bits, stored.activation_bits)}
        return {tensor: bits.get(tensor, stored.activation_bits) / 8 for tensor in "WIO"}

    def _kib(self, level: int, product: Product, stored: Stored, tile: Any) -> jax.Array:
        """KiB of one memory of a level that holds ``tile(tensor)`` elements of each of its tensors."""
        size = self._word_bytes(product, stored) | {"O": self.partial_bits / 8}
        return sum(tile(tensor) * size[tensor] for tensor in self.levels[level].keeps) / 1024


def _kept(product: Product, stored: Stored) -> Product:
    """A product without the inputs and outputs that compression removed."""
    inputs, outputs = product.inputs * stored.input_density, product.outputs * stored.output_density
    return dataclasses.replace(product, inputs=inputs, outputs=outputs)
