"""Densities or bits for every layer, so that a model loses least within a budget of time, energy or storage."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._pytree import register_dataclass
from jaxcomp._table import Table
from jaxcomp._workload import Workload
from jaxcomp.hwmodels import _knapsack
from jaxcomp.hwmodels._choices import Problem
from jaxcomp.hwmodels._device import Cost, Device
from jaxcomp.hwmodels._mode import Smooth
from jaxcomp.hwmodels._relaxation import descended
from jaxcomp.hwmodels._share import TINY
from jaxcomp.hwmodels._stored import Stored

METHODS = ("exact", "price", "gradient")
_REPRICINGS = 8  # of costs that do not add up


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Allocation:
    """What `allocate` chose; print it.

    Attributes:
        stored: how every product is stored, arrays ``[products]`` in the fields that were chosen.
        choice: number of the choice of every product, ``[products]``.
        losses: of every product, ``[products]``.
        cost: of the whole model on the device, in exact mode.
        spent: what of it the budget was for.
        bound: no choice within the budget loses less in all than this; NaN where no bound is known.
    """

    stored: Stored
    choice: jax.Array
    losses: jax.Array
    cost: Cost
    spent: jax.Array
    bound: jax.Array

    @property
    def loss(self) -> jax.Array:
        """Of all products together."""
        return jnp.sum(self.losses)

    @property
    def gap(self) -> jax.Array:
        """By how much the loss may be above the least possible."""
        return jnp.maximum(self.loss - self.bound, 0)

    def table(self) -> Table:
        """A row a product, and the total."""
        fields = [f.name for f in dataclasses.fields(Stored)]
        fields = [name for name in fields if jnp.shape(getattr(self.stored, name)) == self.choice.shape]
        table = Table("allocation", ["product", *(name.replace("_", " ") for name in fields), "latency us", "loss"])
        for i, name in enumerate(self.cost.names):
            values = [f"{float(getattr(self.stored, field)[i]):g}" for field in fields]
            latency_s, loss = self.cost.products.latency_s[i], self.losses[i]
            table.row(name, *values, f"{float(latency_s) * 1e6:,.4g}", f"{float(loss):.4g}")
        sums = (f"{float(self.cost.latency_s) * 1e6:,.4g}", f"{float(self.loss):.4g}")
        table.row("total", *("-" for _ in fields), *sums)
        return table

    def __str__(self) -> str:
        return f"{self.table()}\nspent {float(self.spent):.6g}, loss at most {float(self.gap):.3g} above the least"

    def __rich__(self):
        return self.table().__rich__()


def allocate(
    workload: Workload,
    device: Device,
    sensitivity: ArrayLike | Callable[[Stored], ArrayLike],
    budget: ArrayLike,
    choices: Mapping[str, ArrayLike],
    *,
    cost: str = "latency_s",
    stored: Stored = Stored(),
    method: str | None = None,
    units: int = 10_000,
) -> Allocation:
    r"""One choice of densities or bits for every product, of least loss, whose cost keeps a budget.

        minimise  sum_i loss_i(x_i)   subject to   cost(x_1, ..., x_n) <= budget,   x_i one of the choices.

    Products that the same leaf feeds make one choice. What the result costs is found at the end by ``device.cost`` in
    exact mode, whatever the method; the budget is kept to one part in a million, float32's rounding of sums.

    - "exact": a dynamic programme over the budget in equal units, for costs that add up over products: `latency_s`,
      `energy_j` and `weight_bytes` of a device that does not define `cost` anew. Costs are rounded up to whole units,
      then left-over budget is spent where it gains most. A second programme with costs rounded down gives `bound`.
    - "price": Lagrangian relaxation, the price of cost found by bisection, then single changes while there is budget.
      Quicker, and for any cost: where costs do not add up, a change is priced at what it would cost alone, and all
      are chosen anew a few times. `bound` is the dual's, for costs that add up.
    - "gradient": the choices become a continuum from their least values to their largest, and gradients of the
      sensitivity and of the device's smooth cost lead through it; then each takes the choice nearest, mended by single
      changes. Needs a sensitivity that is a differentiable function. `bound` is the one of "price".

    Args:
        workload: from `jaxcomp.trace`.
        device: what a choice costs.
        sensitivity: what each choice loses, ``[products, choices]``, or a function from a `Stored` of arrays
            ``[products]`` to ``[products]``. An infinite loss forbids a choice. Give a function whose arrays change
            from call to call as a `jax.tree_util.Partial` of one that takes them, and it is compiled once.
        budget: in units of `cost`; may be traced or mapped.
        choices: values of fields of `Stored`, ``{field: [choices]}``; `jaxcomp.choices` makes all combinations.
        cost: "latency_s", "energy_j", "weight_bytes" or "activation_bytes".
        stored: the other fields.
        method: by default "exact" where costs add up, else "price".
        units: into how many the dynamic programme cuts the budget.

    Returns:
        An `Allocation`. If the budget is traced and cannot be met, its `spent` is above the budget.

    Raises:
        ValueError: a budget that cannot be met, with the least cost; a cost that the device does not know; unknown
            fields or methods; shapes that do not fit.

    >>> from jaxcomp.hwmodels._choices import choices
    >>> from jaxcomp._workload import Product
    >>> from jaxcomp.hwmodels._bit_serial import BitSerial
    >>> layers = Workload((Product("a", "a", 64, 1, 256, 256), Product("b", "b", 64, 1, 256, 256)))
    >>> def loss(stored):
    ...     return jnp.array([1.0, 9.0]) * 4.0 ** -stored.weight_bits
    >>> eight_bits = BitSerial().cost(layers).latency_s
    >>> found = allocate(layers, BitSerial(), loss, 0.625 * eight_bits, choices(weight_bits=range(2, 9)))
    >>> found.stored.weight_bits.tolist(), round(float(found.spent / eight_bits), 3)
    ([4.0, 6.0], 0.625)

    References: Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004 (chapter 11); Everett, Generalized Lagrange
    multiplier method, Operations Research 1963.
    """
    problem = Problem.of(workload, device, choices, stored, cost)
    method = method or ("exact" if problem.additive else "price")
    _check_method(problem, method, sensitivity, units)
    table = _sensitivities(problem, sensitivity)
    budget = jnp.asarray(budget, jnp.float32)
    _check_budget(problem, table, budget)
    continuous = jax.tree_util.Partial(sensitivity) if method == "gradient" else None
    choice, bound = _solved(problem, table, budget, method, units, continuous)

    chosen, choice = problem.chosen(choice), problem.spread(choice)
    losses = jnp.take_along_axis(table, choice[:, None], axis=1)[:, 0]
    found = device.cost(workload, chosen)
    return Allocation(chosen, choice, losses, found, getattr(found, cost), bound)


@functools.partial(jax.jit, static_argnames=("method", "units"))
def _solved(
    problem: Problem, table: jax.Array, budget: jax.Array, method: str, units: int, sensitivity: Any
) -> tuple[jax.Array, jax.Array]:
    """The choice of every item, and a bound on the losses from below."""
    losses, bound, after = problem.joined(table), jnp.float32(jnp.nan), problem.after
    if problem.additive:
        costs = problem.costs()
        priced, bound = _knapsack.by_price(losses, costs, budget)

        def after(choice):
            own = jnp.take_along_axis(costs, choice[:, None], axis=1)
            return jnp.sum(own) + costs - own

    if method == "gradient":
        choice = _nearest(problem, losses, _relaxed(problem, losses, sensitivity, budget))
    elif method == "exact":
        choice, relaxed = _knapsack.by_programme(losses, costs, budget, units)
        bound = jnp.maximum(bound, relaxed)
    else:
        choice = priced if problem.additive else _repriced(problem, losses, budget)
    choice = _knapsack.improved(choice, losses, after, budget)
    if method == "exact":  # which loses by rounding costs up what the price may have found
        other = _knapsack.improved(priced, losses, after, budget)
        choice = jnp.where(_knapsack.total(losses, other) < _knapsack.total(losses, choice), other, choice)
    return choice, bound


def _repriced(problem: Problem, losses: jax.Array, budget: jax.Array) -> jax.Array:
    """The Lagrangian's choice again and again, a change priced at what it would cost alone; the best within budget."""

    def again(_, state):
        choice, best = state
        now = problem.total(problem.chosen(choice))
        choice, _ = _knapsack.by_price(losses, problem.after(choice) - now, budget - now)
        choice = _knapsack.improved(choice, losses, problem.after, budget)
        better = _knapsack.total(losses, choice) < _knapsack.total(losses, best)
        kept = problem.total(problem.chosen(choice)) <= budget * (1 + _knapsack.ROUNDING)
        return choice, jnp.where(kept & better, choice, best)

    cheapest = problem.cheapest(jnp.isfinite(losses))
    first = _knapsack.improved(cheapest, losses, problem.after, budget)
    return lax.fori_loop(0, _REPRICINGS, again, (first, first))[1]


def _relaxed(problem: Problem, losses: jax.Array, sensitivity: Any, budget: jax.Array) -> dict[str, jax.Array]:
    """Values of the fields of every item, between those of its choices, found by gradients of the smooth cost."""
    allowed = jnp.isfinite(losses)
    low = {name: jnp.min(jnp.where(allowed, x[None, :], jnp.inf), axis=1) for name, x in problem.values.items()}
    high = {name: jnp.max(jnp.where(allowed, x[None, :], -jnp.inf), axis=1) for name, x in problem.values.items()}

    def fields(u):
        return {name: low[name] + u[i] * (high[name] - low[name]) for i, name in enumerate(problem.values)}

    def loss(u):
        return jnp.sum(jnp.asarray(sensitivity(problem.stored_as(fields(u)))))

    def share(u):
        return problem.total(problem.stored_as(fields(u)), Smooth()) / budget

    return fields(descended(loss, share, (len(problem.values), problem.items), 1.0))


def _nearest(problem: Problem, losses: jax.Array, fields: dict[str, jax.Array]) -> jax.Array:
    """The allowed choice nearest to values of the fields, each in units of its range."""
    distances = jnp.zeros(losses.shape)
    for name, x in problem.values.items():
        width = jnp.maximum(jnp.max(x) - jnp.min(x), TINY)
        distances += ((x[None, :] - fields[name][:, None]) / width) ** 2
    return jnp.argmin(jnp.where(jnp.isfinite(losses), distances, jnp.inf), axis=1)


def _check_method(problem: Problem, method: str, sensitivity: Any, units: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {METHODS}")
    if method == "exact" and not problem.additive:
        device = type(problem.device).__name__
        raise ValueError(f"{problem.cost} of {device} does not add up over products, as 'exact' needs: use 'price'")
    if method == "gradient" and not callable(sensitivity):
        raise ValueError("method 'gradient' needs a sensitivity that is a differentiable function of a Stored")
    if not isinstance(units, int) or units < 1:
        raise ValueError(f"units must be a whole number from 1, found {units!r}")


def _sensitivities(problem: Problem, sensitivity: Any) -> jax.Array:
    """What each choice loses, ``[products, choices]``."""
    shape = (len(problem.workload), problem.count)
    table = problem.of_each(sensitivity) if callable(sensitivity) else jnp.asarray(sensitivity, jnp.float32)
    if table.shape != shape:
        raise ValueError(f"sensitivity has shape {table.shape}, expected [products, choices], {shape}")
    if not isinstance(table, jax.core.Tracer):
        some = np.asarray(problem.spread(jnp.isfinite(problem.joined(table)).any(axis=1)))
        if np.isnan(table).any() or not some.all():
            none = [product.name for product, finite in zip(problem.workload, some, strict=True) if not finite]
            raise ValueError(f"sensitivity has NaN, or no choice is allowed (all losses infinite) for {none}")
    return table


def _check_budget(problem: Problem, table: jax.Array, budget: jax.Array) -> None:
    """Raises where the budget cannot be met, if the numbers are known."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((problem, table, budget))):
        return
    least = float(_least(problem, table))
    if np.isnan(least):
        raise ValueError(f"{type(problem.device).__name__} does not know its {problem.cost}: budget another cost")
    if not float(budget) * (1 + _knapsack.ROUNDING) >= least:
        raise ValueError(
            f"budget {float(budget):.6g} of {problem.cost} cannot be met: the cheapest choices of "
            f"{len(problem.workload)} products cost {least:.6g}: raise it, or add cheaper choices"
        )


@jax.jit
def _least(problem: Problem, table: jax.Array) -> jax.Array:
    """The least cost of allowed choices; where costs do not add up, the least found."""
    return problem.total(problem.chosen(problem.cheapest(jnp.isfinite(problem.joined(table)))))
