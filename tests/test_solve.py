"""The whole road as a pure function: what it accepts, what it refuses before compiling, and what it must not change."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp._solve import _together
from tests.problems import quadratic, quadratic_batches, regression, regression_problem

SGD, ADAM = optax.sgd(0.05), optax.adam(3e-2)
PARAMS, BATCHES = regression_problem()
SPEC = jc.assign(PARAMS, {"w": jc.Sparse(0.25)})


def run(verb=jc.solve, loss=regression, params=PARAMS, batches=BATCHES, solver=None, **options):
    settings = {"optimizer": ADAM, "rounds": 3, "steps": 2, "retrain": 1} | options
    return verb(loss, params, batches, jc.ADMM(SPEC, rho=0.1) if solver is None else solver, **settings)


def assert_trees_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


# ---- what is refused, before the loss is looked at

W, B = PARAMS["w"], PARAMS["b"]
REFUSED = {
    "spec of another tree": ({"solver": jc.ADMM({"fc/w": jc.Sparse(0.5)})}, "no leaf at ['fc/w'] in this tree"),
    "hold of another tree": ({"hold": {"v": jc.Sparse(0.5)}}, "no leaf at ['v'] in this tree"),
    "NaN in a constrained leaf": ({"params": {"w": W.at[0, 0].set(jnp.nan), "b": B}}, "leaf 'w' holds 1 NaN"),
    "infinity in a free leaf": ({"params": {"w": W, "b": B.at[1].set(jnp.inf)}}, "leaf 'b' holds 1 NaN"),
    "an integer leaf": ({"params": {"w": W, "b": B.astype(int)}}, "leaf 'b' has dtype int32, expected floating-point"),
    "a leaf that is no array": ({"params": {"w": W, "b": B, "f": jnp.tanh}}, "which is no array to train"),
    "density above 1": ({"solver": jc.ADMM({"w": jc.Sparse(1.5)})}, "leaf 'w': density must lie in [0, 1], found 1.5"),
    "density of a hold": ({"hold": {"w": jc.Sparse(-1.0)}}, "leaf 'w': density must lie in [0, 1], found -1"),
    "a block too large": ({"solver": jc.ADMM({"w": jc.Sparse(0.5, jc.blocks(5, 2))})}, "leaf 'w': view blocks(5, 2)"),
    "a mask that does not fit": (
        {"solver": jc.ADMM({"w": jc.FixedMask(np.ones(3))})},
        "leaf 'w': mask of shape (3,) given for a leaf of shape (6, 4)",
    ),
    "rounds below 0": ({"rounds": -1}, "rounds must be a whole number, at least 0; found -1"),
    "rounds with a fraction": ({"rounds": 2.0}, "rounds must be a whole number, at least 0; found 2.0"),
    "rounds in words": ({"rounds": "3"}, "rounds must be a whole number, at least 0; found '3'"),
    "no steps": ({"steps": 0}, "steps must be a whole number, at least 1; found 0"),
    "retrain unset": ({"retrain": None}, "retrain must be a whole number, at least 0; found None"),
    "batches of uneven count": (
        {"batches": {"x": jnp.ones((3, 8, 6)), "y": jnp.ones((4, 8, 4))}},
        "one leading axis that counts batches, or jaxcomp.shuffled(...); found leading lengths [3, 4]",
    ),
    "a batch that is a number": ({"batches": {"x": 1.0}}, "found leading lengths [0]"),
    "no batches": ({"batches": {}}, "found leading lengths []"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("verb", [jc.solve, functools.partial(jc.compress, progress=False)], ids=["solve", "compress"])
def test_what_cannot_run_is_refused_before_the_loss_is_traced(case, verb):
    def untouched(*_):
        pytest.fail("the loss was traced")

    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        run(verb, untouched, **options)


def test_a_function_for_batches_is_for_compress_alone():
    with pytest.raises(ValueError, match="batches must be a pytree of arrays"):
        run(batches=lambda r: BATCHES)


def test_a_loss_that_drops_its_model_state_is_an_error():
    with pytest.raises(ValueError, match=r"the loss must return \(loss, new model_state\)"):
        run(loss=lambda params, batch, state: regression(params, batch), model_state={"mean": jnp.zeros(())})


# ---- pure

NUMBERS = [(0.1, 0.25), (0.3, 0.5), (1.0, 0.1), (1e-3, 0.9), (2, 1)]  # rho, density: also as Python integers


def test_other_numbers_trace_nothing_anew():
    traces = 0

    def counted(params, batch):
        nonlocal traces
        traces += 1
        return regression(params, batch)

    counts = []
    for rho, density in NUMBERS:
        run(loss=counted, solver=jc.ADMM({"w": jc.Sparse(float(density))}, rho=float(rho), tolerance=rho / 10))
        counts.append(traces)
    assert counts == counts[:1] * len(NUMBERS)


@pytest.mark.slow
def test_it_can_be_compiled_and_mapped_over_numbers():
    def solved(rho, density):
        solution = run(solver=jc.ADMM({"w": jc.Sparse(density)}, rho=rho))
        return solution.params, solution.history

    rho, density = (jnp.array(x, jnp.float32) for x in zip(*NUMBERS, strict=True))
    mapped = jax.jit(jax.vmap(solved))(rho, density)
    for i, (r, d) in enumerate(NUMBERS):
        one = solved(float(r), float(d))
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], mapped), one, rtol=1e-4, atol=1e-5)
        assert jnp.count_nonzero(mapped[0]["w"][i]) == round(24 * d)


def test_it_can_be_mapped_over_parameters_and_data():
    problems = [regression_problem(seed=seed) for seed in (1, 2)]
    params, batches = jax.tree.map(lambda *x: jnp.stack(x), *problems)
    mapped = jax.vmap(lambda p, b: run(params=p, batches=b).params)(params, batches)
    for i, (p, b) in enumerate(problems):
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], mapped), run(params=p, batches=b).params, rtol=1e-4)


def test_what_it_is_given_stays_as_it_was():
    before = jax.tree.map(np.array, (PARAMS, BATCHES))
    run()
    assert_trees_close((PARAMS, BATCHES), before, rtol=0, atol=0)


def test_data_are_arguments_of_the_compiled_program():
    jaxpr = jax.make_jaxpr(lambda params, batches: run(params=params, batches=batches).params)(PARAMS, BATCHES)
    assert all(np.size(const) < 2 for const in jaxpr.consts)


# ---- batches


def test_batches_by_index_are_the_same_batches():
    data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), BATCHES)
    by_index = jc.Batches(data, jnp.arange(24).reshape(3, 8))
    assert_trees_close(run(batches=by_index).params, run().params)


def test_batches_start_over_when_they_run_out():
    repeated = jax.tree.map(lambda x: jnp.concatenate([x] * 3)[:8], BATCHES)
    assert_trees_close(run(batches=repeated).params, run().params)


# ---- the loss in all its forms


def test_auxiliary_output_changes_nothing():
    assert_trees_close(run(loss=lambda p, b: (regression(p, b), {"any": b["x"]})).params, run().params)


def test_a_vector_of_losses_is_descended_by_its_mean():
    def per_example(params, batch):
        return jnp.mean(jnp.square(batch["x"] @ params["w"] + params["b"][None] - batch["y"]), axis=1)

    vector, scalar = run(loss=per_example), run()
    assert_trees_close((vector.params, vector.history), (scalar.params, scalar.history), rtol=1e-4, atol=1e-5)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="fc")(nn.BatchNorm(use_running_average=False, momentum=0.5, name="norm")(x))


def batch_norm_problem():
    model = Normalised()
    variables = model.init(jax.random.key(0), BATCHES["x"][0])

    def loss(params, batch, statistics):
        out, new = model.apply({"params": params, **statistics}, batch["x"], mutable=["batch_stats"])
        return jnp.mean(jnp.square(out - batch["y"])), new

    params = variables.pop("params")
    return loss, params, variables, jc.ADMM(jc.assign(params, {"fc/kernel": jc.Sparse(0.25)}), rho=0.1)


@pytest.mark.parametrize("verb", [jc.solve, functools.partial(jc.compress, progress=False)], ids=["solve", "compress"])
def test_statistics_of_batch_norm_move_with_every_step(verb):
    loss, params, statistics, solver = batch_norm_problem()
    solution = run(verb, loss, params, solver=solver, model_state=statistics)
    found = solution.model_state["batch_stats"]["norm"]
    mean, var = np.zeros(6), np.ones(6)
    for i in range(8):  # 3 rounds of 2 steps and 1 of retraining, over 3 batches
        x = np.asarray(BATCHES["x"][i % 3])
        mean, var = 0.5 * mean + 0.5 * x.mean(0), 0.5 * var + 0.5 * x.var(0)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], var, rtol=1e-4, atol=1e-5)
    assert jnp.count_nonzero(solution.params["fc"]["kernel"]) == 6


# ---- gradients


def test_grad_is_a_drop_in_for_value_and_grad():
    def doubled(f, has_aux):
        plain = jax.value_and_grad(f, has_aux=has_aux)

        def estimate(params, step):
            value, gradient = plain(params, step)
            return value, jax.tree.map(lambda g: 2 * g, gradient)

        return estimate

    halved = run(grad=doubled, optimizer=optax.sgd(0.025))
    assert_trees_close(halved.params, run(optimizer=SGD).params)


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class NumberedSteps:
    """An estimator whose gradient is the number of the step, times a number of its own."""

    scale: float

    def __call__(self, f, has_aux):
        plain = jax.value_and_grad(f, has_aux=has_aux)

        def estimate(params, step):
            value, gradient = plain(params, step)
            return value, jax.tree.map(lambda g: jnp.full_like(g, self.scale * step), gradient)

        return estimate


@pytest.mark.parametrize("form", ["solve", "compress", "compress, batches by function"])
def test_an_estimator_is_told_the_number_of_the_step_through_the_whole_run(form):
    verb = jc.solve if form == "solve" else functools.partial(jc.compress, progress=False)
    batches = (lambda r: BATCHES) if "function" in form else BATCHES
    solver = jc.ADMM({})
    found = run(verb, batches=batches, solver=solver, grad=NumberedSteps(0.5), optimizer=optax.sgd(1.0))
    np.testing.assert_allclose(PARAMS["b"] - found.params["b"], 0.5 * sum(range(4 * 2)), rtol=1e-6)


def test_the_numbers_of_an_estimator_do_not_compile_anew():
    traces = 0

    def loss(params, batch):
        nonlocal traces
        traces += 1
        return regression(params, batch)

    run(loss=loss, grad=NumberedSteps(0.1))
    first = traces
    run(loss=loss, grad=NumberedSteps(0.2))
    assert traces == first > 0


def test_a_barrier_leaves_gradients_as_they_are():
    gradient = {
        "w": jax.random.normal(jax.random.key(0), (3, 4)),
        "narrow": jnp.array([1e-8, -3e38, 65504.0], jnp.bfloat16),
        "scalar": jnp.float32(-2.5),
        "empty": jnp.zeros((0, 3)),
    }
    together = jax.jit(_together)(gradient)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), together) == jax.tree.map(lambda x: (x.shape, x.dtype), gradient)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, together, gradient)))


# ---- rounds, landing, retraining

TWO = {"w": jnp.array([3.0, -1.0, 0.5, -2.0]), "v": jnp.array([4.0, 0.0, 1.0, 0.0])}
TARGETS = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "v": jnp.array([[4.0, 3.0, 2.0, 1.0]])}


def pull(params, batch):
    return sum(jnp.sum(jnp.square(params[name] - batch[name])) for name in params)


@pytest.mark.parametrize("held", ["w", "v"])
@pytest.mark.parametrize("retrain", [0, 2], ids=["rounds", "retraining"])
def test_hold_keeps_the_zeros_of_an_earlier_stage(held, retrain):
    """On a leaf of the new spec, and on one that it leaves free."""
    earlier = {held: jc.Sparse(0.75 if held == "w" else 0.5)}
    start = jc.project(earlier, TWO)
    solver = jc.ADMM({"w": jc.Sparse(0.5)}, rho=0.1)
    free, kept = (
        jc.solve(pull, start, TARGETS, solver, optimizer=SGD, rounds=5, steps=5, retrain=retrain, hold=hold).params
        for hold in (None, earlier)
    )
    assert jnp.count_nonzero(kept["w"]) == 2
    assert jnp.all(jnp.where(start[held] == 0, kept[held], 0) == 0)
    assert jnp.any(jnp.where(start[held] == 0, free[held], 0) != 0)


@jc.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drift(jc.ADMM):
    """A solver that adds to every update."""

    by: float = 0.0

    def step(self, state, params, updates):
        return jax.tree.map(lambda update: update + self.by, updates)


@pytest.mark.parametrize("verb", [jc.solve, functools.partial(jc.compress, progress=False)], ids=["solve", "compress"])
def test_a_solver_has_the_last_word_on_updates_in_the_rounds_within_what_is_held(verb):
    earlier = {"w": jc.Sparse(0.75)}
    start = jc.project(earlier, TWO)
    run = dict(optimizer=optax.sgd(0.0), rounds=2, steps=3, retrain=1, hold=earlier)
    found = verb(pull, start, TARGETS, Drift({}, by=-0.25), **run).params
    np.testing.assert_array_equal(found["v"], start["v"] - 1.5)  # six steps, and none in retraining
    np.testing.assert_array_equal(found["w"], start["w"] - 1.5 * (start["w"] != 0))


def test_retraining_descends_the_loss_and_stays_feasible():
    spec = {"w": jc.Sparse(0.5), "v": jc.Polarized(jc.whole())}
    options = {"optimizer": ADAM, "rounds": 2, "steps": 10}
    landed = jc.solve(pull, TWO, TARGETS, jc.ADMM(spec, rho=1.0), **options)
    trained = jc.solve(pull, TWO, TARGETS, jc.ADMM(spec, rho=1.0), retrain=5, **options)
    assert all(distance == 0 for distance in jc.violation(spec, trained.params).values())
    batch = jax.tree.map(lambda x: x[0], TARGETS)
    assert pull(trained.params, batch) < pull(landed.params, batch)
    assert trained.retrain_loss.shape == (5,) and jnp.all(jnp.diff(trained.retrain_loss) < 0)
    np.testing.assert_array_equal(trained.params["w"] == 0, landed.params["w"] == 0)


def test_no_rounds_land_at_once():
    solution = run(rounds=0, retrain=0)
    np.testing.assert_array_equal(solution.params["w"], SPEC["w"].project(W))
    assert all(values.shape == (0,) for values in solution.history.values())


def test_history_has_an_entry_a_round():
    solution = run()
    assert {k: v.shape for k, v in solution.history.items()} == dict.fromkeys(
        ("loss", "primal", "dual", "rho", "converged", "diverged"), (3,)
    )
    losses = [regression(PARAMS, jax.tree.map(lambda x, i=i: x[i], BATCHES)) for i in range(2)]
    still = run(optimizer=optax.sgd(0.0), rounds=1, retrain=0)
    np.testing.assert_allclose(still.history["loss"], [np.mean(losses)], rtol=1e-6)


@pytest.mark.parametrize("fate", ["converged", "diverged"])
def test_early_stop_skips_the_rounds_after_the_verdict(fate):
    a = [1.0, 2.0]
    constraint, numbers = {
        "converged": (jc.Tied(jc.whole()), {"rho": 1.0, "tolerance": 0.1}),
        "diverged": (jc.Sparse(0.0), {"rho": 1e-8}),
    }[fate]
    options = {"optimizer": optax.sgd(0.2), "rounds": 105, "steps": 5, "retrain": 1}
    solver = jc.ADMM({"w": constraint}, **numbers)
    whole, stopped = (
        jc.solve(quadratic, {"w": jnp.array(a)}, quadratic_batches(a), solver, early_stop=stop, **options)
        for stop in (False, True)
    )
    first = int(np.argmax(whole.history[fate]))
    assert 0 < first < 104 and bool(getattr(stopped, fate))
    np.testing.assert_array_equal(np.isnan(stopped.history["loss"]), np.arange(105) > first)
    np.testing.assert_allclose(stopped.history["primal"][: first + 1], whole.history["primal"][: first + 1], rtol=1e-5)
    assert (stopped.history["primal"][first:] == stopped.history["primal"][first]).all()
    assert jnp.all(jnp.isfinite(stopped.retrain_loss))


def test_a_solver_that_says_nothing_neither_converges_nor_diverges():
    class Silent(jc.Solver):
        spec = SPEC

        def init(self, params):
            return jnp.zeros(())

        def objective(self, state, losses, params):
            return jnp.mean(losses)

        def coordinate(self, state, round, params):
            return state + 1

    solution = run(solver=jax.tree_util.register_static(Silent)(), early_stop=True)
    assert solution.state == 3 and not solution.converged and not solution.diverged
    assert set(solution.history) == {"loss"}
