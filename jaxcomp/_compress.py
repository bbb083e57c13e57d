"""The driver: the rounds of `solve` run from the host, with progress, checkpoints, resumption and a report."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from jaxcomp import _solve
from jaxcomp._assign import Spec
from jaxcomp._batches import batch_at, num_batches
from jaxcomp._checkpoint import Checkpoints, manifest
from jaxcomp._progress import RunProgress
from jaxcomp._report import Report, report
from jaxcomp.solvers import Solver


@dataclasses.dataclass(frozen=True)
class Result:
    """What `compress` brought.

    Attributes:
        params: feasible parameters, landed and retrained.
        landed: feasible parameters as they were before retraining.
        model_state: as carried by the loss, or ``None``.
        history: a record a round: ``stage`` (``"solve"`` or ``"retrain"``), ``round``, mean ``loss``, ``seconds``, what
            the solver monitors, and ``metrics`` if asked for.
        report: `jaxcomp.report` of the parameters.
        converged, diverged: what the solver said of its last round.
    """

    params: Any
    landed: Any
    model_state: Any
    history: list[dict]
    report: Report
    converged: bool
    diverged: bool


def compress(
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
    early_stop: bool = True,
    metrics: Callable[[Any, Any], dict[str, float]] | None = None,
    stage: str = "compress",
    directory: str | os.PathLike | None = None,
    resume: bool = False,
    keep: int = 2,
    progress: bool = True,
    console: Console | None = None,
) -> Result:
    """Do what `jaxcomp.solve` does, a round at a time, and say how it goes.

    The arguments up to `early_stop` are those of `jaxcomp.solve`, and so are the parameters found. Besides:

    Args:
        batches: may also be a function ``round -> pytree`` of that round's ``steps`` batches, for data that does not
            fit memory. A resumed run asks it for the rounds that are left.
        early_stop: go on to landing once the solver says ``converged``; also stop when it says ``diverged``.
        metrics: ``(params, model_state) -> {name: number}``, called after every round and recorded.
        stage: a name for the progress bar.
        directory: where to write a checkpoint after every round; without it nothing is written.
        resume: go on with the run found in `directory`, if there is one. The result is bit for bit that of a run
            that was never interrupted.
        keep: how many checkpoints to keep.
        progress: draw a progress bar (on standard error, or `console`).

    Raises:
        ValueError: as `solve`; or `directory` holds a run already, or another run than this.
    """
    _solve.check_run(params, solver, rounds, steps, retrain, hold)
    if not callable(batches):
        num_batches(batches)
        batches = jax.tree.map(jnp.asarray, batches)  # once, not once a round
    spec = solver.spec  # with its numbers as they were given, for the report
    params, solver, hold, model_state = (_solve.strong(x) for x in (params, solver, hold or {}, model_state))
    grad = _solve.estimator(grad)
    run = _start(params, solver, model_state, optimizer)
    _solve.check_opponent(solver, run.carry.state, retrain)
    checkpoints = None
    if directory is not None:
        plan = {"rounds": rounds, "steps": steps, "retrain": retrain, "early_stop": early_stop}
        identity = manifest(run.carry, batches, solver, hold, **plan)
        checkpoints = Checkpoints(directory, identity, resume=resume, keep=keep)
        if checkpoints.latest is not None:
            run = _restored(checkpoints, run, optimizer)
    with (
        RunProgress(stage, rounds + retrain, enabled=progress, console=console) as bar,
        contextlib.closing(checkpoints) if checkpoints else contextlib.nullcontext(),
    ):
        while (r := _next_round(run.history, rounds, early_stop)) < rounds + retrain:
            began = time.perf_counter()
            if r >= rounds:
                run = _land(run, solver, optimizer)
            carry, figures = _advance(loss, batches, solver, hold, run.carry, r, optimizer, steps, grad)
            record: dict[str, Any] = {"stage": "solve" if r < rounds else "retrain", "round": r}
            record |= {name: np.asarray(value).item() for name, value in jax.device_get(figures).items()}
            record["seconds"] = time.perf_counter() - began
            if metrics is not None:
                record["metrics"] = {k: float(v) for k, v in metrics(carry.params, carry.model_state).items()}
            run = _Run(carry, run.landed, [*run.history, record])
            if checkpoints:
                checkpoints.save(len(run.history) - 1, (run.carry, run.landed), run.history)
            bar.show(record, r + 1)
    run = _land(run, solver, optimizer)
    solved = [record for record in run.history if record["stage"] == "solve"]
    last = solved[-1] if solved else {}
    return Result(
        run.carry.params,
        run.landed,
        run.carry.model_state,
        run.history,
        report(spec, run.carry.params),
        bool(last.get("converged", False)),
        bool(last.get("diverged", False)),
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """Where a run stands: what the next round needs, the landed parameters once there are any, the past."""

    carry: _solve.Carry
    landed: Any
    history: list[dict[str, Any]]


def _next_round(history: list[dict], rounds: int, early_stop: bool) -> int:
    """The round to run: the one after the last, or the first of retraining when the solver has said enough."""
    if not history:
        return 0
    last = history[-1]
    enough = early_stop and (last.get("converged") or last.get("diverged"))
    return rounds if last["stage"] == "solve" and enough else last["round"] + 1


# Compiled apart from one another, so that another optimiser does not compile the solver's projections again.
_begin = jax.jit(lambda solver, params: solver.init(params))
_land_on = jax.jit(lambda solver, state, params: solver.land(state, params))
_restart = jax.jit(_solve.restart, static_argnames=("optimizer",))


def _start(params, solver: Solver, model_state, optimizer) -> _Run:
    carry = _restart(_solve.Carry(params, None, None, model_state), params, optimizer)
    return _Run(dataclasses.replace(carry, state=_begin(solver, params)), params, [])


def _land(run: _Run, solver: Solver, optimizer) -> _Run:
    """The run at the start of retraining; unchanged if it is there already."""
    if run.carry.state is None:
        return run
    landed = _land_on(solver, run.carry.state, run.carry.params)
    return _Run(_restart(run.carry, landed, optimizer), landed, run.history)


def _advance(loss, batches, solver, hold, carry, r, optimizer, steps, grad):
    """One round. A function gives the round its batches; otherwise its place in the run says which they are."""
    ours, first = (batches(r), 0) if callable(batches) else (batches, r * steps)
    first, taken = jnp.int32(first), jnp.int32(r * steps)
    return _round(loss, carry, ours, solver, hold, grad, first, taken, optimizer=optimizer, steps=steps)


@functools.partial(jax.jit, static_argnames=("loss", "optimizer", "steps"))
def _round(loss, carry, batches, solver, hold, grad, first, taken, *, optimizer, steps):
    carry, round = _solve.run_round(
        loss, carry, batches, solver, hold, grad, first, taken, optimizer=optimizer, steps=steps
    )
    figures = {"loss": jnp.mean(round.mean)}
    if carry.state is not None:
        state = _solve.coordinate(loss, solver, carry, round, batch_at(batches, first))
        carry = dataclasses.replace(carry, state=state)
        figures |= solver.monitor(state)
    return carry, figures


def _restored(checkpoints: Checkpoints, start: _Run, optimizer) -> _Run:
    """The run as its last checkpoint has it; whether it was retraining by then is in the history."""
    retraining = checkpoints.history[-1]["stage"] == "retrain"
    like = _restart(start.carry, start.landed, optimizer) if retraining else start.carry
    carry, landed = checkpoints.restore((like, start.landed))
    return _Run(carry, landed, checkpoints.history)
