"""Points that none other beats in everything, and the volume they command."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def pareto_front(points: ArrayLike, mode: str | Sequence[str] = "min") -> np.ndarray:
    """Which points are on the Pareto front: no other is as good in every objective and better in one.

    Equal points are on the front together or not at all. A point with a NaN is never on it, and dominates none.

    Args:
        points: ``[n, objectives]``.
        mode: ``"min"`` or ``"max"``, for all objectives or one for each.

    Returns:
        ``[n]`` booleans. ``O(n log n)`` steps for one or two objectives, ``O(n f)`` for a front of f points in more.

    Raises:
        ValueError: the points are no matrix, or there is not one mode an objective.

    >>> accuracy_and_bytes = [[0.98, 900], [0.95, 400], [0.97, 950], [0.95, 500], [0.90, 100]]
    >>> pareto_front(accuracy_and_bytes, ("max", "min")).tolist()
    [True, True, False, False, True]
    """
    costs = _costs(points, mode)
    front = np.zeros(len(costs), bool)
    sound = np.flatnonzero(~np.isnan(costs).any(axis=1))
    if sound.size and costs.shape[1]:
        different, which = np.unique(costs[sound], axis=0, return_inverse=True)
        front[sound] = _undominated(different)[which.ravel()]
    return front


def hypervolume(points: ArrayLike, reference: ArrayLike, mode: str | Sequence[str] = "min") -> float:
    """The volume of what is worse than one of the points and better than a reference: how good a front is as a whole.

    Args:
        points: ``[n, objectives]``; those with NaN, or not better than the reference in everything, add nothing.
        reference: ``[objectives]``, a point that is worse than all that count.
        mode: as in `pareto_front`.

    By slicing along one objective after the other, ``O(n^(objectives - 1))`` fronts: meant for two to four of them
    (While et al., A faster algorithm for calculating hypervolume, IEEE Trans. Evol. Comput. 2006).

    >>> hypervolume([[1.0, 3.0], [2.0, 1.0]], (4.0, 4.0))
    7.0
    """
    costs, corner = _costs(points, mode), _costs(np.asarray(reference, np.float64)[None], mode)[0]
    if costs.shape[1] != len(corner):
        raise ValueError(f"the reference has {len(corner)} objectives, the points {costs.shape[1]}")
    return _volume(costs[(costs < corner[None]).all(axis=1)], corner)


def _costs(points: ArrayLike, mode: str | Sequence[str]) -> np.ndarray:
    """The points as float64 with every objective to be made small."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2:
        raise ValueError(f"points have shape {points.shape}, expected [n, objectives]")
    modes = [mode] * points.shape[1] if isinstance(mode, str) else list(mode)
    if len(modes) != points.shape[1] or not set(modes) <= {"min", "max"}:
        raise ValueError(f"mode is {mode!r}, expected 'min' or 'max', or one of them for each of {points.shape[1]}")
    return points * np.array([1.0 if one == "min" else -1.0 for one in modes])[None]


def _undominated(costs: np.ndarray) -> np.ndarray:
    """The same for points that are sorted by their columns and all different: only an earlier one can dominate."""
    keep = np.ones(len(costs), bool)
    if costs.shape[1] == 1:
        keep[1:] = False
    elif costs.shape[1] == 2:
        keep[1:] = costs[1:, 1] < np.minimum.accumulate(costs[:, 1])[:-1]
    else:
        for i in range(1, len(costs)):
            keep[i] = not (costs[:i][keep[:i]] <= costs[i][None]).all(axis=1).any()
    return keep


def _volume(costs: np.ndarray, corner: np.ndarray) -> float:
    if not len(costs):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - costs.min())
    costs = costs[np.argsort(costs[:, 0])]
    depths = np.diff(np.append(costs[:, 0], corner[0]))
    return float(sum(depth * _volume(costs[: i + 1, 1:], corner[1:]) for i, depth in enumerate(depths) if depth))
