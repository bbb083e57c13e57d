"""Block-circulant matrices: packed without loss, applied as the dense matrix is, in fewer products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.constraints import Layout, Tied, diagonals
from jaxcomp.constraints.circulant import apply, multiplications, pack, unpack
from tests.constraints.nearest import MATRIX, project

SHAPES = {"oi": (7, 5), "io": (6, 9), "hwio": (2, 1, 3, 5), "oihw": (5, 3, 1, 3), "ioo": (8, 3, 2)}


def member(axes, b, dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), SHAPES[axes]).astype(dtype)
    return project(Tied(diagonals(b, Layout(axes))), x)


def test_the_projection_of_a_block_is_the_mean_of_its_wrapped_diagonals():
    x = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    # (1 + 5 + 9) / 3 on the diagonal, (4 + 8 + 3) / 3 below it, (7 + 2 + 6) / 3 below that.
    circulant = Tied(diagonals(3, MATRIX)).project(x.at[0, 1].set(5.0))
    assert pack(circulant, 3, MATRIX).tolist() == [[[5.0, 5.0, 6.0]]]
    np.testing.assert_array_equal(circulant, [[5, 6, 5], [5, 5, 6], [6, 5, 5]])


def test_means_of_rows_which_one_reading_of_the_paper_takes_would_forget_a_circulant_block():
    column = jnp.array([1.0, 2.0, -3.0])
    block = unpack(column[None, None], (3, 3), MATRIX)
    np.testing.assert_array_equal(pack(project(Tied(diagonals(3, MATRIX)), block), 3, MATRIX)[0, 0], column)
    np.testing.assert_array_equal(block.mean(axis=1), [0, 0, 0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("b", [pytest.param(1, marks=pytest.mark.slow), 2, 3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("axes", SHAPES)
def test_unpack_is_the_exact_inverse_of_pack_on_members(axes, b, dtype):
    x = member(axes, b, dtype)
    outputs, inputs = Layout(axes).matrix_shape(x.shape)
    packed = pack(x, b, Layout(axes))
    assert packed.shape == (-(-outputs // b), -(-inputs // b), b) and packed.dtype == dtype
    np.testing.assert_array_equal(unpack(packed, x.shape, Layout(axes)), x)


def test_packed_numbers_are_the_first_columns_of_the_blocks():
    x = member("oi", 3)[:6, :3]
    np.testing.assert_array_equal(pack(x, 3, MATRIX)[:, 0], x[:, 0].reshape(2, 3))


@pytest.mark.parametrize("b", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("axes", ["oi", "io", "hwio"])
def test_the_product_by_fft_is_that_of_the_dense_matrix(axes, b):
    x = member(axes, b)
    matrix = Layout(axes).to_matrix(x)
    signals = jax.random.normal(jax.random.key(1), (2, 3, matrix.shape[1]))
    found = jax.jit(apply, static_argnums=2)(pack(x, b, Layout(axes)), signals, matrix.shape[0])
    np.testing.assert_allclose(found, jnp.einsum("oi,abi->abo", matrix, signals), atol=1e-5)
    mapped = jax.vmap(jax.vmap(lambda s: apply(pack(x, b, Layout(axes)), s)))(signals)
    np.testing.assert_allclose(mapped[..., : matrix.shape[0]], found, atol=1e-6)


def test_the_product_keeps_the_dtype_of_bfloat16():
    x = member("oi", 3, jnp.bfloat16)
    found = apply(pack(x, 3, MATRIX), jnp.ones(5, jnp.bfloat16), 7)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), x.astype(jnp.float32).sum(1), rtol=0.01, atol=0.01)


def test_the_gradient_of_a_packed_number_is_that_of_the_dense_weights_summed_over_its_diagonal():
    x, signal, pull = member("oi", 3), jnp.arange(1.0, 6.0), jnp.arange(7.0)
    packed = pack(x, 3, MATRIX)
    by_fft = jax.grad(lambda p: pull @ apply(p, signal, 7))(packed)
    dense = np.zeros(packed.shape)
    for row in range(7):
        for column in range(5):
            dense[row // 3, column // 3, (row - column) % 3] += pull[row] * signal[column]
    np.testing.assert_allclose(by_fft, dense, atol=1e-4)


@pytest.mark.parametrize("b", [4, 8, 16, 64])
def test_a_layer_stores_one_bth_and_its_products_grow_as_b_log_b(b):
    assert pack(jnp.ones((128, 64)), b).size == 128 * 64 / b
    dense, by_fft = multiplications(b, b, b)
    assert (dense, by_fft) == (b**2, 2 * b * np.log2(b) + 4 * (b // 2 + 1))
    # Transforms are shared by a row or a column of blocks, so that in a wide layer the products of spectra remain.
    dense, by_fft = multiplications(4096, 4096, b)
    np.testing.assert_allclose(dense / by_fft, b / 2, rtol=0.4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pack(jnp.ones((4, 2)), 3), r"diagonals\(3\) of oi needs 3 outputs .* has 2"),
        (lambda: unpack(jnp.ones((2, 2, 3)), (3, 3)), r"first columns of shape \(1, 1, 3\), found \(2, 2, 3\)"),
        (lambda: apply(jnp.ones((2, 2, 3)), jnp.ones(3)), r"2 blocks of 3 columns take 4 to 6 inputs, found 3"),
        (lambda: apply(jnp.ones((2, 2, 3)), jnp.ones(6), 7), r"2 blocks of 3 rows give 1 to 6 outputs, found 7"),
    ],
)
def test_shapes_that_do_not_fit_are_errors_that_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
