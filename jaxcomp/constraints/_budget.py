"""One of several sets for every leaf, chosen so that the whole costs no more than it may."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints._constraint import Constraint, check_range
from jaxcomp.constraints._joint import Arrays, Joint

Options = Sequence[Constraint]
_ROUNDING = 4  # within so many epsilons of its dtype, times its norm, a leaf counts as a member
_WHOLE = 1e-6  # within this share of it a cost counts as a whole number of units


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Budget(Joint):
    """Every leaf obeys one of several constraints, and what they cost together stays within a budget.

    ``{x : x_l in S_l,o(l) for some choice o with sum_l cost_l,o(l) <= budget}``. The projection takes the choice of
    least squared error, found by a dynamic programme over the budget in equal units. Costs are rounded up to whole
    units: the budget is kept (to one part in a million, float32's rounding of costs), and a leaf may waste up to a
    unit. The projection is exact where every option's is and every cost is a whole number of units. Among equals a
    leaf takes the cheaper option, then the one listed first.

    An update moves every leaf within the option that it is in: the cheapest that holds it to rounding. Where the
    options' tangents differ, as those of unlike sets do, finding it takes a projection on each: to retrain for long,
    use the constraints from `each`. Densities and bits, which no tangent reads, take none under `jax.jit`.

    Args:
        options: the constraints that every leaf may choose from, or ``{path: constraints}``. Those of a leaf that
            differ in numbers alone, as densities or bits, are compiled as one.
        budget: what all leaves together may cost; may be traced.
        costs: ``{path: [cost of each option]}``, not negative: bits, operations, seconds. Left out, `fit` (so
            `jaxcomp.assign`) takes the bits that each option stores of the pretrained leaf.
        units: into how many units the budget is cut.

    >>> from jaxcomp.constraints import Sparse
    >>> options = Sparse(0.0), Sparse(0.5), Sparse(1.0)
    >>> budget = Budget(options, budget=2, costs={"a": [0, 1, 2], "b": [0, 1, 2]})
    >>> layers = {"a": jnp.array([3.0, 2.0]), "b": jnp.array([1.0, -1.0])}
    >>> {path: x.tolist() for path, x in budget.project(layers).items()}
    {'a': [3.0, 2.0], 'b': [0.0, 0.0]}

    References: Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004 (chapter 11, multiple choice).
    """

    options: Options | Mapping[str, Options]
    budget: ArrayLike
    costs: Mapping[str, ArrayLike] | None = dataclasses.field(default=None, repr=False)
    units: int = dataclasses.field(default=10_000, metadata={"static": True})

    def project(self, x):
        chosen, affordable = self._allocate(self._errors(x))
        sound = affordable & jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in x.values()]))
        near = self._under(chosen, lambda option, path: option.project(x[path]))
        return {path: jnp.where(sound, leaf, jnp.nan) for path, leaf in near.items()}

    def tangent(self, x, v):
        """``v`` cut by the option that each leaf is in."""
        return self._under(self._found(x), lambda option, path: option.tangent(x[path], v[path]))

    def footprint(self, x):
        """What the option that each leaf is in takes; which one it is comes with the format."""
        return self._under(self._found(x), lambda option, path: option.footprint(x[path]))

    def forms(self, x):
        return {path: option.forms(x[path]) for path, option in self.each(x).items()}

    def each(self, x):
        """The option that every leaf of a member is in."""
        return {path: self.of(path)[int(i)] for path, i in jax.jit(Budget._found)(self, x).items()}

    def of(self, path: str) -> Options:
        """What one leaf may choose from."""
        return self.options[path] if isinstance(self.options, Mapping) else self.options

    def fit(self, x):
        options = {path: tuple(option.fit(leaf) for option in self.of(path)) for path, leaf in x.items()}
        same = all(option is given for path in x for option, given in zip(options[path], self.of(path), strict=True))
        costs = self.costs or {path: _storage(options[path], leaf) for path, leaf in x.items()}
        return dataclasses.replace(self, options=self.options if same else options, costs=costs)

    def exact(self, shape):
        if self.costs is None or not self._known:
            return False
        costs = np.concatenate([np.ravel(np.asarray(self.costs[path], np.float64)) for path in shape])
        units = costs * (self.units / np.maximum(np.asarray(self.budget, np.float64), 1e-30))
        whole = (np.abs(units - np.round(units)) <= _WHOLE * units) | (units > self.units)
        return bool(np.all(whole)) and all(option.exact(one) for path, one in shape.items() for option in self.of(path))

    def check(self, x):
        """Also raises where the cheapest options together cost more than the budget, if the numbers are known."""
        super().check(x)
        if not isinstance(self.units, int | np.integer) or not 1 <= self.units <= 1 / _WHOLE:
            raise ValueError(f"units must be a whole number from 1 to {1 / _WHOLE:.0f}, found {self.units!r}")
        for name, given in {"options": self.options, "costs": self.costs}.items():
            missing = [path for path in x if path not in given] if isinstance(given, Mapping) else []
            if missing:
                raise ValueError(f"{name} have nothing for {missing}, only for {list(given or ())}: add them by path")
        for path, leaf in x.items():
            if not self.of(path):
                raise ValueError(f"options of '{path}' must be one constraint or more, found none")
            for i, option in enumerate(self.of(path)):
                try:
                    option.check(leaf)
                except ValueError as error:
                    raise ValueError(f"'{path}', option {i}: {error}") from None
        check_range("budget", self.budget, 0, 3e38)
        if self.costs is not None and self._known:
            self._check_costs({path: np.asarray(self.costs[path], np.float64) for path in x})

    def _check_costs(self, costs: dict[str, np.ndarray]) -> None:
        for path, cost in costs.items():
            if cost.shape != (len(self.of(path)),):
                expected = f"{len(self.of(path))} numbers, one an option"
                raise ValueError(f"costs of '{path}' must be {expected}; found shape {cost.shape}")
            check_range(f"costs of '{path}'", cost, 0, np.inf)
        with jax.ensure_compile_time_eval():
            least = sum(int(jnp.min(self._in_units(path))) for path in costs)
        if least > self.units:
            cheapest = sum(cost.min() for cost in costs.values())
            raise ValueError(
                f"budget {self.budget} cannot be met: the cheapest options of {len(costs)} leaves cost {cheapest:g} "
                f"together, each rounded up to a whole {self.units}th of the budget: raise it, or add cheaper options"
            )

    @property
    def _known(self) -> bool:
        """Whether budget and costs are plain numbers: neither traced nor, with an axis of its own, swept."""
        numbers = jax.tree.leaves((self.budget, self.costs))
        return np.ndim(self.budget) == 0 and not any(isinstance(number, jax.core.Tracer) for number in numbers)

    def _in_units(self, path: str) -> jax.Array:
        """Costs of a leaf's options, in whole units; one more than there are where it cannot be afforded."""
        if self.costs is None:
            raise ValueError("Budget has no costs yet: give them, or call fit(x) to take the bits that options store")
        cost, budget = (jnp.asarray(number, jnp.float32) for number in (self.costs[path], self.budget))
        share = jnp.ceil(cost / jnp.maximum(budget, 1e-30) * (self.units * (1 - _WHOLE)))
        return jnp.where(share <= self.units, share, self.units + 1).astype(jnp.int32)

    def _under(self, chosen: dict[str, jax.Array], act: Callable[[Constraint, str], Any]) -> dict[str, Any]:
        return {path: _under(self.of(path), i, act, path) for path, i in chosen.items()}

    def _errors(self, x: Arrays, forgiven: float = 0.0) -> dict[str, jax.Array]:
        """Squared distances of every leaf from its options; 0 within so many epsilons of the leaf's norm.

        All weights are first brought to about 1 by the largest.
        """
        x = lax.stop_gradient(x)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf.astype(jnp.float32))) for leaf in x.values()]))

        def energy(leaf):
            return jnp.sum(jnp.square(leaf.astype(jnp.float32) / jnp.where(largest > 0, largest, 1)))

        def error(path, i):
            near = _under(self.of(path), i, lambda option: option.project(x[path]))
            slack = energy(x[path]) * (forgiven * float(jnp.finfo(x[path].dtype).eps)) ** 2
            off = energy(x[path].astype(jnp.float32) - near.astype(jnp.float32))
            return jnp.where(off <= slack, 0, off)

        return {path: lax.map(functools.partial(error, path), jnp.arange(len(self.of(path)))) for path in x}

    def _found(self, x: Arrays) -> dict[str, jax.Array]:
        """The option that each leaf of a member is in. Like the projection it never chooses above the budget."""
        return self._allocate(self._errors(x, _ROUNDING))[0]

    def _allocate(self, errors: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        """The option of every leaf by which the errors add up to the least, and whether there is any."""
        paths, most = sorted(errors), max(map(len, errors.values()))
        pads = {path: (0, most - len(errors[path])) for path in paths}
        table = jnp.stack([jnp.pad(errors[p], pads[p], constant_values=jnp.inf) for p in paths])
        costs = jnp.stack([jnp.pad(self._in_units(p), pads[p], constant_values=self.units + 1) for p in paths])
        chosen, affordable = least_sum(table, costs, self.units)
        return dict(zip(paths, chosen, strict=True)), affordable


def least_sum(errors: jax.Array, costs: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """An entry of every row of ``errors`` so that their sum is least and that of ``costs``, integers, at most ``most``.

    The least error of the first rows is known for every sum of costs that they may have: row by row, so is that of
    one row more. Also returns whether there is any such choice.
    """
    order = jnp.argsort(costs, axis=1, stable=True)  # among equals the first is taken: the cheapest
    errors, costs = (jnp.take_along_axis(a, order, axis=1) for a in (errors, costs))

    def add(least, row):
        error, cost = row
        left = jnp.arange(most + 1)[None, :] - cost[:, None]
        total = jnp.where(left >= 0, least[jnp.maximum(left, 0)] + error[:, None], jnp.inf)
        return jnp.min(total, axis=0), jnp.argmin(total, axis=0)

    def walk(left, row):
        pick, cost, order = row
        i = pick[left]
        return jnp.maximum(left - cost[i], 0), order[i]

    least, picks = lax.scan(add, jnp.zeros(most + 1), (errors, costs))
    _, chosen = lax.scan(walk, jnp.int32(most), (picks, costs, order), reverse=True)
    return chosen, jnp.isfinite(least[most])


def _under(options: Options, i: jax.Array, act: Callable[..., Any], *args: Any) -> Any:
    """``act`` of the i-th option. Options that differ in numbers alone become one, whose numbers are looked up."""
    kinds = {(jax.tree.structure(option), *map(jnp.shape, jax.tree.leaves(option))) for option in options}
    if len(kinds) == 1:
        return act(jax.tree.map(lambda *numbers: jnp.stack([jnp.asarray(n) for n in numbers])[i], *options), *args)
    return lax.switch(i, [functools.partial(act, option, *args) for option in options])


@jax.jit
def _storage(options: Options, x: jax.Array) -> jax.Array:
    """The bits that each option stores of a leaf."""

    def stored(option):
        return option.footprint(option.project(x)).bits

    return lax.map(lambda i: _under(options, i, stored), jnp.arange(len(options)))
