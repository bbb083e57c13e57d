"""Dynamic regularisation: what a set keeps is free, what it would change is counted and goes, known optima are met."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp import DynamicRegularization
from tests.problems import quadratic, quadratic_batches, regression, regression_problem

OI = jc.Layout("oi")
SGD = optax.sgd(0.2)
CHAIN = jc.Chain(jc.Sparse(0.5), jc.Quantized(jc.Binary()))


def run(a, constraint, h=1.0, start=None, *, optimizer=SGD, rounds=60, steps=20, retrain=0, **numbers):
    """The solution of the quadratic with minimum ``a`` and curvature ``h``; the rate bounds ``strength / epsilon``."""
    solver = DynamicRegularization({"w": constraint}, **{"strength": 1e-2, "epsilon": 1e-2, **numbers})
    params = {"w": jnp.asarray(a if start is None else start, jnp.float32)}
    batches = quadratic_batches(a, h)
    return jc.solve(quadratic, params, batches, solver, optimizer=optimizer, rounds=rounds, steps=steps,
                    retrain=retrain)  # fmt: skip


# A set, a minimum a and curvature h, and the best member, where the support or sign that the start has is best
OPTIMA = {
    "2 of 4 weights": (jc.Sparse(0.5), [1.1, -1.0, 0.4, 0.3], [0.5, 1, 1, 0.1], [1.1, -1.0, 0, 0]),
    "1 of 2 columns": (
        jc.Sparse(0.5, jc.inputs(layout=OI)),
        [[1.0, 0.5], [1.0, -0.5]],
        [[1, 0.5], [0.2, 1]],
        [[1, 0], [1, 0]],
    ),
    "one sign": (jc.Polarized(jc.whole(layout=OI)), [[1.0, 1.0, -0.3, 1.0]], [[1, 0.5, 1, 1]], [[1, 1, 0, 1]]),
    "one value": (jc.Tied(jc.whole()), [1.0, 2.0, 4.0], [1, 2, 0.5], [2, 2, 2]),
    "one magnitude": (jc.Quantized(jc.Binary()), [1.0, -2.0, 4.0], [1, 2, 0.5], [2, -2, 2]),
    "half, one magnitude": (CHAIN, [1.0, 0.2, -2.0, -0.2], [2, 1, 1, 1], [4 / 3, 0, -4 / 3, 0]),
}


@pytest.mark.parametrize(("case", "squared"), [*((case, True) for case in OPTIMA), ("half, one magnitude", False)])
def test_the_best_member_is_reached(case, squared):
    constraint, a, h, best = OPTIMA[case]
    found = run(a, constraint, h, retrain=5, squared=squared)
    np.testing.assert_allclose(found.params["w"], best, atol=2e-3)


@pytest.mark.parametrize("case", ["one sign", "one value"])
def test_the_set_is_reached_before_landing(case):
    constraint, a, h, _ = OPTIMA[case]
    history = run(a, constraint, h, strength=2.0, epsilon=0.1, optimizer=optax.sgd(0.01), steps=50).history
    assert history["primal"][-1] < 0.05 * constraint.violation(jnp.asarray(a, jnp.float32))
    assert history["outside"][-1] < 0.1


@pytest.mark.slow
def test_the_penalty_counts_the_weights_outside_the_set():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)))
    for constraint, outside in ((jc.Sparse(0.25), 72), (jc.Tied(jc.outputs()), 96)):
        solver = DynamicRegularization({"w": constraint}, strength=2.0, epsilon=1e-9)
        state = jax.jit(solver.init)({"w": w})
        np.testing.assert_allclose(state.count, outside, rtol=1e-3)
        np.testing.assert_allclose(solver.objective(state, jnp.zeros(()), {"w": w}), 2 * outside, rtol=1e-3)


def test_groups_are_counted_instead_of_weights():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)))
    grouped = DynamicRegularization({"w": jc.Sparse(0.25, jc.outputs())}, 1.0, epsilon=1e-9, grouped=True)
    np.testing.assert_allclose(jax.jit(grouped.init)({"w": w}).count, 9, rtol=1e-4)


KEPT = {
    "surviving weights": (jc.Sparse(0.5), [3.0, 0.1, -2.0, 0.2], [1.0, 0.0, -1.0, 0.0]),
    "weights of the right sign": (jc.Polarized(jc.whole()), [3.0, -0.1, 2.0, 1.0], [1.0, 0.0, 1.0, 0.5]),
    "the mean of tied weights": (jc.Tied(jc.whole()), [1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]),
    "the scale of levels": (jc.Quantized(jc.Binary()), [1.0, -1.0, 1.0, -1.0], [0.5, -0.5, 0.5, -0.5]),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_the_set_keeps_is_not_pushed_wherever_it_moves(case):
    constraint, w, move = KEPT[case]
    solver = DynamicRegularization({"w": constraint}, strength=1.0)
    state = jax.jit(solver.init)({"w": jnp.array(w)})
    penalty = jax.jit(jax.value_and_grad(lambda x: solver.objective(state, jnp.zeros(()), {"w": x})))
    (before, _), (after, gradient) = penalty(jnp.array(w)), penalty(jnp.array(w) + jnp.array(move))
    np.testing.assert_allclose(after, before, atol=1e-4)
    np.testing.assert_allclose(jnp.where(jnp.array(move) != 0, gradient, 0), 0, atol=1e-4)


def test_a_weight_that_is_gone_is_held_where_it_is():
    solver = DynamicRegularization({"w": jc.Sparse(0.5)}, strength=1.0, epsilon=1e-4)
    state = jax.jit(solver.init)({"w": jnp.array([3.0, 0.0])})
    gradient = jax.jit(jax.grad(lambda x: solver.objective(state, jnp.zeros(()), {"w": x})))(jnp.array([3.0, 1e-3]))
    np.testing.assert_allclose(gradient, [0, 2 * 1e-3 / 1e-4], rtol=1e-4)


def test_the_set_follows_the_weights_while_the_penalty_is_weak():
    """The start keeps weight 0, which falls behind weight 2 as it trains."""
    found = run([0.7, 1.0, 0.95, 0.1], jc.Sparse(0.5), start=[1.2, 1.0, 0.95, 0.1], strength=2e-2)
    np.testing.assert_allclose(found.params["w"], [0, 1, 0.95, 0], atol=1e-3)


def test_the_proximal_step_reaches_the_set_exactly_and_leaves_survivors_alone():
    solver = DynamicRegularization({"w": jc.Sparse(0.5)}, strength=0.1, epsilon=1e-3, squared=False, decoupled=True)
    params = {"w": jnp.array([3.0, 0.2, -2.0, 1.0])}
    moved = solver.prox(solver.init(params), params)["w"]
    np.testing.assert_allclose(moved, [3, 0, -2, 1 - 0.1 / 1.001], rtol=1e-6)
    tied = DynamicRegularization({"w": jc.Tied(jc.whole())}, 10.0, squared=False, decoupled=True)
    np.testing.assert_allclose(tied.prox(tied.init(params), params)["w"], [0.55] * 4, rtol=1e-6)


@pytest.mark.slow
def test_both_forms_take_the_same_steps():
    params, batches = regression_problem()
    spec = {"w": jc.Chain(jc.Sparse(0.5), jc.Quantized(jc.Binary()))}
    solver = DynamicRegularization(spec, strength=1e-3, epsilon=1e-2)
    solved = jc.solve(regression, params, batches, solver, optimizer=optax.sgd(0.02), rounds=3, steps=4)
    tx = optax.chain(jc.as_transformation(solver, period=4), optax.sgd(0.02))
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        updates, state = tx.update(jax.grad(regression)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(12):
        params, state = step(params, state, jax.tree.map(lambda x, i=i: x[i % 3], batches))
    landed = solver.land(state[0].solver, params)
    for path in params:
        np.testing.assert_allclose(landed[path], solved.params[path], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_one_program_for_many_strengths():
    params, batches = regression_problem()
    solver = DynamicRegularization({"w": jc.Sparse(0.5)}, strength=1.0, epsilon=1e-2)
    strengths = jnp.array([1e-4, 1e-3, 5e-3])

    def one(strength):
        varied = dataclasses.replace(solver, strength=strength)
        return jc.solve(regression, params, batches, varied, optimizer=SGD, rounds=3, steps=4).state.distance

    mapped = jax.vmap(one)(strengths)
    np.testing.assert_allclose(mapped, [one(s) for s in strengths], rtol=1e-5)
    assert mapped[0] > mapped[-1]


def test_a_set_without_a_view_cannot_be_grouped():
    solver = DynamicRegularization({"w": jc.LowRank(1)}, 1.0, grouped=True)
    with pytest.raises(ValueError, match=r"^'w' is under .*LowRank.*, which has no view"):
        solver.init({"w": jnp.ones((2, 2))})


def test_proximal_steps_take_it_to_the_set_under_adam():
    a = jnp.array([1.0, -0.8, 0.3, 0.2])
    solver = DynamicRegularization({"w": jc.Sparse(0.5)}, strength=1e-3, epsilon=1e-3, squared=False, decoupled=True)
    adam, batches = optax.adam(1e-3), quadratic_batches(a, 1e-4)
    found = jc.solve(quadratic, {"w": a}, batches, solver, optimizer=adam, rounds=20, steps=50)
    assert found.history["primal"][-1] == 0
    np.testing.assert_allclose(found.params["w"], [1, -0.8, 0, 0], atol=1e-3)
