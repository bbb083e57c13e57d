"""A solver as an optax transformation, feasible training, and the protocol, in the loops that people write."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxcomp as jc
from tests.problems import regression, regression_problem

PARAMS, BATCHES = regression_problem(batches=12)
SPEC = jc.assign(PARAMS, {"w": jc.Sparse(0.25)})
PRUNED = jc.project(SPEC, PARAMS)
ADMM = jc.ADMM(SPEC, rho=0.3, growth=1.2)
OPTIMIZERS = {"adam": optax.adam(3e-2), "momentum": optax.sgd(1e-2, momentum=0.9)}


def train(tx, params=PARAMS, steps=12):
    """A plain loop, compiled once: the parameters and the state of the transformation."""

    @jax.jit
    def step(carry, batch):
        params, state = carry
        value, gradient = jax.value_and_grad(regression)(params, batch)
        updates, state = tx.update(gradient, state, params, value=value, unexpected_argument_of_another_part=1)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, tx.init(params)), jax.tree.map(lambda x: x[:steps], BATCHES))[0]


def solved(optimizer, rounds, steps):
    return jc.solve(regression, PARAMS, BATCHES, ADMM, optimizer=optimizer, rounds=rounds, steps=steps)


@pytest.mark.parametrize(("optimizer", "period"), [("adam", 3), ("momentum", 1)])
@pytest.mark.slow
def test_a_transformation_takes_the_steps_of_solve(optimizer, period):
    optimizer = OPTIMIZERS[optimizer]
    tx = optax.with_extra_args_support(optax.chain(jc.as_transformation(ADMM, period), optimizer))
    # It coordinates before the step that follows, so one step into the next round its state is that of the last.
    params, _ = train(tx, steps=12)
    _, (state, *_) = train(tx, steps=10)
    reference = solved(optimizer, 12 // period, period)
    landed = ADMM.land(None, params)
    np.testing.assert_allclose(landed["w"], reference.params["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(landed["w"] == 0, reference.params["w"] == 0)
    np.testing.assert_allclose(landed["b"], reference.params["b"], rtol=1e-4, atol=1e-6)
    before = solved(optimizer, 9 // period, period).state
    for ours, theirs in zip(*map(jax.tree.leaves, (state.solver, before)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


class Recorder(jc.Solver):
    """A solver that keeps what a round tells it."""

    spec = SPEC

    def init(self, params):
        return jnp.zeros(3)

    def objective(self, state, losses, params):
        return jnp.mean(losses)

    def coordinate(self, state, round, params):
        return jnp.stack([round.first, round.last, round.mean])


def test_the_value_of_the_loss_reaches_the_solver():
    tx = jc.as_transformation(Recorder(), period=3)
    state = tx.init(PARAMS)
    for value in (5.0, 3.0, 1.0, 9.0):
        _, state = tx.update(PARAMS, state, PARAMS, value=value)
    np.testing.assert_array_equal(state.solver, [5, 1, 3])
    assert (state.taken, state.first, state.last) == (4, 9, 9)


def test_without_a_value_a_solver_learns_that_there_is_none():
    tx = jc.as_transformation(Recorder(), period=1)
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = tx.update(PARAMS, state, PARAMS)
    assert jnp.all(jnp.isnan(state.solver))


def test_a_round_in_solve_has_its_losses_and_a_loss_to_ask():
    class Asking(Recorder):
        def coordinate(self, state, round, params):
            return jnp.stack([round.first, round.mean, round.loss(params)])

    # With a learning rate of zero every loss is that of the start on its batch.
    solution = jc.solve(regression, PARAMS, BATCHES, _pytree(Asking), optimizer=optax.sgd(0.0), rounds=2, steps=3)
    losses = [regression(PARAMS, jax.tree.map(lambda x, i=i: x[i], BATCHES)) for i in range(3, 6)]
    np.testing.assert_allclose(solution.state, [losses[0], np.mean(losses), losses[0]], rtol=1e-5)


def _pytree(kind):
    """An instance of a class without fields, registered."""
    return jax.tree_util.register_static(kind)()


@pytest.mark.parametrize(
    "wrap",
    [lambda tx: tx, lambda tx: optax.MultiSteps(tx, every_k_schedule=2), lambda tx: optax.chain(optax.clip(1e6), tx)],
    ids=["alone", "MultiSteps", "chain"],
)
def test_a_transformation_works_within_others(wrap):
    tx = wrap(optax.chain(jc.as_transformation(ADMM, 2), optax.adam(1e-2)))
    params, _ = train(tx, steps=4)
    assert jnp.all(jnp.isfinite(params["w"])) and jnp.any(params["w"] != PARAMS["w"])


def test_optax_can_map_over_the_parameters_in_the_state():
    tx = optax.chain(jc.as_transformation(ADMM, 2), optax.adam(1e-2), jc.retract(SPEC))
    state = tx.init(PARAMS)
    first, adam, *_ = optax.tree.map_params(tx, lambda x: x + 7, state)
    assert jnp.all(adam[0].mu["w"] == 7) and adam[0].count == 0
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first.solver, state[0].solver))


def test_state_keeps_its_shapes_and_dtypes():
    tx = jc.as_transformation(ADMM, 2)
    state = tx.init(PARAMS)
    assert jax.eval_shape(lambda: tx.update(PARAMS, state, PARAMS, value=1.0)[1]) == jax.eval_shape(lambda: state)


def test_gradients_keep_their_dtype():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    tx = jc.as_transformation(ADMM, 2)
    updates, _ = tx.update(narrow, tx.init(narrow), narrow)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("period", [0, -1])
def test_a_period_below_one_step_is_an_error(period):
    with pytest.raises(ValueError, match="period must be a whole number of steps, at least 1"):
        jc.as_transformation(ADMM, period)


def test_an_optimiser_may_be_given_instead_of_following():
    chained = optax.chain(jc.as_transformation(ADMM, 3), OPTIMIZERS["adam"])
    within = jc.as_transformation(ADMM, 3, OPTIMIZERS["adam"])
    for ours, theirs in zip(*(jax.tree.leaves(train(tx)[0]) for tx in (within, chained)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_optimiser_within_is_told_of_the_loss():
    told = {}

    def update(updates, state, params, **extra):
        told.update(extra)
        return updates, state

    listens = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = jc.as_transformation(ADMM, 1, listens)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0, step=7)
    assert told == {"value": 3.0, "value_fn": None, "step": 7}


class Comparing(Recorder):
    """A solver that asks for the loss of the parameters and of others."""

    def coordinate(self, state, round, params):
        return jnp.stack([round.loss(params), round.loss(PARAMS), round.mean])


def test_a_loss_to_ask_reaches_the_solver():
    tx = jc.as_transformation(Comparing(), period=2)
    state = tx.init(PARAMS)
    half = jax.tree.map(lambda x: x / 2, PARAMS)
    for _ in range(3):
        _, state = tx.update(PARAMS, state, half, value=1.0, value_fn=lambda p: jnp.sum(p["b"]))
    np.testing.assert_allclose(state.solver, [2, 4, 1])


@pytest.mark.parametrize(
    "tx",
    [jc.as_transformation(ADMM, 1), jc.retract(SPEC), jc.confine(SPEC)],
    ids=["as_transformation", "retract", "confine"],
)
def test_forgetting_the_parameters_is_an_error(tx):
    with pytest.raises(ValueError, match=r"needs the parameters: call tx.update\(updates, state, params\)"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_a_spec_for_another_tree_is_an_error_at_init():
    with pytest.raises(ValueError, match=r"no leaf at \['w'\] in this tree"):
        jc.as_transformation(ADMM, 1).init({"v": PARAMS["w"]})


SETS = {
    "sparse": jc.Sparse(0.25),
    "sparse blocks": jc.Sparse(0.5, jc.block_columns(2, 3)),
    "one sign": jc.Polarized(jc.fragments(3)),
    "tied": jc.Tied(jc.diagonals(2)),
    "tied magnitudes": jc.Tied(jc.outputs(), signs="free"),
    "binary": jc.Quantized(jc.Binary()),
    "four bits": jc.Quantized(jc.Uniform(4), jc.outputs()),
    "sparse then ternary": jc.Chain(jc.Sparse(0.5), jc.Quantized(jc.Ternary())),
    "one sign then sparse": jc.Chain(jc.Polarized(jc.fragments(3)), jc.Sparse(0.5, jc.fragments(3))),
    "mask": jc.FixedMask(np.arange(24).reshape(6, 4) % 3 == 0),
}


@pytest.mark.parametrize("name", SETS)
def test_retract_keeps_parameters_feasible_at_every_step(name):
    """Under momentum and weight decay, which go on moving a weight whose gradient is zero."""
    spec = {"w": SETS[name]}
    tx = optax.chain(optax.adamw(5e-2, weight_decay=0.1), jc.retract(spec))
    start = jc.project(spec, PARAMS)

    @jax.jit
    def run(params):
        def step(carry, i):
            params, state = carry
            gradient = jax.grad(regression)(params, jax.tree.map(lambda x: x[i % 12], BATCHES))
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params["w"], jc.violation(spec, params)["w"])

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(20))[1]

    weights, distances = run(start)
    np.testing.assert_allclose(distances, 0, atol=1e-5)
    assert not jnp.array_equal(weights[-1], start["w"])
    if "one sign" not in name:  # which lets a weight stop at zero, and leave it
        np.testing.assert_array_equal(weights == 0, np.broadcast_to(start["w"] == 0, weights.shape))


def test_confine_is_projected_gradient_descent():
    """From outside the set, with steps that change the support; the leaves without a constraint move freely."""
    spec, rate = {"w": jc.Sparse(0.25)}, 0.5
    tx = optax.chain(optax.sgd(rate), jc.confine(spec))
    params, reference = PARAMS, PARAMS
    supports = []
    for i in range(5):
        gradient = jax.grad(regression)(params, jax.tree.map(lambda x, i=i: x[i], BATCHES))
        params = optax.apply_updates(params, tx.update(gradient, tx.init(params), params)[0])
        reference = jc.project(spec, jax.tree.map(lambda x, g: x - rate * g, reference, gradient))
        supports.append(np.asarray(params["w"] != 0))
        np.testing.assert_allclose(params["w"], reference["w"], atol=1e-6)
        np.testing.assert_allclose(params["b"], reference["b"], atol=1e-6)
    assert all(support.sum() == 6 for support in supports) and (supports[0] != supports[-1]).any()


def test_masking_gradients_alone_would_not_do():
    """Why `retract` comes last: before the optimiser it lets momentum carry pruned weights away."""
    momentum = OPTIMIZERS["momentum"]
    mid_run = train(momentum, steps=3)
    pruned = jc.project(SPEC, mid_run[0])
    kept = {}
    for name, tx in {
        "first": optax.chain(jc.retract(SPEC), momentum),
        "last": optax.chain(momentum, jc.retract(SPEC)),
    }.items():
        state = (optax.EmptyState(), mid_run[1]) if name == "first" else (mid_run[1], optax.EmptyState())
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, pruned), state, pruned)
        kept[name] = jnp.count_nonzero(optax.apply_updates(pruned, updates)["w"])
    assert kept["last"] == 6 < kept["first"]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="fc")(x)


def loop_plain(tx, steps):
    return train(tx, PRUNED, steps)[0]["w"]


def loop_linen(tx, steps):
    params = {"fc": {"kernel": PRUNED["w"], "bias": PRUNED["b"]}}
    state = TrainState.create(apply_fn=Layer().apply, params=params, tx=tx)

    @jax.jit
    def step(state, batch):
        def loss(params):
            return jnp.mean(jnp.square(state.apply_fn({"params": params}, batch["x"]) - batch["y"]))

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for i in range(steps):
        state = step(state, jax.tree.map(lambda x, i=i: x[i], BATCHES))
    return state.params["fc"]["kernel"]


class NnxLayer(nnx.Module):
    def __init__(self):
        self.fc = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        self.fc.kernel[...], self.fc.bias[...] = PRUNED["w"], PRUNED["b"]

    def __call__(self, x):
        return self.fc(x)


def loop_nnx(tx, steps):
    model = NnxLayer()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        def loss(model):
            return jnp.mean(jnp.square(model(batch["x"]) - batch["y"]))

        optimizer.update(model, nnx.grad(loss)(model))

    for i in range(steps):
        step(model, optimizer, jax.tree.map(lambda x, i=i: x[i], BATCHES))
    return model.fc.kernel[...]


class EquinoxLayer(eqx.Module):
    fc: dict
    activation: object = jax.nn.relu  # a leaf that is no array

    def __call__(self, x):
        return x @ self.fc["kernel"] + self.fc["bias"][None]


def loop_equinox(tx, steps):
    params, static = eqx.partition(EquinoxLayer({"kernel": PRUNED["w"], "bias": PRUNED["b"]}), eqx.is_inexact_array)
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            return jnp.mean(jnp.square(eqx.combine(params, static)(batch["x"]) - batch["y"]))

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return eqx.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, jax.tree.map(lambda x, i=i: x[i], BATCHES))
    return params.fc["kernel"]


def penalised(path):
    return optax.chain(jc.as_transformation(jc.ADMM({path: jc.Sparse(0.25)}, rho=0.3), 2), OPTIMIZERS["adam"])


def stepped(path):
    lasso = jc.Reweighted({path: jc.Sparse(1.0)}, strength=1e-3, decoupled=True)
    return jc.as_transformation(lasso, 2, OPTIMIZERS["adam"])


def retracted(path):
    return optax.chain(OPTIMIZERS["adam"], jc.retract({path: jc.Sparse(0.25)}))


@pytest.mark.parametrize("loop", [loop_linen, loop_nnx, loop_equinox])
@pytest.mark.slow
def test_every_framework_takes_the_same_steps(loop):
    for chain in (penalised, stepped, retracted):
        found, plain = loop(chain("fc/kernel"), 5), loop_plain(chain("w"), 5)
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-6)
    assert jnp.count_nonzero(found) == 6


@pytest.mark.parametrize("method", ["init", "objective", "coordinate"])
def test_a_solver_without_a_method_says_which(method):
    arguments = {"init": [None], "objective": [None] * 3, "coordinate": [None] * 3}[method]
    with pytest.raises(NotImplementedError, match=rf"Solver must define {method}\("):
        getattr(jc.Solver(), method)(*arguments)


def test_a_solver_lands_by_projection_unless_it_says_otherwise():
    landed = Recorder().land(None, PARAMS)
    np.testing.assert_array_equal(landed["w"], SPEC["w"].project(PARAMS["w"]))
    assert Recorder().monitor(None) == {}
