"""Which configurations are done, and where their results are: in memory, or in a store that others may fill too."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jaxcomp.sweeps._configs import Configs
from jaxcomp.sweeps._identity import config_key
from jaxcomp.sweeps._skeleton import skeleton
from jaxcomp.sweeps._store import Store


class Ledger(Protocol):
    """What a sweep asks, by the places of configurations in it."""

    def missing(self, places: Sequence[int]) -> list[int]:
        """Those of which there is no result yet."""

    def claim(self, places: Sequence[int], count: int) -> list[int]:
        """Up to so many missing ones that are this process's to compute; none, if others have done them by now."""

    def release(self, places: Sequence[int]) -> None:
        """Give a claim back."""

    def admit(self, result: Any) -> None:
        """Refuse, before anything is computed, results of these shapes that it could not hold."""

    def save(self, places: Sequence[int], results: Sequence[Any], diverged: Sequence[bool]) -> None:
        """Note results of claimed configurations."""

    def results(self) -> Sequence[Any]:
        """All of them."""

    def diverged(self) -> np.ndarray:
        """Of all, whether they have."""


class InMemory:
    """A ledger of this process's own."""

    def __init__(self, count: int):
        self._found: dict[int, tuple[Any, bool]] = {}
        self._count = count

    def missing(self, places):
        return [i for i in places if i not in self._found]

    def claim(self, places, count):
        return list(places[:count])

    def release(self, places):
        pass

    def admit(self, result):
        pass

    def save(self, places, results, diverged):
        self._found |= dict(zip(places, zip(results, diverged, strict=True), strict=True))

    def results(self):
        return [self._found[i][0] for i in range(self._count)]

    def diverged(self):
        return np.array([self._found[i][1] for i in range(self._count)], bool)


class OnDisk:
    """A ledger in a store. A configuration that is there twice is one."""

    def __init__(self, store: Store, configs: Configs):
        self._store = store
        self._keys = [config_key(config) for config in configs]

    def missing(self, places):
        return [i for i in places if self._keys[i] not in self._store]

    def claim(self, places, count):
        first = {self._keys[i]: i for i in reversed(places)}
        return [first[key] for key in self._store.claim(list(reversed(first)), count)]

    def release(self, places):
        self._store.release([self._keys[i] for i in places])

    def admit(self, result):
        skeleton(result)

    def save(self, places, results, diverged):
        self._store.save([self._keys[i] for i in places], results, diverged)

    def results(self):
        return _Read(self._store, self._keys)

    def diverged(self):
        return np.array([self._store.diverged(key) for key in self._keys], bool)


class _Read(Sequence):
    """Results that are read from a store when they are asked for."""

    def __init__(self, store: Store, keys: Sequence[str]):
        self._store, self._keys = store, keys

    def __len__(self):
        return len(self._keys)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return _Read(self._store, self._keys[index])
        return self._store[self._keys[index]]
