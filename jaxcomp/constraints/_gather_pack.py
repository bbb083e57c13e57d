"""What an engine with a banked memory stores and reads: groups of one weight a bank. On the host, in NumPy."""

from typing import Any, NamedTuple

import numpy as np

from jaxcomp.constraints._banked import Banked, groups_needed
from jaxcomp.constraints._layout import Layout


class Packed(NamedTuple):
    """Groups of one weight a bank; lane b of the engine multiplies what it reads from bank b.

    Attributes:
        values: ``[groups, banks]``, those of one strip after those of another; 0 where a lane has nothing to do.
        offsets: ``[groups, banks]``: row within the strip, times the depth of a bank, plus the place in the bank.
        counts: ``[strips]``: how many groups a strip has.
        outputs: ``[strips, rows]``: which output each row of a strip is, to which its sum is scattered; numbers beyond
            the last output are rows that fill up a strip.
    """

    values: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray
    outputs: np.ndarray


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


def pack_cells(cells: np.ndarray, counts: np.ndarray, outputs: np.ndarray) -> Packed:
    """The groups of all strips of ``[strips, rows, banks, depth]``, so many of each."""
    used, (_, _, banks, depth) = cells != 0, cells.shape
    values = np.zeros((counts.sum(), banks), cells.dtype)
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
    return Packed(values, offsets, counts, outputs)


def unpack_cells(packed: Packed, cells: np.ndarray) -> np.ndarray:
    """The inverse of `pack_cells`, written into zeros."""
    strip = np.repeat(np.arange(packed.counts.size), packed.counts)
    group, bank = np.nonzero(packed.values)
    row, place = np.divmod(packed.offsets[group, bank], cells.shape[3])
    cells[strip[group], row, bank, place] = packed.values[group, bank]
    return cells


def conflict_cycles(mask: Any, banks: int, rows: int = 1, layout: Layout | None = None) -> Cycles:
    """Reads that an engine needs to gather the inputs of a mask's non-zeros; on the host, in NumPy.

    A read serves every bank once, and ``banks / rows`` non-zeros of each row of a strip. Where non-zeros are taken in
    order, those that are due together are read as often as the bank of which there are most of them.

    >>> mask = np.array([[1, 0, 1, 0, 0, 1, 0, 1]])
    >>> conflict_cycles(mask, banks=2, layout=Layout("oi"))
    Cycles(in_order=4, reordered=2, ideal=2)
    """
    used = Banked(banks, rows, layout).cells(np.asarray(mask)) != 0
    ideal = -(-used.sum((1, 2, 3)) // banks)
    strip, row, _, bank = np.nonzero(used.transpose(0, 1, 3, 2))  # in the order of their inputs
    window = _rank(strip * rows + row) * rows // banks
    due = np.zeros((len(used), window.max(initial=0) + 1, banks), int)
    np.add.at(due, (strip, window, bank), 1)
    return Cycles(int(due.max(2).sum()), int(groups_needed(used).sum()), int(ideal.sum()))


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
