"""Models: the CPU forms compute what flax computes, and the leaves are those that rules are written for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments._models import Conv, LeNet5, LeNet300, max_pool2


def paths_and_shapes(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    leaves, _ = jax.tree.flatten_with_path(variables["params"])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


@settings(max_examples=10)
@given(
    image=st.tuples(st.integers(1, 3), st.integers(5, 9), st.integers(5, 9), st.integers(1, 3)),
    kernel_size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    padding=st.sampled_from(["SAME", "VALID"]),
    use_bias=st.booleans(),
)
@pytest.mark.slow
def test_conv_by_matmul_has_the_params_outputs_and_gradients_of_flax(image, kernel_size, strides, padding, use_bias):
    options = dict(features=4, kernel_size=kernel_size, strides=strides, padding=padding, use_bias=use_bias)
    ours, flax = Conv(**options, form="matmul"), nn.Conv(**options)
    x = jax.random.normal(jax.random.key(1), image)
    variables, expected = jax.jit(lambda key: (ours.init(key, x), flax.init(key, x)))(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)

    @jax.jit  # both models in one program: compiling is nearly all that this test does
    def values_and_gradients(variables, x):
        results = []
        for model in (ours, flax):
            y, pullback = jax.vjp(model.apply, variables, x)
            results.append((y, pullback(jnp.cos(y))))
        return results

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        *values_and_gradients(variables, x),
    )


@pytest.mark.parametrize("form", ["matmul", "convolution"])
def test_conv_forms_agree_and_keep_the_dtype_of_the_computation(form):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    model = Conv(4, (3, 3), form=form, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), x)
    y = model.apply(variables, x)
    assert y.dtype == jnp.bfloat16 and variables["params"]["kernel"].dtype == jnp.float32
    expected = nn.Conv(4, (3, 3)).apply(variables, x)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.05)


def test_conv_rejects_an_unknown_form_and_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'fft'.*matmul.*convolution"):
        Conv(4, (3, 3), form="fft").init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_conv_rejects_an_input_without_a_batch_axis():
    with pytest.raises(ValueError, match=r"\(8, 8, 1\)"):
        Conv(4, (3, 3)).init(jax.random.key(0), jnp.zeros((8, 8, 1)))


@settings(max_examples=5)
@given(half=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)))
@pytest.mark.slow
def test_max_pool2_has_the_values_and_gradients_of_flax(half):
    shape = (half[0], 2 * half[1], 2 * half[2], half[3])
    x = np.random.default_rng(0).permutation(math.prod(shape)).astype(np.float32).reshape(shape)  # no ties

    @jax.jit
    def values_and_gradients(x):
        ours, pullback = jax.vjp(max_pool2, x)
        flax, flax_pullback = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
        return (ours, pullback(ours)), (flax, flax_pullback(ours))

    jax.tree.map(np.testing.assert_array_equal, *values_and_gradients(x))


def test_max_pool2_divides_the_gradient_among_ties_without_changing_its_sum():
    _, pullback = jax.vjp(max_pool2, jnp.zeros((1, 4, 4, 1)))
    (gradient,) = pullback(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(gradient, 0.25)


def test_max_pool2_rejects_odd_sizes():
    with pytest.raises(ValueError, match=r"\(1, 5, 4, 1\) must be even"):
        max_pool2(jnp.zeros((1, 5, 4, 1)))


def test_lenet5_has_the_leaves_and_the_430500_weights_of_the_papers():
    shapes = paths_and_shapes(LeNet5())
    kernels = {path: shape for path, shape in shapes.items() if path.endswith("kernel")}
    assert kernels == {
        "conv1/kernel": (5, 5, 1, 20),
        "conv2/kernel": (5, 5, 20, 50),
        "fc1/kernel": (800, 500),
        "fc2/kernel": (500, 10),
    }
    assert sum(map(math.prod, kernels.values())) == 430_500


@pytest.mark.slow
def test_lenet5_computes_the_same_in_both_forms():
    x = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    variables = LeNet5().init(jax.random.key(0), x)
    outputs = [LeNet5(form=form).apply(variables, x) for form in ("matmul", "convolution")]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_lenet5_drops_hidden_units_in_training_only():
    model, x = LeNet5(), jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    variables = model.init(jax.random.key(0), x)
    trained = [model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(key)}) for key in (0, 0, 1)]
    np.testing.assert_array_equal(trained[0], trained[1])
    assert not np.allclose(trained[0], trained[2])
    np.testing.assert_array_equal(
        model.apply(variables, x),
        LeNet5(dropout_rate=0.0).apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)}),
    )


def test_lenet300_has_266200_weights_in_three_layers():
    shapes = paths_and_shapes(LeNet300())
    kernels = {path: shape for path, shape in shapes.items() if path.endswith("kernel")}
    assert kernels == {"fc1/kernel": (784, 300), "fc2/kernel": (300, 100), "fc3/kernel": (100, 10)}
    assert sum(map(math.prod, kernels.values())) == 266_200
