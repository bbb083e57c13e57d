"""Estimators: bias and variance as the theory has them, where float32 ends, and solvers without derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcomp as jc
from jaxcomp import ZerothOrder, coordinates, gaussian, rademacher, sphere
from tests.problems import PYTREES, quadratic, quadratic_batches

DRAWS = {"gaussian": gaussian, "sphere": sphere, "rademacher": rademacher, "coordinates": coordinates}
SLOPES = jnp.array([1.0, -2.0, 3.0, 0.5, 0.0])
WEIGHTS = jnp.array([0.5, 1.0, -1.0, 2.0, 0.1])


def linear(w, step=0):
    del step
    return SLOPES @ w + 0.7


def estimates(estimator, f, w, count):
    """The estimates of so many steps, one a row."""
    return jax.jit(lambda e, w: jax.vmap(lambda step: e(f)(w, step)[1])(jnp.arange(count)))(estimator, w)


@pytest.mark.parametrize("draw", DRAWS)
def test_estimates_are_unbiased_and_their_squared_error_is_what_the_docstring_says(draw):
    d, q, count = 60, 6, 600
    w = jax.random.normal(jax.random.key(3), (d,))
    found = estimates(ZerothOrder(1e-3, q, draw=DRAWS[draw]), lambda w, step: jnp.sum(jnp.tanh(w)), w, count)
    gradient = 1 - jnp.tanh(w) ** 2
    error = jnp.mean(jnp.sum((found - gradient[None]) ** 2, axis=1)) / jnp.sum(gradient**2)
    expected = {"gaussian": (d + 1) / q, "coordinates": d / q - 1}.get(draw, (d - 1) / q)
    np.testing.assert_allclose(error, expected, rtol=0.1)
    bias = jnp.sum((found.mean(0) - gradient) ** 2) / jnp.sum(gradient**2)
    assert bias < 1.5 * expected / count  # what is left of the variance; a tenth of the gradient would be 0.01


@pytest.mark.parametrize(("draw", "difference"), [("coordinates", "none"), ("gaussian", "central")])
def test_other_differences_of_a_linear_function_are_unbiased_too(draw, difference):
    found = estimates(ZerothOrder(1.0, 2, draw=DRAWS[draw], difference=difference), linear, WEIGHTS, 4000)
    error = jnp.std(found, axis=0) / len(found) ** 0.5
    assert jnp.all(jnp.abs(found.mean(0) - SLOPES) <= 4.5 * error + 1e-5)
    assert jnp.all(error < 0.25)


def test_one_point_pays_for_the_size_of_the_loss():
    d, q, radius = 5, 3, 0.5
    found = estimates(ZerothOrder(radius, q, draw=sphere, difference="none"), linear, WEIGHTS, 6000)
    error = jnp.mean(jnp.sum((found - SLOPES[None]) ** 2, axis=1))
    expected = jnp.sum(SLOPES**2) * (d - 1) / q + d * linear(WEIGHTS) ** 2 / (q * radius**2)
    np.testing.assert_allclose(error, expected, rtol=0.1)


def test_the_cosine_with_the_gradient_is_that_of_a_random_subspace():
    d, q = 100, 100
    g = jax.random.normal(jax.random.key(0), (d,))
    found = estimates(ZerothOrder(1e-2, q), lambda w, step: g @ w, g, 100)
    cosine = found @ g / (jnp.linalg.norm(found, axis=1) * jnp.linalg.norm(g))
    np.testing.assert_allclose(jnp.mean(cosine), (q / (d + q)) ** 0.5, atol=0.02)


@pytest.mark.slow
def test_radii_from_a_tenth_to_a_hundred_thousandth_do_alike_in_float32_and_smaller_ones_do_not():
    w = jax.random.normal(jax.random.key(1), (100,))

    def f(w, step=0):
        return jnp.mean(jnp.tanh(w) * jnp.arange(1, 101, dtype=jnp.float32))

    @jax.jit
    @jax.vmap
    def error(radius):
        found = jax.vmap(lambda step: ZerothOrder(radius, 10)(f)(w, step)[1])(jnp.arange(100))
        return jnp.mean(jnp.sum((found - jax.grad(f)(w)[None]) ** 2, axis=1))

    *window, below = error(jnp.array([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-7]))
    np.testing.assert_allclose(window, np.mean(window), rtol=0.05)
    assert below > 1.5 * np.mean(window)


@pytest.mark.slow
def test_central_differences_by_every_coordinate_are_exact_for_a_quadratic_at_any_radius():
    matrix = jax.random.normal(jax.random.key(0), (6, 6))

    def f(w):
        return w @ matrix @ w + jnp.sum(w)

    w, exact = jnp.ones(6), (matrix + matrix.T) @ jnp.ones(6) + 1
    for radius in (0.1, 1.0):
        found = ZerothOrder(radius, 6, draw=coordinates, difference="central")(f)(w)[1]
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    forward = ZerothOrder(0.1, 6, draw=coordinates)(f)(w)[1]
    np.testing.assert_allclose(jnp.abs(forward - exact), 0.1 * 6**0.5 * jnp.abs(jnp.diag(matrix)), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["dataclass", "nnx state"])
def test_value_auxiliary_output_and_structure_are_those_of_value_and_grad(kind):
    params = PYTREES[kind][0]()

    def f(params, step):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), {"step": step}

    (value, aux), found = ZerothOrder(1e-2)(f, has_aux=True)(params, 3)
    (plain, _), gradient = jax.value_and_grad(f, has_aux=True)(params, 3)
    assert value == plain and aux == {"step": 3}
    assert jax.tree.structure(found) == jax.tree.structure(gradient)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(found)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(gradient)
    ]


@pytest.mark.slow
def test_chunks_change_memory_and_not_the_estimate():
    def found(chunk):
        return ZerothOrder(1e-2, 5, chunk=chunk)(lambda w: jnp.sum(jnp.sin(w)))(WEIGHTS)[1]

    alike = [found(chunk) for chunk in (None, 1, 2)]
    for found in alike[1:]:
        np.testing.assert_allclose(found, alike[0], rtol=1e-3, atol=1e-4)


def test_seeds_keys_and_steps_draw_directions_and_radii_do_not():
    @jax.jit
    def found(seed, step, radius=1.0):
        return ZerothOrder(radius, seed=seed)(linear)(WEIGHTS, step)[1]

    np.testing.assert_array_equal(found(1, 0), found(jax.random.key(1), 0))
    assert not np.allclose(found(1, 0), found(2, 0)) and not np.allclose(found(1, 0), found(1, 1))
    np.testing.assert_allclose(found(1, 0), found(1, 0, radius=0.5), rtol=1e-4, atol=1e-5)


def test_narrow_parameters_get_a_narrow_gradient_of_the_same_quality():
    """A radius above bfloat16's rounding; what is summed is summed in float32."""
    narrow = WEIGHTS.astype(jnp.bfloat16)

    def f(w):
        return SLOPES @ w.astype(jnp.float32)

    found = ZerothOrder(0.5, 400)(f)(narrow)[1]
    assert found.dtype == jnp.bfloat16
    wide = ZerothOrder(0.5, 400)(f)(WEIGHTS)[1]
    np.testing.assert_allclose(found.astype(jnp.float32), wide, atol=0.05)


def test_noise_of_the_batch_is_common_to_all_queries():
    """Dropout's key rides in the batch, and two queries of one step differ by their weights alone."""

    def loss(params, key):
        return SLOPES @ params["w"] + 100 * jax.random.normal(key)

    def run(loss):
        keys = jax.random.split(jax.random.key(0), 4)
        grad = ZerothOrder(1e-1, 3)
        options = dict(optimizer=optax.sgd(1e-2), rounds=1, steps=4, grad=grad)
        return jc.solve(loss, {"w": WEIGHTS}, keys, jc.ADMM({}), **options).params["w"]

    quiet = run(lambda params, key: SLOPES @ params["w"])
    np.testing.assert_allclose(run(loss), quiet, atol=1e-3)


class Counted:
    """The quadratic of the batch in NumPy, which JAX can neither see into nor differentiate."""

    def __init__(self):
        self.calls = 0

    def __call__(self, w, h, a):
        self.calls += 1
        return np.float32(0.5 * np.sum(h * np.square(w - a)))

    def loss(self, vmap_method):
        def loss(params, batch):
            kind = jax.ShapeDtypeStruct((), jnp.float32)
            return jax.pure_callback(self, kind, params["w"], batch["h"], batch["a"], vmap_method=vmap_method)

        return loss


A, H = [1.1, 1.0, 1.0, 0.3], [0.05, 1.0, 1.0, 0.1]  # the two largest weights are not the best two
BATCH = quadratic_batches(A, H)
START = {"w": jnp.asarray(A)}
SPEC = {"w": jc.Sparse(0.5)}


@pytest.mark.parametrize(("chunk", "vmap_method"), [(3, "sequential"), (1, None)])
def test_a_loss_in_python_is_asked_as_often_as_queries_says(chunk, vmap_method):
    black_box = Counted()
    grad = ZerothOrder(1e-2, 4, draw=coordinates, difference="central", chunk=chunk)
    found = jc.solve(
        black_box.loss(vmap_method),
        {"w": jnp.zeros(4)},
        BATCH,
        jc.ADMM({}),
        optimizer=optax.sgd(1.0),
        rounds=1,
        steps=8,
        grad=grad,
    )
    np.testing.assert_allclose(found.params["w"], np.array(A) * (1 - (1 - np.array(H)) ** 8), atol=1e-3)
    asked_besides = 1  # by `solve`, of the loss that solvers may compare points on
    assert black_box.calls in (8 * grad.queries, 8 * grad.queries + asked_besides)
    with pytest.raises(ValueError, match="Pure callbacks do not support JVP"):
        jc.solve(black_box.loss(None), START, BATCH, jc.ADMM({}), optimizer=optax.sgd(1.0), rounds=1, steps=1)


@functools.cache
def _sgd(rate):
    return optax.sgd(rate)


@pytest.mark.slow
def test_admm_without_derivatives_reaches_the_k_sparse_optimum_of_a_black_box():
    options = dict(optimizer=_sgd(0.1), rounds=40, steps=20, retrain=5, grad=ZerothOrder(1e-2, 4, draw=sphere))
    loss = Counted().loss("sequential")
    found = jc.solve(loss, START, BATCH, jc.ADMM(SPEC, rho=0.5), **options).params["w"]
    np.testing.assert_allclose(found, [0, 1, 1, 0], atol=2e-2)


@pytest.mark.slow
def test_the_optax_form_estimates_the_loss_alone_and_reaches_the_same_optimum():
    admm = jc.ADMM(SPEC, rho=0.5)
    tx = optax.chain(jc.as_transformation(admm, 20), _sgd(0.1))
    batch = jax.tree.map(lambda x: x[0], BATCH)

    @jax.jit
    def train(params):
        def step(carry, i):
            params, state = carry
            _, gradient = ZerothOrder(1e-2, 4)(lambda p, i: quadratic(p, batch))(params, i)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(800))[0][0]

    landed = admm.land(None, train(START))
    np.testing.assert_allclose(landed["w"], [0, 1, 1, 0], atol=2e-2)


def test_sign_descent_without_derivatives_comes_as_near_as_its_steps_allow():
    rate = 1e-2
    options = dict(optimizer=optax.sign_sgd(rate), rounds=1, steps=300, grad=ZerothOrder(1e-3, 4))
    found = jc.solve(quadratic, {"w": jnp.zeros(4)}, quadratic_batches(A), jc.ADMM({}), **options).params["w"]
    np.testing.assert_allclose(found, A, atol=10 * rate)
    np.testing.assert_allclose(found / rate, np.round(found / rate), atol=1e-2)  # whole steps


def test_projected_descent_without_derivatives_stays_in_its_set():
    optimizer = optax.chain(optax.sgd(0.1), jc.confine({"w": jc.Simplex()}))
    grad = ZerothOrder(1e-3, 3, draw=coordinates)
    options = dict(optimizer=optimizer, rounds=1, steps=200, grad=grad)
    found = jc.solve(quadratic, {"w": jnp.zeros(3)}, quadratic_batches([1.0, 0.5, -2.0]), jc.ADMM({}), **options)
    np.testing.assert_allclose(found.params["w"], [0.75, 0.25, 0], atol=5e-3)


@pytest.mark.slow
def test_radii_and_seeds_compile_once_and_vmap_is_a_loop():
    traces = 0

    def loss(params, batch):
        nonlocal traces
        traces += 1
        return quadratic(params, batch)

    def run(grad):
        options = dict(optimizer=_sgd(0.1), rounds=2, steps=3, grad=grad)
        return jc.solve(loss, START, BATCH, jc.ADMM(SPEC, rho=0.5), **options).params["w"]

    alone = [run(ZerothOrder(radius, 3, seed=seed)) for radius, seed in ((0.5, 0), (1e-2, 0), (1e-2, 1))]
    first = traces
    assert np.unique(np.stack(alone), axis=0).shape[0] > 1
    run(ZerothOrder(0.3, 3, seed=7))
    assert traces == first
    stacked = ZerothOrder(jnp.array([0.5, 1e-2, 1e-2]), 3, seed=jnp.array([0, 0, 1]))
    np.testing.assert_allclose(jax.vmap(run)(stacked), alone, rtol=1e-3, atol=1e-4)


FAULTS = {
    "no directions": (dict(directions=0), "directions must be a whole number, at least 1, found 0"),
    "an empty chunk": (dict(chunk=0), "chunk must be a whole number, at least 1, found 0"),
    "no radius": (dict(radius=0.0), "radius must be above 0, found 0.0"),
    "an unknown difference": (dict(difference="middle"), "difference must be one of .*, found 'middle'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_work_is_refused(name):
    settings, message = FAULTS[name]
    with pytest.raises(ValueError, match=message):
        ZerothOrder(**settings)(linear)


def test_parameters_that_cannot_move_and_data_in_the_place_of_the_step_are_refused():
    with pytest.raises(ValueError, match=r"leaf 'n' has dtype int32, expected floating-point"):
        ZerothOrder()(lambda p: jnp.float32(0))({"n": jnp.arange(3)})
    for data in (jnp.ones(3), {"x": 1}, 0.5):
        with pytest.raises(ValueError, match="expected the number of the step"):
            ZerothOrder()(linear)(WEIGHTS, data)
