"""Sets of arrays whose non-zeros an engine can gather from a memory of several banks without two in one bank."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp.constraints._constraint import Constraint, Footprint, check_range, dense_footprint, finite_or_nan
from jaxcomp.constraints._matching import exchange
from jaxcomp.constraints._select import select_top
from jaxcomp.constraints._sparse import group_norms
from jaxcomp.constraints._views import Layout, View


class Packed(NamedTuple):
    """Groups of one weight a bank; lane b of the engine multiplies what it reads from bank b.

    Attributes:
        values: ``[groups, banks]``, those of one strip after those of another; 0 where a lane has nothing to do.
        offsets: ``[groups, banks]``: row within the strip, times the depth of a bank, plus the place in the bank.
        counts: ``[strips]``: how many groups a strip has.
    """

    values: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray


class Cycles(NamedTuple):
    """Reads of all banks at once that it takes to fetch an input for every non-zero.

    Attributes:
        in_order: each row's non-zeros are taken in the order of their inputs, and those that clash wait.
        reordered: within a strip they are taken in the best order: as `GatherScatter.pack` stores them.
        ideal: no bank is ever idle, but at the end of a strip.
    """

    in_order: int
    reordered: int
    ideal: int


@jax.tree_util.register_dataclass
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
    (Taking weights by magnitude while their row and bank have room is not exact. On 100 strips of 8 by 512 normal
    weights, ``banks=8``, it keeps 0.03, 0.09, 0.16 and 0.26 % less energy in the mean at densities of 1/2, 1/4, 1/8
    and 1/16, and at most 0.09, 0.23, 0.41 and 0.91 % less.)

    Args:
        density: kept fraction of the weights, 0 to 1. A leaf of the pytree: it may be traced, swept or scheduled.
        banks: of the memory that holds the inputs; at most as many as channels.
        rows: outputs in a strip, a divisor of ``banks``. 1 is the paper's horizontal pattern, ``banks`` its vertical.
        free: with ``rows=1``, outputs may have different numbers of groups: the layer's budget of
            ``round(density * outputs * inputs / banks)`` is spent where most is gained.
        layout: how the leaf is laid out; ``None`` is flax's default for its rank.

    >>> GatherScatter(0.5, banks=2, layout=Layout("oi")).project(jnp.array([[4.0, 1.0, 3.0, 2.0]])).tolist()
    [[4.0, 0.0, 0.0, 2.0]]

    References: Sun et al., Load-balanced Gather-scatter Patterns for Sparse Deep Neural Networks, 2021.
    """

    density: ArrayLike
    banks: int = dataclasses.field(metadata={"static": True})
    rows: int = dataclasses.field(default=1, metadata={"static": True})
    free: bool = dataclasses.field(default=False, metadata={"static": True})
    layout: Layout | None = dataclasses.field(default=None, metadata={"static": True})

    def project(self, x: jax.Array) -> jax.Array:
        cells = self._cells(jnp.abs(x))
        keep = select_top(cells, self._kept(lax.stop_gradient(cells), x.shape))
        kept = jnp.where(self._leaf(keep, x.shape), x, jnp.zeros((), x.dtype))
        return finite_or_nan(x, kept)

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
        outputs = self._layout(x.shape).sizes(x.shape)[0]
        values = jnp.sum(jnp.repeat(counts, rows)[:outputs], dtype=jnp.int32) * (banks // rows)
        idle = groups * banks - values
        sizes = strips * np.ceil(np.log2(self._depths(x.shape)[-1] + 1)) if self.free else 0
        return dataclasses.replace(
            dense,
            values=values,
            index_bits=groups * banks * jnp.float32(np.ceil(np.log2(rows * depth))),
            side_bits=idle * dense.value_bits + jnp.float32(sizes),
            group_density=groups / (strips * rows * depth),
        )

    def check(self, x) -> None:
        """Also raises where there are more banks than channels, or more rows in a strip than outputs."""
        super().check(x)
        check_range("density", self.density, 0, 1)
        if not isinstance(self.banks, int | np.integer) or self.banks < 1:
            raise ValueError(f"banks must be a whole number, at least 1, found {self.banks!r}")
        if not isinstance(self.rows, int | np.integer) or self.rows < 1 or self.banks % self.rows:
            raise ValueError(f"rows must divide the {self.banks} banks, found {self.rows!r}: a group has equally many")
        if self.free and self.rows > 1:
            raise ValueError(f"free=True needs strips of 1 row, found rows={self.rows}: leave one of the two out")
        self._view.sizes(x.shape)

    def pack(self, x: Any) -> Packed:
        """The compact form of a member; on the host, in NumPy.

        With ``free=False`` all strips have as many groups as the one that needs most. What is no member packs too,
        with more idle lanes.
        """
        cells = self._cells(np.asarray(x))
        used, depth = cells != 0, cells.shape[3]
        counts = np.asarray(self._counts(used))
        values = np.zeros((counts.sum(), self.banks), cells.dtype)
        offsets = np.zeros(values.shape, np.int32)
        for strip, begin in enumerate(np.cumsum(counts) - counts):
            served = _rows_of_lanes(used[strip].sum(2), counts[strip])
            for bank, rows in enumerate(served.T):
                row, place = np.nonzero(used[strip, :, bank])
                # Of the groups whose lane serves a row, in turn, the first take its non-zeros; the others are idle.
                order = np.argsort(rows, kind="stable")
                group = begin + order[np.searchsorted(rows[order], row) + _rank(row)]
                values[group, bank] = cells[strip, row, bank, place]
                offsets[group, bank] = row * depth + place
        return Packed(values, offsets, counts)

    def unpack(self, packed: Packed, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `pack` for a leaf of this shape."""
        cells = self._cells(np.zeros(shape, packed.values.dtype))
        strip = np.repeat(np.arange(packed.counts.size), packed.counts)
        group, bank = np.nonzero(packed.values)
        row, place = np.divmod(packed.offsets[group, bank], cells.shape[3])
        cells[strip[group], row, bank, place] = packed.values[group, bank]
        return self._leaf(cells, shape)

    @property
    def _view(self) -> View:
        """A pool is one output's inputs of one bank; among them, missing channels of the last block come last."""
        name = f"gather({self.banks}, rows={self.rows})"
        return View(name, self.rows, self.banks, "Rrc", "Ct", "", taps="axis", layout=self.layout)

    def _layout(self, shape):
        return self.layout or Layout.of(len(shape))

    def _cells(self, x: Any) -> Any:
        """``[strips, rows, banks, depth]``, filled up with zeros."""
        parts = self._view.split(x)
        return parts.reshape(-1, self.rows, self.banks, parts.shape[1])

    def _leaf(self, cells: Any, shape: tuple[int, ...]) -> Any:
        return self._view.merge(cells.reshape(-1, cells.shape[3], 1), shape)

    def _depths(self, shape: tuple[int, ...]) -> np.ndarray:
        """How many inputs every bank holds, the smallest last."""
        _, channels, taps = self._layout(shape).sizes(shape)
        return taps * -((np.arange(self.banks) - channels) // self.banks)

    def _kept(self, cells: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """How many weights to keep of every row and bank, given all magnitudes."""
        rows, banks, depth = cells.shape[1:]
        outputs, channels, taps = self._layout(shape).sizes(shape)
        density, depths = jnp.asarray(self.density, jnp.float32), self._depths(shape)
        if not self.free:
            groups = jnp.round(density * (rows * channels * taps / banks)).astype(jnp.int32)
            groups = jnp.minimum(groups, rows * depths[-1])
            # A circulant is in balance whatever n: exchanges need only keep it so.
            row, bank = np.arange(rows)[:, None], np.arange(banks)[None, :]
            kept = groups // rows + ((row + bank) % rows < groups % rows)
            kept = jnp.broadcast_to(kept, cells.shape[:3])
            if rows == 1:
                return kept
        cells = jnp.where(jnp.isfinite(cells), cells, 0).astype(jnp.promote_types(cells.dtype, jnp.float32))
        descending = -jnp.sort(-cells, axis=3)
        if self.free:
            gains = group_norms(descending[:, 0, :, : depths[-1]].swapaxes(1, 2))  # of one more group, non-increasing
            budget = jnp.round(density * (outputs * channels * taps / banks))
            groups = jnp.sum(select_top(gains.ravel(), budget).reshape(gains.shape), axis=1)
            return jnp.broadcast_to(groups[:, None, None], cells.shape[:3])
        largest = jnp.max(cells)
        energy = jnp.square(descending / jnp.where(largest > 0, largest, 1))
        real = (np.arange(depth) < depths[:, None])[None, None]
        # First as many non-zeros as can be, in whole numbers: weights too small to count beside others are not lost.
        for score in ((descending > 0).astype(energy.dtype), energy):
            kept = exchange(jnp.where(real, score, -jnp.inf), kept)
        return kept

    def _counts(self, used: Any) -> jax.Array:
        """How many groups `pack` stores of each strip."""
        groups = _groups(used)
        return groups if self.free else jnp.broadcast_to(jnp.max(groups), groups.shape)


def conflict_cycles(mask: Any, banks: int, rows: int = 1, layout: Layout | None = None) -> Cycles:
    """Reads that an engine needs to gather the inputs of a mask's non-zeros; on the host, in NumPy.

    A read serves every bank once, and ``banks / rows`` non-zeros of each row of a strip. Where non-zeros are taken in
    order, those that are due together are read as often as the bank of which there are most of them.

    >>> mask = np.array([[1, 0, 1, 0, 0, 1, 0, 1]])
    >>> conflict_cycles(mask, banks=2, layout=Layout("oi"))
    Cycles(in_order=4, reordered=2, ideal=2)
    """
    used = GatherScatter(1.0, banks, rows, layout=layout)._cells(np.asarray(mask)) != 0
    ideal = -(-used.sum((1, 2, 3)) // banks)
    strip, row, _, bank = np.nonzero(used.transpose(0, 1, 3, 2))  # in the order of their inputs
    window = _rank(strip * rows + row) * rows // banks
    due = np.zeros((len(used), window.max(initial=0) + 1, banks), int)
    np.add.at(due, (strip, window, bank), 1)
    return Cycles(int(due.max(2).sum()), int(_groups(used).sum()), int(ideal.sum()))


def _groups(used: Any) -> jax.Array:
    """How many groups the non-zeros of each strip need: a group has room for one a bank, for as many of each row."""
    _, rows, banks, _ = used.shape
    by_row, by_bank = (jnp.max(jnp.sum(used, axis=axes), axis=1) for axes in ((2, 3), (1, 3)))
    return jnp.maximum(-(-by_row * rows // banks), by_bank)


def _rows_of_lanes(load: np.ndarray, groups: int) -> np.ndarray:
    """``[groups, banks]``: the row each lane serves, equally many lanes a row, given the non-zeros of each of both.

    Kőnig's theorem, read as an algorithm: idle lanes make rows and banks full, rows are cut into pieces as full as a
    bank, and while there is work some matching gives every bank a piece of its own.
    """
    from scipy.optimize import linear_sum_assignment  # which JAX depends on, but does not load

    rows, banks = load.shape
    idle = _overlap(groups * banks // rows - load.sum(1), groups - load.sum(0))
    work = _overlap(np.full(banks, groups), (load + idle).ravel()).reshape(banks, rows, banks).sum(1)
    row_of = []
    while work.any():
        pieces, lanes = linear_sum_assignment(work > 0, maximize=True)
        times = work[pieces, lanes].min()
        work[pieces, lanes] -= times
        row_of += [(pieces * rows // banks)[np.argsort(lanes)]] * times
    return np.array(row_of, int).reshape(groups, banks)


def _rank(labels: np.ndarray) -> np.ndarray:
    """How many entries of the same label come before each, of labels in ascending order."""
    return np.arange(labels.size) - np.searchsorted(labels, labels)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How much the pieces of one line share with those of another of equal length."""
    a_end, b_end = np.cumsum(a)[:, None], np.cumsum(b)[None, :]
    return np.maximum(np.minimum(a_end, b_end) - np.maximum(a_end - a[:, None], b_end - b[None, :]), 0)
