"""Few values, as a code for every weight: levels times the scale of a group, or values that are listed."""

from typing import Any, NamedTuple

import numpy as np

from jaxcomp.constraints import View, whole
from jaxcomp.constraints.forms import Codes, Forms
from jaxcomp.storage._bits import packed_bytes
from jaxcomp.storage._entries import Entries, Groups
from jaxcomp.storage._fields import Fields, of_view
from jaxcomp.storage._scales import Weights, find_scales
from jaxcomp.storage._stream import Node, Sink, Source

_MOST = 2**20  # values of a group


def write_codes(form: Codes, rest: Forms, values: np.ndarray, entries: Entries, sink: Sink) -> Node | None:
    """In the smallest of the ways that hold; nothing if weights as they stand are smaller still."""
    if not len(values):
        return None
    ways = [_listed(values, entries, view) for view in dict.fromkeys((whole(), form.view))]
    if form.levels is not None:
        ways.append(_scaled(form, values, entries, sink))
    best = min((way for way in ways if way is not None), key=lambda way: way.size, default=None)
    if best is None or best.size >= values.nbytes:
        return None
    for array in best.arrays:
        sink.array(array)
    sink.codes(best.codes, best.radix)
    return best.node


class _Way(NamedTuple):
    node: Node
    arrays: list[np.ndarray]
    codes: np.ndarray
    radix: int

    @property
    def size(self) -> int:
        return sum(array.nbytes for array in self.arrays) + packed_bytes(len(self.codes), self.radix)


def _listed(values: np.ndarray, entries: Entries, view: View) -> _Way | None:
    """The values that occur in every group, as many as in the one that has most."""
    groups = entries.groups(view)
    order = np.lexsort((values, groups.of))
    group, value = groups.of[order], values[order]
    new = np.concatenate([[True], (np.diff(group) > 0) | (value[1:] != value[:-1])])
    number = np.cumsum(new) - 1
    number -= np.repeat(number[np.flatnonzero(np.diff(group, prepend=-1))], np.bincount(group))
    radix = int(number.max()) + 1
    if radix > _MOST or groups.total * radix > len(values):
        return None
    table = np.zeros((groups.total, radix), values.dtype)
    table[group, number] = value
    codes = np.empty(len(values), np.int64)
    codes[order] = number
    return _Way({"form": "listed", "view": of_view(view), "values": radix}, [table.ravel()], codes, radix)


def read_listed(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    groups, radix = entries.groups(fields.view("view")), fields.whole("values", 1, _MOST)
    fields.end()
    table = source.array(groups.total * radix, entries.dtype).reshape(groups.total, radix)
    return table[groups.of, source.codes(len(entries), radix)]


def _scaled(form: Codes, values: np.ndarray, entries: Entries, sink: Sink) -> _Way | None:
    """Levels times scales, if they come back; plus an offset, if there is one, but for zeros."""
    groups, kind = entries.groups(form.view), _kind(entries)
    wide: Any = values.astype(
        np.longdouble if kind.itemsize > 4 else np.float64
    )  # wider than what products were rounded to
    zero: Any = values == 0
    offsets = np.zeros(groups.total, kind)
    if form.offset:
        offsets = _least(wide[~zero], groups.of[~zero], groups.total).astype(kind)
        wide = np.where(zero, 0, wide - offsets[groups.of])
    negative = wide < 0
    sizes, (below, above) = np.abs(wide), _slack(values)
    if loose := bool(sink.tolerance or form.offset):  # what is not quite so is found out in the end
        below = above = np.maximum(below, above) + sink.tolerance * np.abs(values).max().astype(np.float64)

    def agrees(weights: np.ndarray, product: np.ndarray) -> np.ndarray:
        return np.full(len(weights), True) if loose else product.astype(values.dtype) == np.abs(values[weights])

    weights = Weights(sizes, sizes - below, sizes + above, groups.of)
    found = find_scales(weights, np.asarray(form.levels, np.float64), kind, agrees)
    if found is None:
        return None
    # Of a group without a scale every level is zero: it needs no code of its own.
    level = np.where((found.level < 0) & (found.scales[groups.of] == 0) & (not form.offset), 0, found.level)
    levels = np.asarray(form.levels)[: level.max() + 1]
    if even := np.array_equal(levels, np.round(levels)):
        count = int(levels.max(initial=0))
        number = np.append(levels, 0)[level].astype(np.int64)
    else:
        used, number = np.unique(np.append(level, -1), return_inverse=True)  # the first is none
        levels, number = levels[used[1:]].astype(kind), number[:-1]
        count = len(levels)
    steps = _Steps(
        levels=count,
        signed=not form.offset and bool(np.any(negative)),
        zero=bool(np.any(zero if form.offset else level < 0)),
        offset=form.offset,
    )
    codes = steps.codes(np.where(negative, -number, number), zero)
    multiples, scales = np.arange(1, count + 1, dtype=kind) if even else levels, found.scales
    if form.offset:  # the levels are known now, and all weights of a group tell what was rounded
        factors = np.append(0, multiples)[codes[~zero]]
        scales, offsets = (a.astype(kind) for a in _line(values[~zero], factors, groups.of[~zero], groups.total))
    arrays = [scales, *([offsets] if form.offset else []), *([] if even else [levels])]
    back = steps.values(codes, groups, multiples, scales, offsets).astype(entries.dtype)
    if not sink.close(back, values):
        return None
    node = {"form": "scaled", "view": of_view(form.view), "even": even, **steps._asdict()}
    return _Way(node, arrays, codes, steps.radix)


def read_scaled(fields: Fields, entries: Entries, source: Source) -> np.ndarray:
    groups, kind, even = entries.groups(fields.view("view")), _kind(entries), fields.truth("even")
    steps = _Steps(
        fields.whole("levels", 0, _MOST), fields.truth("signed"), fields.truth("zero"), fields.truth("offset")
    )
    fields.end()
    if steps.radix < 1:
        raise ValueError("codes have no level, nor zero")
    scales = source.array(groups.total, kind)
    offsets = source.array(groups.total, kind) if steps.offset else np.zeros(groups.total, kind)
    multiples = np.arange(1, steps.levels + 1, dtype=kind) if even else source.array(steps.levels, kind)
    codes = source.codes(len(entries), steps.radix)
    return steps.values(codes, groups, multiples, scales, offsets).astype(entries.dtype)


class _Steps(NamedTuple):
    """Which multiples of a scale are codes: of so many levels each, its negative too, none of it; and plain zero."""

    levels: int
    signed: bool
    zero: bool
    offset: bool

    @property
    def radix(self) -> int:
        return self.levels * (1 + self.signed) + self.zero + self.offset

    def codes(self, number: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Of the numbers of levels, below zero for negative ones; in their order. Zero under an offset comes last."""
        if self.offset:
            return np.where(zero, self.radix - 1, number)
        return number + self.levels * self.signed - ((number > 0) & (not self.zero))

    def values(self, codes, groups: Groups, multiples, scales, offsets) -> np.ndarray:
        """The inverse, as numbers."""
        nothing = np.zeros(1, multiples.dtype)
        below = [-multiples[::-1]] if self.signed else []
        factors = np.concatenate([*below, *([nothing] if self.zero or self.offset else []), multiples, nothing])
        found = factors[codes] * scales[groups.of]
        if not self.offset:
            return found + nothing  # zero has no sign
        return np.where(self.zero & (codes == self.radix - 1), nothing, found + offsets[groups.of])


def _kind(entries: Entries) -> np.dtype:
    """What levels and scales are multiplied in."""
    return np.promote_types(entries.dtype, np.float32)


def _slack(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far below and above its magnitude what is rounded to a weight may lie."""
    sizes, ends = np.abs(values), np.array([-np.inf, np.inf], values.dtype)
    below, above = (
        np.abs(np.nextafter(sizes, end).astype(np.longdouble) - sizes.astype(np.longdouble)) / 2 for end in ends
    )
    return below, above


def _least(values: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """The least of every group; 0 where there is none."""
    least = np.full(count, np.inf)
    np.minimum.at(least, group, values)
    return np.where(np.isinf(least), 0, least)


def _line(values: np.ndarray, factors: np.ndarray, group: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """By least squares the slope and the offset of the values of every group, given what they are multiples of."""
    many = np.maximum(np.bincount(group, minlength=count), 1)

    def mean(numbers):
        total = np.zeros(count, np.longdouble)
        np.add.at(total, group, numbers)
        return total / many

    x, y = factors.astype(np.longdouble), values.astype(np.longdouble)
    centre, middle = mean(x), mean(y)
    x, y = x - centre[group], y - middle[group]
    spread = mean(x * x)
    slope = mean(x * y) / np.where(spread > 0, spread, 1)
    return slope, middle - slope * centre
