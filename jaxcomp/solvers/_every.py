"""A solver that keeps a slower rhythm than the rounds it is part of."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcomp._assign import Spec
from jaxcomp._pytree import register_dataclass
from jaxcomp.solvers._solver import Round, Solver


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EveryState:
    """State of `Every`: that of the solver, and what has happened since it last coordinated."""

    inner: Any
    done: jax.Array  # rounds, int32
    first: jax.Array  # losses, as `Round` has them
    total: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Every(Solver):
    """A solver that coordinates once in so many rounds, where others that it is combined with do so in each.

    A game wants a round of one step, so that its dual variable follows the parameters; ADMM wants long ones, so that
    the parameters settle between projections: ``Combined(MinMax(...), Every(100, ADMM(spec)))`` with ``steps=1`` has
    both. To the solver a hundred rounds are one.

    Args:
        rounds: how many; a leaf, a whole number of at least 1.
        solver: as `jaxcomp.ADMM`.

    >>> import jaxcomp as jc, optax
    >>> def loss(params, target):
    ...     return jnp.sum((params["w"] - target) ** 2)
    >>> params = {"w": jnp.array([3.0, -1.0, 0.5, -2.0])}
    >>> admm = jc.ADMM(jc.assign(params, {"w": jc.Sparse(density=0.5)}), rho=1.0, growth=2.0)
    >>> run = dict(optimizer=optax.sgd(0.1), rounds=6, steps=1)
    >>> jc.solve(loss, params, params["w"][None], Every(3, admm), **run).history["rho"].tolist()
    [1.0, 1.0, 2.0, 2.0, 2.0, 4.0]
    """

    rounds: ArrayLike
    solver: Solver

    @property
    def spec(self) -> Spec:  # type: ignore[override]
        return self.solver.spec

    @property
    def additive(self) -> bool:  # type: ignore[override]
        return self.solver.additive

    @property
    def risks(self) -> int | None:  # type: ignore[override]
        return self.solver.risks

    def init(self, params: Any) -> EveryState:
        nothing = jnp.zeros(() if self.risks is None else self.risks, jnp.float32)
        return EveryState(self.solver.init(params), jnp.int32(0), nothing, nothing)

    def opponent(self, state: EveryState) -> Any:
        return self.solver.opponent(state.inner)

    def objective(self, state: EveryState, losses: jax.Array, params: Any) -> jax.Array:
        return self.solver.objective(state.inner, losses, params)

    def step(self, state: EveryState, params: Any, updates: Any) -> Any:
        return self.solver.step(state.inner, params, updates)

    def coordinate(self, state: EveryState, round: Round, params: Any) -> EveryState:
        told = (round.first, round.last, round.mean)
        first, last, mean = (losses if self.risks else jnp.mean(losses) for losses in told)
        first = jnp.where(state.done == 0, first, state.first)
        total = jnp.where(state.done == 0, 0, state.total) + mean
        whole = Round(first, last, total / self.rounds, round.loss)
        due = state.done + 1 >= self.rounds
        inner = lax.cond(due, lambda s: self.solver.coordinate(s, whole, params), lambda s: s, state.inner)
        return EveryState(inner, jnp.where(due, 0, state.done + 1), first, total)

    def land(self, state: EveryState, params: Any) -> Any:
        return self.solver.land(state.inner, params)

    def monitor(self, state: EveryState) -> dict[str, jax.Array]:
        return self.solver.monitor(state.inner)
