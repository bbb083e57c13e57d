"""Tied: the least-squares fit of shared values and of shared magnitudes."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxcomp.constraints import Tied, blocks, diagonals, fragments, outputs
from tests.constraints.nearest import MATRIX, arrays, assert_nearest, energy, project


@pytest.mark.parametrize("signs", ["tied", "free"])
@pytest.mark.parametrize("view", [diagonals(2, MATRIX), fragments(3, MATRIX), blocks(2, 2, MATRIX)], ids=str)
@given(x=arrays(3, 5))
def test_tied_projection_is_nearest_in_least_squares(view, signs, x):
    assert_nearest(Tied(view, signs), x)


def test_tied_diagonals_are_block_circulant():
    x = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    tiles = np.asarray(project(Tied(diagonals(3, MATRIX)), x)).reshape(3, 3, 2, 3).transpose(0, 2, 1, 3)
    for block in tiles.reshape(-1, 3, 3):
        np.testing.assert_array_equal(block, np.stack([np.roll(block[:, 0], j) for j in range(3)], axis=1))


@pytest.mark.parametrize("b", [4, 8, 16])
def test_block_circulant_projection_of_normal_weights_loses_all_but_one_bth_of_the_energy(b):
    x = np.random.default_rng(0).normal(size=(16 * b, 16 * b)).astype(np.float32)
    error = energy(x - project(Tied(diagonals(b)), x))
    np.testing.assert_allclose(error / energy(x), 1 - 1 / b, atol=0.01)


def test_tied_weights_average_only_what_is_real_in_uneven_groups():
    projected = Tied(blocks(2, 2, MATRIX)).project(jnp.array([[1.0, 3.0, 5.0], [1.0, 3.0, 7.0], [2.0, 4.0, 9.0]]))
    np.testing.assert_array_equal(projected, [[2, 2, 6], [2, 2, 6], [3, 3, 9]])


def test_free_signs_survive_an_update_that_would_take_the_magnitude_past_zero():
    tied = Tied(outputs(MATRIX), signs="free")
    x, v = jnp.array([[2.0, -2.0]]), jnp.array([[-1.0, 3.0]])
    assert tied.tangent(x, v).tolist() == [[-2.0, 2.0]]
    assert tied.tangent(x, v / 4).tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize(
    "signs, shape, stored",
    [("tied", (4, 4), (10, 32, 0)), ("free", (4, 4), (10, 31, 16)), ("tied", (6, 6), (12, 32, 0))],
)
def test_tied_weights_are_stored_once_a_group_and_padding_not_at_all(signs, shape, stored):
    found = Tied(diagonals(3), signs).footprint(jnp.ones(shape))
    assert (found.values, found.value_bits, found.side_bits) == stored


def test_unknown_signs_are_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'tied' or 'free', found 'loose'"):
        Tied(outputs(), "loose").check(jnp.ones((2, 2)))
