"""Which channels an axis holds: between the places along it and the atoms that its label is made of."""

from collections.abc import Mapping

import numpy as np

from jaxcomp.tracing._atoms import _Atom, _Label, _length, _resolve

Channels = dict[_Atom, np.ndarray]  # for atoms a boolean a channel; what is said of atoms that are not in it is: all


def places(label: _Label, of: Mapping[_Atom, np.ndarray]) -> np.ndarray:
    """For every place along an axis whether all that it counts are among these channels."""
    whole = np.ones(1, bool)
    for atom in _resolve(label):
        if atom.parts is None:
            own = of.get(atom, np.ones(atom.size, bool))
        else:
            own = np.concatenate([places(part, of) for part in atom.parts])
        whole = np.logical_and.outer(whole, own).ravel()
    return whole


def mark(label: _Label, found: np.ndarray, into: Channels) -> None:
    """Add the channels that the places found along an axis hold."""
    label = _resolve(label)
    grid = found.reshape([atom.size for atom in label])
    for axis, atom in enumerate(label):
        own = beside(grid, axis)
        if atom.parts is None:
            into[atom] = own | into.get(atom, own)
            continue
        begin = 0
        for part in atom.parts:
            mark(part, own[begin : begin + _length(part)], into)
            begin += _length(part)


def along(mask: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """A mask of one axis, ready to meet an array of so many."""
    return mask.reshape([-1 if i == axis else 1 for i in range(ndim)])


def beside(array: np.ndarray, axis: int) -> np.ndarray:
    """For every place along an axis whether anything there is not zero."""
    return np.any(array != 0, axis=tuple(i for i in range(array.ndim) if i != axis))
