"""What came of a sweep: results in the order of the configurations, as a tidy table, with the best and the front."""

import csv
import dataclasses
import difflib
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np

from jaxcomp._table import Table
from jaxcomp.sweeps._columns import Cell, cells, columns, drawn, telling
from jaxcomp.sweeps._configs import Configs, config_key
from jaxcomp.sweeps._pareto import pareto_front

_SHOWN = 40  # rows that `print` shows of a long sweep


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One configuration, what came of it, and whether that holds a number that is not finite."""

    config: dict[str, Any]
    result: Any
    diverged: bool


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """What `jaxcomp.sweep` found. A sequence: an index gives an `Outcome`, a slice or a list of indices a `Sweep`.

    Attributes:
        configs: the configurations.
        results: what the function returned for each, in this order; histories and parameters too.
        diverged: ``[n]``, whether a result holds NaN or infinity.
        seconds: wall clock of the call; what a store held already took none of it.
        mode: ``"map"``, ``"vmap"`` or ``"sharded"``.
        reason: why this mode.
        compilations: how many programs were compiled.

    Two sweeps are joined by ``+``. In the table, `columns`, a row is a configuration. Names are '.'-joined paths:

    - of a configuration every number and name (string, function), but of what lies within a solver, a constraint or
      another object only what differs between configurations, and of its class likewise;
    - of a result every scalar. Where a configuration has the name already it is ``result.name``; a function that
      returns a single number makes the column ``result``;
    - ``diverged``.

    What is no scalar has no column: it is in `results`.

    >>> import jaxcomp as jc
    >>> found = jc.sweep(lambda x, a: {"loss": (x - a) ** 2}, jc.grid(a=[0.0, 1.0, 4.0]), 2.0, progress=False)
    >>> found.best("loss", mode="min").config
    {'a': 1.0}
    >>> found.columns()
    {'a': [0.0, 1.0, 4.0], 'loss': [4.0, 1.0, 4.0], 'diverged': [False, False, False]}
    """

    configs: Configs
    results: Sequence[Any]
    diverged: np.ndarray
    seconds: float = 0.0
    mode: str = "map"
    reason: str = ""
    compilations: int = 0

    def __len__(self) -> int:
        return len(self.configs)

    @overload
    def __getitem__(self, index: int | np.integer) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice | Sequence | np.ndarray) -> "Sweep": ...
    def __getitem__(self, index):
        if isinstance(index, int | np.integer):
            i = int(index)
            return Outcome(self.configs[i], self.results[i], bool(self.diverged[i]))
        rows = np.arange(len(self))[index if isinstance(index, slice) or len(index) else slice(0)]
        return dataclasses.replace(
            self,
            configs=Configs([self.configs[i] for i in rows.tolist()]),
            results=_Picked([(self.results, i) for i in rows.tolist()]),
            diverged=self.diverged[rows],
        )

    def __iter__(self) -> Iterator[Outcome]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: "Sweep") -> "Sweep":
        if not isinstance(other, Sweep):
            return NotImplemented
        return Sweep(
            configs=self.configs + other.configs,
            results=_Picked([(one.results, i) for one in (self, other) for i in range(len(one))]),
            diverged=np.concatenate([self.diverged, other.diverged]),
            seconds=self.seconds + other.seconds,
            mode=self.mode,
            reason=self.reason,
            compilations=self.compilations + other.compilations,
        )

    def columns(self) -> dict[str, list[Cell]]:
        """The table as a list of Python values a column, with ``None`` where a row has no such value."""
        return {name: list(values) for name, values in self._columns.items()}

    @functools.cached_property
    def _columns(self) -> dict[str, list[Cell]]:  # kept, since it reads every result
        configs = columns(map(cells, self.configs))
        table = telling(configs)
        for name, values in columns(map(_scalars, self.results)).items():
            name = name or "result"
            table[f"result.{name}" if name in configs or name == "diverged" else name] = values
        return table | {"diverged": self.diverged.tolist()}

    def column(self, name: str) -> list[Cell]:
        """One of `columns`.

        Raises:
            ValueError: there is no such column; says which are like it.
        """
        if name not in self._columns:
            near = difflib.get_close_matches(name, self._columns, 3, 0.4)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"no column {name!r} in this sweep, whose columns are {list(self._columns)}{hint}")
        return list(self._columns[name])

    def values(self, name: str) -> np.ndarray:
        """A column of numbers as float64 ``[n]``, NaN where a row has none.

        Raises:
            ValueError: there is no such column, or it holds text.
        """
        column = [np.nan if value is None else value for value in self.column(name)]
        odd = [value for value in column if isinstance(value, str | complex)]
        if odd:
            raise ValueError(f"column {name!r} holds {odd[0]!r}, expected real numbers")
        return np.asarray(column, np.float64)

    def best(self, metric: str, mode: str = "max") -> Outcome:
        """The configuration with the best number in a column; the first, if several have it. Diverged ones never win.

        Args:
            metric: name of the column.
            mode: ``"max"`` or ``"min"``.

        Raises:
            ValueError: all have diverged, or none has a number in this column; there is no such column.
        """
        ranked = self.ranking(metric, mode)
        if not ranked.size:
            why = "all have diverged" if self.diverged.all() else f"none that is finite has a number in {metric!r}"
            raise ValueError(f"no best of {len(self)} configurations: {why}; look at .results")
        return self[int(ranked[0])]

    def ranking(self, metric: str, mode: str = "max") -> np.ndarray:
        """Indices from the best to the worst, equals in their order, without what diverged or has no number."""
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', found {mode!r}")
        values = self.values(metric)
        order = np.argsort(-values if mode == "max" else values, kind="stable")
        return order[~self.diverged[order] & ~np.isnan(values[order])]

    def pareto(self, *, max: str | Sequence[str] = (), min: str | Sequence[str] = ()) -> "Sweep":
        """The configurations that none other beats: `jaxcomp.pareto_front` of some columns, less the diverged.

        Args:
            max: column or columns to make large.
            min: column or columns to make small.

        Returns:
            a `Sweep`, sorted by the first column that is named, best first. Equal points are all in it.
        """
        high, low = ((names,) if isinstance(names, str) else tuple(names) for names in (max, min))
        if not high + low:
            raise ValueError("a front needs at least one objective: name columns in max= or min=")
        costs = np.stack([*(-self.values(name) for name in high), *(self.values(name) for name in low)], axis=1)
        costs[self.diverged] = np.nan
        front = np.flatnonzero(pareto_front(costs))
        return self[front[np.argsort(costs[front, 0], kind="stable")]]

    def reduce(self, over: str | Sequence[str], by: Callable = np.mean) -> "Sweep":
        """One row for all configurations that differ in nothing but some keywords, as the mean over seeds.

        Args:
            over: keyword or keywords of the configurations. They are left out of the new ones.
            by: ``by(values, axis=0)`` of every array of the results, stacked: `numpy.mean`, `numpy.std`, `numpy.max`.

        A group is marked diverged if a member is. Without this, the best of a sweep has the luckiest seed too.

        Raises:
            ValueError: no configuration has such a keyword.
        """
        over = (over,) if isinstance(over, str) else tuple(over)
        missing = [name for name in over if not any(name in config for config in self.configs)]
        if missing:
            raise ValueError(f"no configuration has the keyword {missing[0]!r}, to reduce over")
        groups: dict[str, list[int]] = {}
        rest = [{name: value for name, value in config.items() if name not in over} for config in self.configs]
        for i, config in enumerate(rest):
            groups.setdefault(config_key(config), []).append(i)
        return dataclasses.replace(
            self,
            configs=Configs([rest[rows[0]] for rows in groups.values()]),
            results=[_reduced([self.results[i] for i in rows], by) for rows in groups.values()],
            diverged=np.array([self.diverged[rows].any() for rows in groups.values()], bool),
        )

    def to_pandas(self) -> Any:
        """`columns` as a `pandas.DataFrame`."""
        return _module("pandas").DataFrame(self.columns())

    def to_csv(self, path: str | os.PathLike) -> None:
        """`columns` as a CSV file with a line of names; a missing value is empty. No digit is lost."""
        table = self.columns()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(zip(*table.values(), strict=True))

    def to_parquet(self, path: str | os.PathLike) -> None:
        """`columns` as a Parquet file, which keeps their types; complex numbers as text."""
        arrow, parquet = _module("pyarrow"), _module("pyarrow.parquet")
        table = {
            name: [str(value) if isinstance(value, complex) else value for value in values]
            for name, values in self.columns().items()
        }
        parquet.write_table(arrow.table(table), path)

    def table(self, rows: int | None = None) -> Table:
        """`columns`, to print; of a longer sweep the first and the last of so many rows."""
        lost = f", {self.diverged.sum()} diverged" if self.diverged.any() else ""
        return drawn(self.columns(), f"sweep: {len(self)} configurations{lost}", rows)

    def __str__(self) -> str:
        return str(self.table(_SHOWN))

    __repr__ = __str__

    def __rich__(self) -> Any:
        return self.table(_SHOWN).__rich__()


class _Picked(Sequence):
    """Results out of other sequences, which may read them from a store: none is read before it is asked for."""

    def __init__(self, places: Sequence[tuple[Sequence, int]]):
        self._places: list[tuple[Sequence, int]] = [
            whole._places[i] if isinstance(whole, _Picked) else (whole, i) for whole, i in places
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Picked(self._places[index])
        whole, i = self._places[index]
        return whole[i]


def _scalars(result: Any) -> Mapping[str, Cell]:
    return {name: value for name, value in cells(result).items() if not isinstance(value, str | None)}


def _reduced(results: list[Any], by: Callable) -> Any:
    return jax.tree.map(lambda *leaves: by(np.stack([np.asarray(leaf) for leaf in leaves]), axis=0), *results)


def _module(name: str) -> Any:
    """A module of the extra `sweeps`, which only these methods need."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install 'jaxcomp[sweeps]', or write with to_csv") from error
