"""How to get there: pure functions over a state, and the same as an optax transformation."""

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
        loss: ``params -> losses`` on a fixed batch of this round, for solvers that compare points on the same data;
            ``None`` where the caller cannot give one. Where the loss has an opponent, it is the one of the round, or
            another that is given: ``loss(params, opponent)``.
    """

    first: jax.Array
    last: jax.Array
    mean: jax.Array
    loss: Callable[..., jax.Array] | None = None

    def ask(self, params: Any, *opponent: Any) -> jax.Array:
        """The losses at a point, in float32.

        Raises:
            ValueError: there is no loss to ask.
        """
        if self.loss is None:
            raise ValueError(
                "this solver asks for the loss and was given none: call the update of as_transformation with "
                "value_fn=params -> losses on a batch"
            )
        return jnp.asarray(self.loss(params, *opponent), jnp.float32)


class Solver:
    """Descend `objective` for a round of steps, then `coordinate`; in the end `land` on the constraints.

    Subclasses are frozen dataclasses registered with `jaxcomp.register_dataclass` whose numbers are leaves.
    State is a pytree of fixed shapes and dtypes, keyed by leaf path.

    Attributes:
        spec: the constraints that `land` and retraining keep; ``{}`` if there are none.
        additive: whether the objective is the mean loss plus a function of the parameters, so that its gradient may be
            added to one of the loss.
        risks: how many losses it weighs; ``None`` for a solver that takes their mean.
    """

    spec: Spec
    additive: bool = True
    risks: int | None = None

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        raise NotImplementedError(f"{type(self).__name__} must define init(params)")

    def objective(self, state: Any, losses: jax.Array, params: Any) -> jax.Array:
        """The scalar that one gradient step descends."""
        raise NotImplementedError(f"{type(self).__name__} must define objective(state, losses, params)")

    def coordinate(self, state: Any, round: Round, params: Any) -> Any:
        """The state after a round: projections, dual steps, weights, simplex ascent."""
        raise NotImplementedError(f"{type(self).__name__} must define coordinate(state, round, params)")

    def step(self, state: Any, params: Any, updates: Any) -> Any:
        """What to add to the parameters where the optimiser says `updates`; by default just that.

        For what an optimiser would distort if it came as a gradient, as a proximal step.
        """
        return updates

    def opponent(self, state: Any) -> Any:
        """What the loss takes beside the parameters, as ``loss((params, opponent), batch)``; ``None`` for nothing."""
        return None

    def land(self, state: Any, params: Any) -> Any:
        """Feasible parameters, from those the last round ended with; by default their projection."""
        return project(self.spec, params)

    def monitor(self, state: Any) -> dict[str, jax.Array]:
        """Scalars to record once a round; ``converged`` and ``diverged``, if there, are booleans that drivers obey."""
        return {}


def against(params: Any, opponent: Any) -> Any:
    """What the loss is asked about: the parameters, with the opponent if there is one."""
    return params if opponent is None else (params, opponent)


class TransformationState(NamedTuple):
    """State of `as_transformation`."""

    solver: Any  # the solver's own state
    optimizer: Any  # that of the optimiser within, if there is one
    taken: jax.Array  # steps so far, shape=(), dtype=int32
    first: jax.Array  # losses of the round so far, shape=() or (risks,), float32; NaN where they are not known
    last: jax.Array
    total: jax.Array


def as_transformation(
    solver: Solver, period: int, optimizer: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """A solver as an optax transformation, for anyone's training loop; put it *before* the optimiser in the chain.

    It adds the gradient of the solver's objective (beyond the loss) and coordinates every ``period`` steps, before
    the gradient of the step that follows: the iterates are those of `jaxcomp.solve` with ``steps=period``. Landing is
    the caller's: ``solver.land(state, params)`` once, then train on with `retract`.

    A solver with a `Solver.step` of its own has the last word on every update, so it cannot stand before the optimiser:
    give it the optimiser, and put the whole where the optimiser would be. Others may be given theirs too.

    Solvers that are not ``additive`` (`jaxcomp.MinMax`, `jaxcomp.Adversary` and what is combined with them) need more
    than a gradient of the loss: theirs is taken of ``value_fn`` and replaces the one that is passed.

    Args:
        solver: as `jaxcomp.ADMM`.
        period: steps a round.
        optimizer: from optax, to be applied between the solver's gradient and its step; by default none is.

    The update takes ``value=loss`` (recorded for solvers that read it) and ``value_fn=params -> loss`` (for solvers
    that ask for the loss, as optax's line searches take it), and hands both and any other extra argument to the
    optimiser within. With `jaxcomp.Adversary` the argument of ``value_fn`` is a pair, ``(params, opponent)``.

    A solver that compares points does so at the first step of a round, when it first sees what the round before ended
    with, by the ``value_fn`` of that step; `solve` compares on the first batch of the round that has ended. They agree
    if that is the batch which a ``value_fn`` given there asks about. An additive solver reads ``value_fn`` in no other
    step; one that is not takes its gradient of it too, so its forms agree where all batches are equal.

    Raises:
        ValueError: from the update: the parameters are missing, or a ``value_fn`` or an optimiser that the solver
            needs.

    >>> import jaxcomp as jc
    >>> params = {"w": jnp.array([3.0, 1.0])}
    >>> admm = jc.ADMM(jc.assign(params, {"w": jc.Sparse(0.5)}), rho=0.1)
    >>> tx = optax.chain(jc.as_transformation(admm, period=10), optax.adam(1e-2))
    >>> updates, state = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)

    A penalty that comes by proximal steps, here a shift of both weights towards zero by ``1e-3``:

    >>> lasso = jc.Reweighted(jc.assign(params, {"w": jc.Sparse(1.0)}), strength=1.0, epsilon=1e3, decoupled=True)
    >>> tx = jc.as_transformation(lasso, 10, optax.adam(1e-2))
    >>> updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
    >>> [f"{update:.3f}" for update in updates["w"]]
    ['-0.001', '-0.001']
    """
    if period < 1:
        raise ValueError(f"period must be a whole number of steps, at least 1, found {period}")

    within = optax.with_extra_args_support(optimizer or optax.identity())

    def init(params):
        nothing = jnp.full(() if solver.risks is None else solver.risks, jnp.nan, jnp.float32)
        # optax.tree.map_params finds parameters in a state by init on a childless placeholder; ours are keyed by path,
        # so that one leaf in its place makes the solver's state one of its non-parameters.
        inner = solver.init(params) if leaves_by_path(params) else nothing
        return TransformationState(inner, within.init(params), jnp.zeros((), jnp.int32), nothing, nothing, nothing)

    def update(updates, state, params=None, *, value=None, value_fn=None, **extra):
        if params is None:
            raise ValueError("as_transformation needs the parameters: call tx.update(updates, state, params)")
        if value_fn is None and not solver.additive:
            raise ValueError(
                f"as_transformation({type(solver).__name__}) takes the gradient of its objective itself: call "
                "tx.update(updates, state, params, value_fn=params -> losses)"
            )
        starts = state.taken % period == 0
        inner = lax.cond(
            starts & (state.taken > 0),
            lambda s: solver.coordinate(s, _so_far(state, period, solver.opponent(s), value_fn), params),
            lambda s: s,
            state.solver,
        )
        if solver.additive:
            losses = jnp.asarray(jnp.nan if value is None else value, jnp.float32)
            penalty = leaves_by_path(jax.grad(lambda p: solver.objective(inner, jnp.zeros(()), p))(params))
            moved = {path: g + penalty[path].astype(g.dtype) for path, g in leaves_by_path(updates).items()}
        else:
            losses, gradient = _steered(solver, inner, value_fn, params)
            moved = {path: gradient[path].astype(g.dtype) for path, g in leaves_by_path(updates).items()}
        # By path: nnx hands its optimisers a State at init and plain arrays at update.
        gradient = replace(updates, moved)
        updates, outer = within.update(gradient, state.optimizer, params, value=value, value_fn=value_fn, **extra)
        stepped = solver.step(inner, params, updates)
        if optimizer is None and stepped is not updates:
            raise ValueError(
                f"{type(solver).__name__} steps after the optimiser, so it must be given it: call "
                "as_transformation(solver, period, optimizer)"
            )
        first = jnp.where(starts, losses, state.first)
        total = losses + jnp.where(starts, 0, state.total)
        return stepped, TransformationState(inner, outer, state.taken + 1, first, losses, total)

    return optax.GradientTransformationExtraArgs(init, update)


def _so_far(state: TransformationState, period: int, opponent: Any, value_fn: Callable | None) -> Round:
    """The round that has just ended."""
    ended = Round(state.first, state.last, state.total / period)
    if value_fn is None:
        return ended
    return dataclasses.replace(ended, loss=lambda params, opponent=opponent: value_fn(against(params, opponent)))


def _steered(solver: Solver, state: Any, value_fn: Callable, params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The losses, and the gradient of the whole objective by path."""
    opponent = solver.opponent(state)

    def objective(params):
        losses = jnp.asarray(value_fn(against(params, opponent)), jnp.float32)
        return solver.objective(state, losses, params), losses

    gradient, losses = jax.grad(objective, has_aux=True)(params)
    return losses if solver.risks else jnp.mean(losses), leaves_by_path(gradient)


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
