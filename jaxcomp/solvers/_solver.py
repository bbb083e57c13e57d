"""How to get there: three pure functions over a state, and the same three as an optax transformation."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxcomp._assign import Spec, members, project, tangent
from jaxcomp._paths import leaves_by_path, replace, select


@dataclasses.dataclass(frozen=True)
class Round:
    """What a solver learns of the steps since it last coordinated.

    Attributes:
        first, last, mean: losses of the first and last step and the mean of all; scalars, or one entry per risk.
        loss: ``params -> losses`` on a fixed batch of this round, for tests that compare two points on the same
            data; ``None`` where the caller cannot give one.
    """

    first: jax.Array
    last: jax.Array
    mean: jax.Array
    loss: Callable[[Any], jax.Array] | None = None


class Solver:
    """Descend `objective` for a round of steps, then `coordinate`; in the end `land` on the constraints.

    Subclasses are frozen dataclasses registered with `jax.tree_util.register_dataclass` whose numbers are leaves.
    State is a pytree of fixed shapes and dtypes, keyed by leaf path.

    Attributes:
        spec: the constraints that `land` and retraining keep; ``{}`` if there are none.
    """

    spec: Spec

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        raise NotImplementedError(f"{type(self).__name__} must define init(params)")

    def objective(self, state: Any, losses: jax.Array, params: Any) -> jax.Array:
        """The scalar that one gradient step descends."""
        raise NotImplementedError(f"{type(self).__name__} must define objective(state, losses, params)")

    def coordinate(self, state: Any, round: Round, params: Any) -> Any:
        """The state after a round: projections, dual steps, weights, simplex ascent."""
        raise NotImplementedError(f"{type(self).__name__} must define coordinate(state, round, params)")

    def land(self, state: Any, params: Any) -> Any:
        """Feasible parameters, from those the last round ended with; by default their projection."""
        return project(self.spec, params)

    def monitor(self, state: Any) -> dict[str, jax.Array]:
        """Scalars to record once a round; ``converged`` and ``diverged``, if there, are booleans that drivers obey."""
        return {}


class TransformationState(NamedTuple):
    """State of `as_transformation`."""

    solver: Any  # the solver's own state
    taken: jax.Array  # steps so far, shape=(), dtype=int32
    first: jax.Array  # losses of the round so far, shape=(), dtype=float32; NaN where `value` was not passed
    last: jax.Array
    total: jax.Array


def as_transformation(solver: Solver, period: int) -> optax.GradientTransformationExtraArgs:
    """A solver as an optax transformation, for anyone's training loop; put it *before* the optimiser in the chain.

    It adds the gradient of the solver's objective (beyond the loss) and coordinates every ``period`` steps, before
    the gradient of the step that follows: the iterates are those of `jaxcomp.solve` with ``steps=period``. Landing is
    the caller's: ``solver.land(state, params)`` once, then train on with `retract`.

    Args:
        solver: with an objective that adds a function of the parameters to the mean of a scalar loss.
        period: steps a round.

    The update takes ``value=loss`` (recorded for solvers that read it) and ``value_fn=params -> loss`` (for solvers
    that compare points, as optax's line searches take it; at the first step of a round), and ignores any other extra
    argument.

    >>> import jaxcomp as jc
    >>> params = {"w": jnp.array([3.0, 1.0])}
    >>> admm = jc.ADMM(jc.assign(params, {"w": jc.Sparse(0.5)}), rho=0.1)
    >>> tx = optax.chain(jc.as_transformation(admm, period=10), optax.adam(1e-2))
    >>> updates, state = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
    """
    if period < 1:
        raise ValueError(f"period must be a whole number of steps, at least 1, found {period}")

    def init(params):
        nothing = jnp.full((), jnp.nan, jnp.float32)
        # optax.tree.map_params finds parameters in a state by init on a childless placeholder; ours are keyed by path,
        # so that one leaf in its place makes the solver's state one of its non-parameters.
        inner = solver.init(params) if leaves_by_path(params) else nothing
        return TransformationState(inner, jnp.zeros((), jnp.int32), nothing, nothing, nothing)

    def update(updates, state, params=None, *, value=None, value_fn=None, **extra):
        del extra
        if params is None:
            raise ValueError("as_transformation needs the parameters: call tx.update(updates, state, params)")
        value = jnp.asarray(jnp.nan if value is None else value, jnp.float32)
        starts = state.taken % period == 0
        inner = lax.cond(
            starts & (state.taken > 0),
            lambda s: solver.coordinate(s, Round(state.first, state.last, state.total / period, value_fn), params),
            lambda s: s,
            state.solver,
        )
        penalty = jax.grad(lambda p: solver.objective(inner, jnp.zeros(()), p))(params)
        # By path: nnx hands its optimisers a State at init and plain arrays at update.
        penalty, gradients = leaves_by_path(penalty), leaves_by_path(updates)
        added = replace(updates, {path: g + penalty[path].astype(g.dtype) for path, g in gradients.items()})
        first = jnp.where(starts, value, state.first)
        total = value + jnp.where(starts, 0, state.total)
        return added, TransformationState(inner, state.taken + 1, first, value, total)

    return optax.GradientTransformationExtraArgs(init, update)


def retract(spec: Spec) -> optax.GradientTransformation:
    """Keep feasible parameters feasible after every step; put it *last* in the optax chain.

    It takes out of the final update what would leave the sets. Masking the gradient instead does not do: an
    optimiser with momentum goes on moving a weight whose gradient is zero.

    >>> import jaxcomp as jc
    >>> params = {"w": jnp.array([3.0, 0.0])}
    >>> tx = optax.chain(optax.adam(0.1), jc.retract(jc.assign(params, {"w": jc.Sparse(0.5)})))
    >>> tx.update({"w": jnp.ones(2)}, tx.init(params), params)[0]["w"].tolist()[1]
    0.0
    """

    return _on_updates("retract", lambda params, updates: tangent(spec, params, updates))


def confine(spec: Spec) -> optax.GradientTransformation:
    """Projected gradient descent: after every step the parameters are projected; put it *last* in the optax chain.

    Unlike `retract` it lets the parameters move to any member of their sets; they need not be feasible before.

    >>> import jaxcomp as jc
    >>> params = {"w": jnp.array([3.0, 0.5])}
    >>> tx = optax.chain(optax.sgd(1.0), jc.confine(jc.assign(params, {"w": jc.Box(0.0, 1.0)})))
    >>> updates, _ = tx.update({"w": jnp.array([1.0, 1.0])}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [1.0, 0.0]
    """

    def move(params, updates):
        target = leaves_by_path(project(spec, optax.apply_updates(params, updates)))
        weights = select(params, members(spec))
        return replace(updates, {path: target[path] - x for path, x in weights.items()})

    return _on_updates("confine", move)


def _on_updates(name: str, move: Callable[[Any, Any], Any]) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        if params is None:
            raise ValueError(f"{name} needs the parameters: call tx.update(updates, state, params)")
        return move(params, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
