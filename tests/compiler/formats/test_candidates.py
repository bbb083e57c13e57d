"""What every packed matrix owes: the matrix itself, and its product under all of JAX's transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.compiler.formats import Format, candidates
from jaxcomp.compiler.formats._blocks import Blocks
from jaxcomp.compiler.formats._circulant import Circulant
from jaxcomp.compiler.formats._coded import Coded
from jaxcomp.compiler.formats._scattered import Scattered
from tests.compiler.formats.matrices import block_columns, circulant, quantized, rows, structured

MATRICES = structured()


FEW = "strips", "blocks", "strips of inputs", "unstructured", "circulant"


@functools.cache
def packed(name):
    found = candidates(MATRICES[name]) + candidates(MATRICES[name], portable=True)
    assert found, f"nothing suits {name}"
    return list({type(form): form for form in reversed(found)}.values())  # the first of every kind


def coded(matrix=None, width=64):
    """As `candidates` would make it of a large matrix."""
    matrix = quantized(96, 2 * width) if matrix is None else matrix
    scale = np.abs(matrix).max(axis=0) / 127
    codes = np.rint(matrix / scale).astype(np.int8)
    return Coded(jnp.asarray(codes.reshape(len(codes), -1, width).swapaxes(0, 1)), jnp.asarray(scale))


def every(quick=tuple(MATRICES)):
    return [
        pytest.param(name, id=name.replace(" ", "-"), marks=() if name in quick else pytest.mark.slow)
        for name in MATRICES
    ]


@pytest.mark.parametrize("name", every())
def test_every_candidate_holds_the_matrix_to_the_last_bit(name):
    for form in packed(name):
        np.testing.assert_array_equal(form.dense(), MATRICES[name])
        assert form.dense().dtype == np.float32


@pytest.mark.parametrize("name", every())
@pytest.mark.parametrize("batch", [(3, 5), *(pytest.param(b, marks=pytest.mark.slow) for b in ((), (1,)))], ids=str)
def test_the_product_is_that_of_the_dense_matrix(name, batch):
    x = rows(*batch, MATRICES[name].shape[0])
    for form in packed(name):
        found = jax.jit(lambda form, x: form(x))(form, x)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, x @ MATRICES[name], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", every(FEW))
def test_vmap_over_rows_is_the_product_of_all_rows(name):
    x = rows(4, MATRICES[name].shape[0])
    for form in packed(name):
        np.testing.assert_allclose(
            jax.jit(lambda form, x: jax.vmap(form)(x))(form, x), x @ MATRICES[name], rtol=1e-5, atol=2e-5
        )


@pytest.mark.parametrize("name", every(FEW))
def test_derivatives_both_ways_are_those_of_the_dense_product(name):
    matrix = MATRICES[name]
    x, tangent, cotangent = rows(3, len(matrix)), rows(3, len(matrix), seed=2), rows(3, matrix.shape[1], seed=3)
    for form in packed(name):
        _, forward = jax.jit(lambda form, *at: jax.jvp(form, at[:1], at[1:]))(form, x, tangent)
        np.testing.assert_allclose(forward, tangent @ matrix, rtol=1e-5, atol=2e-5)
        (backward,) = jax.jit(lambda form, x, y: jax.vjp(form, x)[1](y))(form, x, cotangent)
        np.testing.assert_allclose(backward, cotangent @ matrix.T, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("name", every(FEW))
def test_a_matrix_in_bfloat16_gives_the_dtype_that_is_asked_for(name):
    matrix = MATRICES[name].astype(jnp.bfloat16)
    x = rows(3, len(matrix)).astype(jnp.bfloat16)
    exact = x.astype(np.float32) @ matrix.astype(np.float32)
    for form in candidates(matrix)[:1]:
        np.testing.assert_array_equal(form.dense(), matrix)
        found, wide = jax.jit(lambda form, x: (form(x), form(x, jnp.float32)))(form, x)
        assert found.dtype == jnp.bfloat16
        assert wide.dtype == jnp.float32
        np.testing.assert_allclose(wide, exact, atol=2e-3)
        np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize("name", every(FEW))
def test_a_stack_shares_one_structure_and_a_scan_takes_its_layers_in_turn(name):
    layers = [structured(seed)[name] for seed in range(3)]
    stack = np.stack(layers)
    x = rows(2, stack.shape[1])
    form = candidates(stack, portable=True)[0]
    np.testing.assert_array_equal(form.dense(), stack)
    _, scanned = jax.lax.scan(lambda carry, layer: (carry, layer(x)), 0, form)
    np.testing.assert_allclose(scanned, x @ stack, rtol=1e-5, atol=2e-5)
    mapped = jax.jit(jax.vmap(lambda layer: layer(x)))(form)
    np.testing.assert_allclose(mapped, scanned, rtol=1e-5, atol=2e-5)


def test_stacks_of_stacks_keep_their_axes():
    stack = np.stack([structured(seed)["blocks"] for seed in range(4)]).reshape(2, 2, 512, 512)
    for form in candidates(stack):
        np.testing.assert_array_equal(form.dense(), stack)
        assert all(leaf.shape[:2] == (2, 2) for leaf in jax.tree.leaves(form))


@pytest.mark.parametrize("name", every())
def test_packed_bytes_are_fewer_than_dense_ones(name):
    smallest = min(form.nbytes for form in packed(name))
    assert smallest < 0.6 * MATRICES[name].nbytes


def test_a_full_matrix_suits_no_format():
    assert candidates(rows(256, 256)) == []


def test_weights_that_are_not_finite_are_not_lost():
    matrix = MATRICES["strips"].copy()
    matrix[3, 5] = np.inf
    assert all(np.array_equal(form.dense(), matrix) for form in candidates(matrix))
    matrix[3, 5] = np.nan  # equal to nothing, so nothing is known to hold it
    assert candidates(matrix) == []


def test_values_may_change_without_another_trace():
    form, traces = packed("strips")[0], []

    @jax.jit
    def product(form: Format, x):
        traces.append(1)
        return form(x)

    x = rows(2, 256)
    doubled = jax.tree.map(lambda leaf: 2 * leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, form)
    np.testing.assert_allclose(2 * product(form, x), product(doubled, x), rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("side", [8, 32, 64])
def test_circulant_blocks_are_found_whatever_their_side(side):
    matrix = circulant(128, 192, side)
    (form,) = (form for form in candidates(matrix, portable=True) if isinstance(form, Circulant))
    assert form.first.shape == (128 // side, 192 // side, side)
    x = rows(5, 128)
    np.testing.assert_allclose(form(x), x @ matrix, rtol=1e-5, atol=1e-5)


def test_a_block_that_is_circulant_but_for_one_weight_is_none():
    matrix = MATRICES["circulant"].copy()
    matrix[7, 9] += 1
    assert not any(isinstance(form, Circulant) for form in candidates(matrix, portable=True))


def test_codes_times_scales_give_the_product_and_its_derivative():
    form = coded()
    matrix, x = form.dense(), rows(3, 96)
    np.testing.assert_allclose(form(x), x @ matrix, rtol=1e-5, atol=1e-5)
    (backward,) = jax.vjp(form, x)[1](jnp.ones((3, 128)))
    np.testing.assert_allclose(backward, np.ones((3, 128)) @ matrix.T, rtol=1e-5, atol=1e-4)
    assert form(x.astype(jnp.bfloat16)).dtype == jnp.float32  # as the scales are


@pytest.mark.slow
@pytest.mark.parametrize("largest", [1, 7, 127])
def test_scales_are_read_from_the_weights_to_the_last_bit(largest):
    matrix = quantized(2048, 2048, largest)
    (form,) = (form for form in candidates(matrix, portable=True) if isinstance(form, Coded))
    np.testing.assert_array_equal(form.dense(), matrix)
    assert form.nbytes < 0.26 * matrix.nbytes


@pytest.mark.slow
def test_a_large_matrix_with_more_levels_than_a_byte_holds_is_not_coded():
    assert not any(isinstance(form, Coded) for form in candidates(quantized(2048, 2048, 200), portable=True))


def test_blocks_are_found_and_none_is_filled_up():
    matrix = MATRICES["blocks"]
    (form,) = (form for form in candidates(matrix, portable=True) if isinstance(form, Blocks))
    assert form.values.shape == (26, 32, 32) and form.values.nbytes == 4 * np.count_nonzero(matrix)


def test_strips_of_inputs_that_share_their_outputs_are_found():
    matrix = np.ascontiguousarray(block_columns(512, 512, 64, 0.1).T)
    (form,) = (form for form in candidates(matrix, portable=True) if isinstance(form, Scattered))
    assert form.values.shape == (8, 51, 64)


def test_whole_numbers_are_added_up_as_whole_numbers():
    matrix = np.rint(50 * MATRICES["blocks"]).astype(np.int8)
    x = np.random.default_rng(1).integers(-100, 100, size=(3, 512)).astype(np.int8)
    for form in candidates(matrix):
        found = form(x, jnp.int32)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, x.astype(np.int32) @ matrix.astype(np.int32))


def test_one_weight_that_is_not_finite_stays_in_its_own_output():
    matrix = circulant(128, 192, 16)
    matrix[:] = np.where(matrix == matrix[0, 0], np.inf, matrix)
    assert not any(isinstance(form, Circulant) for form in candidates(matrix, portable=True))
