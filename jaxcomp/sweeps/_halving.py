"""Successive halving: many configurations for a little, the better ones for more."""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcomp._table import Table
from jaxcomp.sweeps._configs import Configs
from jaxcomp.sweeps._result import Outcome, Sweep
from jaxcomp.sweeps._sweep import sweep


@dataclasses.dataclass(frozen=True, repr=False)
class Halving:
    """What `halving` found.

    Attributes:
        rungs: a `Sweep` a rung; its configurations hold the budget in all, also where a rung did only what was missing.
        indices: which of the configurations given ran in each rung, ``[members]`` a rung.
        budget: name of the keyword that is the budget.
        metric: name of the column that is compared.
        mode: ``"max"`` or ``"min"``.
        spent: units of budget that all rungs took together.
    """

    rungs: tuple[Sweep, ...]
    indices: tuple[np.ndarray, ...]
    budget: str
    metric: str
    mode: str
    spent: int

    @property
    def best(self) -> Outcome:
        """The best of the last rung; raises `ValueError` if all of it diverged."""
        return self.rungs[-1].best(self.metric, self.mode)

    @property
    def sweep(self) -> Sweep:
        """All rungs as one `Sweep`, to tabulate or to store: a configuration has a row a rung it ran in."""
        return functools.reduce(operator.add, self.rungs)

    def table(self) -> Table:
        """A row a rung."""
        columns = [self.budget, "configurations", "diverged", f"best {self.metric}", f"median {self.metric}", "seconds"]
        whole = len(self.rungs[0]) * self.rungs[-1].configs[0][self.budget]
        drawn = Table("halving", columns, f"{self.spent} {self.budget} spent; all in full: {whole}")
        for found in self.rungs:
            values = found.values(self.metric)[found.ranking(self.metric, self.mode)]
            figures = [f"{values[0]:.6g}", f"{np.median(values):.6g}"] if values.size else ["-", "-"]
            budget = found.configs[0][self.budget]
            drawn.row(budget, len(found), found.diverged.sum(), *figures, f"{found.seconds:.1f}")
        return drawn

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def __rich__(self) -> Any:
        return self.table().__rich__()


def halving(
    fn: Callable,
    configs: Configs | Iterable[Mapping[str, Any]],
    *args: Any,
    budget: str,
    rungs: Sequence[int],
    max: str | None = None,
    min: str | None = None,
    keep: float = 1 / 3,
    carry: str | None = None,
    static: Sequence[str] = (),
    **options: Any,
) -> Halving:
    """Run all configurations with a small budget, the best share of them with the next larger one, and so on.

    Every rung is a `jaxcomp.sweep` with one more keyword, the budget, which is static: one program a rung and static
    structure. With a `store`, a run that was killed does only what is missing, and a rung's results are there for
    other sweeps that ask for the same.

    Args:
        fn: ``fn(*args, **config)`` as for `jaxcomp.sweep`, called with the budget as one more keyword.
        configs: configurations that do not name the budget.
        *args: data, passed on.
        budget: name of the keyword of `fn` that says how long to run, such as ``"rounds"``.
        rungs: the budgets, rising.
        max: column of the results to make large; either this or `min`.
        min: column to make small.
        keep: share of a rung that goes on, rounded down, at least one. Of equals the earlier goes on; what has
            diverged does not. Should a whole rung diverge, it is the last.
        carry: name of an entry of the result, such as ``"params"``, that the next rung gets as the keyword of the same
            name, to go on from: `fn` is then asked for the difference of the budgets alone. The first rung calls `fn`
            without it. ``prepare`` is given it too, and must not make it again. Without `carry` every rung starts over.
        static: as for `jaxcomp.sweep`; the budget is added.
        **options: passed to `jaxcomp.sweep`: ``store``, ``mode``, ``chunk``, ``prepare`` and so on.

    Raises:
        ValueError: the rungs do not rise; `keep` is no share; not one of `max` and `min`; a configuration names the
            budget; a result has no entry `carry`; from `jaxcomp.sweep`.

    A configuration that starts slowly is lost: compare the ranks of two rungs before trusting the first. Jamieson and
    Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016, keep one half.

    >>> import jaxcomp as jc
    >>> def descend(target, *, rate, rounds, x=0.0):
    ...     for _ in range(rounds):
    ...         x = x + rate * (target - x)
    ...     return {"error": abs(target - x), "x": x}
    >>> rates = jc.grid(rate=[0.01, 0.1, 0.5, 0.9, 1.9, 2.5])
    >>> found = jc.halving(
    ...     descend, rates, 1.0, budget="rounds", rungs=(1, 3, 9), min="error", keep=0.5, carry="x", progress=False
    ... )
    >>> [len(rung) for rung in found.rungs], found.best.config, found.spent
    ([6, 3, 1], {'rate': 0.9, 'rounds': 9}, 18)
    """
    configs = Configs(configs)
    _check(configs, budget, rungs, keep)
    metric, mode = _goal(max, min)
    found: list[Sweep] = []
    indices: list[np.ndarray] = []
    alive = np.arange(len(configs))
    carried: list[dict[str, Any]] = [{} for _ in configs]
    spent = done = 0
    for rung in rungs:
        members = [configs[int(i)] for i in alive]
        todo = [config | more | {budget: rung - done} for config, more in zip(members, carried, strict=True)]
        ran = sweep(fn, Configs(todo), *args, static=(*static, budget), **options)
        found.append(dataclasses.replace(ran, configs=Configs([config | {budget: rung} for config in members])))
        indices.append(alive)
        spent += len(alive) * (rung - done)
        best = np.sort(ran.ranking(metric, mode)[: _share(keep, len(ran))])
        if not best.size:
            break
        alive = alive[best]
        carried = [{} if carry is None else {carry: _entry(ran.results[i], carry)} for i in best]
        done = 0 if carry is None else rung
    return Halving(tuple(found), tuple(indices), budget, metric, mode, spent)


def _share(keep: float, count: int) -> int:
    return max(1, math.floor(keep * count + 1e-9))  # a third of nine is three


def _entry(result: Any, name: str) -> Any:
    if not isinstance(result, Mapping) or name not in result:
        has = f"the entries {list(result)}" if isinstance(result, Mapping) else f"none: it is a {type(result).__name__}"
        raise ValueError(f"carry={name!r} is to go on from a result's entry of that name, but a result has {has}")
    return result[name]


def _goal(high: str | None, low: str | None) -> tuple[str, str]:
    """The column to compare, and which way."""
    if high is not None and low is None:
        return high, "max"
    if low is not None and high is None:
        return low, "min"
    raise ValueError(f"say what to compare, either max= or min= a column, found max={high!r} and min={low!r}")


def _check(configs: Configs, budget: str, rungs: Sequence[int], keep: float) -> None:
    if not rungs or rungs[0] < 1 or any(a >= b for a, b in itertools.pairwise(rungs)):
        raise ValueError(f"rungs must be positive and rise, found {tuple(rungs)}")
    if not 0 < keep < 1:
        raise ValueError(f"keep must lie between 0 and 1, found {keep}")
    if not len(configs):
        raise ValueError("no configurations: expected at least one")
    if any(budget in config for config in configs):
        raise ValueError(f"configurations name {budget!r} already, but it is the budget, which the rungs set: drop it")
