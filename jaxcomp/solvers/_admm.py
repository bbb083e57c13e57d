"""The alternating direction method of multipliers, with any constraint that can be projected on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.shard_alike import shard_alike
from jax.typing import ArrayLike

from jaxcomp._assign import Spec, project
from jaxcomp._pytree import register_dataclass
from jaxcomp.solvers._leaves import difference, distance, energy, norm, wide
from jaxcomp.solvers._solver import Round, Solver

_UNBOUNDED = 100.0  # duals this many times the largest norm of the weights have left all use behind


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ADMMState:
    """State of `ADMM`: arrays keyed by leaf path, and scalars."""

    z: dict[str, jax.Array]  # the feasible copy of the weights, float32
    u: dict[str, jax.Array]  # scaled duals, Lambda / rho, float32
    anchor: dict[str, jax.Array]  # z - u, where the penalty pulls to: one array for every step to read, not two
    rho: jax.Array
    scale: jax.Array  # the largest norm the weights have had
    primal: jax.Array
    dual: jax.Array
    converged: jax.Array
    diverged: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ADMM(Solver):
    """``minimise f(w) subject to w in S`` by splitting: w follows the loss, a copy z the constraint, u ties them.

    A round of gradient steps descends ``f(w) + rho/2 ||w - z + u||^2`` (the squared norm: some pruners that go by
    this name penalise the norm itself, which is another method). Then::

        z <- project(w + u)        u <- u + w - z

    starting from ``z = project(w)``, ``u = 0``. After that rho may change, by `growth` and by `balance`, and u is
    rescaled to keep the multipliers ``rho u``. Weights of all constrained leaves count as one vector in the norms.

    The sets are not convex: ADMM need not converge. What is recorded says whether it did: the residuals
    ``primal = ||w - z||`` and ``dual = rho ||z - z_before||``; ``converged``, when
    ``primal <= tolerance max(||w||, ||z||)`` and ``dual <= tolerance ||rho u||``; ``diverged``, when a number is no
    longer finite or ``||u||`` exceeds 100 times the largest norm the weights have had.

    Args:
        spec: ``{path: Constraint}`` from `jaxcomp.assign`. An empty one makes this plain training.
        rho: weight of the penalty. It passes through the optimiser: under Adam it sets a *relative* pull.
        growth: factor of rho after every round.
        balance: factor by which rho follows the residuals: up when the relative primal residual exceeds ten times
            the relative dual one, down when it is the other way round. 1 turns it off.
        rho_max: rho grows no further.
        tolerance: relative residual below which the run counts as converged. 0 never does.

    All but `spec`'s views are leaves: traced, swept and vmapped freely.

    >>> import jaxcomp as jc
    >>> params = {"w": jnp.array([3.0, 1.0])}
    >>> admm = ADMM(jc.assign(params, {"w": jc.Sparse(0.5)}), rho=1.0)
    >>> state = admm.init(params)
    >>> float(admm.objective(state, jnp.float32(2.0), params))
    2.5

    References: Boyd et al., Distributed Optimization and Statistical Learning via ADMM, 2011 (section 3.3 residuals,
    3.4.1 varying rho); Zhang et al., A Systematic DNN Weight Pruning Framework using ADMM, ECCV 2018.
    """

    spec: Spec
    rho: ArrayLike = 1e-3
    growth: ArrayLike = 1.0
    balance: ArrayLike = 1.0
    rho_max: ArrayLike = jnp.inf
    tolerance: ArrayLike = 0.0

    def init(self, params: Any) -> ADMMState:
        w = wide(self.spec, params)
        z = project(self.spec, w)
        return ADMMState(
            z=z,
            u={path: shard_alike(x, jnp.zeros_like(x))[1] for path, x in z.items()},  # each where the leaf lies
            anchor=jax.tree.map(jnp.copy, z),  # for a buffer that two leaves share cannot be donated
            rho=jnp.asarray(self.rho, jnp.float32),
            scale=norm(w),
            primal=distance(w, z),
            dual=jnp.float32(jnp.inf),
            converged=jnp.array(False),
            diverged=jnp.array(False),
        )

    def objective(self, state: ADMMState, losses: jax.Array, params: Any) -> jax.Array:
        pull = energy(difference(wide(self.spec, params), state.anchor))
        return jnp.mean(losses) + 0.5 * state.rho * pull

    def coordinate(self, state: ADMMState, round: Round, params: Any) -> ADMMState:
        w = wide(self.spec, params)
        z = project(self.spec, {path: w[path] + state.u[path] for path in w})
        u = {path: state.u[path] + w[path] - z[path] for path in w}
        primal, change = distance(w, z), distance(z, state.z)
        scale = jnp.maximum(state.scale, norm(w))
        far = primal / jnp.maximum(jnp.maximum(norm(w), norm(z)), 1e-30)
        fast = change / jnp.maximum(norm(u), 1e-30)
        factor = jnp.where(far > 10 * fast, self.balance, jnp.where(fast > 10 * far, 1 / self.balance, 1.0))
        rho = jnp.minimum(state.rho * factor * self.growth, jnp.maximum(self.rho_max, state.rho))
        u = {path: x * (state.rho / rho) for path, x in u.items()}  # rho u, the multipliers, stay
        return ADMMState(
            z=z,
            u=u,
            anchor={path: z[path] - u[path] for path in z},
            rho=rho.astype(jnp.float32),
            scale=scale,
            primal=primal,
            dual=state.rho * change,
            converged=(far <= self.tolerance) & (fast <= self.tolerance) & (jnp.asarray(self.tolerance) > 0),
            diverged=state.diverged | ~(norm(u) <= _UNBOUNDED * scale) | ~jnp.isfinite(primal),
        )

    def monitor(self, state: ADMMState) -> dict[str, jax.Array]:
        names = ("primal", "dual", "rho", "converged", "diverged")
        return {name: getattr(state, name) for name in names}
