"""Several solvers in one run: each takes the objective of those before it, leaves are claimed once, all land."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

import jaxcomp as jc
from jaxcomp.testing import check_solver
from tests.problems import regression, regression_problem

SGD = optax.sgd(0.1)
PARAMS, BATCHES = regression_problem(batches=12)
BATCH = jax.tree.map(lambda x: x[0], BATCHES)
ON_W, ON_B = jc.ADMM({"w": jc.Sparse(0.5)}, rho=0.1), jc.ADMM({"b": jc.Sparse(0.5)}, rho=0.1)
TARGETS = np.array([[3.0, 0.5, 0.4, -2.0], [3.0, -0.5, 0.1, -1.0], [1.0, 0.2, -0.2, -2.5]])


def distances(params, targets):
    """Half the squared distance to every target."""
    return 0.5 * jnp.sum(jnp.square(params["w"][None] - targets), axis=1)


def errors(params, batch):
    """The mean squared error of every output: four risks."""
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + params["b"][None] - batch["y"]), axis=0)


def least_worst_on(support):
    """The least of the largest distance among points with this support, by minimising a bound on all of them."""

    def whole(x):
        w = np.zeros(4)
        w[list(support)] = x[:-1]
        return w

    def slack(x):
        return x[-1] - 0.5 * np.sum((whole(x) - TARGETS) ** 2, axis=1)

    start = np.array([0.0] * len(support) + [20.0])
    found = minimize(lambda x: x[-1], start, constraints={"type": "ineq", "fun": slack}, method="SLSQP", tol=1e-10)
    return found.fun, whole(found.x)


@pytest.mark.slow
def test_min_max_and_pruning_in_one_run_reach_the_best_of_all_supports():
    value, best = min((least_worst_on(s) for s in itertools.combinations(range(4), 2)), key=lambda found: found[0])
    solver = jc.Combined(jc.MinMax(3, gamma=0.0, rate=0.05), jc.ADMM({"w": jc.Sparse(0.5)}, rho=0.5))
    params = {"w": jnp.zeros(4)}
    solved = jc.solve(distances, params, jnp.asarray(TARGETS)[None], solver, optimizer=SGD, rounds=1500, steps=2)
    np.testing.assert_allclose(solved.params["w"], best, atol=5e-3)
    np.testing.assert_allclose(jnp.max(distances(solved.params, jnp.asarray(TARGETS))), value, rtol=2e-3)
    averaged = jc.project(solver.spec, {"w": jnp.asarray(TARGETS.mean(0))})
    assert jnp.max(distances(averaged, jnp.asarray(TARGETS))) > 1.05 * value  # so that the test can fail


def same(ours, theirs, **tolerance):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-4, "atol": 1e-6} | tolerance))


@pytest.mark.slow
def test_two_on_a_leaf_each_are_one_on_both():
    run = dict(optimizer=SGD, rounds=3, steps=4, retrain=1)
    both = jc.solve(regression, PARAMS, BATCHES, jc.ADMM(ON_W.spec | ON_B.spec, rho=0.1), **run)
    apart = jc.solve(regression, PARAMS, BATCHES, jc.Combined(ON_W, ON_B), **run)
    same(apart.params, both.params)
    assert jnp.count_nonzero(apart.params["w"]) == 12 and jnp.count_nonzero(apart.params["b"]) == 2


class Listener(jc.Solver):
    """Doubles the loss, and keeps what a round tells of it."""

    spec: dict = {}  # noqa: RUF012

    def init(self, params):
        return jnp.zeros(4)

    def objective(self, state, losses, params):
        return 2 * jnp.mean(losses)

    def coordinate(self, state, round, params):
        return jnp.stack([round.first, round.last, round.mean, round.ask(params)])


LISTENER = jax.tree_util.register_static(Listener)()


def test_a_solver_hears_of_the_objective_before_it():
    minmax = jc.MinMax(4, gamma=2.0, rate=0.0)
    solved = jc.solve(errors, PARAMS, BATCHES, jc.Combined(minmax, LISTENER, LISTENER), optimizer=optax.sgd(0.0),
                      rounds=1, steps=3)  # fmt: skip
    losses = [np.mean(errors(PARAMS, jax.tree.map(lambda x, i=i: x[i], BATCHES))) for i in range(3)]
    expected = np.array([losses[0], losses[2], np.mean(losses), losses[0]])
    np.testing.assert_allclose(solved.state[1], expected, rtol=1e-5)
    np.testing.assert_allclose(solved.state[2], 2 * expected, rtol=1e-5)


def test_without_a_loss_to_ask_there_is_none_for_any():
    solver = jc.Combined(ON_B, jc.ADMM(ON_W.spec, rho=0.1), LISTENER)
    tx = jc.as_transformation(solver, 1)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="asks for the loss and was given none"):
        tx.update(PARAMS, tx.update(PARAMS, state, PARAMS, value=1.0)[1], PARAMS, value=1.0)


def test_specs_are_joined():
    assert list(jc.Combined(ON_W, jc.MinMax(2, 1.0, 1.0), ON_B).spec) == ["w", "b"]


TWICE = {
    "one path": (ON_W, jc.ADMM({"w": jc.Sparse(0.1)}), "leaf 'w' is constrained by .'ADMM', 'ADMM'.: name it in one"),
    "a leaf of a group": (
        jc.ADMM({"b & w": jc.Together(jc.Sparse(0.5))}),
        jc.MinMax(2, 1.0, 1.0, {"b": jc.Sparse(0.5)}),
        "leaf 'b' is constrained by .'ADMM', 'MinMax'.",
    ),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_leaf_that_two_claim_is_an_error(case):
    *solvers, message = TWICE[case]
    with pytest.raises(ValueError, match=message):
        jc.solve(regression, PARAMS, BATCHES, jc.Combined(*solvers), optimizer=SGD, rounds=1, steps=1)


def test_what_they_say_does_not_collide():
    solver = jc.Combined(jc.MinMax(4, 1.0, 0.1), ON_W, ON_B)
    said = solver.monitor(solver.init(PARAMS))
    assert set(said) == {
        *("worst", "heaviest", "entropy", "diverged", "converged"),
        *(f"{name}_{place}" for name in ("primal", "dual", "rho") for place in (1, 2)),
    }


class Saying(Listener):
    def __init__(self, **verdicts):
        self.verdicts = verdicts

    def monitor(self, state):
        return {name: jnp.array(value) for name, value in self.verdicts.items()}


@pytest.mark.parametrize(
    ("first", "second", "verdicts"),
    [
        ({"converged": True}, {"converged": False}, {"converged": False}),
        ({"converged": True}, {}, {"converged": True}),
        ({"diverged": True}, {"diverged": False, "converged": True}, {"diverged": True, "converged": True}),
        ({}, {}, {}),
    ],
)
def test_all_must_converge_and_one_may_diverge(first, second, verdicts):
    said = jc.Combined(Saying(**first), Saying(**second)).monitor((None, None))
    assert {name: bool(value) for name, value in said.items()} == verdicts


@pytest.mark.parametrize(
    ("loss", "solver"),
    [(errors, jc.Combined(jc.MinMax(4, 0.5, 0.1, sequential=False), ON_W)), (regression, jc.Combined(ON_W, ON_B))],
    ids=["weighing", "additive"],
)
@pytest.mark.slow
def test_a_transformation_takes_the_steps_of_solve(loss, solver):
    tx = optax.chain(jc.as_transformation(solver, 3), optax.adam(3e-2))

    def step(carry, batch):
        params, state = carry
        value, gradient = jax.value_and_grad(lambda p: jnp.mean(loss(p, batch)))(params)
        updates, state = tx.update(gradient, state, params, value=value, value_fn=lambda p: loss(p, batch))
        return (optax.apply_updates(params, updates), state), params

    # It coordinates before the step that follows: one step more, and its state is that of solve.
    more = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), BATCHES)
    (_, (state, *_)), before = jax.jit(lambda start: jax.lax.scan(step, start, more))((PARAMS, tx.init(PARAMS)))
    solved = jc.solve(loss, PARAMS, BATCHES, solver, optimizer=optax.adam(3e-2), rounds=4, steps=3)
    same(solver.land(state.solver, jax.tree.map(lambda x: x[-1], before)), solved.params, rtol=1e-3)
    same(state.solver, solved.state, rtol=1e-3, atol=1e-5)


def game(point, batch):
    """The regression, with an opponent that shifts the outputs at a price."""
    params, shift = point
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + (params["b"] + shift)[None] - batch["y"])) - 2 * shift @ shift


@pytest.mark.slow
def test_an_opponent_and_pruning_in_one_run():
    """The two do not know of each other: in either order the steps are the same."""
    opponent = jc.Adversary(jnp.zeros(4), rate=0.1, turns=2)
    run = dict(optimizer=SGD, rounds=4, steps=3)
    first, second = (
        jc.solve(game, PARAMS, BATCHES, jc.Combined(*order), **run) for order in ((opponent, ON_W), (ON_W, opponent))
    )
    same(first.params, second.params)
    assert jnp.count_nonzero(first.params["w"]) == 12 and jnp.any(first.state[0].player.value != 0)
    assert first.history["reached"][-1] != second.history["reached"][-1]  # one is told of the loss, one of more


def test_two_opponents_are_an_error():
    solver = jc.Combined(jc.Adversary(jnp.zeros(4)), jc.Adversary(jnp.zeros(4)))
    with pytest.raises(ValueError, match="2 solvers bring an opponent and the loss takes one"):
        jc.solve(game, PARAMS, BATCHES, solver, optimizer=SGD, rounds=1, steps=1)


def test_what_weighs_the_losses_must_come_first():
    with pytest.raises(ValueError, match=r"found \(\): let the loss .* put MinMax first"):
        jc.solve(errors, PARAMS, BATCHES, jc.Combined(ON_W, jc.MinMax(4, 1.0, 0.1)), optimizer=SGD, rounds=1, steps=1)


def test_a_budget_on_a_cost_and_a_set_in_one_run():
    """Half of the weights, whose sum of squares is 1: those of the projection, scaled."""
    params, a = {"w": jnp.array([3.0, -1.0, 0.5, -4.0])}, jnp.array([3.0, -1.0, 0.5, -4.0])
    size = jc.Lagrangian(lambda params: jnp.sum(jnp.square(params["w"])), 1.0, rate=0.02, restarts=False)
    solved = jc.solve(
        lambda params, a: 0.5 * jnp.sum(jnp.square(params["w"] - a)),
        params,
        a[None],
        jc.Combined(size, jc.ADMM({"w": jc.Sparse(0.5)}, rho=4.0)),
        optimizer=optax.sgd(0.05),
        rounds=400,
        steps=10,
    )
    np.testing.assert_allclose(solved.params["w"], [0.6, 0, 0, -0.8], atol=2e-3)
    np.testing.assert_allclose(solved.state[0].multipliers.value, 2, atol=2e-2)  # 2 lambda + 1 = 5


def test_it_prints_what_it_holds():
    assert repr(jc.Combined(ON_W, LISTENER)).startswith("Combined(ADMM(spec={'w': Sparse(density=0.5")


@pytest.mark.slow
def test_it_keeps_the_contract():
    budget = jc.Lagrangian(lambda p: jnp.sum(jnp.square(p["b"])), 1.0, 0.1)
    check_solver(jc.Combined(jc.MinMax(4, 0.5, 0.1), budget, ON_B), PARAMS, errors, BATCH)
