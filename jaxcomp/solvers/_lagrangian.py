"""Budgets on differentiable costs: descent for the parameters, ascent for a multiplier of every cost."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._assign import Spec
from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints import Box, Constraint
from jaxcomp.solvers._dual import PLAIN, Dual, ascend, begin
from jaxcomp.solvers._solver import Round, Solver


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LagrangianState:
    """State of `Lagrangian`."""

    multipliers: Dual  # of the shape of the costs
    defects: jax.Array  # cost - budget at the end of the last round, of the same shape, float32
    diverged: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Lagrangian(Solver):
    """``minimise f(w) subject to cost(w) <= budget``, for one cost or several.

    A round of gradient steps descends ``f(w) + sum_i lambda_i g_i(w)`` with the defects ``g = cost - budget``. From
    ``lambda = 0`` it moves the multipliers, ``lambda <- max(lambda + rate g, 0)``, and restarts at zero those whose
    cost is strictly within its budget: the best answer there, without which a multiplier that has grown goes on
    pushing far below the budget. Where the loss pulls the cost up again, restarts make it chatter about its budget, and
    the multiplier is no sensitivity of the optimum; without them it settles at that of Karush, Kuhn and Tucker.

    ``rate`` times the number of rounds times the excess must reach the size of the multipliers. Costs as a share of
    their total, as a density, let one rate do for all models. A budget out of reach makes multipliers grow without
    end: see ``multiplier`` in the history, and cap them by ``set=Box(0, cap)``.

    The budget is met in the limit and to the accuracy of the run; landing projects on `spec` alone.

    Args:
        cost: ``params -> cost``, differentiable, a scalar or an array; static, so build it once.
        budget: a number, or one for every cost.
        rate: length of the multipliers' step.
        spec: sets for the weights besides, kept by landing and retraining. Combine with `jaxcomp.ADMM` to train
            towards them.
        true_cost: what must keep the budget if `cost` is a differentiable stand-in: parameters descend by the one and
            multipliers move by the other.
        penalty: c of the augmented Lagrangian, which puts ``(max(lambda + c g, 0)^2 - lambda^2) / (2c)`` for
            ``lambda g``: it damps, and makes a saddle point of an optimum that is none. 0 is the plain one.
        set: of the multipliers. ``Box()`` with ``restarts=False`` is for equality, ``cost = budget``.
        restarts: whether multipliers restart.
        sequential: move the multipliers by the defects at the new parameters. By default by those at the start of the
            round, which with one step a round is simultaneous descent and ascent, as the paper does.
        optimizer: of the multipliers, from optax; its steps are scaled by `rate`. By default plain ascent, the one that
            suits restarts: others remember. ``optax.optimistic_gradient_descent(1.0)`` damps oscillations. Static:
            build it once.

    The least change that brings a sum down to its budget takes the same from every weight:

    >>> import jaxcomp as jc
    >>> def change(params, start):
    ...     return 0.5 * jnp.sum((params["w"] - start) ** 2)
    >>> solver = Lagrangian(lambda params: jnp.sum(params["w"]), budget=6.0, rate=0.1, restarts=False)
    >>> start = jnp.array([4.0, 3.0, 2.0])
    >>> solution = jc.solve(change, {"w": start}, start[None], solver, optimizer=optax.sgd(0.2), rounds=200, steps=1)
    >>> solution.params["w"].round(2).tolist(), solution.state.multipliers.value.round(2).tolist()
    ([3.0, 2.0, 1.0], 1.0)

    It records the largest defect as ``defect`` (at most 0 where all budgets are kept) and the largest multiplier as
    ``multiplier``.

    Controlled sparsity is this with gates: scale inputs, filters or weights by hard concrete gates whose log-odds ``a``
    are parameters, and let the cost be the expected density, the mean of ``sigmoid(a - b log(0.1 / 1.1))`` with
    ``b = 2/3``. Gates need a larger learning rate than weights.

    References: Gallego-Posada et al., Controlled Sparsity via Constrained Optimization, NeurIPS 2022 (arXiv
    2208.04425; its multipliers move at every step, which is ``steps=1``); Cotter et al., Two-Player Games for Efficient
    Non-Convex Constrained Optimization, ALT 2019 (the true cost); Bertsekas, Constrained Optimization and Lagrange
    Multiplier Methods, 1982 (the augmented one).
    """

    cost: Callable[[Any], jax.Array] = dataclasses.field(metadata={"static": True})
    budget: ArrayLike
    rate: ArrayLike
    spec: Spec = dataclasses.field(default_factory=dict)
    true_cost: Callable[[Any], jax.Array] | None = dataclasses.field(default=None, metadata={"static": True})
    penalty: ArrayLike = 0.0
    set: Constraint = Box(low=0.0)
    restarts: bool = dataclasses.field(default=True, metadata={"static": True})
    sequential: bool = dataclasses.field(default=False, metadata={"static": True})
    optimizer: optax.GradientTransformation = dataclasses.field(default=PLAIN, metadata={"static": True})

    def init(self, params: Any) -> LagrangianState:
        defects = self._defects(self.true_cost or self.cost, params)
        multipliers = self.set.project(jnp.zeros_like(defects))
        return LagrangianState(begin(multipliers, self.optimizer), defects, jnp.array(False))

    def objective(self, state: LagrangianState, losses: jax.Array, params: Any) -> jax.Array:
        """For any set of multipliers: the most of ``mu g - (mu - lambda)^2 / (2c)`` over its members mu."""
        before, defects = state.multipliers.value, self._defects(self.cost, params)
        best = lax.stop_gradient(self.set.project(before + self.penalty * defects))  # by the envelope theorem
        positive = jnp.asarray(self.penalty) > 0
        away = jnp.sum(jnp.square(best - before)) / jnp.where(positive, 2 * self.penalty, 1)
        return jnp.mean(losses) + jnp.sum(best * defects) - jnp.where(positive, away, 0)

    def coordinate(self, state: LagrangianState, round: Round, params: Any) -> LagrangianState:
        defects = self._defects(self.true_cost or self.cost, params)
        seen = defects if self.sequential else state.defects

        def project(multipliers):
            return self.set.project(jnp.where(seen < 0, 0, multipliers) if self.restarts else multipliers)

        multipliers = ascend(state.multipliers, seen, self.rate, self.optimizer, project)
        finite = jnp.all(jnp.isfinite(defects)) & jnp.all(jnp.isfinite(multipliers.value))
        return LagrangianState(multipliers, defects, state.diverged | ~finite)

    def monitor(self, state: LagrangianState) -> dict[str, jax.Array]:
        return {
            "defect": jnp.max(state.defects),
            "multiplier": jnp.max(jnp.abs(state.multipliers.value)),
            "diverged": state.diverged,
        }

    def _defects(self, cost: Callable[[Any], jax.Array], params: Any) -> jax.Array:
        return jnp.asarray(cost(params), jnp.float32) - jnp.asarray(self.budget, jnp.float32)
