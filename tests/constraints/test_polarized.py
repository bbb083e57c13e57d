"""Polarized: nearest of all signs, at the price in energy that the FORMS rule is known to have."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxcomp.constraints import Polarized, blocks, fragments, outputs
from tests.constraints.nearest import MATRIX, arrays, assert_nearest, energy, project


@pytest.mark.parametrize("view", [fragments(3, MATRIX), blocks(2, 2, MATRIX), outputs(MATRIX)], ids=str)
@given(x=arrays(3, 5))
def test_polarized_projection_is_nearest_of_all_signs(view, x):
    assert_nearest(Polarized(view), x)


@pytest.mark.parametrize("m, lost", [(4, 0.184), (8, 0.266), (16, 0.331), (32, 0.379)])
def test_polarizing_normal_fragments_loses_the_share_of_energy_that_theory_says(m, lost):
    x = np.random.default_rng(0).normal(size=(20_000, m)).astype(np.float32)
    error = energy(x - project(Polarized(fragments(m, MATRIX)), x))
    np.testing.assert_allclose(error / energy(x), lost, atol=0.01)


def test_polarized_goes_by_energy_and_not_by_the_sum():
    x = jnp.array([[1.0, 1.0, 1.0, -2.0]])
    assert Polarized(outputs(MATRIX)).project(x).tolist() == [[0, 0, 0, -2]]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_polarized_weighs_energies_whose_squares_vanish_or_overflow(scale):
    x = scale * jnp.array([[1.0, -3.0, 1.0]])
    np.testing.assert_array_equal(Polarized(outputs(MATRIX)).project(x), x * jnp.array([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_polarized_weight_stops_at_zero_on_its_way_to_the_other_sign(dtype):
    x = jnp.array([[1.0, 2.0, 0.0], [-1.0, 0.0, -2.0], [0.0, 0.0, 0.0]], dtype)
    v = jnp.array([[-1.001, -1.0, -1.0], [1.001, 1.0, 1.0], [-1.0, 1.0, 0.0]])  # a wider dtype than bfloat16
    moved = x.astype(jnp.float32) + Polarized(outputs(MATRIX)).tangent(x, v)
    np.testing.assert_array_equal(moved, [[0, 1, 0], [0, 0, -1], [0, 1, 0]])


def test_polarized_weights_are_magnitudes_and_a_sign_a_group():
    footprint = Polarized(fragments(4, MATRIX)).footprint(jnp.ones((2, 6)))  # two fragments of 4 and two of 2
    assert (footprint.values, footprint.value_bits, footprint.side_bits) == (12, 31, 4)
    assert Polarized(fragments(4, MATRIX)).footprint(jnp.ones((2, 6), jnp.bfloat16)).value_bits == 15
