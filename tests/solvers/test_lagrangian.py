"""Budgets on costs: known multipliers, a linear programme, restarts, stand-ins, and the augmented form."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

import jaxcomp as jc
from jaxcomp.solvers._dual import begin
from jaxcomp.testing import check_solver
from tests.problems import quadratic, quadratic_batches, regression, regression_problem

SGD = optax.sgd(0.1)
PARAMS, BATCHES = regression_problem(batches=12)
ROWS = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 1.0]])
MINIMUM, BUDGETS = np.array([2.0, 1.0, -1.0]), np.array([1.5, 0.8, 5.0])


def rows(params):
    return jnp.asarray(ROWS, jnp.float32) @ params["w"]


def energy(params):
    """The mean square of the weights."""
    return jnp.mean(jnp.square(params["w"]))


def run(solver, a=MINIMUM, rounds=600, steps=1, optimizer=SGD, start=None):
    params = {"w": jnp.asarray(a if start is None else start, jnp.float32)}
    return jc.solve(quadratic, params, quadratic_batches(a), solver, optimizer=optimizer, rounds=rounds, steps=steps)


def by_active_rows(active):
    """The nearest point to `MINIMUM` with these rows at their budgets, and its multipliers."""
    a, b = ROWS[active], BUDGETS[active]
    multipliers = np.zeros(3)
    multipliers[active] = np.linalg.solve(a @ a.T, a @ MINIMUM - b)
    return MINIMUM - ROWS.T @ multipliers, multipliers


@pytest.mark.parametrize(("sequential", "penalty"), [(False, 0.0), (True, 0.0), (False, 1.0), (True, 1.0)])
def test_a_quadratic_programme_reaches_its_optimum_and_multipliers(sequential, penalty):
    """Two budgets bind and the third, which is slack, has no multiplier."""
    w, multipliers = by_active_rows([0, 1])
    assert multipliers[:2].min() > 0.1 and w[2] < BUDGETS[2]  # by which it is the optimum
    solver = jc.Lagrangian(rows, jnp.array(BUDGETS), 0.1, restarts=False, sequential=sequential, penalty=penalty)
    solved = run(solver)
    np.testing.assert_allclose(solved.params["w"], w, atol=1e-3)
    np.testing.assert_allclose(solved.state.multipliers.value, multipliers, atol=2e-3)
    np.testing.assert_allclose(solved.history["defect"][-1], 0, atol=1e-3)
    np.testing.assert_allclose(solved.history["multiplier"][-1], multipliers.max(), atol=2e-3)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_an_equality_has_a_multiplier_of_any_sign(penalty):
    solver = jc.Lagrangian(
        lambda p: jnp.sum(p["w"]), 5.0, 0.05, set=jc.Box(), restarts=False, sequential=True, penalty=penalty
    )
    solved = run(solver)
    np.testing.assert_allclose(solved.params["w"], MINIMUM + 1, atol=1e-3)
    np.testing.assert_allclose(solved.state.multipliers.value, -1, atol=1e-3)


def test_a_linear_programme_by_optimistic_steps():
    """Plain ones go round its saddle for ever. The weights are kept positive at every step."""
    cost = np.array([1.0, 2.0, 1.5])
    need, least = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), np.array([1.0, 2.0])
    answer = linprog(cost, A_ub=-need, b_ub=-least)
    solver = jc.Lagrangian(
        lambda p: -jnp.asarray(need, jnp.float32) @ p["w"],
        -jnp.asarray(least, jnp.float32),
        0.15,
        restarts=False,
        optimizer=optax.optimistic_gradient_descent(1.0),
    )
    tx = optax.chain(optax.optimistic_gradient_descent(0.15), jc.confine({"w": jc.Box(low=0.0)}))
    solved = jc.solve(
        lambda p, c: p["w"] @ c,
        {"w": jnp.ones(3)},
        jnp.asarray(cost, jnp.float32)[None],
        solver,
        optimizer=tx,
        rounds=3000,
        steps=1,
    )
    np.testing.assert_allclose(solved.params["w"], answer.x, atol=2e-3)
    np.testing.assert_allclose(solved.state.multipliers.value, -answer.ineqlin.marginals, atol=2e-3)


@pytest.mark.parametrize("sequential", [True, False])
def test_three_rounds_by_hand(sequential):
    step, rate, steps, budget = 0.1, 0.3, 2, 0.5
    w, multiplier = MINIMUM.copy(), 0.0
    defect = np.mean(w**2) - budget
    for _ in range(3):
        for _ in range(steps):
            w = w - step * (w - MINIMUM + multiplier * 2 * w / 3)
        before, defect = defect, np.mean(w**2) - budget
        seen = defect if sequential else before
        multiplier = 0.0 if seen < 0 else max(multiplier + rate * seen, 0)
    solved = run(jc.Lagrangian(energy, budget, rate, sequential=sequential), rounds=3, steps=steps)
    np.testing.assert_allclose(solved.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(solved.state.multipliers.value, multiplier, rtol=1e-5)
    np.testing.assert_allclose(solved.state.defects, defect, rtol=1e-4)


def test_multipliers_restart_where_the_budget_is_kept_strictly():
    solver = jc.Lagrangian(lambda params: params["w"], 1.0, rate=0.5, sequential=True)
    params = {"w": jnp.array([0.9, 1.0, 1.2])}
    for restarts, expected in ((True, [0, 2, 2.1]), (False, [1.95, 2, 2.1])):
        solver = dataclasses.replace(solver, restarts=restarts)
        state = dataclasses.replace(solver.init(params), multipliers=begin(jnp.full(3, 2.0), solver.optimizer))
        np.testing.assert_allclose(solver.coordinate(state, None, params).multipliers.value, expected, rtol=1e-6)


def test_restarts_forget_what_overshooting_has_piled_up():
    """From far above the budget a multiplier piles up; without restarts it goes on pushing far below the budget."""
    solvers = [jc.Lagrangian(energy, 1.0, rate=0.02, restarts=restarts) for restarts in (True, False)]
    runs = [run(s, 1.1 * np.ones(3), start=5 * np.ones(3), rounds=400, optimizer=optax.sgd(0.02)) for s in solvers]
    kept, plain = (solved.history["defect"] for solved in runs)
    assert plain.min() < -0.8 < -0.3 < kept.min()
    assert jnp.sum(plain < -0.1) > 300 > 50 > jnp.sum(kept < -0.1)


def test_a_true_cost_moves_the_multipliers_and_its_stand_in_the_parameters():
    """At most one weight may exceed 1/2, which has no derivative; the smooth count is never within the budget."""
    a, sharpness = np.array([1.0, 0.8, 0.6]), 4.0

    def count(params):
        return jnp.sum(params["w"] > 0.5)

    def smooth(params):
        return jnp.sum(jax.nn.sigmoid(sharpness * (params["w"] - 0.5)))

    kept = run(jc.Lagrangian(smooth, 1.0, 0.01, true_cost=count, restarts=False), a, rounds=300)
    assert count(kept.params) <= 1 < smooth(kept.params)
    fooled = run(jc.Lagrangian(smooth, 1.0, 0.01, restarts=False), a, rounds=3000)
    np.testing.assert_allclose(smooth(fooled.params), 1, atol=1e-2)
    assert fooled.state.multipliers.value > kept.state.multipliers.value  # it goes on to keep the stand-in too


def test_the_augmented_form_makes_a_saddle_where_there_is_none():
    """``-w^2 / 2`` with ``w = 1``: the plain Lagrangian has no minimum in w, and runs away."""

    def concave(params, batch):
        return -0.5 * jnp.sum(jnp.square(params["w"])) * batch

    def solved(penalty):
        solver = jc.Lagrangian(
            lambda p: p["w"], 1.0, 0.2, set=jc.Box(), restarts=False, sequential=True, penalty=penalty
        )
        return jc.solve(concave, {"w": jnp.float32(0.5)}, jnp.ones(1), solver, optimizer=SGD, rounds=300, steps=2)

    np.testing.assert_allclose([solved(3.0).params["w"], solved(3.0).state.multipliers.value], 1, atol=1e-3)
    assert not abs(solved(0.0).params["w"]) < 100


@pytest.mark.parametrize("penalty", [0.5, 2.0])
@pytest.mark.parametrize("constraint", [jc.Box(low=0.0), jc.Box()], ids=["inequality", "equality"])
def test_the_augmented_objective_is_that_of_the_textbook(constraint, penalty):
    before, w = np.array([0.0, 1.0, 1.0, 0.5]), np.array([0.5, -1.0, 0.3, -0.1])
    before = before if constraint.low == 0 else before - 0.7
    solver = jc.Lagrangian(lambda p: p["w"] ** 2, 0.2, 1.0, penalty=penalty, set=constraint)
    params = {"w": jnp.array(w, jnp.float32)}
    state = dataclasses.replace(solver.init(params), multipliers=begin(before, solver.optimizer))
    value, gradient = jax.value_and_grad(lambda p: solver.objective(state, jnp.float32(3), p))(params)
    g = w**2 - 0.2
    if constraint.low == 0:
        expected = 3 + np.sum(np.maximum(before + penalty * g, 0) ** 2 - before**2) / (2 * penalty)
        slope = np.maximum(before + penalty * g, 0) * 2 * w
    else:
        expected, slope = 3 + np.sum(before * g + penalty / 2 * g**2), (before + penalty * g) * 2 * w
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient["w"], slope, rtol=1e-4, atol=1e-6)


def test_a_budget_out_of_reach_is_seen_and_can_be_capped():
    out_of_reach = jc.Lagrangian(lambda p: jnp.sum(jnp.square(p["w"])), -1.0, 0.1)
    history = run(out_of_reach, rounds=100, optimizer=optax.sgd(0.02)).history
    assert history["multiplier"][-1] > 10 and jnp.all(jnp.diff(history["multiplier"]) > 0)
    capped = run(dataclasses.replace(out_of_reach, set=jc.Box(0.0, 2.0)), rounds=200)
    np.testing.assert_allclose(capped.params["w"], MINIMUM / 5, atol=1e-3)


def test_a_cost_that_is_not_finite_is_divergence():
    solver = jc.Lagrangian(lambda p: jnp.log(p["w"][0] - 1.5), 0.0, 1.0, sequential=True)
    history = run(solver, a=[1.0, 0.0, 0.0], start=[2.0, 0.0, 0.0], rounds=20).history
    assert history["diverged"][-1] and not history["diverged"][0]


def test_a_transformation_takes_the_steps_of_solve():
    solver = jc.Lagrangian(energy, 0.3, 0.5, penalty=0.1)
    tx = optax.chain(jc.as_transformation(solver, 3), optax.adam(3e-2))

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(regression)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), params

    # It coordinates before the step that follows: one step more, and its state is that of solve.
    more = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), BATCHES)
    (_, (state, *_)), before = jax.jit(lambda start: jax.lax.scan(step, start, more))((PARAMS, tx.init(PARAMS)))
    solved = jc.solve(regression, PARAMS, BATCHES, solver, optimizer=optax.adam(3e-2), rounds=4, steps=3)
    ours, theirs = (jax.tree.map(lambda x: x[-1], before), state.solver), (solved.params, solved.state)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert solved.state.multipliers.value > 0


EVERYTHING = jc.Lagrangian(
    lambda p: jnp.stack([energy(p), jnp.sum(p["b"])]),
    jnp.array([0.2, 0.1]),
    0.5,
    {"w": jc.Sparse(0.5)},
    true_cost=lambda p: jnp.stack([jnp.max(p["w"]), jnp.max(p["b"])]),
    penalty=0.3,
    restarts=False,
    sequential=True,
    optimizer=optax.adam(1.0),
)


@pytest.mark.parametrize("solver", [jc.Lagrangian(energy, 0.3, 0.5), EVERYTHING], ids=["plain", "with everything"])
@pytest.mark.slow  # beside the row of the suite
def test_it_keeps_the_contract(solver):
    check_solver(solver, PARAMS, regression, jax.tree.map(lambda x: x[0], BATCHES))


# Hard concrete gates: uniform noise through a sigmoid, stretched and cut so that it is 0 with positive probability.
_SHARP, _LOW, _HIGH = 2 / 3, -0.1, 1.1


def _stretched(s):
    return jnp.clip(s * (_HIGH - _LOW) + _LOW, 0, 1)


def _density(params):
    """The expected share of the inputs of every layer that are open, by the weights behind them."""
    open_ = [jax.nn.sigmoid(layer["a"] - _SHARP * np.log(-_LOW / _HIGH)) for layer in params]
    sizes = [layer["w"].shape[1] for layer in params]
    return sum(n * jnp.sum(p) for n, p in zip(sizes, open_, strict=True)) / sum(x["w"].size for x in params)


def _forward(params, x, gates):
    for i, (layer, gate) in enumerate(zip(params, gates, strict=True)):
        x = (x * gate) @ layer["w"] + layer["b"][None]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def _gated_loss(params, batch):
    def gate(layer, key):
        u = jax.random.uniform(key, (batch["x"].shape[0], layer["a"].shape[0]), minval=1e-6, maxval=1 - 1e-6)
        return _stretched(jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + layer["a"][None]) / _SHARP))

    keys = jax.random.split(jax.random.wrap_key_data(batch["key"]), len(params))
    logits = _forward(params, batch["x"], [gate(layer, key) for layer, key in zip(params, keys, strict=True)])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]))


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [True, False])
def test_gates_of_a_digits_network_reach_their_density(restarts):
    """At a rate that suffices; restarts bring the multiplier back to near zero, without them it stays."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))
    train, test = order[:1400], order[1400:]
    x = (x / 16).astype(np.float32)
    sizes = [64, 128, 64, 10]
    params = [
        {
            "w": jnp.asarray(rng.normal(size=(i, o)) * np.sqrt(2 / i) / 0.5, jnp.float32),
            "b": jnp.zeros(o),
            "a": jnp.asarray(rng.normal(size=i) * 0.01, jnp.float32),
        }
        for i, o in itertools.pairwise(sizes)
    ]
    steps, size = 2000, 70
    places = np.concatenate([rng.permutation(train) for _ in range(steps * size // len(train) + 1)])[: steps * size]
    batches = {
        "x": jnp.asarray(x[places].reshape(steps, size, 64)),
        "y": jnp.asarray(y[places].reshape(steps, size)),
        "key": jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), steps)),
    }
    labels = [{"w": "weights", "b": "weights", "a": "gates"} for _ in params]
    tx = optax.partition({"weights": optax.adam(2e-3), "gates": optax.adam(3e-2)}, labels)
    limits = {f"{i}/a": jc.Box(np.log(1e-2), np.log(1e2)) for i in range(3)}
    solved = jc.solve(
        _gated_loss,
        params,
        batches,
        jc.Lagrangian(_density, 0.5, 0.01, restarts=restarts),
        optimizer=optax.chain(tx, jc.confine(limits)),
        rounds=steps,
        steps=1,
    )
    density, multiplier = float(_density(solved.params)), solved.history["multiplier"]
    median = [_stretched(jax.nn.sigmoid(layer["a"] / _SHARP))[None] for layer in solved.params]
    logits = _forward(solved.params, jnp.asarray(x[test]), median)
    accuracy = float(np.mean(np.argmax(logits, 1) == y[test]))
    assert accuracy > 0.96
    if restarts:
        np.testing.assert_allclose(density, 0.5, atol=0.01)
        assert multiplier[-1] < 0.05 * multiplier.max()
    else:
        assert density < 0.5 and multiplier[-1] > 0.5 * multiplier.max()
