"""Reweighted group lasso: P and when it changes, fixed points, what is recovered, what lands, and the proximal form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

import jaxcomp as jc
from jaxcomp import Reweighted
from tests.problems import quadratic, quadratic_batches, regression, regression_problem

ALL = {"w": jc.Sparse(1.0)}
OI = jc.Layout("oi")
NO_LOSS = jnp.zeros(())


def on_quadratic(a, solver, h=1.0, *, optimizer=None, rounds=40, steps=40, start=None):
    params = {"w": jnp.asarray(a if start is None else start, jnp.float32)}
    optimizer = optimizer or optax.sgd(0.1)
    return jc.solve(quadratic, params, quadratic_batches(a, h), solver, optimizer=optimizer, rounds=rounds, steps=steps)


@jax.jit
def begin(solver, params):
    return solver.init(params)


@jax.jit
def land(solver, params):
    return solver.land(solver.init(params), params)


def penalty(solver, state, w):
    return solver.objective(state, NO_LOSS, {"w": jnp.asarray(w, jnp.float32)})


# Groups and what they are of, in a matrix of 5 outputs by 7 inputs
VIEWS = {
    "weights": (jc.elements(OI), 35),
    "outputs": (jc.outputs(OI), 5),
    "columns of uneven blocks": (jc.block_columns(2, 4, OI), 3 * 7),
    "uneven blocks": (jc.blocks(2, 4, OI), 6),
}


@pytest.mark.parametrize(("name", "squared"), [*((name, False) for name in VIEWS), ("uneven blocks", True)])
def test_at_the_weights_that_p_is_made_of_the_penalty_is_the_number_of_groups(name, squared):
    view, count = VIEWS[name]
    solver = Reweighted({"w": jc.Sparse(1.0, view)}, strength=2.0, epsilon=1e-9, squared=squared)
    w = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, size=(5, 7)))
    state = begin(solver, {"w": w})
    np.testing.assert_allclose(penalty(solver, state, w), 2 * count, rtol=1e-5)
    np.testing.assert_allclose(solver.monitor(state)["groups"], count, rtol=1e-5)
    gone = begin(solver, {"w": w.at[0].set(0)})
    groups_left = {"weights": 28, "outputs": 4, "columns of uneven blocks": 21, "uneven blocks": 6}[name]
    np.testing.assert_allclose(gone.count, groups_left, rtol=1e-5)


def test_p_is_one_over_the_root_mean_square_of_the_group():
    w = jnp.array([[3.0, 0.0, 1.0], [4.0, 0.0, 1.0]])
    state = Reweighted({"w": jc.Sparse(1.0, jc.outputs())}, strength=1.0, epsilon=0.5).init({"w": w})
    np.testing.assert_allclose(state.weights["w"], [[1 / (5 / 2**0.5 + 0.5), 2, 1 / 1.5]], rtol=1e-6)


def test_the_gradient_holds_p_fixed():
    w = jnp.array([1.0, -2.0, 0.25, 0.0])
    for squared, expected in ((False, np.sign(w) / (np.abs(w) + 0.1)), (True, 2 * w / (w**2 + 0.1))):
        solver = Reweighted(ALL, strength=3.0, epsilon=0.1, squared=squared)
        gradient = jax.jit(jax.grad(functools.partial(penalty, solver, begin(solver, {"w": w}))))(w)
        np.testing.assert_allclose(gradient, 3 * np.asarray(expected), rtol=1e-6)


def test_a_group_of_zeros_has_no_gradient_and_no_nan():
    spec = {"w": jc.Sparse(1.0, jc.outputs())}
    solver, w = Reweighted(spec, strength=1.0), jnp.array([[0.0, 3.0], [0.0, 4.0]])
    gradient = jax.jit(jax.grad(functools.partial(penalty, solver, begin(solver, {"w": w}))))(w)
    expected = np.array([[0, 0.6], [0, 0.8]]) / 5
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)


def test_two_rounds_by_hand():
    rate, strength, eps, steps = 0.05, 0.02, 0.1, 3
    a, h = np.array([1.0, -2.0, 0.5, 3.0]), np.array([1.0, 0.5, 2.0, 0.1])
    w = np.array([0.9, -0.8, 1.1, 0.7])
    solver = Reweighted(ALL, strength=strength, epsilon=eps)
    found = on_quadratic(a, solver, h, start=w, rounds=2, steps=steps, optimizer=optax.sgd(rate))
    for _ in range(2):
        p = 1 / (np.abs(w) + eps)  # of the weights that the round begins with, and of no others
        for _ in range(steps):
            w = w - rate * (h * (w - a) + strength * p * np.sign(w))
    np.testing.assert_allclose(found.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(found.state.weights["w"][0, :, None][:, 0], 1 / (np.abs(w) + eps), rtol=1e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_the_fixed_point_is_that_of_the_logarithm(squared):
    a, s, eps = 1.0, 0.1, 0.05
    w = float(on_quadratic([a], Reweighted(ALL, strength=s, epsilon=eps, squared=squared)).params["w"][0])
    slope = 2 * w / (w**2 + eps) if squared else 1 / (w + eps)
    assert abs(w - a + s * slope) < 1e-5
    assert w > 0.7  # a large weight loses s / w, where the fixed penalty that kills 0.3 would take 0.3 of it


def test_with_a_large_epsilon_it_is_the_plain_lasso():
    a = np.array([1.0, -0.6, 0.2, -0.1])
    solver = Reweighted(ALL, strength=0.3e3, epsilon=1e3, decoupled=True)
    found = on_quadratic(a, solver, optimizer=optax.sgd(1.0), rounds=3, steps=2).params["w"]
    np.testing.assert_allclose(found, np.sign(a) * np.maximum(np.abs(a) - 0.3, 0), atol=1e-3)


@pytest.mark.parametrize("squared", [False, True])
def test_the_proximal_step_is_the_nearest_compromise(squared):
    view = jc.block_columns(2, 2, OI)
    solver = Reweighted({"w": jc.Sparse(1.0, view)}, strength=0.8, epsilon=0.1, squared=squared, decoupled=True)
    w = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
    state = begin(solver, {"w": w * jnp.array([[0.2, 1, 1, 3]])})
    inside = dataclasses.replace(solver, decoupled=False)

    @jax.jit
    def cost(v):
        return 0.5 * jnp.sum(jnp.square(v.reshape(3, 4) - w)) + penalty(inside, state, v.reshape(3, 4))

    moved = jax.jit(solver.prox)(state, {"w": w})["w"]
    best = minimize(
        lambda v: float(cost(v)), np.ravel(moved) + 0.01, jac=jax.jit(jax.grad(cost)), method="L-BFGS-B"
    ).fun
    assert float(cost(moved.ravel())) <= best + 1e-5
    groups_gone = np.sum(np.all(np.asarray(view.split(moved)) == 0, axis=2))
    assert groups_gone == 0 if squared else groups_gone > 0


def test_the_proximal_step_keeps_the_dtype_and_free_leaves():
    solver = Reweighted(ALL, strength=0.5, decoupled=True)
    params = {"w": jnp.array([2.0, 0.1], jnp.bfloat16), "b": jnp.ones(1)}
    moved = solver.prox(solver.init(params), params)
    assert moved["w"].dtype == jnp.bfloat16 and moved["w"][1] == 0 and moved["b"] == 1


@pytest.mark.parametrize("decoupled", [False, True])
def test_both_forms_take_the_same_steps(decoupled):
    params, batches = regression_problem()
    solver = Reweighted({"w": jc.Sparse(1.0, jc.outputs())}, strength=2e-3, epsilon=0.1, decoupled=decoupled)
    momentum = optax.sgd(0.02, momentum=0.9)
    solved = jc.solve(regression, params, batches, solver, optimizer=momentum, rounds=3, steps=4)
    within, after = (momentum, optax.identity()) if decoupled else (None, momentum)
    tx = optax.chain(jc.as_transformation(solver, 4, within), after)
    state, weights = tx.init(params), []

    @jax.jit
    def step(params, state, batch):
        updates, state = tx.update(jax.grad(regression)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(12):
        params, state = step(params, state, jax.tree.map(lambda x, i=i: x[i % 3], batches))
        weights.append(state[0].solver.weights["w"])
    for path in params:
        np.testing.assert_allclose(params[path], solved.params[path], rtol=1e-5)
    changes = [i for i in range(1, 12) if np.any(weights[i] != weights[i - 1])]
    assert changes == [4, 8]  # before the first step of a round, and not in between


def test_adam_cancels_p_and_the_proximal_step_does_not():
    w = jnp.array([1.0, 0.01])
    solver = Reweighted(ALL, strength=1e-4)
    for decoupled in (False, True):
        tx = jc.as_transformation(dataclasses.replace(solver, decoupled=decoupled), 9, optax.adam(1e-3))
        updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init({"w": w}), {"w": w})
        ratio = updates["w"][1] / updates["w"][0]
        np.testing.assert_allclose(ratio, 1.001 / 0.011 if decoupled else 1, rtol=1e-2)


N, ROWS, NONZEROS = 256, 100, 30


@functools.cache
def sparse_regressions(seeds=20):
    """100 equations for 256 unknowns of which 30 are not zero; the last is a step that gradient descent may take."""
    each = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        x, w = rng.normal(size=(ROWS, N)) / ROWS**0.5, np.zeros(N)
        values = rng.normal(size=NONZEROS)
        w[rng.choice(N, NONZEROS, replace=False)] = values + 0.2 * np.sign(values)
        each.append((x, x @ w, w))
    x, y, w = (np.stack(arrays).astype(np.float32) for arrays in zip(*each, strict=True))
    return x, y, w, 1 / max(np.linalg.norm(one, 2) ** 2 for one in x)


def least_squares(params, batch):
    x, y = batch
    return 0.5 * jnp.sum(jnp.square(x @ params["w"] - y))


@pytest.mark.slow
def test_supports_are_recovered_that_the_plain_lasso_misses():
    x, y, w, rate = sparse_regressions()

    def recovered(strength, epsilon, steps=1000):
        solver = Reweighted(ALL, strength=strength * epsilon * rate, epsilon=epsilon, decoupled=True)
        sgd = optax.sgd(rate)

        def solve(x, y):
            params, batches = {"w": jnp.zeros(N)}, (x[None], y[None])
            return jc.solve(least_squares, params, batches, solver, optimizer=sgd, rounds=5, steps=steps)

        found = np.abs(jax.vmap(solve)(x, y).params["w"])
        largest = np.sort(np.argsort(found)[:, -NONZEROS:])
        return np.mean([np.array_equal(ours, np.flatnonzero(true)) for ours, true in zip(largest, w, strict=True)])

    assert recovered(strength=0.02, epsilon=0.1) == 1
    assert recovered(strength=0.02, epsilon=1e3) <= 0.85


@pytest.mark.slow
def test_the_objective_with_the_logarithm_never_rises_from_round_to_round():
    x, y, _, rate = sparse_regressions()
    strength, epsilon, steps = 0.02, 0.1, 1000
    solver = Reweighted(ALL, strength=strength * rate, epsilon=epsilon, decoupled=True)

    def value(params, _=None):
        log = jnp.sum(jnp.log1p(jnp.abs(params["w"]) / epsilon))
        return {"value": least_squares(params, (x[0], y[0])) + strength * log}

    start = {"w": jnp.asarray(np.linalg.pinv(x[0]) @ y[0])}
    result = jc.compress(least_squares, start, (x[:1], y[:1]), solver, optimizer=optax.sgd(rate), rounds=8, steps=steps,
                         metrics=value, progress=False)  # fmt: skip
    values = [float(value(start)["value"])] + [record["metrics"]["value"] for record in result.history]
    assert np.all(np.diff(values) <= 1e-5 * values[0])
    assert values[-1] < 0.9 * values[1] < 0.9 * values[0]


def test_landing_drops_groups_below_the_threshold_and_retraining_keeps_them_dropped():
    w = jnp.array([[1.0, 0.05, 1.0], [0.0, 0.05, -1.0], [1.0, 0.0, 0.01]])
    solver = Reweighted({"w": jc.Sparse(1.0, jc.outputs())}, strength=1e-6, threshold=0.1)
    np.testing.assert_array_equal(land(solver, {"w": w})["w"], w.at[:, 1].set(0))
    solved = jc.solve(quadratic, {"w": w}, quadratic_batches(w + 1), solver, optimizer=optax.sgd(1e-3), rounds=1,
                      steps=1, retrain=5)  # fmt: skip
    np.testing.assert_array_equal(jnp.any(solved.params["w"] != 0, axis=0), [True, False, True])
    assert jnp.all(solved.params["w"][:, 0] > w[:, 0])


def test_landing_obeys_the_budget_of_the_set_too():
    w = jnp.array([4.0, 3.0, 2.0, 0.1])
    solver = Reweighted({"w": jc.Sparse(0.5)}, strength=1.0, threshold=0.5)
    np.testing.assert_array_equal(land(solver, {"w": w})["w"], [4, 3, 0, 0])


def test_landing_does_not_hide_a_nan():
    solver = Reweighted(ALL, strength=1.0, threshold=0.5)
    params = {"w": jnp.array([1.0, jnp.nan])}
    assert jnp.isnan(land(solver, params)["w"]).any()


def test_a_threshold_means_the_same_for_a_smaller_block_at_the_border():
    solver = Reweighted({"w": jc.Sparse(1.0, jc.block_columns(2, 1, OI))}, strength=1.0, threshold=0.5)
    w = jnp.array([[0.6], [0.6], [0.6], [0.6], [0.6]])  # blocks of 2, 2 and 1 weights of one size
    np.testing.assert_array_equal(land(solver, {"w": w})["w"], w)


def test_the_price_of_a_weight_divides_a_budget_among_layers():
    """The loss says that 6 of the 8 weights of "a" matter and 1 of the 8 of "b": no rate of a layer is given."""
    a, b = np.r_[np.full(6, 1.0), 0.1, 0.1], np.r_[0.9, np.full(7, 0.1)]
    params = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32).reshape(2, 4)}

    def loss(p, batch):
        return 0.5 * sum(jnp.sum(jnp.square(p[k] - batch[k])) for k in p)

    spec = jc.assign(params, {"a|b": jc.Together(jc.Sparse(7 / 16))})
    solver = Reweighted(spec, strength=0.01, epsilon=0.01, decoupled=True)
    batches = jax.tree.map(lambda x: x[None], params)
    solution = jc.solve(loss, params, batches, solver, optimizer=optax.sgd(0.5), rounds=4, steps=10)
    assert {path: int(jnp.sum(x != 0)) for path, x in solution.params.items()} == {"a": 6, "b": 1}
    np.testing.assert_allclose(solution.state.count, 7, rtol=0.05)  # before landing: nothing is left to drop


def test_columns_of_blocks_go_as_one():
    rng = np.random.default_rng(0)
    used = np.kron(rng.random((2, 6)) < 0.5, np.ones((3, 1)))  # columns of blocks of 3 outputs
    a = np.where(used, rng.choice([-1.0, 1.0], used.shape), 0.2 * rng.normal(size=used.shape))
    solver = Reweighted({"w": jc.Sparse(1.0, jc.block_columns(3, 6, OI))}, strength=0.1, epsilon=0.05, decoupled=True)
    found = on_quadratic(a, solver, optimizer=optax.sgd(0.5), rounds=6, steps=10).params["w"]
    np.testing.assert_array_equal(found != 0, used != 0)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.slow
def test_one_program_for_many_strengths(decoupled):
    params, batches = regression_problem()
    solver = Reweighted({"w": jc.Sparse(1.0)}, strength=1.0, epsilon=0.1, decoupled=decoupled)
    strengths, traces = jnp.array([1e-5, 1e-4, 3e-3]) if decoupled else jnp.array([1e-4, 1e-3, 3e-2]), []
    sgd = optax.sgd(0.02)

    def loss(params, batch):
        traces.append(1)
        return regression(params, batch)

    def groups(strength):
        varied = dataclasses.replace(solver, strength=strength)
        return jc.solve(loss, params, batches, varied, optimizer=sgd, rounds=3, steps=4).state.count

    found = [groups(strengths[0])]
    once = len(traces)
    found += [groups(strength) for strength in strengths[1:]]
    assert len(traces) == once
    np.testing.assert_allclose(jax.vmap(groups)(strengths), found, rtol=1e-5)
    assert found[0] > found[-1]


WRAPPED = {
    "Every": lambda solver: jc.Every(1, solver),
    "Progressive": lambda solver: jc.Progressive(solver, solver, rounds=2),
    "Combined": lambda solver: jc.Combined(jc.ADMM({}), solver),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_solvers_around_it_take_its_steps(name):
    a = np.array([1.0, -0.6, 0.2, -0.1])
    solver = Reweighted(ALL, strength=0.01, epsilon=0.1, decoupled=True)
    bare, within = (on_quadratic(a, one, rounds=3, steps=4) for one in (solver, WRAPPED[name](solver)))
    np.testing.assert_allclose(within.params["w"], bare.params["w"], rtol=1e-6)
    assert np.array_equal(bare.params["w"] != 0, [True, True, False, False])


def test_retraining_is_on_the_loss_alone():
    a = np.array([1.0, -0.6])
    solver = Reweighted(ALL, strength=1.0, decoupled=True)
    solved = jc.solve(quadratic, {"w": jnp.ones(2)}, quadratic_batches(a), solver, optimizer=optax.sgd(0.5), rounds=0,
                      steps=20, retrain=1)  # fmt: skip
    np.testing.assert_allclose(solved.params["w"], a, rtol=1e-4)


def test_a_strength_for_each_leaf():
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    spec = jc.assign(params, {"a|b": jc.Sparse(1.0)})
    solver = Reweighted(spec, strength={"a": 1.0, "b": 10.0}, epsilon=1e-9)
    np.testing.assert_allclose(solver.objective(solver.init(params), NO_LOSS, params), 33, rtol=1e-6)
    with pytest.raises(ValueError, match=r"strength is given for \['a'\], but the penalty is on \['a', 'b'\]"):
        wrong = dataclasses.replace(solver, strength={"a": 1.0})
        wrong.objective(solver.init(params), NO_LOSS, params)


def test_a_set_without_a_view_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^'w' is under .*LowRank.*, which has no view to make groups by: use"):
        Reweighted({"w": jc.LowRank(1)}, strength=1.0).init({"w": jnp.ones((2, 2))})


def test_a_proximal_solver_cannot_stand_before_the_optimiser():
    params = {"w": jnp.ones(2)}
    solver = Reweighted(ALL, strength=1.0, decoupled=True)
    for one in (solver, *(wrap(solver) for wrap in WRAPPED.values())):
        tx = jc.as_transformation(one, 1)
        with pytest.raises(ValueError, match=rf"^{type(one).__name__} steps after the optimiser, so it must be given"):
            tx.update(params, tx.init(params), params)
