"""A slower rhythm: many short rounds are one long one to the solver within."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp.testing import check_solver
from tests.problems import regression, regression_problem

SGD = optax.sgd(0.05)
PARAMS, BATCHES = regression_problem(batches=12)
ADMM = jc.ADMM({"w": jc.Sparse(0.5)}, rho=0.3, growth=1.5)


def errors(params, batch):
    """The mean squared error of every output: four risks."""
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + params["b"][None] - batch["y"]), axis=0)


def same(ours, theirs):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rounds", "steps"), [(3, 2), (1, 6)])
def test_short_rounds_are_long_ones_to_the_solver(rounds, steps):
    slow = jc.solve(regression, PARAMS, BATCHES, jc.Every(rounds, ADMM), optimizer=SGD, rounds=2 * rounds, steps=steps)
    plain = jc.solve(regression, PARAMS, BATCHES, ADMM, optimizer=SGD, rounds=2, steps=6)
    same((slow.params, slow.state.inner), (plain.params, plain.state))


@jax.tree_util.register_static
class Listener(jc.Solver):
    """Keeps what a round tells it."""

    spec: dict = {}  # noqa: RUF012

    def init(self, params):
        return jnp.zeros((3, 4))

    def objective(self, state, losses, params):
        return jnp.mean(losses)

    def coordinate(self, state, round, params):
        return jnp.stack([jnp.broadcast_to(x, 4) for x in (round.first, round.last, round.mean)])


@jax.tree_util.register_static
class ListenerOfRisks(Listener):
    risks = 4


@pytest.mark.parametrize(("loss", "kind"), [(regression, Listener), (errors, Listener), (errors, ListenerOfRisks)])
def test_what_it_is_told_is_of_all_its_rounds(loss, kind):
    solver = jc.Every(3, kind())
    solved = jc.solve(loss, PARAMS, BATCHES, solver, optimizer=optax.sgd(0.0), rounds=7, steps=2)
    losses = np.stack([loss(PARAMS, jax.tree.map(lambda x, i=i: x[i % 12], BATCHES)) for i in range(12)])
    expected = np.stack([losses[6], losses[11], losses[6:].mean(0)])
    if kind is Listener:  # which takes the mean of all risks
        expected = np.broadcast_to(expected.reshape(3, -1).mean(1, keepdims=True), (3, 4))
    np.testing.assert_allclose(solved.state.inner, expected, rtol=1e-5)


def test_min_max_at_every_step_and_projections_now_and_then():
    solver = jc.Combined(jc.MinMax(4, 0.5, 0.1), jc.Every(4, ADMM))
    solved = jc.solve(errors, PARAMS, BATCHES, solver, optimizer=SGD, rounds=12, steps=1)
    np.testing.assert_allclose(solved.history["rho"], 0.3 * 1.5 ** (np.arange(1, 13) // 4), rtol=1e-5)
    assert len(np.unique(solved.history["heaviest"])) == 12 and jnp.count_nonzero(solved.params["w"]) == 12


@pytest.mark.slow
def test_it_keeps_the_contract():
    check_solver(jc.Every(2, jc.MinMax(4, 0.5, 0.1)), PARAMS, errors, jax.tree.map(lambda x: x[0], BATCHES))
