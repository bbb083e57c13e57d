"""The worst of several risks: descent for the parameters, ascent on the simplex for the weights of the risks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxcomp._assign import Spec
from jaxcomp._pytree import register_dataclass
from jaxcomp.constraints import Constraint, Simplex
from jaxcomp.solvers._dual import PLAIN, Dual, ascend, begin
from jaxcomp.solvers._solver import Round, Solver


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MinMaxState:
    """State of `MinMax`."""

    weights: Dual  # of the risks, shape=(risks,)
    losses: jax.Array  # by which the weights were moved last, shape=(risks,); NaN before
    diverged: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MinMax(Solver):
    """``minimise over v the maximum over w in P of sum_i w_i F_i(v) - gamma/2 ||w - 1/K||^2``, P the simplex.

    The loss returns the K risks ``F_i`` as an array of shape (K,): the losses of K models, inputs, transformations or
    groups of the data. A round of gradient steps descends ``sum_i w_i F_i(v)``; from ``w = 1/K`` it moves the weights::

        w <- project(w + rate (F(v) - gamma (w - 1/K)))

    With ``gamma = 0`` the answer is the least of the largest risk. A large gamma keeps the weights near ``1/K``, down
    to the mean of the risks, which ``rate=0`` minimises outright. In between, w says how hard each risk is.

    The minimiser v may be weights or a perturbation; ``optax.chain(optimizer, jc.confine(spec))`` keeps it in any set
    at every step. Several steps a round are an inner loop of the minimiser. `jax.vmap` over examples gives every
    example its own w.

    Args:
        risks: how many there are, K.
        gamma: weight of the regulariser. Keep ``rate * gamma <= 1``: from 2 on the weights overshoot for ever.
        rate: length of the weights' step. It multiplies losses, so it is worth one over their scale.
        spec: what landing and retraining keep; `jaxcomp.confine` keeps it before. Retraining is on the mean risk.
        set: where the weights lie.
        sequential: move the weights by the losses at the *new* parameters, on a fixed batch of the round, as the paper
            does. Otherwise by those of the last step, from before the parameters moved: no evaluation more.
        optimizer: of the weights, from optax; its steps are scaled by `rate`. By default plain ascent. Static: build it
            once.

    Raises:
        ValueError: when the loss returns another shape.

    The nearest point to two others in the worst case lies midway, and the third, which is nearer, does not count:

    >>> import jaxcomp as jc
    >>> centres = jnp.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0]])
    >>> def distances(params, centres):
    ...     return 0.5 * jnp.sum((params["v"][None] - centres) ** 2, axis=1)
    >>> solution = jc.solve(distances, {"v": jnp.array([1.0, 2.0])}, centres[None], MinMax(3, gamma=0.1, rate=0.05),
    ...                     optimizer=optax.sgd(0.1), rounds=500, steps=1)
    >>> solution.params["v"].round(2).tolist(), solution.state.weights.value.round(2).tolist()
    ([2.0, 0.0], [0.5, 0.5, 0.0])

    It records the largest loss as ``worst``, the largest weight as ``heaviest``, and the weights' ``entropy`` in nats.

    References: Wang et al., Adversarial Attack Generation Empowered by Min-Max Optimization, NeurIPS 2021 (arXiv
    1906.03563), whose public code writes ``1/rate`` for the rate.
    """

    additive = False  # no annotation: no field
    risks: int = dataclasses.field(metadata={"static": True})
    gamma: ArrayLike
    rate: ArrayLike
    spec: Spec = dataclasses.field(default_factory=dict)
    set: Constraint = Simplex()
    sequential: bool = dataclasses.field(default=True, metadata={"static": True})
    optimizer: optax.GradientTransformation = dataclasses.field(default=PLAIN, metadata={"static": True})

    def init(self, params: Any) -> MinMaxState:
        weights = self.set.project(jnp.full(self.risks, 1 / self.risks, jnp.float32))
        return MinMaxState(begin(weights, self.optimizer), jnp.full(self.risks, jnp.nan, jnp.float32), jnp.array(False))

    def objective(self, state: MinMaxState, losses: jax.Array, params: Any) -> jax.Array:
        w = state.weights.value
        return jnp.sum(w * self._checked(losses)) - 0.5 * self.gamma * jnp.sum(jnp.square(w - 1 / self.risks))

    def coordinate(self, state: MinMaxState, round: Round, params: Any) -> MinMaxState:
        losses = self._checked(round.ask(params) if self.sequential else round.last)
        gradient = losses - self.gamma * (state.weights.value - 1 / self.risks)
        weights = ascend(state.weights, gradient, self.rate, self.optimizer, self.set.project)
        return MinMaxState(weights, losses, state.diverged | ~jnp.all(jnp.isfinite(losses)))

    def monitor(self, state: MinMaxState) -> dict[str, jax.Array]:
        w = state.weights.value
        return {
            "worst": jnp.max(state.losses),
            "heaviest": jnp.max(w),
            "entropy": -jnp.sum(jax.scipy.special.xlogy(w, w)),
            "diverged": state.diverged,
        }

    def _checked(self, losses: jax.Array) -> jax.Array:
        if jnp.shape(losses) != (self.risks,):
            raise ValueError(
                f"MinMax weighs losses of shape ({self.risks},), one a risk, and found {jnp.shape(losses)}: let the "
                "loss return one entry a risk, and put MinMax first where solvers are combined"
            )
        return jnp.asarray(losses, jnp.float32)
