"""Gradients exchanged as members of a set: what is sent, what is kept back, and where descent on it arrives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from tests.problems import PYTREES, regression, regression_problem

PARAMS, BATCHES = regression_problem(batches=12)
SPEC = {"w": jc.Sparse(0.25)}
STEPS = 12


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def run(tx, gradients):
    """The updates on a sequence of gradients ``{path: [steps, ...]}``, and the states after every step."""

    def step(state, gradient):
        update, state = tx.update(gradient, state)
        return state, (update, state)

    return jax.jit(lambda g: jax.lax.scan(step, tx.init(at(g, 0)), g)[1])(gradients)


def at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def update(tx, gradient, state):
    return jax.jit(tx.update)(gradient, state)


GRADIENTS = {"w": noise(STEPS, 6, 4), "b": noise(STEPS, 4, seed=1)}


@pytest.mark.parametrize("nesterov", [False, True])
def test_at_full_density_and_without_masking_it_is_momentum_descent(nesterov):
    ours = optax.chain(jc.exchange({"w": jc.Sparse(1.0)}, nesterov=nesterov, mask_below=0), optax.sgd(0.1))
    theirs = optax.sgd(0.1, momentum=0.9, nesterov=nesterov)
    for found, expected in zip(*(jax.tree.leaves(run(tx, GRADIENTS)[0]) for tx in (ours, theirs)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_masking_at_full_density_leaves_no_momentum():
    """Why `mask_below` is small by default: here nothing is stale, and momentum would be lost in every step."""
    found = {
        below: run(jc.exchange({"w": jc.Sparse(1.0)}, mask_below=below), GRADIENTS)[0]["w"] for below in (0.05, 2.0)
    }
    np.testing.assert_array_equal(found[2.0], GRADIENTS["w"])
    assert jnp.linalg.norm(found[0.05]) > 1.2 * jnp.linalg.norm(GRADIENTS["w"])


SETS = {
    "one in twenty-four": jc.Sparse(1 / 24),
    "a quarter": jc.Sparse(0.25),
    "binary": jc.Quantized(jc.Binary()),
    "sparse and ternary": jc.Chain(jc.Sparse(0.5), jc.Quantized(jc.Ternary())),
    "rank one": jc.LowRank(1),
}


@pytest.mark.parametrize(
    ("name", "nesterov", "mask_below"),
    [
        ("one in twenty-four", False, 0.0),
        ("one in twenty-four", False, 0.05),
        ("one in twenty-four", True, 0.05),
        ("a quarter", False, 0.05),
        ("a quarter", True, 2.0),
        ("binary", False, 2.0),
        ("sparse and ternary", True, 0.0),
        ("rank one", False, 0.05),
    ],
)
def test_what_is_not_sent_is_kept(name, nesterov, mask_below):
    """Sent in all, plus the residual, is the sum of the velocities, by whatever rule those went."""
    tx = jc.exchange({"w": SETS[name]}, nesterov=nesterov, mask_below=mask_below)
    updates, states = run(tx, GRADIENTS)
    u = np.zeros((6, 4))
    pushed = np.zeros((6, 4))
    for i, g in enumerate(np.asarray(GRADIENTS["w"], np.float64)):
        u = 0.9 * (u + g) if nesterov else 0.9 * u + g
        pushed += u + g if nesterov else u
        sent = np.asarray(updates["w"][i])
        np.testing.assert_allclose(np.sum(updates["w"][: i + 1], 0) + states.residual["w"][i], pushed, atol=2e-5)
        if np.mean(sent != 0) < mask_below:
            u = np.where(sent != 0, 0, u)
        np.testing.assert_allclose(states.velocity["w"][i], u, atol=1e-5)
    assert jnp.max(jax.vmap(SETS[name].violation)(updates["w"])) < 1e-5


def test_a_message_holds_exactly_as_many_values_as_its_density_says():
    """Also where all entries tie, and none where there is nothing to say."""
    tied = {"w": jnp.ones((STEPS, 6, 4)) * jnp.where(jnp.arange(STEPS) < 4, 0.0, 1.0)[:, None, None]}
    sent = np.count_nonzero(run(jc.exchange({"w": jc.Sparse(0.25)}), tied)[0]["w"], axis=(1, 2))
    assert sent.tolist() == [0] * 4 + [6] * 8


def train(tx, loss, params, batches, steps, rate):
    """Descent by N workers, whose batches ``[N, ...]`` stay the same: the parameters after all steps."""
    workers = jax.tree.leaves(batches)[0].shape[0]

    def step(carry, _):
        params, states = carry

        def worker(state, batch):
            return tx.update(jax.grad(loss)(params, batch), state)

        mean, states = jax.vmap(worker, axis_name="workers", out_axes=(None, 0))(states, batches)
        return (jax.tree.map(lambda x, g: x - rate * g, params, mean), states), None

    states = jax.vmap(lambda _: tx.init(params))(jnp.arange(workers))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps)[0][0])((params, states))


# Workers that disagree: each pulls the first weight hard its own way, so that it is the largest entry of every
# gradient while the mean pull on it is nil. Their losses add up to a quadratic with its minimum at `OPTIMUM`.
PULLS = jnp.array([[9.0, 1.0, 2.0, 0.0], [-9.0, 3.0, 0.0, 1.0]])
OPTIMUM = PULLS.mean(0)


def pull(params, batch):
    return 0.5 * jnp.sum(jnp.square(params["w"] - batch))


def test_error_feedback_reaches_the_optimum_where_sparse_gradients_alone_do_not():
    start = {"w": jnp.zeros(4)}
    options = dict(mask_below=0, axis_name="workers")
    reached = train(jc.exchange({"w": jc.Sparse(0.25)}, **options), pull, start, PULLS, 4000, 0.003)["w"]
    np.testing.assert_allclose(reached, OPTIMUM, atol=0.05)

    def without(params, batch):  # whose gradient is sparse by itself: nothing is left to feed back
        return jnp.vdot(jax.lax.stop_gradient(jc.Sparse(0.25).project(params["w"] - batch)), params["w"])

    stuck = train(jc.exchange({}, **options), without, start, PULLS, 4000, 0.003)["w"]
    np.testing.assert_allclose(stuck, 0, atol=0.05)
    assert jnp.linalg.norm(stuck - OPTIMUM) > 1


@pytest.mark.parametrize("name", ["binary", "sparse and ternary"])
def test_quantized_messages_reach_the_optimum(name):
    """Binary ones with a scale are sign descent with error feedback."""
    tx = jc.exchange({"w": SETS[name]}, axis_name="workers")
    reached = train(tx, pull, {"w": jnp.zeros(4)}, PULLS, 10_000, 0.001)["w"]
    np.testing.assert_allclose(reached, OPTIMUM, atol=0.1)


def test_masking_drops_the_momentum_of_what_was_sent_alone():
    """Two entries in turn: what goes out starts anew, what waits goes on; unmasked, the first would be sent again."""
    gradients = {"w": jnp.array([[4.0, 3.0], [0.0, 0.0], [0.0, 0.0]])}
    updates, states = run(jc.exchange({"w": jc.Sparse(0.5)}, momentum=0.5, mask_below=1.0), gradients)
    np.testing.assert_allclose(updates["w"], [[4, 0], [0, 4.5], [0, 0]])
    np.testing.assert_allclose(states.velocity["w"], [[0, 3], [0, 0], [0, 0]])
    unmasked, _ = run(jc.exchange({"w": jc.Sparse(0.5)}, momentum=0.5, mask_below=0.0), gradients)
    np.testing.assert_allclose(unmasked["w"], [[4, 0], [0, 4.5], [3, 0]])


def test_a_leaf_is_masked_by_the_share_that_it_sends_itself():
    """A small leaf cannot send less than one entry, which is much of it: it keeps its momentum."""
    spec = {"big": jc.Sparse(0.01), "small": jc.Sparse(0.25)}
    _, states = run(jc.exchange(spec, mask_below=0.05), {"big": 1 + jnp.arange(100.0)[None], "small": jnp.ones((1, 4))})
    assert jnp.count_nonzero(states.velocity["big"]) == 99 and jnp.count_nonzero(states.velocity["small"]) == 4


def test_workers_get_the_mean_of_what_all_sent():
    """Under vmap the N workers do what N loops do that each know one, and what they send is divided by N."""
    gradients = {"w": noise(STEPS, 3, 6, 4), "b": noise(STEPS, 3, 4, seed=1)}
    tx, alone = jc.exchange(SPEC, axis_name="workers"), jc.exchange(SPEC)

    def step(states, gradient):
        mean, states = jax.vmap(tx.update, axis_name="workers", out_axes=(None, 0))(gradient, states)
        return states, (mean, states.residual["w"])

    states = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(3))
    _, (means, residuals) = jax.jit(lambda states: jax.lax.scan(step, states, gradients))(states)
    program = jax.jit(lambda gradients: run(alone, gradients))
    sent, each = zip(*[program(jax.tree.map(lambda x, i=i: x[:, i], gradients)) for i in range(3)], strict=True)
    for path in ("w", "b"):
        np.testing.assert_allclose(means[path], sum(one[path] for one in sent) / 3, atol=1e-6)
    np.testing.assert_allclose(residuals, np.stack([one.residual["w"] for one in each], axis=1), atol=1e-6)
    assert jnp.max(jnp.count_nonzero(means["w"], axis=(1, 2))) > 6  # other workers, other entries


def test_shard_map_gives_the_same_mean():
    mesh = jax.make_mesh((1,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    tx, spec = jc.exchange(SPEC, axis_name="workers"), jax.sharding.PartitionSpec("workers")
    state = tx.init(PARAMS)

    def worker(gradient, state):
        return jax.tree.map(lambda x: x[None], tx.update(at(gradient, 0), state)[0])

    sharded = jax.shard_map(worker, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec)
    expected, _ = update(jc.exchange(SPEC), at(GRADIENTS, 0), state)
    found = jax.jit(sharded)(jax.tree.map(lambda x: x[:1], GRADIENTS), state)
    np.testing.assert_allclose(found["w"].reshape(6, 4), expected["w"], atol=1e-6)


def test_every_worker_clips_its_own_gradient_before_it_is_accumulated():
    """To clip / sqrt(N), all leaves together; a shorter gradient stays."""
    gradients = {"w": jnp.array([[3.0, 0.0], [0.3, 0.0]]), "b": jnp.array([[4.0], [0.4]])}
    tx = jc.exchange({"w": jc.Sparse(0.5)}, clip=2.0, axis_name="workers")
    states = jax.vmap(lambda _: tx.init({"w": jnp.zeros(2), "b": jnp.zeros(1)}))(jnp.arange(2))
    _, states = jax.jit(jax.vmap(tx.update, axis_name="workers", out_axes=(None, 0)))(gradients, states)
    scale = np.sqrt(2) / 5
    np.testing.assert_allclose(states.velocity["w"][:, 0], [3 * scale, 0.3], rtol=1e-6)
    np.testing.assert_allclose(states.velocity["b"][:, 0], [4 * scale, 0.4], rtol=1e-6)


@pytest.mark.parametrize("clip", [1.0, np.inf])
def test_clipping_nothing_is_harmless(clip):
    nothing = jax.tree.map(jnp.zeros_like, GRADIENTS)
    updates, _ = run(jc.exchange(SPEC, clip=clip), nothing)
    assert all(jnp.all(x == 0) for x in updates.values())


def test_a_warm_up_changes_the_density_without_compiling_anew():
    density = optax.exponential_decay(0.5, 4, 0.5, staircase=True, end_value=1 / 24)
    tx = jc.exchange(lambda taken: {"w": jc.Sparse(density(taken))})
    traces = 0

    @jax.jit
    def step(gradient, state):
        nonlocal traces
        traces += 1
        return tx.update(gradient, state)

    state, sent = tx.init(PARAMS), []
    for i in range(20):
        mean, state = step({"w": noise(6, 4, seed=i), "b": noise(4)}, state)
        sent.append(int(np.count_nonzero(mean["w"])))
    assert sent == [12] * 4 + [6] * 4 + [3] * 4 + [2] * 4 + [1] * 4 and traces == 1


def test_numbers_may_be_traced_and_mapped_over():
    def last(momentum, mask_below, clip, density):
        tx = jc.exchange({"w": jc.Sparse(density)}, momentum=momentum, mask_below=mask_below, clip=clip)
        return run(tx, GRADIENTS)[0]["w"][-1]

    numbers = jnp.array([0.5, 0.9]), jnp.array([0.0, 1.0]), jnp.array([1.0, 9.0]), jnp.array([0.25, 0.5])
    mapped = jax.jit(jax.vmap(last))(*numbers)
    np.testing.assert_allclose(mapped[1], last(0.9, 1.0, 9.0, 0.5), atol=1e-5)


def test_optax_injects_its_numbers():
    tx = optax.inject_hyperparams(jc.exchange, static_args=("nesterov", "dtype", "axis_name"))(SPEC, momentum=0.5)
    state = tx.init(PARAMS)
    assert state.hyperparams["momentum"] == 0.5
    state.hyperparams["momentum"] = jnp.float32(0.0)
    for _ in range(2):
        found, state = update(tx, at(GRADIENTS, 0), state)
    np.testing.assert_allclose(found["b"], GRADIENTS["b"][0])


def test_optax_can_map_over_the_parameters_in_the_state():
    tx = optax.chain(jc.exchange(SPEC), optax.adam(0.1))
    state = tx.init(PARAMS)
    ours, (adam, *_) = optax.tree.map_params(tx, lambda x: x + 7, state)
    assert jnp.all(adam.mu["w"] == 7) and jax.tree.all(jax.tree.map(jnp.array_equal, ours, state[0]))


@pytest.mark.parametrize("kind", PYTREES)
def test_any_pytree_of_gradients_goes_through(kind):
    make, _, rule = PYTREES[kind]
    params = make()
    spec = jc.assign(params, {rule: jc.Box(-0.5, 0.5)})
    tx = jc.exchange(spec)
    expected, (found, state) = eqx.filter_jit(lambda p: (jc.project(spec, p), tx.update(p, tx.init(p))))(params)
    assert jax.tree.structure(found) == jax.tree.structure(params) and set(state.residual) == set(spec)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert jnp.array_equal(x, y) if hasattr(x, "dtype") else x is y


def test_a_group_of_leaves_shares_its_messages():
    spec = jc.assign(PARAMS, {".*": jc.Together(jc.Sparse(1 / 7))})
    jc.exchange(spec).init({"w": PARAMS["w"], "b": PARAMS["b"] / 100})  # one of them may have nothing to say at first
    updates, states = run(jc.exchange(spec), GRADIENTS)
    assert set(states.residual) == {"w", "b"}
    sent = sum(np.count_nonzero(x.reshape(STEPS, -1), axis=1) for x in updates.values())
    np.testing.assert_array_equal(sent, 4)


@pytest.mark.parametrize("narrow", ["gradients", "messages"])
def test_rounding_stays_in_the_residual(narrow):
    """Narrow values are sent, float32 ones are kept: over many steps nothing is lost."""
    gradients = {"w": noise(200, 8), "b": noise(200, 2)}
    if narrow == "gradients":
        gradients = jax.tree.map(lambda x: x.astype(jnp.bfloat16), gradients)
    tx = jc.exchange({"w": jc.Sparse(0.5)}, momentum=0.0, dtype=jnp.bfloat16 if narrow == "messages" else None)
    updates, states = run(tx, gradients)
    assert updates["w"].dtype == gradients["w"].dtype and states.residual["w"].dtype == jnp.float32
    np.testing.assert_array_equal(updates["w"], updates["w"].astype(jnp.bfloat16))
    total, wanted = (np.asarray(x["w"], np.float64).sum(0) for x in (updates, gradients))
    np.testing.assert_allclose(total + states.residual["w"][-1], wanted, atol=1e-4)


def test_state_keeps_its_shapes_and_dtypes():
    for dtype in (jnp.float32, jnp.bfloat16):
        params, tx = jax.tree.map(lambda x, d=dtype: x.astype(d), PARAMS), jc.exchange(SPEC)
        state = tx.init(params)
        assert jax.eval_shape(tx.update, params, state)[1] == jax.eval_shape(lambda s=state: s)


def test_a_state_can_be_made_inside_a_compiled_program():
    """Also of parameters that are known there."""
    tx = jc.exchange(SPEC)
    inside, outside = jax.jit(lambda: tx.init(PARAMS))(), tx.init(PARAMS)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, inside, outside))


def test_the_bits_of_a_message_are_counted():
    """One value and its address among 24, which is 5 bits, or a bit each with a scale; and the 4 biases as they are."""
    for dtype, value in ((None, 32), (jnp.bfloat16, 16)):
        _, states = run(jc.exchange({"w": jc.Sparse(1 / 24)}, dtype=dtype), GRADIENTS)
        np.testing.assert_array_equal(states.bits, value + 5 + 4 * 32)
    _, states = run(jc.exchange({"w": jc.Quantized(jc.Binary())}), GRADIENTS)
    np.testing.assert_array_equal(states.bits, 24 + 32 + 4 * 32)
    message = jax.jit(jc.project)(SPEC, PARAMS)
    bits = jax.jit(jc.message_bits)(SPEC, message)
    np.testing.assert_allclose(32 * 28 / bits, jc.report(SPEC, message).storage_ratio, rtol=1e-6)


def test_bad_gradients_are_not_hidden():
    bad = {"w": GRADIENTS["w"][0].at[0, 0].set(jnp.nan), "b": GRADIENTS["b"][0]}
    found, _ = update(jc.exchange(SPEC), bad, jc.exchange(SPEC).init(PARAMS))
    assert jnp.all(jnp.isnan(found["w"]))


MISUSES = {
    "a spec for another tree": ({"v": jc.Sparse(0.5)}, r"no leaf at \['v'\] in this tree"),
    "a density that rounds to nothing": ({"w": jc.Sparse(0.02)}, r"leaf 'w': Sparse.* keeps nothing of shape \(6, 4\)"),
    "a density of two": ({"w": jc.Sparse(2.0)}, r"leaf 'w': density must lie in \[0, 1\], found 2.0"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_an_error_at_init(name):
    spec, message = MISUSES[name]
    with pytest.raises(ValueError, match=message):
        jc.exchange(spec).init(PARAMS)


def test_two_workers_learn_what_one_learns_of_both_their_batches():
    """Regression without a constraint: the mean of the workers' gradients is the gradient of the whole."""
    both = jax.tree.map(lambda x: x[:2], BATCHES)
    whole = jax.tree.map(lambda x: x[:2].reshape(1, 16, -1), BATCHES)
    found, expected = (
        train(jc.exchange({}, axis_name="workers"), regression, PARAMS, batches, 20, 0.01) for batches in (both, whole)
    )
    np.testing.assert_allclose(found["w"], expected["w"], atol=1e-5)
