"""Scales that put weights on given levels: found again in the weights, which are levels times a scale, rounded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_TRIES = 2**14  # levels that the largest weight of a group may have
_SAMPLE = 32  # weights of a group that rule out most of them
_ROUNDS = 8  # in which bounds are narrowed
_PARTS = 16  # in which room for a scale is cut


class Scaled(NamedTuple):
    """Weights as levels times scales.

    Attributes:
        scales: ``[groups]``; 0 where all weights are.
        level: ``[weights]``: the number of each one's level; -1 for zero.
    """

    scales: np.ndarray
    level: np.ndarray


class Weights(NamedTuple):
    """What is known of weights, by magnitude, in float64.

    Attributes:
        sizes: ``[weights]``.
        least: ``[weights]``: from here on a product is rounded to the weight, or near enough.
        most: ``[weights]``: up to here.
        group: ``[weights]``, from 0 and without gaps.
    """

    sizes: np.ndarray
    least: np.ndarray
    most: np.ndarray
    group: np.ndarray

    def at(self, chosen: np.ndarray) -> "Weights":
        return Weights(*(array[chosen] for array in self))


def find_scales(weights: Weights, levels: np.ndarray, dtype: Any, agrees: Callable) -> Scaled | None:
    """The scales of all groups, if there are such.

    The largest weight of a group has some level, and each choice of it bounds the scale: ``least / level <= scale <=
    most / level``. The others then have few levels left, or none; those with one bound the scale further. The bounds
    of a member hold the scale that it was made with; where several numbers do, any that agrees is taken.

    Args:
        weights: of all groups.
        levels: ascending, above zero.
        dtype: of scales.
        agrees: whether products of a level and a scale, ``[some weights]``, come back as these weights, given too.
    """
    order = np.argsort(weights.group, kind="stable")
    weights = weights.at(order)
    first = np.flatnonzero(np.diff(weights.group, prepend=-1))
    least, most = (np.maximum.reduceat(a, first) if len(first) else np.zeros(0) for a in (weights.least, weights.most))
    scales, level, unsettled = np.zeros(len(first), dtype), np.full(len(order), -1), least > 0
    sample = weights.at(np.arange(len(order)) - first[weights.group] < _SAMPLE)
    for largest in levels[::-1][:_TRIES]:
        if not unsettled.any():
            break
        low, high = _narrowed(sample, levels, least / largest, most / largest, unsettled)
        if not np.any(low <= high):
            continue
        low, high = _narrowed(weights, levels, low, high, low <= high)
        for scale in _between(low, high, dtype):
            fits = unsettled & (low <= scale) & (scale <= high)
            if not fits.any():
                continue
            at = np.flatnonzero(fits[weights.group])
            group = weights.group[at]
            near = _nearest(levels, weights.sizes[at] / scale[group])
            product = np.where(near < 0, 0, levels[near]).astype(dtype) * scale[group]
            fits[group[~agrees(order[at], product)]] = False
            scales[fits], level[order[at[fits[group]]]] = scale[fits], near[fits[group]]
            unsettled &= ~fits
    return None if unsettled.any() else Scaled(scales, level)


def _narrowed(
    weights: Weights, levels: np.ndarray, low: np.ndarray, high: np.ndarray, among: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of the scales of these groups, given wider ones; of other groups, and where there is no room, none.

    A weight whose bounds leave it one level bounds the scale; one that they leave several says nothing yet.
    """
    low, high = np.where(among, low, np.inf), np.where(among, high, -np.inf)
    for _ in range(_ROUNDS):
        low, high = np.where(low <= high, (low, high), [[np.inf], [-np.inf]])
        _, least, most, group = weights.at((weights.least > 0) & (low <= high)[weights.group])
        first = np.searchsorted(levels, least / high[group])
        left = np.searchsorted(levels, most / low[group], side="right") - first
        known = np.where(left == 1, levels[np.minimum(first, len(levels) - 1)], 1)
        before = low.copy(), high.copy()
        np.maximum.at(low, group, np.where(left == 1, least / known, np.where(left == 0, np.inf, 0)))
        np.minimum.at(high, group, np.where(left == 1, most / known, np.inf))
        if np.array_equal(before, (low, high)):
            break
    return low, high


def _between(low: np.ndarray, high: np.ndarray, dtype: Any) -> list[np.ndarray]:
    """Numbers of this dtype of which some lie between these bounds, if any do: in the middle, at the ends, others."""
    with np.errstate(invalid="ignore", over="ignore"):
        middle, above, below = ((low + high) / 2).astype(dtype), low.astype(dtype), high.astype(dtype)
        others = [(low + share * (high - low)).astype(dtype) for share in np.arange(1, _PARTS) / _PARTS]
    above = np.where(above < low, np.nextafter(above, np.array(np.inf, dtype)), above)
    below = np.where(below > high, np.nextafter(below, np.array(0, dtype)), below)
    return [middle, above, below, *others]


def _nearest(levels: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """The number of the nearest level; -1 for zero."""
    place = np.searchsorted((levels[1:] + levels[:-1]) / 2, ratio)
    return np.where(ratio < levels[0] / 2, -1, place)
