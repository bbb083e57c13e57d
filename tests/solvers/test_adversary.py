"""A learnt opponent: known saddles, several turns by hand, games that are min-max, and what retraining refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp.testing import check_solver
from tests.problems import regression_problem

SGD = optax.sgd(0.05)
PARAMS, BATCHES = regression_problem(batches=12)
RNG = np.random.default_rng(0)
A, B, C = RNG.normal(size=(3, 3)), RNG.normal(size=(3, 2)), RNG.normal(size=(2, 2))
A, C = A @ A.T / 3 + np.eye(3), C @ C.T / 3 + np.eye(2)
X0, Y0 = RNG.normal(size=3), RNG.normal(size=2)


def quadratic_game(point, batch):
    """``(x - x0)' A (x - x0) / 2 + x' B y - (y - y0)' C (y - y0) / 2``: convex in x, concave in y."""
    x, y = point[0]["x"] - batch["x0"], point[1]["y"] - batch["y0"]
    return 0.5 * x @ batch["A"] @ x + point[0]["x"] @ batch["B"] @ point[1]["y"] - 0.5 * y @ batch["C"] @ y


GAME = {k: jnp.asarray(v, jnp.float32)[None] for k, v in {"A": A, "B": B, "C": C, "x0": X0, "y0": Y0}.items()}


def shifted(point, batch):
    """The regression, with an opponent that shifts the outputs at a price."""
    params, shift = point
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + (params["b"] + shift)[None] - batch["y"])) - 2 * shift @ shift


def same(ours, theirs, **tolerance):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-4, "atol": 1e-5} | tolerance))


@pytest.mark.parametrize(("turns", "optimizer", "rate"), [(1, None, 0.05), (5, None, 0.05), (5, optax.adam(1.0), 1e-3)])
def test_a_convex_concave_game_reaches_its_saddle(turns, optimizer, rate):
    own = {} if optimizer is None else {"optimizer": optimizer}
    solver = jc.Adversary({"y": jnp.zeros(2)}, rate, turns=turns, **own)
    solved = jc.solve(quadratic_game, {"x": jnp.zeros(3)}, GAME, solver, optimizer=SGD, rounds=1500, steps=2)
    saddle = np.linalg.solve(np.block([[A, B], [B.T, -C]]), np.concatenate([A @ X0, -C @ Y0]))
    np.testing.assert_allclose(solved.params["x"], saddle[:3], atol=2e-3)
    np.testing.assert_allclose(solved.state.player.value["y"], saddle[3:], atol=2e-3)


def test_a_bilinear_game_needs_optimistic_players():
    """Its saddle is the origin, round which plain steps of both players lead outwards."""

    def bilinear(point, batch):
        return point[0]["x"] @ batch @ point[1]

    def distance(own, theirs):
        solver = jc.Adversary(jnp.ones(2), rate=0.1, optimizer=theirs)
        solved = jc.solve(bilinear, {"x": jnp.ones(2)}, jnp.eye(2)[None], solver, optimizer=own, rounds=1500, steps=1)
        return float(jnp.linalg.norm(solved.params["x"]) + jnp.linalg.norm(solved.state.player.value))

    optimistic = distance(optax.optimistic_gradient_descent(0.1), optax.optimistic_gradient_descent(1.0))
    assert optimistic < 1e-3 < 1 < distance(optax.sgd(0.1), optax.sgd(1.0))


def test_an_opponent_on_the_simplex_is_min_max():
    centres, gamma = jnp.array([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0]]), 0.5

    def distances(params, centres):
        return 0.5 * jnp.sum(jnp.square(params["v"][None] - centres), axis=1)

    def weighed(point, centres):
        return point[1]["w"] @ distances(point[0], centres) - gamma / 2 * jnp.sum(jnp.square(point[1]["w"] - 1 / 3))

    opponent = jc.Adversary({"w": jnp.full(3, 1 / 3)}, 0.1, sets={"w": jc.Simplex()})
    run = dict(optimizer=SGD, rounds=20, steps=3)
    start = {"v": jnp.array([1.0, 2.0])}
    played = jc.solve(weighed, start, centres[None], opponent, **run)
    known = jc.solve(distances, start, centres[None], jc.MinMax(3, gamma, 0.1), **run)
    same(played.params, known.params)
    same(played.state.player.value["w"], known.state.weights.value)


def test_two_rounds_by_hand():
    """The opponent answers the new parameters, on the first batch of the round, and remembers its momentum."""
    steps, turns, rate = 2, 3, 0.1

    def slope(argument, params, shift, i):
        return jax.grad(shifted)((params, shift), jax.tree.map(lambda x: x[i], BATCHES))[argument]

    params, shift, speed = PARAMS, jnp.zeros(4), jnp.zeros(4)
    for r in range(2):
        for i in range(r * steps, (r + 1) * steps):
            params = jax.tree.map(lambda x, g: x - 0.05 * g, params, slope(0, params, shift, i))
        for _ in range(turns):
            reached = shifted((params, shift), jax.tree.map(lambda x, i=r * steps: x[i], BATCHES))
            speed = 0.5 * speed + slope(1, params, shift, r * steps)
            shift = shift + rate * speed
    solver = jc.Adversary(jnp.zeros(4), rate, turns=turns, optimizer=optax.sgd(1.0, momentum=0.5))
    solved = jc.solve(shifted, PARAMS, BATCHES, solver, optimizer=SGD, rounds=2, steps=steps)
    same(solved.params, params)
    same(solved.state.player.value, shift)
    np.testing.assert_allclose(solved.history["reached"][-1], reached, rtol=1e-5)


def test_a_part_of_the_loss_may_be_hidden_from_one_player():
    def game(point, batch):
        x, y = point[0]["x"], point[1]
        return 0.5 * jnp.square(x - batch) - 0.5 * jnp.square(y - jax.lax.stop_gradient(x))

    solver = jc.Adversary(jnp.float32(0), 0.5)
    solved = jc.solve(game, {"x": jnp.float32(0)}, jnp.full(1, 3.0), solver, optimizer=SGD, rounds=200, steps=1)
    np.testing.assert_allclose([solved.params["x"], solved.state.player.value], 3, atol=1e-3)


@pytest.mark.slow
def test_the_game_goes_on_with_pruned_parameters_in_a_second_call():
    spec = {"w": jc.Sparse(0.5)}
    pruned = jc.project(spec, PARAMS)
    solver = jc.Adversary(jnp.full(4, 0.1), 0.05)
    solved = jc.solve(shifted, pruned, BATCHES, solver, optimizer=optax.adam(1e-2), rounds=4, steps=3, hold=spec)
    np.testing.assert_array_equal(solved.params["w"] == 0, pruned["w"] == 0)
    assert jnp.any(solved.params["w"] != pruned["w"]) and jnp.all(solved.state.player.value != 0.1)


@pytest.mark.parametrize("run", [jc.solve, jc.compress])
def test_retraining_without_the_opponent_is_an_error(run):
    with pytest.raises(ValueError, match=r"retrain must be 0 with Adversary.*found 2: call solve or compress again"):
        run(shifted, PARAMS, BATCHES, jc.Adversary(jnp.zeros(4)), optimizer=SGD, rounds=1, steps=1, retrain=2)


def test_sets_that_do_not_fit_the_opponent_are_an_error():
    with pytest.raises(ValueError, match=r"no leaf at \['z'\] in this tree"):
        jc.Adversary({"y": jnp.zeros(4)}, sets={"z": jc.Simplex()}).init(PARAMS)
    with pytest.raises(ValueError, match="leaf 'y': low of shape"):
        jc.Adversary({"y": jnp.zeros(4)}, sets={"y": jc.Box(low=jnp.zeros(3))}).init(PARAMS)


def test_a_loss_that_is_not_finite_is_divergence():
    batches = jax.tree.map(lambda x: x.at[1].set(jnp.nan), BATCHES)
    solved = jc.solve(shifted, PARAMS, batches, jc.Adversary(jnp.zeros(4)), optimizer=SGD, rounds=3, steps=1)
    np.testing.assert_array_equal(solved.history["diverged"], [False, True, True])


def test_the_driver_takes_the_steps_of_solve():
    solver = jc.Adversary(jnp.zeros(4), 0.05, turns=2)
    run = dict(optimizer=SGD, rounds=3, steps=2)
    driven = jc.compress(shifted, PARAMS, BATCHES, solver, progress=False, **run)
    same(driven.params, jc.solve(shifted, PARAMS, BATCHES, solver, **run).params)


def test_a_transformation_takes_the_steps_of_solve():
    """On one batch: the opponent answers on that of the step that follows, in solve on one of the round before."""
    solver = jc.Adversary(jnp.zeros(4), 0.05, turns=2)
    tx = optax.chain(jc.as_transformation(solver, 2), optax.adam(3e-2))
    batches = jax.tree.map(lambda x: x[:1], BATCHES)
    batch = jax.tree.map(lambda x: x[0], BATCHES)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params, value_fn=lambda point: shifted(point, batch))
        return (optax.apply_updates(params, updates), state), params

    (_, (state, *_)), before = jax.jit(lambda start: jax.lax.scan(step, start, length=9))((PARAMS, tx.init(PARAMS)))
    solved = jc.solve(shifted, PARAMS, batches, solver, optimizer=optax.adam(3e-2), rounds=4, steps=2)
    same(jax.tree.map(lambda x: x[-1], before), solved.params)
    same(state.solver, solved.state)


@pytest.mark.slow
def test_it_keeps_the_contract():
    own = {"sets": {"": jc.L2Ball(1.0)}, "turns": 3, "optimizer": optax.adam(1.0)}
    solver = jc.Adversary(jnp.full(4, 0.5), 0.1, {"w": jc.Sparse(0.5)}, **own)
    check_solver(solver, PARAMS, shifted, jax.tree.map(lambda x: x[0], BATCHES))
