"""Axes as products of atoms, as numbers are of digits, and what makes two of them the same."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence


@dataclasses.dataclass(eq=False, slots=True)
class _Atom:
    """A digit of an axis. At most one of `link` and `parts` is ever set; a leaf of the structure has neither."""

    size: int
    reason: str = ""  # why it may not be pruned
    link: "_Label | None" = None  # the product of atoms it has turned out to be
    parts: "tuple[_Label, ...] | None" = None  # the labels it has turned out to be, end to end


_Label = tuple[_Atom, ...]  # an axis, outermost digit first; one of length 1 has none
_MISFIT = "it is cut in ways that do not fit together"


def _axis(size: int, reason: str = "") -> _Label:
    return () if size == 1 else (_Atom(size, reason),)


def _axes(shape: Sequence[int], reason: str = "") -> tuple[_Label, ...]:
    return tuple(_axis(size, reason) for size in shape)


def _length(label: _Label) -> int:
    return math.prod(atom.size for atom in label)


def _resolve(label: Iterable[_Atom]) -> _Label:
    """The label in atoms that are no product of others."""
    found: list[_Atom] = []
    for atom in label:
        if atom.link is not None:
            atom.link = _resolve(atom.link)  # so that chains of links stay short
        found += (atom,) if atom.link is None else atom.link
    return tuple(found)


def _leaves(label: Iterable[_Atom]) -> set[_Atom]:
    """The atoms at the bottom of a label."""
    found: set[_Atom] = set()
    for atom in _resolve(label):
        found |= {atom} if atom.parts is None else _leaves(inner for part in atom.parts for inner in part)
    return found


def _fix(labels: Iterable[_Label], reason: str) -> None:
    """Mark what labels are made of as not prunable; the first reason stands."""
    for leaf in _leaves(atom for label in labels for atom in label):
        leaf.reason = leaf.reason or reason


def _is_fixed(label: _Label) -> bool:
    return all(leaf.reason for leaf in _leaves(label))


def _unify(left: _Label, right: _Label) -> None:
    """Make two labels of one length the same, digit by digit from the innermost."""
    while True:
        left, right = _resolve(left), _resolve(right)
        if not left or not right:
            return
        x, y = left[-1], right[-1]
        if x.size != y.size:
            if not (_factor(x, y.size) if x.size > y.size else _factor(y, x.size)):
                return _fix((left, right), _MISFIT)
            continue
        if x is not y:
            _join(x, y)
        left, right = left[:-1], right[:-1]


def _join(x: _Atom, y: _Atom) -> None:
    """Make two atoms of one size the same."""
    if y.parts is None:
        x, y = y, x
    if x.parts is not None and (_shifted(x, y) or not _align(_segments((x,)), _segments((y,)))):
        _fix(((x,), (y,)), _MISFIT)
    if x.reason:
        _fix(((y,),), x.reason)
    x.link, x.parts = (y,), None


def _shifted(x: _Atom, y: _Atom) -> bool:
    """Whether one atom stands in different places of two axes, which could only be aligned channel by channel."""
    places: list[dict] = [{}, {}]
    for found, whole in zip(places, (x, y), strict=True):
        for atom, *where in _places((whole,)):
            found.setdefault(atom, []).append(where)
    return any(places[1].get(atom, where) != where for atom, where in places[0].items())


def _factor(atom: _Atom, inner: int) -> bool:
    """Try to make an atom a product whose innermost digits have a length that divides, or is, ``inner``."""
    if atom.parts is None:
        if atom.size % inner:
            return False
        atom.link = (_Atom(atom.size // inner, atom.reason), _Atom(inner, atom.reason))
        return True
    first, *others = _segments((atom,))
    if any(_length(other) != _length(first) for other in others):
        return False
    for other in others:
        _unify(first, other)
    # Equal segments are a product: which segment, and where in it.
    atom.link, atom.parts = (_Atom(1 + len(others), "it counts what is laid end to end"), *first), None
    return True


def _segments(label: _Label) -> list[_Label]:
    """The labels that lie end to end along an axis."""
    first, *inner = _resolve(label) or (None,)
    if first is None or first.parts is None:
        return [_resolve(label)]
    return [(*segment, *inner) for part in first.parts for segment in _segments(part)]


def _end_to_end(segments: Sequence[_Label]) -> _Label:
    if len(segments) == 1:
        return segments[0]
    return (_Atom(sum(map(_length, segments)), parts=tuple(segments)),)


def _cut(label: _Label, at: int) -> tuple[_Label, _Label] | None:
    """The labels before and after a place within an axis, or None where that is within an inner digit."""
    before, after = [], _segments(label)
    while at and at >= _length(after[0]):
        at -= _length(after[0])
        before.append(after.pop(0))
    if at:
        outer, *inner = after.pop(0)
        if at % _length(tuple(inner)):
            return None
        count = at // _length(tuple(inner))
        outer.parts = _axis(count, outer.reason), _axis(outer.size - count, outer.reason)
        before.append((*outer.parts[0], *inner))
        after.insert(0, (*outer.parts[1], *inner))
    return _end_to_end(before), _end_to_end(after)


def _align(left: list[_Label], right: list[_Label]) -> bool:
    """Make two rows of segments the same, cutting the longer where they differ; false where that cannot be."""
    while left and right:
        n = min(_length(left[0]), _length(right[0]))
        for row in (left, right):
            if _length(row[0]) > n:
                pieces = _cut(row[0], n)
                if pieces is None:
                    return False
                row[:1] = pieces
        _unify(left.pop(0), right.pop(0))
    return True


def _regroup(label: _Label, sizes: Sequence[int]) -> list[_Label] | None:
    """The digits of a label dealt out to axes of these sizes, or None where a size falls between digits."""
    axes: list[_Label] = []
    for size in reversed(sizes):
        axis: _Label = ()
        while (need := size // _length(axis)) > 1:
            label = _resolve(label)
            if need % label[-1].size == 0:
                label, axis = label[:-1], (label[-1], *axis)
            elif label[-1].size < need or not _factor(label[-1], need):
                return None
        axes.insert(0, axis)
    return axes


def _places(label: _Label) -> Iterator[tuple[_Atom, int, int, int, int]]:
    """Every atom at the bottom of a label with tile, repeat, offset and stride, as in `Member`."""
    label = _resolve(label)
    for i, atom in enumerate(label):
        outer, inner = _length(label[:i]), _length(label[i + 1 :])
        if atom.parts is None:
            yield atom, outer, inner, 0, atom.size * inner
            continue
        begin = 0
        for part in atom.parts:
            for leaf, tile, repeat, offset, stride in _places(part):
                # Two strides need two loops; a member has one, so the tiles within a segment become members.
                apart = range(tile) if outer > 1 else range(1)
                for t in apart:
                    one_loop = (outer, atom.size) if outer > 1 else (tile, stride)
                    start = begin + offset + t * stride
                    yield leaf, one_loop[0], repeat * inner, start * inner, one_loop[1] * inner
            begin += _length(part)
