"""Kernels take on the biases and the rectifiers that follow their products, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export, lax
from jax.extend.core import jaxpr_as_fun

import jaxcomp as jc
from jaxcomp.compiler import native
from jaxcomp.compiler._follow import followed
from jaxcomp.compiler._rewrite import Rewriter, Value
from jaxcomp.compiler.formats import _lists, _ragged
from jaxcomp.compiler.formats._prices import Prices
from tests.compiler.formats.matrices import blocks, quantized, rows

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=f"no kernels here: {native.missing()}")

DEPTH, COLUMNS = 96, 50  # the last strip is not full
MATRIX = quantized(DEPTH, COLUMNS, 7) * (blocks(DEPTH, 64, 16, 0.5)[:, :COLUMNS] != 0)
PACKED = [each.build() for family in (_ragged, _lists) for each in family.propose(MATRIX, Prices.of(8))]
FORMS = {form.kernel: form for form in PACKED}
STRIPS = FORMS["jaxcomp_strips"]
BIAS = rows(1, COLUMNS, seed=3)[0]


def operations(jaxpr):
    return [eqn.primitive.name for eqn in jaxpr.jaxpr.eqns]


def rewritten(function, *args):
    """The function with its products followed, and its operations."""
    jaxpr = followed(jax.make_jaxpr(function)(*args))
    return jax.jit(lambda *args: jaxpr_as_fun(jaxpr)(*args)[0]), operations(jaxpr)


def test_the_three_kernels_are_tried():
    assert set(FORMS) == {"jaxcomp_strips", "jaxcomp_coded_strips", "jaxcomp_lists"}


@pytest.mark.parametrize("number", [1, 2, 9, 17, 70])
@pytest.mark.parametrize("kernel", FORMS)
@pytest.mark.parametrize(
    "what",
    [
        lambda y, b: y + b[None],
        lambda y, b: jax.nn.relu(y),
        lambda y, b: jnp.maximum(0.0, y + b[None]),
        lambda y, b: jax.nn.relu(b.reshape(1, -1) + y),
    ],
    ids=["bias", "relu", "maximum", "both"],
)
def test_a_kernel_adds_the_bias_and_rectifies(kernel, number, what):
    x = rows(number, DEPTH)
    function, found = rewritten(lambda x, b: what(FORMS[kernel](x), b), x, BIAS)
    assert found[-1] == "followed_product" and "max" not in found and "add" not in found
    np.testing.assert_allclose(function(x, BIAS), what(x @ MATRIX, BIAS), rtol=1e-5, atol=2e-5)


def test_what_is_large_enough_for_several_threads_is_the_same():
    matrix, x, bias = blocks(1024, 512, 32, 0.2), rows(64, 1024), rows(1, 512, seed=3)[0]
    for family in (_ragged, _lists):
        form = family.propose(matrix, Prices.of(64))[0].build()
        function, _ = rewritten(lambda x, b, form=form: jax.nn.relu(form(x) + b[None]), x, bias)
        np.testing.assert_allclose(function(x, bias), np.maximum(x @ matrix + bias, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "laid",
    [
        lambda b: b,
        lambda b: b[None, None],
        lambda b: jnp.broadcast_to(b, (2, 3, COLUMNS)),
        lambda b: jnp.broadcast_to(b[None], (3, COLUMNS))[None],
    ],
    ids=["vector", "axes", "broadcast", "twice"],
)
def test_a_bias_is_known_in_every_layout_and_past_a_change_of_shape(laid):
    x = rows(6, DEPTH).reshape(2, 3, DEPTH)
    with jax.numpy_rank_promotion("allow"):
        function, found = rewritten(lambda x, b: jax.nn.relu(STRIPS(x) + laid(b)), x, BIAS)
    assert "followed_product" in found and "add" not in found
    np.testing.assert_allclose(function(x, BIAS), np.maximum(x @ MATRIX + BIAS, 0), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: STRIPS(x) + 1.0,
        lambda x: STRIPS(x) + jnp.ones((len(x), 1)),
        lambda x: STRIPS(x) + jnp.sin(STRIPS(x)),
        lambda x: STRIPS(x) + jnp.arange(float(len(x)))[:, None],
        lambda x: jnp.maximum(STRIPS(x), 0.5),
        lambda x: jnp.minimum(STRIPS(x), 0.0),
        lambda x: jax.nn.gelu(STRIPS(x)),
        lambda x: (lambda y: jax.nn.relu(y) + y)(STRIPS(x)),
        lambda x: (lambda y: (jax.nn.relu(y), y)[0] * jnp.sum(y))(STRIPS(x)),
        lambda x: jax.nn.relu(STRIPS(x).reshape(-1, 2)[:, :1]) * 2,
        lambda x: jax.jit(lambda y, z: jnp.maximum(z, 0.0))(STRIPS(x), jnp.ones((1, COLUMNS)) * x[:, :1]),
    ],
)
def test_all_else_is_left_as_it_is(function):
    x = rows(COLUMNS, DEPTH)  # as many rows as columns, which must not be mistaken
    again, found = rewritten(function, x)
    assert "followed_product" not in found
    np.testing.assert_allclose(again(x), function(x), rtol=1e-5, atol=2e-5)


def test_what_is_given_out_too_is_left_as_it_is():
    jaxpr = followed(jax.make_jaxpr(lambda x: (y := STRIPS(x), jax.nn.relu(y)))(rows(3, DEPTH)))
    assert "followed_product" not in operations(jaxpr)


def test_a_second_bias_is_added_afterwards():
    x = rows(3, DEPTH)
    function, found = rewritten(lambda x, b: jax.nn.relu(STRIPS(x) + b[None] + 2 * b[None]), x, BIAS)
    assert found.count("followed_product") == 1 and found.count("add") == 1
    np.testing.assert_allclose(function(x, BIAS), np.maximum(x @ MATRIX + 3 * BIAS, 0), rtol=1e-5, atol=2e-5)


def test_what_is_not_a_number_stays_so():
    x = rows(3, DEPTH).copy()
    x[1] = np.nan
    for form in FORMS.values():
        function, _ = rewritten(lambda x, form=form: jax.nn.relu(form(x)), x)
        np.testing.assert_array_equal(np.isnan(function(x)).all(axis=1), [False, True, False])


@pytest.mark.parametrize(
    "rectifier, slope", [(jax.nn.relu, 0.0), (lambda y: jnp.maximum(y, 0), 0.5)], ids=["relu", "maximum"]
)
def test_derivatives_are_those_of_what_was_written_at_zero_too(rectifier, slope):
    zeros, x = np.zeros((2, DEPTH), np.float32), rows(2, DEPTH)
    function, _ = rewritten(lambda x: rectifier(STRIPS(x)), x)
    np.testing.assert_allclose(jax.jvp(function, (zeros,), (x,))[1], slope * (x @ MATRIX), rtol=1e-5, atol=2e-5)
    expected = jax.vjp(lambda x: rectifier(x @ MATRIX), x)[1](np.ones((2, COLUMNS), np.float32))
    np.testing.assert_allclose(jax.vjp(function, x)[1](jnp.ones((2, COLUMNS)))[0], expected[0], rtol=1e-5, atol=2e-5)


def test_it_is_mapped_over_rows_and_over_biases():
    x, biases = rows(6, DEPTH).reshape(2, 3, DEPTH), jnp.stack([BIAS, -BIAS])
    function, _ = rewritten(lambda x, b: jax.nn.relu(STRIPS(x) + b[None]), x[0], BIAS)
    expected = np.maximum(x @ MATRIX + biases[:, None], 0)
    np.testing.assert_allclose(jax.vmap(function)(x, biases), expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(jax.vmap(function, (0, None))(x, BIAS)[0], expected[0], rtol=1e-5, atol=2e-5)


def test_an_export_knows_nothing_of_it():
    x = rows(3, DEPTH)
    function, _ = rewritten(lambda x, b: jax.nn.relu(STRIPS(x) + b[None]), x, BIAS)
    assert STRIPS.kernel in function.lower(x, BIAS).as_text()
    exported = export.export(function)(*(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (x, BIAS)))
    assert STRIPS.kernel not in exported.mlir_module()
    found = export.deserialize(exported.serialize()).call(x, BIAS)
    np.testing.assert_allclose(found, np.maximum(x @ MATRIX + BIAS, 0), rtol=1e-5, atol=2e-5)


def test_what_only_portable_operations_can_say_has_neither_kernel():
    x = rows(3, DEPTH)
    program = followed(jax.make_jaxpr(lambda x, b: jax.nn.relu(STRIPS(x) + b[None]))(x, BIAS))
    rewriter = Rewriter({}, lambda leaves: False, portable=True)

    def portable(*args):
        return rewriter.run(program, [*map(Value, args)], {})[0].traced

    assert "_product" not in str(jax.make_jaxpr(portable)(x, BIAS))
    np.testing.assert_allclose(portable(x, BIAS), np.maximum(x @ MATRIX + BIAS, 0), rtol=1e-5, atol=2e-5)


def test_products_in_loops_and_branches_take_on_what_follows_them():
    square = np.pad(MATRIX, ((0, 0), (0, DEPTH - COLUMNS)))
    form = _ragged.propose(square, Prices.of(8))[0].build()
    x, bias = rows(3, DEPTH), np.full(DEPTH, 0.1, np.float32)

    def model(x, b):
        def step(x, _):
            return lax.cond(x[0, 0] > -1e9, lambda x: jax.nn.relu(form(x) + b[None]), jnp.zeros_like, x), None

        return lax.scan(step, x, length=3)[0]

    jaxpr = followed(jax.make_jaxpr(model)(x, bias))
    assert "followed_product" in str(jaxpr) and "name=relu" not in operations(jaxpr)
    expected = x
    for _ in range(3):
        expected = np.maximum(expected @ square + bias, 0)
    np.testing.assert_allclose(jax.jit(jaxpr_as_fun(jaxpr))(x, bias)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_model_of_flax_has_its_biases_and_rectifiers_in_kernels():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(64)(nn.relu(nn.Dense(256)(x)))

    x = rows(4, 256).reshape(2, 2, 256)
    params = Network().init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)
    spec = jc.assign(params, {".*kernel": jc.Sparse(0.1)})
    params = jc.project(spec, params)

    def apply(params, x):
        return Network().apply({"params": params}, x)

    model = jc.compile(apply, params, spec, x, rounds=0)  # the smallest forms, which are lists
    found = [eqn.primitive.name for eqn in model.program.jaxpr.jaxpr.eqns]
    assert found.count("followed_product") == 2 and "add" not in found and "custom_jvp_call" not in found
    np.testing.assert_allclose(model(x), apply(params, x), rtol=1e-4, atol=1e-5)
    of_x = jax.grad(lambda x: jnp.sum(model(x) ** 2))(x)
    np.testing.assert_allclose(of_x, jax.grad(lambda x: jnp.sum(apply(params, x) ** 2))(x), rtol=1e-3, atol=1e-4)
