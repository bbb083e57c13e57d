"""Polarized: nearest of all signs, at the price in energy that the FORMS rule is known to have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import Codebook, FixedSign, Polarized, blocks, elements, fragments, outputs
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import MATRIX, arrays, assert_nearest, energy, project


@pytest.mark.parametrize("view", [fragments(3, MATRIX), blocks(2, 2, MATRIX), outputs(MATRIX)], ids=str)
@given(x=arrays(3, 5))
def test_polarized_projection_is_nearest_of_all_signs(view, x):
    assert_nearest(Polarized(view), x)


@pytest.mark.parametrize(
    "m, lost, lost_by_sum, worse",
    [(4, 0.184, 0.195, 0.070), (8, 0.266, 0.280, 0.101), (16, 0.331, 0.342, 0.111), (32, 0.379, 0.388, 0.120)],
)
def test_polarizing_normal_fragments_loses_the_share_of_energy_that_theory_says(m, lost, lost_by_sum, worse):
    x = np.random.default_rng(0).normal(size=(40_000, m)).astype(np.float32)
    errors = [
        np.sum(np.square(x - project(Polarized(fragments(m, MATRIX), rule), x), dtype=np.float64), axis=1)
        for rule in ("energy", "sum")
    ]
    np.testing.assert_allclose([error.sum() / energy(x) for error in errors], [lost, lost_by_sum], atol=0.002)
    np.testing.assert_allclose(np.mean(errors[1] > errors[0]), worse, atol=0.004)
    assert np.all(errors[0] <= errors[1] * (1 + 1e-6))


@pytest.mark.parametrize("m, exact", [(1, True), (2, True), (3, False)])
@given(x=arrays(3, 5))
def test_the_sum_rule_is_nearest_for_pairs_and_says_that_it_is_not_beyond(m, exact, x):
    constraint = Polarized(fragments(m, MATRIX), "sum")
    assert constraint.exact(x.shape) is exact
    if exact:
        assert_nearest(constraint, x)


def test_the_sum_rule_keeps_the_side_of_larger_sum_and_the_positive_one_at_a_tie():
    x = jnp.array([[1.0, 1.0, 1.0, -2.0], [-1.0, -1.0, 2.0, 0.0], [1.0, 1.0, 1.0, -4.0]])
    expected = [[1, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, -4]]
    assert Polarized(outputs(MATRIX), rule="sum").project(x).tolist() == expected


VALUES = {"symmetric": [-2.0, -0.5, 0.0, 0.5, 2.0], "lopsided": [3.0, -1.0, 0.0, 1.0], "one side": [0.0, 0.5]}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@given(x=arrays(2, 6))
def test_sign_and_values_chosen_together_are_nearest_of_all_pairs(values, x):
    constraint = Polarized(fragments(3, MATRIX), within=Codebook(values))
    assert constraint.exact(x.shape)
    assert_nearest(constraint, x)


def test_sign_and_values_chosen_together_beat_first_the_sign_then_the_values():
    x = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    codebook = Codebook([-2.5, 0.0, 0.4, 1.2])
    first = project(codebook, project(Polarized(outputs(MATRIX)), x))
    joint = project(Polarized(outputs(MATRIX), within=codebook), x)
    assert np.all((joint >= 0).all(axis=1) | (joint <= 0).all(axis=1))
    assert energy(x - joint) < 0.95 * energy(x - first)


def test_a_side_without_values_is_zero_and_a_list_without_zero_sends_no_weight_of_the_kept_side_there():
    x = jnp.array([[-3.0, -2.0, 0.1], [0.1, 3.0, 0.0]])
    for rule in ("energy", "sum"):
        projected = Polarized(outputs(MATRIX), rule, within=Codebook([1.0, 4.0])).project(x)
        assert projected[0].tolist() in ([0, 0, 0], [0, 0, 1]) and projected[1].tolist() == [1, 4, 0]
    assert not Polarized(outputs(MATRIX), within=Codebook([1.0, 4.0])).exact(x.shape)
    assert not Polarized(outputs(MATRIX), "sum", within=Codebook([0.0, 4.0])).exact(x.shape)


@given(x=arrays(3, 5), signs=st.integers(0, 2**15 - 1))
def test_a_fixed_sign_projection_is_nearest(x, signs):
    signs = np.array([1 - 2 * (signs >> i & 1) for i in range(15)]).reshape(3, 5)
    assert_nearest(FixedSign(signs), x)


def test_fixed_signs_are_taken_a_group_from_its_larger_energy_zeros_included():
    x = jnp.array([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, -1.0]])
    fixed = FixedSign(view=outputs(MATRIX)).fit(x)
    assert fixed.signs.tolist() == [[-1] * 3, [1] * 3, [1] * 3] and fixed.signs.dtype == jnp.int8
    assert fixed.fit(-x) is fixed
    assert FixedSign(view=elements(MATRIX)).fit(x).signs.tolist() == [[1, -1, 1], [1, 1, 1], [1, 1, -1]]


def test_one_sign_may_serve_a_whole_column_and_zero_leaves_it_free():
    fixed = FixedSign(jnp.array([[1, -1, 0]]))
    assert fixed.project(jnp.array([[-1.0, 2.0, -3.0], [1.0, -2.0, 3.0]])).tolist() == [[0, 0, -3], [1, -2, 3]]


@pytest.mark.parametrize(
    "constraint, message",
    [
        (Polarized(outputs(MATRIX), "mean"), "rule must be 'energy' or 'sum', found 'mean'"),
        (Polarized(outputs(MATRIX), within=Codebook([])), "list of one number or more"),
        (FixedSign(jnp.ones(5)), r"signs of shape \(5,\) given for a leaf of shape \(3, 5\)"),
        (FixedSign(jnp.ones((3, 2))), r"signs of shape \(3, 2\)"),
    ],
)
def test_what_cannot_be_polarized_is_an_error_that_shows_it(constraint, message):
    with pytest.raises(ValueError, match=message):
        constraint.check(jnp.ones((3, 5)))


def test_signs_that_are_not_there_yet_are_an_error_that_says_how_to_get_them():
    with pytest.raises(ValueError, match="call fit"):
        FixedSign().project(jnp.ones(3))


@pytest.mark.parametrize("constraint", [FixedSign(view=fragments(2)), Polarized(fragments(4), "sum")], ids=str)
def test_the_variants_of_polarized_keep_the_contract(constraint):
    check_constraint(constraint, jax.random.normal(jax.random.key(0), (3, 1, 3, 5)))


@pytest.mark.parametrize("values", [[-1.0, 0.0, 0.5, 2.0], [0.5, 2.0]], ids=str)
def test_polarized_values_keep_the_contract(values):
    constraint = Polarized(fragments(4), within=Codebook(jnp.array(values)))
    check_constraint(constraint, jax.random.normal(jax.random.key(0), (7, 5)).astype(jnp.bfloat16))


def test_polarized_goes_by_energy_and_not_by_the_sum():
    x = jnp.array([[1.0, 1.0, 1.0, -2.0]])
    assert Polarized(outputs(MATRIX)).project(x).tolist() == [[0, 0, 0, -2]]


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e38])
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
    fixed = FixedSign(view=fragments(4, MATRIX)).footprint(jnp.ones((2, 6)))
    assert (fixed.values, fixed.value_bits, fixed.side_bits) == (12, 31, 4)


def test_polarized_values_are_codes_of_one_sign_and_the_list():
    constraint = Polarized(fragments(4, MATRIX), within=Codebook([-1.0, -0.5, -0.25, 0.0, 0.5]))  # three and zero
    footprint = constraint.footprint(jnp.full((2, 6), -0.5))
    assert (footprint.values, footprint.value_bits, footprint.side_bits) == (12, 2, 4 + 5 * 32)
