"""ADMM: the iteration by hand, known optima and multipliers, varying rho, and when it has converged or diverged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp.constraints import Coupled, Together
from tests.problems import quadratic, quadratic_batches, regression, regression_problem

SGD, FAST_SGD, ADAM, FAST_ADAM = optax.sgd(0.05), optax.sgd(0.2), optax.adam(3e-2), optax.adam(0.1)
OI = jc.Layout("oi")


def run(a, constraint, h=1.0, start=None, **options):
    """ADMM on the quadratic with minimum ``a`` and curvature ``h``, from its minimum."""
    settings = {"optimizer": FAST_SGD, "rounds": 40, "steps": 20, "retrain": 0} | options
    numbers = {k: settings.pop(k) for k in ("rho", "growth", "balance", "rho_max", "tolerance") if k in settings}
    params = {"w": jnp.asarray(a if start is None else start, jnp.float32)}
    solver = jc.ADMM({"w": constraint}, **({"rho": 1.0} | numbers))
    return jc.solve(quadratic, params, quadratic_batches(a, h), solver, **settings)


# A set, rho, a minimum a and curvature h such that the projection of a is not best, and the point that is. With these
# rho the best support is the only fixed point: what would draw a weight back, |grad f| / rho, is below the kept ones.
OPTIMA = {
    "2 of 4 weights": (jc.Sparse(0.5), 0.5, [1.1, 1.0, 1.0, 0.3], [0.05, 1, 1, 0.1], [0, 1, 1, 0]),
    "1 of 2 columns": (
        jc.Sparse(0.5, jc.inputs(layout=OI)),
        1.0,
        [[1.0, 1.2], [1.0, 1.2]],
        [[4, 0.1], [4, 0.1]],
        [[1, 0], [1, 0]],
    ),
    "one sign": (jc.Polarized(jc.whole(layout=OI)), 0.5, [[1.0, 1.0, 1.0, -1.8]], [[1, 1, 1, 0.1]], [[1, 1, 1, 0]]),
    "one value": (jc.Tied(jc.whole()), 0.5, [1.0, 2.0, 6.0], [1, 2, 0.5], [16 / 7] * 3),
    "one magnitude": (jc.Quantized(jc.Binary()), 0.5, [1.0, -2.0, 6.0], [1, 2, 0.5], [16 / 7, -16 / 7, 16 / 7]),
}


@pytest.mark.parametrize("case", OPTIMA)
def test_known_optimum_is_reached_where_plain_projection_misses_it(case):
    constraint, rho, a, h, best = OPTIMA[case]
    found = run(a, constraint, h, rho=rho, retrain=5).params["w"]
    np.testing.assert_allclose(found, best, atol=1e-4)
    projected = constraint.project(jnp.asarray(a))
    batch = jax.tree.map(lambda leaf: leaf[0], quadratic_batches(a, h))
    assert quadratic({"w": found}, batch) < 0.9 * quadratic({"w": projected}, batch)


@pytest.mark.parametrize("rho", [0.3, 1.0, 3.0])
def test_multipliers_are_minus_the_gradient_at_the_optimum(rho):
    a, h = np.array([1.0, 2.0, 6.0]), np.array([1.0, 2.0, 0.5])
    state = run(a, jc.Tied(jc.whole()), h, rho=rho, rounds=60, optimizer=optax.sgd(0.15)).state
    w = (h * a).sum() / h.sum()
    np.testing.assert_allclose(state.z["w"], [w] * 3, atol=1e-4)
    np.testing.assert_allclose(state.rho * state.u["w"], -h * (w - a), atol=1e-3)


def test_two_rounds_by_hand():
    rate, rho, growth, steps, k = 0.05, 0.7, 1.5, 3, 2
    a, h = np.array([1.0, -2.0, 0.5, 3.0, -0.2]), np.array([1.0, 0.5, 4.0, 0.1, 2.0])
    w = np.array([0.9, -0.8, 1.1, 0.7, 0.2])

    def project(x):
        return np.where(np.argsort(np.argsort(-np.abs(x))) < k, x, 0)

    z, u = project(w), np.zeros(5)
    for _ in range(2):
        for _ in range(steps):
            w = w - rate * (h * (w - a) + rho * (w - z + u))
        before, z = z, project(w + u)
        u = u + w - z
        primal, dual = np.linalg.norm(w - z), rho * np.linalg.norm(z - before)
        rho, u = rho * growth, u / growth

    solution = run(a, jc.Sparse(k / 5), h, [0.9, -0.8, 1.1, 0.7, 0.2], rho=0.7, growth=growth, rounds=2, steps=steps,
                   optimizer=SGD)  # fmt: skip
    state = solution.state
    np.testing.assert_allclose(state.z["w"], z, rtol=1e-5)
    np.testing.assert_allclose(state.u["w"], u, rtol=1e-5)
    np.testing.assert_allclose(state.anchor["w"], z - u, rtol=1e-5)
    np.testing.assert_allclose([state.rho, state.primal, state.dual], [rho, primal, dual], rtol=1e-5)
    np.testing.assert_allclose(solution.params["w"], project(w), rtol=1e-5)  # landing leaves the duals out


def test_it_starts_from_the_projection_with_no_duals():
    params = {"w": jnp.array([3.0, -1.0, 0.5, -2.0])}
    state = jc.ADMM({"w": jc.Sparse(0.5)}).init(params)
    np.testing.assert_array_equal(state.z["w"], [3, 0, 0, -2])
    np.testing.assert_array_equal(state.anchor["w"], state.z["w"])
    assert not jnp.any(state.u["w"])


def masked_state(w, z, u, **numbers):
    """A solver on two weights of which the second must be 0, and its state in the middle of a run."""
    solver = jc.ADMM({"w": jc.FixedMask(np.array([True, False]))}, **{"rho": 1.0, **numbers})
    z, u = {"w": jnp.array(z)}, {"w": jnp.array(u)}
    state = dataclasses.replace(solver.init({"w": jnp.array(w)}), z=z, u=u)
    return solver.coordinate(state, None, {"w": jnp.array(w)})


# w, z and u such that the relative residuals are ||w - z|| / ||w|| and ||z - z_before|| / ||u||
LOPSIDED = {
    "primal above 10 x dual": ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0], 2.0),  # 0.71 and 0
    "dual above 10 x primal": ([1.0, 0.001], [0.0, 0.0], [0.0, 1.0], 0.5),  # 0.001 and 1
    "within 10 x": ([1.0, 0.5], [0.5, 0.0], [0.0, 0.5], 1.0),  # 0.45 and 0.5
}


@pytest.mark.parametrize("case", LOPSIDED)
def test_balance_follows_the_larger_relative_residual(case):
    w, z, u, factor = LOPSIDED[case]
    state = masked_state(w, z, u, balance=2.0)
    assert state.rho == factor
    assert masked_state(w, z, u).rho == 1  # off by default


@pytest.mark.parametrize("numbers", [{"growth": 3.0}, {"balance": 2.0}, {"growth": 1.3, "balance": 4.0}])
@pytest.mark.parametrize("case", LOPSIDED)
def test_multipliers_stay_when_rho_changes(case, numbers):
    w, z, u, _ = LOPSIDED[case]
    fixed, varied = masked_state(w, z, u), masked_state(w, z, u, **numbers)
    np.testing.assert_allclose(varied.rho * varied.u["w"], fixed.rho * fixed.u["w"], rtol=1e-6)
    np.testing.assert_allclose(varied.anchor["w"], varied.z["w"] - varied.u["w"], rtol=1e-6)
    np.testing.assert_array_equal([varied.primal, varied.dual], [fixed.primal, fixed.dual])


@pytest.mark.parametrize(("rho", "rho_max", "expected"), [(1.0, 2.5, 2.5), (1.0, 10.0, 3.0), (4.0, 2.0, 4.0)])
def test_rho_grows_to_its_maximum_and_never_falls_to_it(rho, rho_max, expected):
    w, z, u, _ = LOPSIDED["within 10 x"]
    assert masked_state(w, z, u, rho=rho, growth=3.0, rho_max=rho_max).rho == expected


@pytest.mark.parametrize("rho", [1e-2, 1e2])
def test_balance_brings_a_run_with_a_rho_far_off_to_the_optimum(rho):
    """Too small a rho leaves the weights where they are; too large a one ties them where they were first tied."""
    a, h = np.array([1.0, 2.0, 6.0]), np.array([1.0, 2.0, 0.5])
    options = dict(rho=rho, rounds=40, steps=50, tolerance=1e-3, optimizer=FAST_ADAM)
    fixed, balanced = (run(a, jc.Tied(jc.whole()), h, balance=balance, **options) for balance in (1.0, 2.0))
    best = (h * a).sum() / h.sum()
    assert not fixed.converged and abs(fixed.state.z["w"][0] - best) > 0.1
    assert balanced.converged and abs(balanced.state.z["w"][0] - best) < 0.01
    assert 0.1 < balanced.state.rho < 10


def test_rho_grows_once_a_round():
    np.testing.assert_allclose(
        run([1.0, 2.0], jc.Sparse(0.5), rho=0.1, growth=2.0, rounds=4, steps=1).history["rho"], [0.2, 0.4, 0.8, 1.6]
    )


def test_converged_is_both_residuals_below_the_tolerance():
    history = run([1.0, 2.0, 6.0], jc.Tied(jc.whole()), rounds=30, tolerance=1e-2).history
    first = int(np.argmax(history["converged"]))
    assert 1 < first < 29 and history["converged"][first:].all()
    assert history["primal"][first] <= 1e-2 * np.sqrt(27) < history["primal"][1]  # ||z|| is that of [3, 3, 3]
    tighter = run([1.0, 2.0, 6.0], jc.Tied(jc.whole()), rounds=30, tolerance=1e-3).history
    assert np.argmax(tighter["converged"]) > first


@pytest.mark.parametrize("spec", [{"w": jc.Sparse(0.5)}, {}], ids=["feasible from the start", "empty"])
def test_tolerance_zero_never_converges(spec):
    feasible = {"w": jnp.array([1.0, 0.0])}
    for tolerance, expected in ((0.0, False), (1e-3, True)):
        solver = jc.ADMM(spec, rho=1.0, tolerance=tolerance)
        solution = jc.solve(
            quadratic, feasible, quadratic_batches([1.0, 0.0]), solver, optimizer=SGD, rounds=3, steps=2
        )
        assert bool(solution.converged) == expected


def test_duals_without_bound_are_divergence():
    """A loss that pins w away from the set: u grows by w every round, and rho is too small to matter."""
    history = run([1.0, 2.0], jc.Sparse(0.0), rho=1e-8, rounds=110, steps=1).history
    assert np.argmax(history["diverged"]) == 100 and not history["converged"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_divergence_for_good(bad):
    params, spec = {"w": jnp.array([1.0, 2.0])}, {"w": jc.Sparse(0.5)}
    batches = jax.tree.map(lambda x: jnp.concatenate([x] * 3), quadratic_batches([1.0, 2.0]))
    batches["a"] = batches["a"].at[1].set(bad)
    solution = jc.solve(quadratic, params, batches, jc.ADMM(spec), optimizer=SGD, rounds=3, steps=1)
    np.testing.assert_array_equal(solution.history["diverged"], [False, True, True])
    assert solution.diverged and not jnp.any(jnp.isfinite(solution.params["w"]))


HEALTHY = {
    "ordinary": {},
    "weights that start at zero": {"start": [0.0, 0.0, 0.0, 0.0]},
    "rho that grows": {"growth": 1.05},
    "rho that follows": {"balance": 2.0},
    "weights that outgrow their start": {"start": [1e-3, 0.0, 0.0, 0.0]},
}


@pytest.mark.parametrize("case", HEALTHY)
def test_healthy_runs_do_not_diverge(case):
    solution = run([3.0, 1.0, 2.0, 0.5], jc.Sparse(0.5), retrain=5, **HEALTHY[case])
    assert not solution.history["diverged"].any()
    np.testing.assert_allclose(solution.params["w"], [3, 0, 2, 0], atol=1e-4)


@pytest.mark.slow
def test_narrow_weights_keep_their_dtype_and_duals_are_wide():
    params, batches = regression_problem()
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    solver = jc.ADMM({"w": jc.Sparse(0.25)}, rho=0.1)
    solution = jc.solve(regression, params, batches, solver, optimizer=ADAM, rounds=3, steps=2, retrain=1)
    assert {x.dtype for x in jax.tree.leaves(solution.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves((solution.state.z, solution.state.u))} == {jnp.dtype(jnp.float32)}
    assert jnp.count_nonzero(solution.params["w"]) == 6


def test_leaves_outside_the_spec_feel_no_penalty():
    params, _ = regression_problem()
    solver = jc.ADMM({"w": jc.Sparse(0.25)}, rho=10.0)
    pull = jax.grad(lambda p: solver.objective(solver.init(params), jnp.float32(0), p))(params)
    assert not jnp.any(pull["b"]) and jnp.any(pull["w"])
    assert set(solver.init(params).u) == {"w"}


def test_an_empty_spec_is_plain_training():
    params, batches = regression_problem()

    @jax.jit
    def train(params):
        def step(carry, batch):
            params, state = carry
            updates, state = ADAM.update(jax.grad(regression)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, ADAM.init(params)), jax.tree.map(lambda x: x[np.arange(6) % 3], batches))

    solution = jc.solve(regression, params, batches, jc.ADMM({}), optimizer=ADAM, rounds=2, steps=3)
    for ours, plain in zip(*map(jax.tree.leaves, (solution.params, train(params)[0][0])), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
    assert not solution.diverged


def test_the_objective_is_the_mean_loss_and_the_squared_distance():
    solver = jc.ADMM({"w": jc.Sparse(0.5)}, rho=2.0)
    state = solver.init({"w": jnp.array([3.0, 1.0])})
    params = {"w": jnp.array([5.0, 1.0])}
    assert solver.objective(state, jnp.array([1.0, 3.0]), params) == 2 + 0.5 * 2 * (4 + 1)


@pytest.mark.slow
def test_a_group_of_leaves_runs_as_one_leaf_of_all_their_weights():
    a, h = np.array([1.1, 1.0, 1.0, 0.3, -0.7]), np.array([0.05, 1, 1, 0.1, 2])
    start = np.array([0.9, -0.8, 1.1, 0.7, 0.2])
    one = run(a, jc.Sparse(0.4), h, start, rho=0.7, growth=1.1, balance=2.0, rounds=6, steps=3, retrain=2)

    def parts(x):
        return {"v": jnp.asarray(x[..., :2], jnp.float32), "w": jnp.asarray(x[..., 2:], jnp.float32)}

    def loss(params, batch):
        return quadratic({"w": jnp.concatenate([params["v"], params["w"]])}, batch)

    solver = jc.ADMM(jc.assign(parts(start), {".*": Together(jc.Sparse(0.4))}), rho=0.7, growth=1.1, balance=2.0)
    both = jc.solve(
        loss, parts(start), quadratic_batches(a, h), solver, optimizer=FAST_SGD, rounds=6, steps=3, retrain=2
    )
    for whole, split in ((one.params, both.params), (one.state.z, both.state.z), (one.state.u, both.state.u)):
        np.testing.assert_allclose(jnp.concatenate([split["v"], split["w"]]), whole["w"], rtol=1e-5, atol=1e-6)
    for name in ("primal", "dual", "rho"):
        np.testing.assert_allclose(both.history[name], one.history[name], rtol=1e-4)


@pytest.mark.slow
def test_coupled_layers_lose_the_channel_that_costs_the_loss_least_and_not_the_least_one():
    """Channels of norm 1.41, 1.36 and 1.12, of which the second hardly matters to the loss."""
    params = {"a": jnp.array([[1.0, 1.0, 0.5]]), "b": jnp.array([[1.0], [0.92], [1.0]])}
    curvature = {"a": jnp.array([[1.0, 0.05, 1.0]]), "b": jnp.array([[1.0], [0.05], [1.0]])}

    def loss(p, batch):
        return sum(0.5 * jnp.sum(curvature[path] * jnp.square(p[path] - params[path])) for path in p) + 0 * batch[0]

    coupled = Coupled(jc.Sparse(2 / 3, jc.outputs()), {"a": jc.outputs(), "b": jc.inputs()})
    spec = jc.assign(params, {".*": coupled})
    assert not jc.project(spec, params)["a"][0, 2]  # what plain projection drops
    found = jc.solve(
        loss, params, jnp.zeros((1, 1)), jc.ADMM(spec, rho=0.5), optimizer=FAST_SGD, rounds=40, steps=20, retrain=5
    ).params
    np.testing.assert_allclose(found["a"], [[1, 0, 0.5]], atol=1e-3)
    np.testing.assert_allclose(found["b"], [[1], [0], [1]], atol=1e-3)
