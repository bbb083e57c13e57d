"""Min-max over the simplex: known saddles, a matrix game against a linear programme, the iteration by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

import jaxcomp as jc
from jaxcomp.testing import check_solver
from tests.problems import regression_problem

SGD = optax.sgd(0.1)
OPTIMISTIC = optax.optimistic_gradient_descent(1.0)
CENTRES = jnp.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [1.0, 0.5]])
PARAMS, BATCHES = regression_problem(batches=12)


def distances(params, centres):
    """Half the squared distance to every centre."""
    return 0.5 * jnp.sum(jnp.square(params["v"][None] - centres), axis=1)


def errors(params, batch):
    """The mean squared error of every output: four risks."""
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + params["b"][None] - batch["y"]), axis=0)


def to_centres(solver, rounds=2000, start=(1.0, 2.0), centres=CENTRES, optimizer=SGD, steps=1):
    start = {"v": jnp.asarray(start)}
    return jc.solve(distances, start, centres[None], solver, optimizer=optimizer, rounds=rounds, steps=steps)


def on_simplex(v):
    """The projection, by trying every support."""
    supports = (s for k in range(1, len(v) + 1) for s in map(list, itertools.combinations(range(len(v)), k)))
    candidates = []
    for support in supports:
        w = np.zeros(len(v))
        w[support] = v[support] - (v[support].sum() - 1) / len(support)
        candidates.append(w)
    return min((w for w in candidates if w.min() >= 0), key=lambda w: np.sum((w - v) ** 2))


@pytest.mark.parametrize("sequential", [True, False])
def test_the_smallest_ball_around_points_for_every_small_gamma(sequential):
    gammas = jnp.array([0.0, 0.1, 1.0])
    solved = jax.vmap(lambda gamma: to_centres(jc.MinMax(4, gamma, rate=0.05, sequential=sequential)))(gammas)
    np.testing.assert_allclose(solved.params["v"], [[2, 0]] * 3, atol=2e-3)
    np.testing.assert_allclose(solved.state.weights.value, [[0.5, 0.5, 0, 0]] * 3, atol=2e-3)
    np.testing.assert_allclose(solved.history["worst"][:, -1], 2, atol=4e-3)


@pytest.mark.parametrize("gamma", [3.0, 10.0])
def test_a_larger_gamma_reaches_the_saddle_of_its_own_problem(gamma):
    """There v is the mean of the centres by w, and w the projection of ``1/K + F(v) / gamma``."""
    solved = to_centres(jc.MinMax(4, gamma, rate=0.05))
    v, w = np.asarray(solved.params["v"], float), np.asarray(solved.state.weights.value, float)
    losses = 0.5 * np.sum((v - np.asarray(CENTRES)) ** 2, axis=1)
    np.testing.assert_allclose(v, w @ np.asarray(CENTRES), atol=1e-4)
    np.testing.assert_allclose(w, on_simplex(1 / 4 + losses / gamma), atol=1e-4)


@pytest.mark.parametrize("numbers", [{"gamma": 1e5, "rate": 1e-5}, {"gamma": 0.0, "rate": 0.0}])
def test_an_infinite_gamma_or_a_rate_of_zero_is_averaging(numbers):
    solved = to_centres(jc.MinMax(4, **numbers), rounds=300)
    np.testing.assert_allclose(solved.params["v"], CENTRES.mean(0), atol=1e-3)
    np.testing.assert_allclose(solved.state.weights.value, [0.25] * 4, atol=1e-4)


GAMES = {
    "rock, paper, scissors with stakes": [[0.0, 1.0, -2.0], [-1.0, 0.0, 3.0], [2.0, -3.0, 0.0]],
    "a row that nobody plays": [[3.0, -1.0, 2.0], [-2.0, 4.0, 0.0], [4.0, 5.0, 6.0]],
    "a pure saddle": [[2.0, 1.0, 0.0], [3.0, 4.0, 1.0]],
}


def by_linear_programme(payoff):
    """The value of a matrix game, the row player's (who pays) and the column player's strategies."""
    rows, columns = payoff.shape
    least = linprog(
        [0] * rows + [1],
        A_ub=np.column_stack([payoff.T, -np.ones(columns)]),
        b_ub=np.zeros(columns),
        A_eq=[[1] * rows + [0]],
        b_eq=[1],
        bounds=[(0, None)] * rows + [(None, None)],
    )
    return least.fun, least.x[:-1], -least.ineqlin.marginals


@pytest.mark.parametrize("name", GAMES)
def test_a_matrix_game_is_played_as_its_linear_programme_says(name):
    """Both players take optimistic steps: plain ones go round a bilinear saddle for ever."""
    payoff = np.array(GAMES[name])
    value, rows, columns = by_linear_programme(payoff)
    start = {"x": jnp.full(payoff.shape[0], 1 / payoff.shape[0])}
    tx = optax.chain(optax.optimistic_gradient_descent(0.05), jc.confine({"x": jc.Simplex()}))
    solver = jc.MinMax(payoff.shape[1], gamma=0.0, rate=0.05, optimizer=OPTIMISTIC, sequential=False)
    solved = jc.solve(
        lambda params, payoff: params["x"] @ payoff,
        start,
        jnp.asarray(payoff, jnp.float32)[None],
        solver,
        optimizer=tx,
        rounds=3000,
        steps=1,
    )
    np.testing.assert_allclose(solved.params["x"], rows, atol=2e-3)
    np.testing.assert_allclose(solved.state.weights.value, columns, atol=2e-3)
    np.testing.assert_allclose(solved.history["worst"][-1], value, atol=5e-3)


def test_a_perturbation_in_a_ball_against_two_models():
    """The least of the larger of two linear losses on a ball lies against the nearest point of their hull."""
    slopes, radius = jnp.array([[2.0, 0.0], [0.0, 1.0]]), 0.5
    tx = optax.chain(optax.sgd(0.05), jc.confine({"delta": jc.L2Ball(radius)}))
    solver = jc.MinMax(2, gamma=0.0, rate=0.05)

    def attack(params, slopes):
        return slopes @ params["delta"]

    solved = jc.solve(attack, {"delta": jnp.zeros(2)}, slopes[None], solver, optimizer=tx, rounds=1500, steps=1)
    nearest = np.array([0.4, 0.8])
    np.testing.assert_allclose(solved.params["delta"], -radius * nearest / np.linalg.norm(nearest), atol=2e-3)
    np.testing.assert_allclose(solved.state.weights.value, [0.2, 0.8], atol=5e-3)
    np.testing.assert_allclose(solved.history["worst"][-1], -radius * np.linalg.norm(nearest), atol=2e-3)


@pytest.mark.parametrize("sequential", [True, False])
def test_three_rounds_by_hand(sequential):
    gamma, rate, step, steps = 0.7, 0.05, 0.1, 2
    centres = np.asarray(CENTRES, float)
    v, w = np.array([1.0, 2.0]), np.full(4, 0.25)

    def losses(v):
        return 0.5 * np.sum((v - centres) ** 2, axis=1)

    for _ in range(3):
        for _ in range(steps):
            before, v = v, v - step * (v - w @ centres)
        seen = losses(v if sequential else before)
        w = on_simplex(w + rate * (seen - gamma * (w - 0.25)))
    solved = to_centres(jc.MinMax(4, gamma, rate, sequential=sequential), rounds=3, steps=steps)
    np.testing.assert_allclose(solved.params["v"], v, rtol=1e-5)
    np.testing.assert_allclose(solved.state.weights.value, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        [solved.history[name][-1] for name in ("worst", "heaviest", "entropy")],
        [seen.max(), w.max(), -np.sum(w[w > 0] * np.log(w[w > 0]))],
        rtol=1e-5,
    )


def test_every_example_of_a_vmap_has_its_own_weights():
    centres = jnp.stack([CENTRES, CENTRES[::-1] * 2, CENTRES + 1])
    solver = jc.MinMax(4, gamma=0.5, rate=0.02)
    together = jax.vmap(lambda c: to_centres(solver, rounds=50, centres=c))(centres)
    alone = [to_centres(solver, rounds=50, centres=c) for c in centres]
    np.testing.assert_allclose(together.state.weights.value, [s.state.weights.value for s in alone], atol=1e-5)
    np.testing.assert_allclose(together.params["v"], [s.params["v"] for s in alone], atol=1e-4)
    assert len({tuple(np.round(w, 3)) for w in np.asarray(together.state.weights.value)}) == 3


def test_the_weights_may_lie_in_another_set():
    """In the simplex with a floor no risk is forgotten."""
    floor = jc.Dykstra(jc.Simplex(), jc.Box(0.1, 1.0))
    w = to_centres(jc.MinMax(4, gamma=0.0, rate=0.05, set=floor), rounds=500).state.weights.value
    np.testing.assert_allclose(jnp.sum(w), 1, atol=1e-4)
    np.testing.assert_allclose(jnp.sort(w)[:2], [0.1, 0.1], atol=1e-3)


def test_the_weights_may_move_by_an_optimiser_of_their_own():
    """Adam's first step has one length in every direction, that of ``rate``."""
    solver = jc.MinMax(4, gamma=0.0, rate=0.01, set=jc.Box(), optimizer=optax.adam(1.0))
    w = to_centres(solver, rounds=1, start=(0.0, 0.0)).state.weights.value
    np.testing.assert_allclose(w, [0.26] * 4, atol=1e-4)  # every loss is positive after the step: all rise


def test_losses_that_are_not_finite_are_divergence_for_good():
    centres = jnp.stack([CENTRES, CENTRES.at[0, 0].set(jnp.nan), CENTRES])
    solver = jc.MinMax(4, 1.0, 0.1, sequential=False)
    solved = jc.solve(distances, {"v": jnp.ones(2)}, centres, solver, optimizer=SGD, rounds=3, steps=1)
    np.testing.assert_array_equal(solved.history["diverged"], [False, True, True])


@pytest.mark.parametrize("loss", [lambda p, c: jnp.sum(distances(p, c)), lambda p, c: distances(p, c)[:3]])
def test_losses_of_another_shape_are_an_error(loss):
    with pytest.raises(ValueError, match=r"losses of shape \(4,\), one a risk, and found \((3,)?\): let the loss"):
        jc.solve(loss, {"v": jnp.ones(2)}, CENTRES[None], jc.MinMax(4, 1.0, 0.1), optimizer=SGD, rounds=1, steps=1)


def same(ours, theirs, **tolerance):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


@pytest.mark.parametrize(("sequential", "period"), [(False, 3), (True, 2)])
def test_a_transformation_takes_the_steps_of_solve(sequential, period):
    """Sequential, the two ask on batches of two rounds: those must be equal for the steps to be."""
    solver = jc.MinMax(4, gamma=0.5, rate=0.1, sequential=sequential)
    batches = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), BATCHES) if sequential else BATCHES
    tx = optax.chain(jc.as_transformation(solver, period), optax.adam(3e-2))

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(params, state, params, value_fn=lambda p: errors(p, batch))
        return (optax.apply_updates(params, updates), state), params

    # It coordinates before the step that follows: one step more, and its state is that of solve.
    more = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), batches)
    (_, (state, *_)), before = jax.jit(lambda start: jax.lax.scan(step, start, more))((PARAMS, tx.init(PARAMS)))
    solved = jc.solve(errors, PARAMS, batches, solver, optimizer=optax.adam(3e-2), rounds=12 // period, steps=period)
    same(jax.tree.map(lambda x: x[-1], before), solved.params)
    same(state.solver, solved.state)
    assert state.first.shape == state.total.shape == (4,) and solved.history["heaviest"][-1] > 0.3


def test_a_transformation_without_the_losses_is_an_error():
    tx = jc.as_transformation(jc.MinMax(4, 1.0, 0.1), 2)
    with pytest.raises(
        ValueError, match=r"as_transformation\(MinMax\) takes the gradient .* value_fn=params -> losses"
    ):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0)


def test_the_driver_takes_the_steps_of_solve():
    solver = jc.MinMax(4, gamma=0.5, rate=0.1)
    run = dict(optimizer=SGD, rounds=3, steps=2, retrain=1)
    solved = jc.solve(errors, PARAMS, BATCHES, solver, **run)
    driven = jc.compress(errors, PARAMS, BATCHES, solver, progress=False, **run)
    same(driven.params, solved.params)
    np.testing.assert_allclose([record["loss"] for record in driven.history[:3]], solved.history["loss"], rtol=1e-5)
    np.testing.assert_allclose([record["worst"] for record in driven.history[:3]], solved.history["worst"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_transformation_puts_the_gradient_of_the_objective_for_the_one_it_is_given(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    batch = jax.tree.map(lambda x: x[0], BATCHES)
    tx = jc.as_transformation(jc.MinMax(4, 1.0, 0.1), 2)
    found, _ = tx.update(params, tx.init(params), params, value=jnp.ones(3), value_fn=lambda p: errors(p, batch))
    expected = jax.grad(lambda p: jnp.mean(errors(p, batch)))(params)  # the weights are equal at first
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, found, expected))
    same(*(jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (found, expected)), rtol=2e-2, atol=1e-3)


@pytest.mark.slow
def test_it_keeps_the_contract():
    solver = jc.MinMax(4, gamma=0.5, rate=0.1, spec={"w": jc.Sparse(0.5)}, optimizer=optax.adam(1.0))
    check_solver(solver, PARAMS, errors, jax.tree.map(lambda x: x[0], BATCHES))
