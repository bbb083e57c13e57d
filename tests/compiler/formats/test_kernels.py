"""Forms with a kernel of their own: the product of every structure, for any number of rows, on however many threads."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxcomp.compiler import native
from jaxcomp.compiler.formats import _lists, _ragged, candidates
from jaxcomp.compiler.formats._prices import Prices
from tests.compiler.formats.matrices import block_columns, blocks, n_of_m, quantized, rows, structured, unstructured

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=f"no kernels here: {native.missing()}")

MATRICES = {name: matrix for name, matrix in structured().items() if matrix.any()}
ROWS = 1, 2, 3, 5, 8, 9, 17, 33, 70  # every number of vectors, with and without a remainder


def packed(matrix, family=None):
    families = (_ragged, _lists) if family is None else (family,)
    return [each.build() for one in families for each in one.propose(matrix, Prices.of(8))]


@pytest.mark.parametrize("name", MATRICES)
def test_every_structure_is_held_and_multiplied_by_any_number_of_rows(name):
    matrix = MATRICES[name]
    for form in packed(matrix):
        np.testing.assert_array_equal(form.dense(), matrix)
        for number in ROWS:
            x = rows(number, len(matrix))
            np.testing.assert_allclose(form(x), x @ matrix, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("columns", [1, 15, 16, 31, 33, 100])
def test_outputs_need_not_fill_the_last_strip(columns):
    matrix, x = unstructured(40, columns, 0.3), rows(5, 40)
    for form in packed(matrix):
        np.testing.assert_array_equal(form.dense(), matrix)
        np.testing.assert_allclose(form(x), x @ matrix, rtol=1e-5, atol=1e-5)


def test_codes_of_eight_bits_are_kept_as_such():
    matrix, x = quantized(96, 50, 7) * (blocks(96, 64, 16, 0.5)[:, :50] != 0), rows(9, 96)
    plain, coded = packed(matrix, _ragged)
    np.testing.assert_array_equal(coded.dense(), matrix)
    assert coded.values.dtype == jnp.int8 and coded.values.size == plain.values.size
    for number in (1, 4, 9):
        np.testing.assert_allclose(coded(x[:number]), x[:number] @ matrix, rtol=1e-5, atol=1e-5)


def test_outputs_that_lie_scattered_are_brought_together_and_put_back():
    matrix = block_columns(256, 256, 32, 0.1)
    scattered = matrix[:, np.random.default_rng(0).permutation(256)]
    (before,), (after,) = (packed(each, _ragged) for each in (matrix, scattered))
    assert after.values.shape == before.values.shape
    x = rows(3, 256)
    np.testing.assert_allclose(after(x), x @ scattered, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("matrix", [blocks(1024, 512, 32, 0.2), n_of_m(1024, 512, 2, 8)], ids=["blocks", "n of m"])
def test_what_is_large_enough_for_several_threads_is_the_same_whoever_calls(matrix):
    x = rows(64, len(matrix))
    exact = x @ matrix
    for form in packed(matrix):
        product = jax.jit(lambda form, x: form(x))
        with concurrent.futures.ThreadPoolExecutor(8) as callers:  # more than there are threads to wait for
            for found in callers.map(lambda _, form=form, product=product: product(form, x), range(64)):
                np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_layers_of_a_stack_with_unequally_many_weights_are_taken_in_turn():
    stack = np.stack([blocks(64, 96, 16, density, seed) for seed, density in enumerate((0.2, 0.6, 0.0))])
    x = rows(3, 64)
    for form in packed(stack):
        np.testing.assert_array_equal(form.dense(), stack)
        _, found = jax.lax.scan(lambda carry, layer: (carry, layer(x)), 0, form)
        np.testing.assert_allclose(found, x @ stack, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(jax.vmap(lambda layer: layer(x))(form), x @ stack, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [_ragged, _lists])
def test_derivatives_by_rows_and_by_weights_are_those_of_the_dense_product(family):
    matrix, x, y = blocks(64, 48, 16, 0.4), rows(3, 64), rows(3, 48, seed=2)
    form = packed(matrix, family)[0]
    np.testing.assert_allclose(jax.jvp(form, (x,), (x,))[1], x @ matrix, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vjp(form, x)[1](y)[0], y @ matrix.T, rtol=1e-5, atol=1e-5)

    def of_values(values):
        leaves, structure = jax.tree.flatten(form)
        return jax.tree.unflatten(structure, [values, *leaves[1:]])(x)

    _, change = jax.jvp(of_values, (form.values,), (form.values,))
    np.testing.assert_allclose(change, x @ matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [_ragged, _lists])
def test_an_export_knows_nothing_of_the_kernel_and_gives_the_same(family):
    matrix, x = quantized(64, 48, 7) * (unstructured(64, 48, 0.5) != 0), rows(3, 64)
    for form in packed(matrix, family):
        product = jax.jit(lambda x, form=form: form(x))
        assert form.kernel in product.lower(x).as_text()
        exported = export.export(product)(jax.ShapeDtypeStruct(x.shape, x.dtype))
        assert form.kernel not in exported.mlir_module()
        again = export.deserialize(exported.serialize())
        np.testing.assert_allclose(again.call(x), x @ matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtypes", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)], ids=str)
def test_other_dtypes_are_done_without_the_kernel(dtypes):
    given, asked = dtypes
    matrix, x = blocks(64, 48, 16, 0.4), rows(3, 64).astype(dtypes[0])
    for form in packed(matrix):
        found = form(x.astype(given), asked)
        assert found.dtype == asked
        np.testing.assert_allclose(found.astype(np.float32), x.astype(np.float32) @ matrix, rtol=0.02, atol=0.02)


def test_rows_of_64_bits_lose_nothing():
    matrix = blocks(64, 48, 16, 0.4)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 64)))
        for form in packed(matrix):
            assert form(x).dtype == jnp.float64
            np.testing.assert_allclose(form(x), np.asarray(x) @ matrix.astype(np.float64), rtol=1e-12, atol=1e-12)


def test_what_is_portable_has_no_kernel():
    matrix = blocks(256, 256, 32, 0.1)
    assert any(hasattr(form, "kernel") for form in candidates(matrix))
    assert not any(hasattr(form, "kernel") for form in candidates(matrix, portable=True))
