"""Surrogate Lagrangian relaxation: multipliers that move only where the Lagrangian fell, by steps of a set length."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.shard_alike import shard_alike
from jax.typing import ArrayLike

from jaxcomp._assign import Spec, gather, project, scatter
from jaxcomp._paths import leaves_by_path, replace
from jaxcomp._pytree import register_dataclass
from jaxcomp.solvers._leaves import difference, distance, energy, norm, wide
from jaxcomp.solvers._solver import Round, Solver


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SLRState:
    """State of `SLR`: arrays keyed by leaf path, and scalars."""

    z: dict[str, jax.Array]  # the feasible copy of the weights, float32
    multipliers: dict[str, jax.Array]  # Lambda, not divided by rho, float32
    anchor: dict[str, jax.Array]  # z - Lambda / rho, where the penalty pulls to: one array for every step to read
    previous: dict[str, jax.Array]  # all parameters when the multipliers last moved, in their own dtypes
    mean: jax.Array  # mean loss of the round before; infinite before the first
    rho: jax.Array
    step: jax.Array  # s
    norm: jax.Array  # ||g|| when the multipliers last moved
    k: jax.Array  # 1 + how often they have moved, float32
    accepted: jax.Array  # how often they moved in the last round: 0, 1 or 2
    primal: jax.Array
    dual: jax.Array
    converged: jax.Array
    diverged: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SLR(Solver):
    """``minimise f(w) subject to w in S`` by surrogate Lagrangian relaxation of ``w = z``, ``z`` in ``S``.

    With ``L(w, z, m) = f(w) + <m, w - z> + rho/2 ||w - z||^2`` a round of gradient steps descends ``L(., z, m)``, as
    in `jaxcomp.ADMM`. The multipliers m then move at most twice, each time only if what has been found is better than
    what was there before::

        if L(w, z, m) < L(w_before, z, m):    s <- alpha s ||g|| / ||w - z||    m <- m + s (w - z)    g <- w - z
        z_before, z <- z, project(w + m / rho)
        if L(w, z, m) < L(w, z_before, m):    s <- alpha s ||g|| / ||w - z||    m <- m + s (w - z)    g <- w - z

    starting from ``z = project(w)``, ``m = 0``, ``g = w - z`` and ``s = s0``. In the k-th move ``alpha = 1 - 1 / (M
    k^p)``, ``p = 1 - 1 / k^r``. So every move is alpha times as long as the one before, whatever the residual:
    ``s_k ||g_k|| = alpha_k s_{k-1} ||g_{k-1}||``, where ADMM's is ``rho ||w - z||``. Norms are summed over the
    constraints, and one s serves all. The first test counts as passed until the multipliers have moved; a test that
    fails leaves m, s, g and k as they are. A residual of zero moves nothing, and s stays s0 until one is not zero.

    The first test compares two points, ``w_before`` being all parameters as they were when the multipliers last moved,
    on one batch of the round. In the second the loss is the same on both sides and is not asked for; it fails only
    where projecting brought nothing nearer. The published code compares the mean losses of two epochs instead, in
    both tests; ``compare="rounds"`` does that. It still differs from that code in the penalty of ``w_before``, for
    which the code, keeping a reference to weights that train on, has that of w.

    `monitor` records the residuals ``primal = ||w - z||`` and ``dual``, the gradient of the Lagrangian at (w, new m)
    had the round ended in a minimum, ``||m - m_before - rho (w - z_before)||`` (in ADMM ``rho ||z - z_before||``);
    ``step``, which is s; ``accepted``, how often the multipliers moved in the round; ``converged``, when ``primal <=
    tolerance max(||w||, ||z||)`` and ``dual <= tolerance ||m||``; ``diverged``, when a number is no longer finite.
    The multipliers settle only as alpha shortens their moves. With M = 300, r = 0.1 a move is about half as long as the
    first after 20000 of them; with M = 10, after 9.

    Args:
        spec: ``{path: Constraint}`` from `jaxcomp.assign`. An empty one makes this plain training.
        rho: weight of the penalty. It passes through the optimiser: under Adam it sets a *relative* pull.
        s0: first stepsize. Multipliers move by ``s0 ||g||`` to begin with; where that is small against the gradient of
            the loss they hardly count, and what is left is the penalty alone.
        M, r: of alpha; M > 1, 0 < r < 1. Published: M 200 or 300, r 0.1, with s0 from 1e-4 to 1e-2.
        growth: factor of rho after every round. The multipliers stay.
        rho_max: rho grows no further.
        tolerance: relative residual below which the run counts as converged. 0 never does.
        compare: ``"points"`` or ``"rounds"``: what the losses in the tests are.

    All but `spec`'s views and `compare` are leaves: traced, swept and vmapped freely.

    Raises:
        ValueError: there is no loss to compare points with, as in the optax form without ``value_fn=``, which
            ``compare="rounds"`` does without; or `compare` is neither of the two.

    >>> import jaxcomp as jc, optax
    >>> params = {"w": jnp.array([3.0, -1.0, 0.5, -2.0])}
    >>> slr = SLR(jc.assign(params, {"w": jc.Sparse(density=0.5)}), rho=1.0, s0=0.1, M=10.0)
    >>> solution = jc.solve(lambda params, target: jnp.sum((params["w"] - target) ** 2), params, params["w"][None],
    ...                     slr, optimizer=optax.sgd(0.1), rounds=5, steps=10)
    >>> solution.params["w"].round(2).tolist()
    [3.0, 0.0, 0.0, -2.0]

    References: Gurevin et al., Enabling Retrain-free Deep Neural Network Pruning using Surrogate Lagrangian
    Relaxation, IJCAI 2021 (arXiv 2012.10079); Bragin et al., Convergence of the Surrogate Lagrangian Relaxation
    Method, JOTA 2015 (the stepsizes).
    """

    spec: Spec
    rho: ArrayLike = 1e-3
    s0: ArrayLike = 1e-3
    M: ArrayLike = 300.0
    r: ArrayLike = 0.1
    growth: ArrayLike = 1.0
    rho_max: ArrayLike = jnp.inf
    tolerance: ArrayLike = 0.0
    compare: str = dataclasses.field(default="points", metadata={"static": True})

    def init(self, params: Any) -> SLRState:
        w = wide(self.spec, params)
        z = project(self.spec, w)
        multipliers = {path: shard_alike(x, jnp.zeros_like(x))[1] for path, x in z.items()}  # each where the leaf lies
        rho = jnp.asarray(self.rho, jnp.float32)
        return SLRState(
            z=z,
            multipliers=multipliers,
            anchor=_anchor(z, multipliers, rho),
            previous={path: jnp.copy(x) for path, x in leaves_by_path(params).items()},  # which may be donated
            mean=jnp.float32(jnp.inf),
            rho=rho,
            step=jnp.asarray(self.s0, jnp.float32),
            norm=self._length(difference(w, z)),
            k=jnp.float32(1),
            accepted=jnp.int32(0),
            primal=distance(w, z),
            dual=jnp.float32(jnp.inf),
            converged=jnp.array(False),
            diverged=jnp.array(False),
        )

    def objective(self, state: SLRState, losses: jax.Array, params: Any) -> jax.Array:
        """The Lagrangian less ``||m||^2 / (2 rho)``, which no parameter changes."""
        pull = energy(difference(wide(self.spec, params), state.anchor))
        return jnp.mean(losses) + 0.5 * state.rho * pull

    def coordinate(self, state: SLRState, round: Round, params: Any) -> SLRState:
        before = replace(params, state.previous)
        loss, loss_before = self._losses(state, round, params, before)
        lagrangian = self.objective(state, loss, params)
        found = lagrangian < self.objective(state, loss_before, before)
        w = wide(self.spec, params)
        after = dataclasses.replace(state, accepted=jnp.int32(0))
        after = self._move(after, found | (state.k == 1), difference(w, state.z))

        target = {path: w[path] + m / state.rho for path, m in after.multipliers.items()}
        z = project(self.spec, target)
        # Half of rho (||target - z_before||^2 - ||target - z||^2), so written as to be zero where z has not changed.
        gains = {path: (z[path] - state.z[path]) * (target[path] - 0.5 * (z[path] + state.z[path])) for path in z}
        gain = state.rho * sum((jnp.sum(x) for x in gains.values()), jnp.float32(0))
        nearer = gain > (0.0 if self.compare == "points" else loss - loss_before)
        after = self._move(after, nearer, difference(w, z))

        moved = after.accepted > 0
        previous = {path: jnp.where(moved, x, state.previous[path]) for path, x in leaves_by_path(params).items()}
        rho = jnp.minimum(state.rho * self.growth, jnp.maximum(self.rho_max, state.rho)).astype(jnp.float32)
        primal = distance(w, z)
        change, pull = difference(after.multipliers, state.multipliers), difference(w, state.z)
        dual = norm({path: change[path] - state.rho * pull[path] for path in w})
        near = primal <= self.tolerance * jnp.maximum(norm(w), norm(z))
        settled = dual <= self.tolerance * norm(after.multipliers)
        return dataclasses.replace(
            after,
            z=z,
            anchor=_anchor(z, after.multipliers, rho),
            previous=previous,
            mean=jnp.mean(round.mean).astype(jnp.float32),
            rho=rho,
            primal=primal,
            dual=dual,
            converged=near & settled & (jnp.asarray(self.tolerance) > 0),
            diverged=state.diverged | ~jnp.isfinite(lagrangian) | ~jnp.isfinite(dual),
        )

    def monitor(self, state: SLRState) -> dict[str, jax.Array]:
        names = ("primal", "dual", "rho", "step", "accepted", "converged", "diverged")
        return {name: getattr(state, name) for name in names}

    def _move(self, state: SLRState, passed: jax.Array, residual: dict[str, jax.Array]) -> SLRState:
        """The multipliers moved along the residual if the test has been passed and there is one."""
        norm = self._length(residual)
        moves = passed & (norm > 0)
        alpha = 1 - 1 / (self.M * state.k ** (1 - 1 / state.k**self.r))
        step = jnp.where(state.norm > 0, alpha * state.step * state.norm / jnp.where(norm > 0, norm, 1), state.step)
        moved = dataclasses.replace(
            state,
            multipliers={path: m + step * residual[path] for path, m in state.multipliers.items()},
            step=step,
            norm=norm,
            k=state.k + 1,
            accepted=state.accepted + 1,
        )
        return jax.tree.map(lambda new, old: jnp.where(moves, new, old), moved, state)

    def _losses(self, state: SLRState, round: Round, params: Any, before: Any) -> tuple[jax.Array, jax.Array]:
        """Of now and of before, whose difference means something."""
        if self.compare == "rounds":
            return jnp.mean(round.mean), state.mean
        if self.compare != "points":
            raise ValueError(f"compare must be 'points' or 'rounds', found {self.compare!r}")
        return jnp.mean(round.ask(params)), jnp.mean(round.ask(before))

    def _length(self, residual: dict[str, jax.Array]) -> jax.Array:
        """Norms summed over the constraints."""
        parts = gather(self.spec, residual).items()
        return sum((norm(scatter({key: part})) for key, part in parts), jnp.float32(0))


def _anchor(z: dict[str, jax.Array], multipliers: dict[str, jax.Array], rho: jax.Array) -> dict[str, jax.Array]:
    return {path: z[path] - multipliers[path] / rho for path in z}
