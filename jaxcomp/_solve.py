"""The whole road as one pure function: rounds of steps, coordination between them, landing, masked retraining."""

import dataclasses
import functools
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxcomp._assign import Spec, check_finite, check_leaf, gather, tangent
from jaxcomp._batches import batch_at, num_batches
from jaxcomp._paths import is_array, leaves_by_path
from jaxcomp._pytree import register_dataclass
from jaxcomp.solvers import Round, Solver
from jaxcomp.solvers._solver import against


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        params: feasible parameters, landed and retrained.
        state: the solver's last state.
        model_state: as carried by the loss, or ``None``.
        history: ``{name: [rounds]}``: mean ``loss`` and what the solver monitors, a round an entry.
        retrain_loss: mean loss of every retraining round, ``[retrain]``.
        converged, diverged: what the solver says of its last round; false where it does not say.
    """

    params: Any
    state: Any
    model_state: Any
    history: dict[str, jax.Array]
    retrain_loss: jax.Array
    converged: jax.Array
    diverged: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """Everything that one round hands to the next, and all that a checkpoint must hold."""

    params: Any
    state: Any
    opt_state: Any
    model_state: Any


def solve(
    loss: Callable,
    params: Any,
    batches: Any,
    solver: Solver,
    *,
    optimizer: optax.GradientTransformation,
    rounds: int,
    steps: int,
    retrain: int = 0,
    grad: Callable = jax.value_and_grad,
    hold: Spec | None = None,
    model_state: Any = None,
    early_stop: bool = False,
) -> Solution:
    """Minimise the loss under the solver's constraints. Pure: jit it, vmap it over params, solvers or seeds.

    ``rounds`` times: ``steps`` steps of the optimiser on ``solver.objective``, each as ``solver.step`` has it, then
    ``solver.coordinate``. Then ``solver.land`` and, from a fresh optimiser state, ``retrain`` rounds of ``steps`` steps
    on the loss alone in which every update is cut to keep the parameters feasible.

    Args:
        loss: ``loss(params, batch)`` returns the loss, a scalar (or one entry per risk, for solvers that weigh them),
            or ``(loss, aux)``. With `model_state` it is ``loss(params, batch, model_state)`` and must return
            ``(loss, new model_state)``: batch norm's statistics and the like. With a solver that brings an opponent
            (`jaxcomp.Adversary`) the first argument is the pair ``(params, opponent)``. Pass data in `batches`, never
            through a closure: the compiler would fold it into the program as a constant.
        params: pytree of floating-point arrays, trained already as a rule.
        batches: pytree of arrays whose leading axis counts batches, or `jaxcomp.shuffled`. Used in order, again from
            the start when they run out. Keys for dropout ride along as one more array.
        solver: as `jaxcomp.ADMM`; a pytree, so its numbers may be traced.
        optimizer: from optax. It is a static argument: build it once, or its every new instance compiles anew.
        rounds: how often the solver coordinates; 0 lands at once.
        steps: optimiser steps a round.
        retrain: rounds of masked retraining.
        grad: a drop-in for `jax.value_and_grad`, as `jaxcomp.ZerothOrder`. It is called as ``grad(objective,
            has_aux=True)(params, step)``: from the number of the step, which counts through the whole run, an estimator
            draws its randomness; the objective ignores it. Its numbers may be traced if it is a pytree.
        hold: constraints that the parameters obey already, as the zeros of an earlier stage. Every update is cut to
            keep them, during the rounds and, before the solver's own, in retraining.
        model_state: carried through the loss.
        early_stop: skip the rounds after the solver first says ``converged`` or ``diverged``; their loss in the
            history is NaN.

    Raises:
        ValueError: before anything is compiled: NaN weights, wrong counts, batches without a common leading axis, a
            spec that does not fit the tree.

    >>> import jaxcomp as jc
    >>> def loss(params, target):
    ...     return jnp.sum((params["w"] - target) ** 2)
    >>> params = {"w": jnp.array([3.0, -1.0, 0.5, -2.0])}
    >>> spec = jc.assign(params, {"w": jc.Sparse(density=0.5)})
    >>> solution = jc.solve(loss, params, params["w"][None], jc.ADMM(spec, rho=1.0),
    ...                     optimizer=optax.sgd(0.1), rounds=5, steps=10)
    >>> solution.params["w"].round(2).tolist()
    [3.0, 0.0, 0.0, -2.0]
    """
    check_run(params, solver, rounds, steps, retrain, hold)
    num_batches(batches)
    return _solve(
        loss,
        strong(params),
        batches,
        strong(solver),
        strong(hold or {}),
        strong(model_state),
        estimator(grad),
        optimizer=optimizer,
        rounds=rounds,
        steps=steps,
        retrain=retrain,
        early_stop=early_stop,
    )


_STATIC = ("loss", "optimizer", "rounds", "steps", "retrain", "early_stop")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _solve(loss, params, batches, solver, hold, model_state, grad, *, optimizer, rounds, steps, retrain, early_stop):
    def train(carry, r):
        first = r * steps
        return run_round(loss, carry, batches, solver, hold, grad, first, first, optimizer=optimizer, steps=steps)

    def one(carry, r):
        def go(carry):
            carry, round = train(carry, r)
            state = coordinate(loss, solver, carry, round, batch_at(batches, r * steps))
            return dataclasses.replace(carry, state=state), jnp.mean(round.mean)

        if not early_stop:
            carry, mean = go(carry)
        else:  # a branch a round, not a step: its copies of the state do not count
            converged, diverged = verdict(solver, carry.state)
            carry, mean = lax.cond(converged | diverged, lambda c: (c, jnp.float32(jnp.nan)), go, carry)
        return carry, {"loss": mean, **solver.monitor(carry.state)}

    def again(carry, r):
        carry, round = train(carry, r)
        return carry, jnp.mean(round.mean)

    carry = Carry(params, solver.init(params), optimizer.init(params), model_state)
    check_opponent(solver, carry.state, retrain)
    carry, history = lax.scan(one, carry, jnp.arange(rounds))
    state = carry.state
    landed = solver.land(state, carry.params)
    carry, retrain_loss = restart(carry, landed, optimizer), jnp.zeros(0, jnp.float32)
    if retrain:  # the loss alone, which has no opponent to take, is not even traced without
        carry, retrain_loss = lax.scan(again, carry, rounds + jnp.arange(retrain))
    converged, diverged = verdict(solver, state)
    return Solution(carry.params, state, carry.model_state, history, retrain_loss, converged, diverged)


def run_round(loss, carry: Carry, batches, solver, hold: Spec, grad, batch, taken, *, optimizer, steps):
    """``steps`` optimiser steps from batch ``batch`` on, after ``taken`` in all, on the objective within ``hold``.

    Where the solver's state is None, on the loss within ``hold`` and the solver's own sets.
    """
    state = carry.state

    def step(inner, i):
        params, opt_state, model_state = inner

        def objective(params, step):
            del step
            asked = params if state is None else against(params, solver.opponent(state))
            losses, aux = evaluate(loss, asked, batch_at(batches, batch + i), model_state)
            whole = jnp.mean(losses) if state is None else solver.objective(state, losses, params)
            return whole, (losses, aux)

        (_, (losses, aux)), gradient = grad(objective, has_aux=True)(params, taken + i)
        updates, opt_state = optimizer.update(_together(gradient), opt_state, params)
        if state is not None:
            updates = solver.step(state, params, updates)
        updates = tangent(hold, params, updates)
        if state is None:
            updates = tangent(solver.spec, params, updates)
        model_state = model_state if model_state is None else aux
        return (optax.apply_updates(params, updates), opt_state, model_state), losses

    inner = (carry.params, carry.opt_state, carry.model_state)
    (params, opt_state, model_state), losses = lax.scan(step, inner, jnp.arange(steps))
    round = Round(losses[0], losses[-1], jnp.mean(losses, axis=0))
    return Carry(params, state, opt_state, model_state), round


def estimator(grad: Callable) -> Callable:
    """As a pytree, whose numbers are traced and whose function is not."""
    return strong(jax.tree_util.Partial(grad) if jax.tree_util.all_leaves([grad]) else grad)


def _together(gradient: Any) -> Any:
    """The gradient, no leaf of which is ready before all are.

    Without this XLA on a CPU may update a weight while the backward pass still needs it, and copies every weight in
    every step lest it does: 7 % of an Adam step of a dense network of 10 million weights. The sum of several entries
    is a number that XLA computes once; a sum written out would be fused into every weight's update, entry by entry.
    """
    each = [leaf[(slice(1),) * leaf.ndim].ravel().astype(jnp.float32) for leaf in jax.tree.leaves(gradient)]
    firsts = jnp.concatenate([*each, jnp.zeros(1)])
    nothing = 0 * jnp.sum(jnp.where(jnp.isfinite(firsts), firsts, 0))  # of which XLA cannot know that it is zero
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), gradient)


def coordinate(loss, solver, carry: Carry, round: Round, batch) -> Any:
    """The solver's next state; it may compare points on the given batch."""

    def on_batch(params, opponent=solver.opponent(carry.state)):
        return evaluate(loss, against(params, opponent), batch, carry.model_state)[0]

    return solver.coordinate(carry.state, dataclasses.replace(round, loss=on_batch), carry.params)


def check_opponent(solver: Solver, state: Any, retrain: int) -> None:
    """Refuse to retrain on a loss that takes an opponent: it would have none to take."""
    if retrain and solver.opponent(state) is not None:
        raise ValueError(
            f"retrain must be 0 with {type(solver).__name__}, whose opponent plays in the rounds alone; found "
            f"{retrain}: call solve or compress again, with hold=spec"
        )


def verdict(solver: Solver, state: Any) -> tuple[jax.Array, jax.Array]:
    """Whether the solver says it has converged, and whether it has diverged; a silent one says neither."""
    said = solver.monitor(state)
    return jnp.asarray(said.get("converged", False)), jnp.asarray(said.get("diverged", False))


def restart(carry: Carry, params: Any, optimizer) -> Carry:
    """The start of retraining: landed parameters, a fresh optimiser, no solver."""
    return Carry(params, None, optimizer.init(params), carry.model_state)


def evaluate(loss, params, batch, model_state):
    """Losses and auxiliary output, whichever of its forms the loss has."""
    out = loss(params, batch) if model_state is None else loss(params, batch, model_state)
    if isinstance(out, tuple):
        losses, aux = out
    elif model_state is not None:
        raise ValueError("with model_state the loss must return (loss, new model_state), found one value")
    else:
        losses, aux = out, None
    return jnp.asarray(losses, jnp.float32), aux


def strong(tree: Any) -> Any:
    """Numbers and arrays as arrays of definite type: a weakly typed number in a state costs a second compilation."""

    def definite(leaf):
        if isinstance(leaf, bool | int | float):
            return jnp.asarray(leaf, jnp.float32 if isinstance(leaf, float) else None)
        if not hasattr(leaf, "dtype") or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf  # typed random keys have no weak form
        return lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(definite, tree)


def check_run(params, solver, rounds, steps, retrain, hold) -> None:
    """Refuse what cannot run before anything is compiled."""
    for name, found, least in (("rounds", rounds, 0), ("steps", steps, 1), ("retrain", retrain, 0)):
        if not isinstance(found, numbers.Integral) or isinstance(found, bool) or found < least:
            raise ValueError(f"{name} must be a whole number, at least {least}; found {found!r}")
    for leaf in jax.tree.leaves(params):
        if not is_array(leaf) and not isinstance(leaf, float):
            raise ValueError(
                f"params holds {leaf!r}, which is no array to train: split it off (with nnx.split or "
                "equinox.partition), or carry it in model_state"
            )
    for path, leaf in leaves_by_path(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"leaf '{path}' has dtype {leaf.dtype}, expected floating-point weights: carry it in model_state"
            )
        check_finite(path, leaf)
    for name, spec in (("the solver's spec", solver.spec), ("hold", hold or {})):
        if not isinstance(spec, Mapping):
            raise ValueError(f"{name} must be {{path: Constraint}}, as jaxcomp.assign makes it; found {spec!r}")
        for key, x in gather(spec, params).items():
            check_leaf(key, spec[key], x)
