"""A sweep of 64 configurations against the loops that one would write instead.

LeNet-300-100 on digits, pruned by two solvers at four densities, four rho and two seeds, each from fresh weights. Every
program starts with nothing compiled:

- `jaxcomp.sweep`, which compiles once a solver; without and with a store on disk;
- a loop over a function that is jitted once, with the solver's class static: the least one can do by hand;
- a loop that builds the loss, the solver and the optimiser anew for every configuration, as scripts do. Every one of
  them is compiled and takes as long as the others, so only some are run, and their time is scaled.

Besides, the count of compilations, and how far the sweep's weights are from those of the loop.
"""

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

import jaxcomp as jc
from benchmarks._timing import Times, in_turns_apart, ratio
from experiments import _data
from experiments._models import LeNet300

DATA = "digits"
BATCH, ROUNDS, STEPS, RETRAIN, RATE = 64, 3, 18, 1, 1e-3
CONFIGS = dict(solver=[jc.ADMM, jc.SLR], density=[0.02, 0.05, 0.1, 0.2], rho=[1e-4, 1e-3, 1e-2, 1e-1], seed=[0, 1])
COUNT = 64
REBUILT = 4  # of those that the third program compiles anew


def measure(repeats: int, rebuilt: bool = True) -> tuple[dict[str, Any], Table]:
    """Median seconds of each program, ratios turn by turn, the count of compilations, the largest difference.

    Without the rebuilt loop, which takes longest, the close comparison is soon repeated.
    """
    programs: dict[str, Callable[[], Callable[[], object]]] = {
        "jaxcomp.sweep": functools.partial(_sweep, stored=False),
        "jaxcomp.sweep, stored": functools.partial(_sweep, stored=True),
        "loop, compiled once": _loop,
    }
    if rebuilt:
        programs["loop, rebuilt"] = _rebuilt
    times = in_turns_apart(programs, repeats)
    if rebuilt:
        some = times["loop, rebuilt"]
        times["loop, rebuilt"] = Times(*([seconds * COUNT / REBUILT for seconds in clock] for clock in some))
    ours = times["jaxcomp.sweep"]
    rows = {
        name: {"s": time.median, "by_sweep": ratio(time, ours), "by_sweep_cpu": ratio(time, ours, "cpu")}
        for name, time in times.items()
    }
    compilations, difference = _agreement()
    table = Table("program", "s", "by the sweep's", "CPU", title=f"{COUNT} configurations of LeNet-300-100 on digits")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in row.values()))
    table.caption = f"compilations of the sweep: {compilations}; largest difference of a weight: {difference:.1e}"
    return {"programs": rows, "compilations": compilations, "difference": difference}, table


def _problem() -> tuple[Callable, Callable, tuple]:
    """A function of a configuration, what the host prepares for it, and the data; new ones at each call."""
    split = _data.load(DATA).train
    data = jnp.asarray(split.image), jnp.asarray(split.label)
    model = LeNet300()
    shapes = jax.eval_shape(model.init, jax.random.key(0), data[0][:1])["params"]

    def loss(params, batch):
        logits = model.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def prepare(seed, **_):
        rng = np.random.default_rng(seed)

        def draw(leaf):
            scale = leaf.shape[0] ** -0.5 if leaf.ndim == 2 else 0.0
            return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

        order = jc.shuffled(np.arange(len(split)), BATCH, (ROUNDS + RETRAIN) * STEPS, seed).order
        return {"params": jax.tree.map(draw, shapes), "order": np.asarray(order)}

    def fn(data, solver, density, rho, seed, params, order):
        del seed  # which the host has used
        spec = jc.assign(params, {r".*/kernel": jc.Sparse(density)})
        budget = dict(optimizer=optax.adam(RATE), rounds=ROUNDS, steps=STEPS, retrain=RETRAIN)
        solution = jc.solve(loss, params, jc.Batches(data, order), solver(spec, rho=rho), **budget)
        return {"loss": solution.retrain_loss[-1], "params": solution.params}

    return fn, prepare, data


def _sweep(stored: bool) -> Callable[[], object]:
    _data.load(DATA)  # which is not what is timed

    def run():
        fn, prepare, data = _problem()
        with tempfile.TemporaryDirectory() as folder:
            store = folder if stored else None
            found = jc.sweep(fn, jc.grid(**CONFIGS), data, prepare=prepare, store=store, progress=False)
            return list(found.results), found.compilations

    return run


def _loop() -> Callable[[], object]:
    _data.load(DATA)

    def run():
        fn, prepare, data = _problem()
        once = jax.jit(fn, static_argnames="solver")
        return [jax.device_get(once(data, **config, **prepare(**config))) for config in jc.grid(**CONFIGS)]

    return run


def _rebuilt() -> Callable[[], object]:
    _data.load(DATA)

    def run():
        for config in jc.grid(**CONFIGS)[:: COUNT // REBUILT]:
            fn, prepare, data = _problem()
            jax.device_get(fn(data, **config, **prepare(**config)))

    return run


def _agreement() -> tuple[int, float]:
    """How often the sweep compiles, and the largest difference of a weight from the loop's."""
    swept, compilations = _sweep(stored=False)()
    pairs = zip(*(jax.tree.leaves([result["params"] for result in found]) for found in (swept, _loop()())), strict=True)
    return compilations, max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
