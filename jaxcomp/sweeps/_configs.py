"""Configurations of a sweep: keyword arguments, in grids, side by side, or drawn at random."""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np

from jaxcomp._table import Table
from jaxcomp.sweeps._columns import Cell, cells, columns, drawn, telling
from jaxcomp.sweeps._groups import Group, groups
from jaxcomp.sweeps._identity import config_key as config_key

_SHOWN = 40  # rows of a longer table


class Configs(Sequence[dict[str, Any]]):
    """An immutable sequence of configurations, each a dict of keyword arguments whose values are any pytrees.

    ``a + b`` has those of both, one after the other; ``a * b`` every pair of one of each; a slice is one too. It prints
    as a table.

    Args:
        configs: mappings from names to values.

    Raises:
        ValueError: one of them is no mapping from strings; in ``a * b``, both have a name.

    >>> print(grid(density=[0.1, 0.5]) * zip_(rho=[1e-3, 1e-2], seed=[0, 1]))
    4 configurations
    ┏━━━━━━━━━┳━━━━━━━┳━━━━━━┓
    ┃ density ┃   rho ┃ seed ┃
    ┡━━━━━━━━━╇━━━━━━━╇━━━━━━┩
    │     0.1 │ 0.001 │    0 │
    │     0.1 │  0.01 │    1 │
    │     0.5 │ 0.001 │    0 │
    │     0.5 │  0.01 │    1 │
    └─────────┴───────┴──────┘
    """

    def __init__(self, configs: Iterable[Mapping[str, Any]]):
        self._configs = tuple(dict(_checked(config)) for config in configs)

    def __len__(self) -> int:
        return len(self._configs)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "Configs": ...
    def __getitem__(self, index):
        return Configs(self._configs[index]) if isinstance(index, slice) else dict(self._configs[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(dict, self._configs)

    def __add__(self, other: "Configs") -> "Configs":
        return Configs([*self, *other]) if isinstance(other, Configs) else NotImplemented

    def __mul__(self, other: "Configs") -> "Configs":
        return Configs(map(_joined, *_pairs(self, other))) if isinstance(other, Configs) else NotImplemented

    def groups(self, static: Iterable[str] = ()) -> tuple[Group, ...]:
        """Those that one compiled program serves, together: `Group` says which do.

        Args:
            static: keywords whose numbers decide shapes or lengths of loops, as ``static_argnames`` of `jax.jit`.
        """
        return groups(self._configs, static)

    def columns(self) -> dict[str, list[Cell]]:
        """Numbers and names by '.'-joined path, a list each; of what lies within an object only what differs."""
        return telling(columns(map(cells, self._configs)))

    def table(self, rows: int | None = None) -> Table:
        """`columns`, to print; of a longer sequence the first and the last of so many."""
        return drawn(self.columns(), f"{len(self)} configurations", rows)

    def __str__(self) -> str:
        return str(self.table(_SHOWN))

    __repr__ = __str__

    def __rich__(self) -> Any:
        return self.table(_SHOWN).__rich__()


def grid(**axes: Any) -> Configs:
    """Every combination of the values of all axes; the last axis changes fastest.

    Args:
        axes: a list, tuple, range or one-dimensional array holds an axis's values. Anything else (a number, a string, a
            dict, a solver, an optimiser) is one value; so put a tuple that is a value into a list.

    Raises:
        ValueError: an axis has no values.

    >>> len(grid(density=[0.1, 0.2, 0.5], seed=range(4), rho=1e-3))
    12
    """
    values = {name: _axis(name, axis) for name, axis in axes.items()}
    return Configs(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


def zip_(**axes: Any) -> Configs:
    """The first values of all axes, the second, and so on; a bare value is repeated.

    Args:
        axes: as in `grid`, all of one length.

    Raises:
        ValueError: an axis has no values, or two have different lengths.

    >>> zip_(density=[0.1, 0.5], rounds=[20, 10], rho=1e-3)[1]
    {'density': 0.5, 'rounds': 10, 'rho': 0.001}
    """
    values = {name: _axis(name, axis) for name, axis in axes.items()}
    lengths = {name: len(values[name]) for name, axis in axes.items() if _is_axis(axis)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"zip_ needs axes of one length, found {lengths}: jaxcomp.grid combines every value with all")
    count = max(lengths.values(), default=1)
    repeated = {name: each if name in lengths else each * count for name, each in values.items()}
    return Configs(dict(zip(repeated, chosen, strict=True)) for chosen in zip(*repeated.values(), strict=True))


def random_search(count: int, seed: int, **axes: Any) -> Configs:
    """Configurations drawn at random, every axis independently of the others.

    What is drawn depends on the seed, the name of the axis and the place in the sequence: more configurations or more
    axes leave those there as they are.

    Args:
        count: how many.
        seed: of the draws.
        axes: `jaxcomp.uniform`, `jaxcomp.log_uniform`, `jaxcomp.choice`, any other callable ``key -> value``, or a bare
            value, which all share.

    >>> search = random_search(20, seed=0, density=log_uniform(0.01, 0.5), solver=choice(["admm", "slr"]), rounds=8)
    >>> search[:5][4] == random_search(5, seed=0, density=log_uniform(0.01, 0.5))[4] | {
    ...     "solver": search[4]["solver"], "rounds": 8}
    True
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, found {count}")
    keys = {name: jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())) for name in axes}

    def draw(name: str, axis: Any, i: int) -> Any:
        if _is_axis(axis):
            raise ValueError(f"axis {name!r} is {axis!r}: say jaxcomp.choice(...) to draw from it")
        return axis(jax.random.fold_in(keys[name], i)) if callable(axis) else axis

    return Configs({name: draw(name, axis, i) for name, axis in axes.items()} for i in range(count))


def uniform(low: float, high: float) -> Callable[[jax.Array], float]:
    """Real numbers from ``low`` to ``high``, for `random_search`."""
    if not low < high:
        raise ValueError(f"uniform needs low < high, found {low} and {high}")
    return lambda key: low + (high - low) * _fraction(key)


def log_uniform(low: float, high: float) -> Callable[[jax.Array], float]:
    """Numbers from ``low`` to ``high`` whose logarithm is uniform, for `random_search`."""
    if not 0 < low < high:
        raise ValueError(f"log_uniform needs 0 < low < high, found {low} and {high}")
    return lambda key: float(low * (high / low) ** _fraction(key))


def choice(values: Iterable[Any]) -> Callable[[jax.Array], Any]:
    """One of some values, each as likely as the others, for `random_search`."""
    values = list(values)
    if not values:
        raise ValueError("choice needs at least one value")
    return lambda key: values[min(int(_fraction(key) * len(values)), len(values) - 1)]


def _fraction(key: jax.Array) -> float:
    return float(jax.random.uniform(key))


def _is_axis(value: Any) -> bool:
    """Whether it holds values; a named tuple, as optax's optimisers are, is one."""
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim == 1
    return isinstance(value, list | tuple | range) and not hasattr(value, "_fields")


def _axis(name: str, value: Any) -> list[Any]:
    """The values of an axis; numpy's own integers and floats are Python's."""
    if not _is_axis(value):
        return [value]
    wide = isinstance(value, np.ndarray) and value.dtype in (np.float64, np.int64, np.bool_)
    values = value.tolist() if wide else list(value)
    if not values:
        raise ValueError(f"axis {name!r} has no values")
    return values


def _checked(config: Any) -> Mapping[str, Any]:
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise ValueError(f"a configuration is a dict of keyword arguments, found {config!r}")
    return config


def _pairs(a: Configs, b: Configs) -> tuple[list[dict], list[dict]]:
    return [x for x in a for _ in b], [y for _ in a for y in b]


def _joined(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    shared = sorted(a.keys() & b.keys())
    if shared:
        raise ValueError(f"both factors have the keywords {shared}: a configuration has one value of each")
    return a | b
