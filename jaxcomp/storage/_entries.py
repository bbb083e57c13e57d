"""Which entries of a leaf a form writes, and to which groups of a view they belong: alike when it is read."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from jaxcomp.constraints import View


class Groups(NamedTuple):
    """The groups that some entries belong to, in the order of the view.

    Attributes:
        of: ``[entries]``: the number of each one's group.
        pool: ``[groups]``: of each group; ascending.
        total: how many groups there are.
    """

    of: np.ndarray
    pool: np.ndarray
    total: int


@dataclasses.dataclass(frozen=True)
class Entries:
    """Entries of a leaf, by their places in it.

    Attributes:
        shape: of the leaf.
        dtype: of the leaf.
        places: ``[entries]``: numbers in the leaf's own order, each once.
        signed: whether they may be below zero; if not, no bit is kept for it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    places: np.ndarray
    signed: bool = True

    @staticmethod
    def all(shape: tuple[int, ...], dtype: Any) -> "Entries":
        return Entries(shape, np.dtype(dtype), np.arange(math.prod(shape)))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def is_whole(self) -> bool:
        """Whether they are all entries of the leaf, in its order."""
        return np.array_equal(self.places, np.arange(math.prod(self.shape)))

    def where(self, chosen: np.ndarray) -> "Entries":
        """Some of them, by a mask or by their numbers."""
        return dataclasses.replace(self, places=self.places[chosen])

    def groups(self, view: View) -> Groups:
        """Raises `ValueError` where the view does not apply to a leaf of this shape."""
        if view.is_flat:
            return Groups(np.arange(len(self)), np.zeros(len(self), np.int64), len(self))
        if view.is_whole:  # of any rank
            return Groups(np.zeros(len(self), np.int64), np.zeros(min(len(self), 1), np.int64), min(len(self), 1))
        view.sizes(self.shape)  # raises where it does not apply
        number, pool = (view.labels(self.shape, axis).reshape(-1)[self.places] for axis in ("groups", "pools"))
        present = np.zeros(number.max(initial=-1) + 1, bool)
        present[number] = True
        of = (np.cumsum(present) - 1)[number]
        pools = np.zeros(present.sum(), np.int64)
        pools[of] = pool
        return Groups(of, pools, len(pools))

    def elements(self, view: View) -> np.ndarray:
        """``[entries]``: which element of its group each is."""
        parts = view.split(np.zeros(self.shape, bool))
        number = np.broadcast_to(np.arange(parts.shape[2]), parts.shape)
        return view.merge(number, self.shape).reshape(-1)[self.places]
