"""Sets of arrays whose non-zeros an engine can gather from a memory of several banks without two in one bank."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._banked import Banked, groups_needed
from jaxcomp.constraints._constraint import Constraint, Footprint, check_range, dense_footprint, finite_or_nan
from jaxcomp.constraints._gather_pack import Cycles as Cycles
from jaxcomp.constraints._gather_pack import Packed as Packed
from jaxcomp.constraints._gather_pack import conflict_cycles as conflict_cycles
from jaxcomp.constraints._gather_pack import pack_cells, unpack_cells
from jaxcomp.constraints._lanes import descending
from jaxcomp.constraints._layout import Layout
from jaxcomp.constraints._matching import exchange
from jaxcomp.constraints._select import select_stored, select_top
from jaxcomp.constraints._sparse import Sparse, group_norms
from jaxcomp.constraints._views import View, elements
from jaxcomp.constraints._views import outputs as outputs_of
from jaxcomp.constraints.forms import Support


@register_dataclass
@dataclasses.dataclass(frozen=True)
class GatherScatter(Constraint):
    """The non-zeros of every strip of outputs fall into groups that hold one weight of every memory bank.

    Input c lies in bank ``c mod banks``, whatever the tap of a kernel. A strip is ``rows`` adjacent outputs. With n
    groups a strip, the set is that of the arrays whose non-zeros lie within some support that has, in every strip,
    exactly ``n banks / rows`` places in each row and exactly n in each bank (places kept; their weights may be
    zero). By Kőnig's theorem such a support splits into n groups of ``banks`` different banks, with equally many of
    each row: what an engine reads at once. `pack` finds them.

    ``n = round(density * rows * inputs / banks)``, but no more than fill the smallest bank: where ``banks`` does not
    divide the channels, a density of 1 leaves some weights out. Where ``rows`` does not divide the outputs, the last
    strip is filled up with rows of zeros, whose lanes are idle.

    The projection is exact, to rounding of the energy that is kept: a bank's largest weights where ``rows=1``, else
    a b-matching of largest weight between rows and banks, found by exchanges among rows until no cycle of them gains.
    Where several rows have a free budget, it is spent by what groups would gain if rows did not matter, and the result
    is a member but not always nearest. On 200 leaves of 3 strips of 2 by 8 normal weights, ``banks=4``, it is nearest
    in 70, 64 and 52 % of them at densities of 1/8, 1/4 and 1/2; its squared error is 1.01, 1.01 and 1.03 times the
    least in the mean and 1.16, 1.35 and 1.39 times at most.
    (Taking weights by magnitude while their row and bank have room is not exact. On 100 strips of 8 by 512 normal
    weights, ``banks=8``, it keeps 0.03, 0.09, 0.16 and 0.26 % less energy in the mean at densities of 1/2, 1/4, 1/8
    and 1/16, and at most 0.09, 0.23, 0.41 and 0.91 % less.)

    Args:
        density: kept fraction of the weights, 0 to 1. A leaf of the pytree: it may be traced, swept or scheduled.
        banks: of the memory that holds the inputs; at most as many as channels.
        rows: outputs in a strip, a divisor of ``banks``. 1 is the paper's horizontal pattern, ``banks`` its vertical.
        free: strips may have different numbers of groups: the layer's budget of
            ``round(density * outputs * inputs / banks)`` is spent where most is gained.
        layout: how the leaf is laid out; ``None`` is flax's default for its rank.
        scatter: outputs of a strip need not be adjacent: strips are cut in another order of the outputs, and the sums
            of a strip scattered to them.
        order: that order; each output once. Left out, `fit` (so `jaxcomp.assign`) puts outputs side by side that have
            similar numbers of the leaf's largest weights; with ``free`` they then share what suits them.

    >>> GatherScatter(0.5, banks=2, layout=Layout("oi")).project(jnp.array([[4.0, 1.0, 3.0, 2.0]])).tolist()
    [[4.0, 0.0, 0.0, 2.0]]

    References: Sun et al., Load-balanced Gather-scatter Patterns for Sparse Deep Neural Networks, 2021.
    """

    density: ArrayLike
    banks: int = dataclasses.field(metadata={"static": True})
    rows: int = dataclasses.field(default=1, metadata={"static": True})
    free: bool = dataclasses.field(default=False, metadata={"static": True})
    layout: Layout | None = dataclasses.field(default=None, metadata={"static": True})
    scatter: bool = dataclasses.field(default=False, metadata={"static": True})
    order: ArrayLike | None = None

    def project(self, x: jax.Array) -> jax.Array:
        cells = self._cells(jnp.abs(x))
        kept = self._kept(lax.stop_gradient(cells), x.shape)
        keep = select_top(_after(kept, cells), kept)
        mask = self._banked.leaf(keep, x.shape, self._outputs())
        return finite_or_nan(x, jnp.where(mask, x, jnp.zeros((), x.dtype)))

    def tangent(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """``v`` on the weights that are not zero."""
        return jnp.where(x != 0, v, jnp.zeros((), v.dtype))

    def footprint(self, x: jax.Array) -> Footprint:
        """What `pack` stores: idle lanes count as values, those of a filled-up strip's missing rows as side bits."""
        used = self._cells(x) != 0
        strips, rows, banks, depth = used.shape
        counts = self._counts(used)
        groups = jnp.sum(counts, dtype=jnp.float32)
        dense = dense_footprint(x, self.layout)
        outputs = self._banked.sizes(x.shape)[0]
        values = jnp.sum(jnp.repeat(counts, rows)[:outputs], dtype=jnp.int32) * (banks // rows)
        idle = groups * banks - values
        sizes = strips * np.ceil(np.log2(rows * self._banked.depths(x.shape)[-1] + 1)) if self.free else 0
        if self.scatter:
            sizes += outputs * np.ceil(np.log2(outputs))
        return dataclasses.replace(
            dense,
            values=values,
            index_bits=groups * banks * jnp.float32(np.ceil(np.log2(rows * depth))),
            side_bits=idle * dense.value_bits + jnp.float32(sizes),
            group_density=groups / (strips * rows * depth),
        )

    def forms(self, x):
        """Numbers within the strip of every bank, as `pack` has them: the order of outputs need not be stored."""
        view = View("strips", self.rows, self.banks, "Rc", "rCt", "", taps="axis", layout=self.layout)
        return (Support(view),)

    def check(self, x) -> None:
        """Also raises where there are more banks than channels, or more rows in a strip than outputs."""
        super().check(x)
        check_range("density", self.density, 0, 1)
        if not isinstance(self.banks, int | np.integer) or self.banks < 1:
            raise ValueError(f"banks must be a whole number, at least 1, found {self.banks!r}")
        if not isinstance(self.rows, int | np.integer) or self.rows < 1 or self.banks % self.rows:
            raise ValueError(f"rows must divide the {self.banks} banks, found {self.rows!r}: a group has equally many")
        if self.scatter and self.rows == 1:
            raise ValueError("scatter=True needs strips of several rows, found rows=1: leave one of the two out")
        self._banked.view.sizes(x.shape)
        if self.order is not None and not isinstance(self.order, jax.core.Tracer):
            outputs = self._banked.sizes(x.shape)[0]
            if not np.array_equal(np.sort(np.asarray(self.order)), np.arange(outputs)):
                raise ValueError(f"order must hold each of the {outputs} outputs once, found {self.order}")

    def exact(self, shape: tuple[int, ...]) -> bool:
        return self.rows == 1 or not self.free

    def fit(self, x: jax.Array) -> "GatherScatter":
        """With ``scatter=True``, outputs are ordered by how many of the leaf's largest weights each of them has."""
        if not self.scatter or self.order is not None:
            return self
        used = Sparse(self.density, elements()).project(x) != 0
        outputs = (self.layout or Layout.of(x.ndim)).to_matrix(used)
        return dataclasses.replace(self, order=jnp.argsort(-jnp.sum(outputs, axis=1), stable=True))

    def pack(self, x: Any) -> Packed:
        """The compact form of a member; on the host, in NumPy.

        With ``free=False`` all strips have as many groups as the one that needs most. What is no member packs too,
        with more idle lanes.
        """
        banked, order = self._banked, self._outputs()
        order = None if order is None else np.asarray(order)
        cells = banked.cells(np.asarray(x), order)
        outputs = np.arange(cells.shape[0] * cells.shape[1])
        if order is not None:
            outputs[: len(order)] = order
        return pack_cells(cells, np.asarray(self._counts(cells != 0)), outputs.reshape(cells.shape[:2]))

    def unpack(self, packed: Packed, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `pack` for a leaf of this shape."""
        cells = self._banked.cells(np.zeros(shape, packed.values.dtype))
        order = packed.outputs.ravel()[: self._banked.sizes(shape)[0]]
        return self._banked.leaf(unpack_cells(packed, cells), shape, order)

    @property
    def _banked(self) -> Banked:
        return Banked(self.banks, self.rows, self.layout)

    def _outputs(self) -> Any:
        """The order of outputs in which strips are cut, if it is not their own."""
        if self.scatter and self.order is None:
            raise ValueError("GatherScatter has no order of outputs yet: give one, or call fit(x) to find one for x")
        return self.order if self.scatter else None

    def _cells(self, x: Any) -> Any:
        """``[strips, rows, banks, depth]``, filled up with zeros."""
        return self._banked.cells(x, self._outputs())

    def _kept(self, cells: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """How many weights to keep of every row and bank, given all magnitudes."""
        (_, rows, banks, depth), depths = cells.shape, self._banked.depths(shape)
        cells = jnp.where(jnp.isfinite(cells), cells, 0).astype(jnp.promote_types(cells.dtype, jnp.float32))
        groups = self._groups(cells, shape)[:, None, None]
        # A circulant is in balance whatever n: exchanges need only keep it so.
        row, bank = np.arange(rows)[:, None], np.arange(banks)[None, :]
        kept = groups // rows + (((row + bank) % rows)[None] < groups % rows)
        if rows == 1:
            return kept
        cells = _after(groups, cells)
        largest = jnp.max(cells)
        unit = jnp.where(largest > 0, largest, 1)
        real = (np.arange(depth) < depths[:, None])[None, None]
        ladder = jnp.where(real, descending(cells), -jnp.inf)
        # First as many non-zeros as can be, in whole numbers: weights too small to count beside others are not lost.
        kept = exchange(ladder, kept, lambda weight: (weight > 0).astype(weight.dtype))
        return exchange(ladder, kept, lambda weight: jnp.square(weight / unit))

    def _groups(self, cells: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """How many groups every strip has."""
        (strips, rows, banks, _), (outputs, channels, taps) = cells.shape, self._banked.sizes(shape)
        density, most = jnp.asarray(self.density, jnp.float32), rows * int(self._banked.depths(shape)[-1])
        if not self.free:
            groups = jnp.minimum(jnp.round(density * (rows * channels * taps / banks)).astype(jnp.int32), most)
            return jnp.broadcast_to(groups, strips)
        budget = jnp.round(density * (outputs * channels * taps / banks))
        of_banks = descending(cells.swapaxes(1, 2).reshape(strips, banks, -1))[:, :, :most]
        # Of one more group, and not increasing: what it would add if rows did not matter.
        gains = group_norms(of_banks.swapaxes(1, 2), outputs_of(Layout("ooi"))).reshape(strips, most)
        if rows > 1:  # a member keeps what it needs
            needed = groups_needed(cells != 0)
            held = (np.arange(most)[None, :] < needed[:, None]) & (jnp.sum(needed) <= budget)
            gains = jnp.where(held, jnp.inf, gains)
        # Norms are stored already, and nothing done to them since rounds.
        return jnp.sum(select_stored(gains.ravel(), budget).reshape(gains.shape), axis=1, dtype=jnp.int32)

    def _counts(self, used: Any) -> jax.Array:
        """How many groups `pack` stores of each strip."""
        groups = groups_needed(used)
        return groups if self.free else jnp.broadcast_to(jnp.max(groups), groups.shape)


def _after(counts: jax.Array, cells: jax.Array) -> jax.Array:
    """The same cells, once the counts are known: XLA would else hold at once what finding them takes and what follows.

    Counts are not negative, but XLA cannot know.
    """
    return jnp.where(counts[..., None] >= 0, cells, jnp.zeros((), cells.dtype))
