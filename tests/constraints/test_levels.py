"""Levels, codebooks and affine grids: what they hold, what bits mean, and how errors answer to them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxcomp.constraints import (
    AdditivePowersOfTwo,
    Affine,
    Binary,
    Codebook,
    Conductances,
    Layout,
    PowerOfTwo,
    Quantized,
    Sparse,
    Uniform,
    kernels,
    outputs,
    whole,
)
from jaxcomp.testing import check_constraint
from tests.constraints.nearest import MATRIX, arrays, assert_nearest, energy, project

WITH_BITS = {
    "uniform": lambda bits: Quantized(Uniform(bits), outputs(MATRIX)),
    "power of two": lambda bits: Quantized(PowerOfTwo(bits), outputs(MATRIX)),
    "additive": lambda bits: Quantized(AdditivePowersOfTwo(bits), outputs(MATRIX)),
    "affine": lambda bits: Affine(bits, outputs(MATRIX)),
}
with_bits = pytest.mark.parametrize("family", WITH_BITS.values(), ids=WITH_BITS)
WEIGHTS = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)


@with_bits
def test_the_derivative_to_bits_is_the_step_to_the_projection_at_one_bit_more(family):
    @jax.jit
    def both(bits):
        value, slope = jax.jvp(lambda bits: family(bits).project(WEIGHTS), (bits,), (jnp.float32(1),))
        return value, slope, family(bits).project(WEIGHTS), family(bits + 1).project(WEIGHTS)

    value, slope, here, finer = both(jnp.float32(3))
    np.testing.assert_array_equal(value, here)
    np.testing.assert_allclose(slope, finer - here, atol=1e-6)
    assert energy(slope) > 0


@with_bits
@pytest.mark.slow
def test_the_slope_of_a_squared_error_by_bits_has_the_sign_and_two_to_four_times_the_size_of_its_step(family):
    error = jax.jit(jax.value_and_grad(lambda bits: jnp.sum(jnp.square(WEIGHTS - family(bits).project(WEIGHTS)))))
    (now, slope), (finer, _) = error(3.0), error(4.0)
    step = finer - now
    assert step < 0 and 4 * step < slope < 2 * step
    moved = project(family(4.0), WEIGHTS) - project(family(3.0), WEIGHTS)
    np.testing.assert_allclose(slope, step - energy(moved), rtol=1e-3)


@with_bits
@pytest.mark.slow
def test_derivatives_to_bits_agree_under_vmap_and_leave_those_to_weights_alone(family):
    def loss(bits, x):
        return jnp.sum(jnp.sin(family(bits).project(x)))

    bits = jnp.array([2.0, 3.0, 4.0])
    together = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))(bits, WEIGHTS)
    to_bits = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(together[0], [to_bits(b, WEIGHTS) for b in bits], rtol=1e-4, atol=1e-4)
    member = project(family(3.0), WEIGHTS)
    np.testing.assert_allclose(together[1][1], family(3.0).tangent(member, jnp.cos(member)), rtol=1e-4, atol=1e-5)


def test_a_finer_projection_is_computed_only_where_bits_are_differentiated():
    def count(function, *args):
        text = str(jax.make_jaxpr(function)(*args).jaxpr)
        return text.count("scan[")

    def project(bits, x):
        return Quantized(Uniform(bits)).project(x)

    plain = count(project, 3.0, WEIGHTS)
    by_weights = count(lambda bits, x: jax.jvp(lambda x: project(bits, x), (x,), (x,)), 3.0, WEIGHTS)
    by_bits = count(lambda bits, x: jax.jvp(lambda bits: project(bits, x), (bits,), (bits,)), 3.0, WEIGHTS)
    assert plain == by_weights < by_bits


@pytest.mark.parametrize("levels", [2, 3, 5, 6, 8, 100])
def test_so_many_levels_as_bits_hold_even_if_they_are_not_whole(levels):
    bits = float(np.log2(2 * levels))
    x = np.linspace(0.001, 1, 5000, dtype=np.float32)
    assert np.unique(project(Quantized(Uniform(bits, zero=False)), x)).size == levels
    assert np.unique(project(Affine(float(np.log2(levels))), x)).size == levels
    below = project(Quantized(Uniform(bits - 0.01, zero=False)), x)
    assert np.unique(below).size == levels - 1


def test_bits_of_sums_are_rounded_down():
    found = [project(Quantized(AdditivePowersOfTwo(bits), outputs(MATRIX)), WEIGHTS) for bits in (4.0, 4.9, 5.0)]
    np.testing.assert_array_equal(found[0], found[1])
    assert energy(found[2] - found[1]) > 0


@pytest.mark.parametrize("bits, terms", [(5, 2), (7, 3)])
def test_an_additive_level_has_at_most_one_power_of_two_a_term(bits, terms):
    """The paper's levels: term i is 0 or 2^-(i + n j), j = 0, 1, 2."""
    powers = [[0, *(2.0 ** -(i + terms * j) for j in range(3))] for i in range(terms)]
    expected = np.array(sorted(sum(choice) for choice in itertools.product(*powers)), np.float32)
    levels = AdditivePowersOfTwo(bits)
    np.testing.assert_array_equal(levels.nearest(jnp.asarray(expected)), expected)
    assert np.unique(levels.nearest(jnp.linspace(0, 2, 20_001))).size == expected.size == 2 ** (bits - 1)


def test_a_conductance_never_is_zero_but_for_a_pruned_weight():
    x = np.append(WEIGHTS[0], 0).astype(np.float32)
    projected = np.abs(project(Quantized(Conductances(0.1, 1.0, 16)), x))
    assert projected[-1] == 0 and projected[:-1].min() > 0
    ratio = projected[:-1] / projected.max()
    assert np.isclose(ratio[:, None], np.linspace(0.1, 1, 16)[None, :], atol=1e-5).any(axis=1).all()


def test_conductances_go_by_their_ratio_unless_the_scale_is_fixed():
    siemens, unit = Conductances(1e-7, 1e-6, 16), Conductances(0.1, 1.0, 16)
    np.testing.assert_allclose(project(Quantized(siemens), WEIGHTS), project(Quantized(unit), WEIGHTS), rtol=1e-4)
    assert siemens.bits == 5
    fixed = project(Codebook(unit.values()), WEIGHTS)
    levels = np.linspace(0.1, 1, 16)
    nearest = levels[np.abs(np.abs(WEIGHTS)[..., None] - levels).argmin(axis=-1)]
    np.testing.assert_allclose(np.abs(fixed), nearest, atol=1e-6)
    np.testing.assert_array_equal(np.sign(fixed), np.sign(WEIGHTS))


@pytest.mark.slow
def test_an_error_may_be_differentiated_by_the_ends_of_a_cell():
    def error(low):
        return jnp.sum(jnp.square(WEIGHTS - Quantized(Conductances(low, 1.0, 8)).project(WEIGHTS)))

    slope = jax.grad(error)(0.1)
    np.testing.assert_allclose(slope, (error(0.1005) - error(0.0995)) / 0.001, rtol=0.2)


@pytest.mark.parametrize("values", [[0.0, 1.0], [-3.0, 0.25, 0.0, 2.0, 1.5], [0.0]], ids=str)
@given(x=arrays(3, 4))
def test_a_codebook_projection_is_nearest(values, x):
    assert Codebook(values).exact(x.shape)
    assert_nearest(Codebook(values), x)


@given(x=arrays(3, 4))
def test_a_codebook_without_zero_is_nearest_among_arrays_with_the_same_zeros(x):
    assert not Codebook([-1.0, 0.5]).exact(x.shape)
    assert_nearest(Codebook([-1.0, 0.5]), x)


def test_values_of_a_codebook_are_learnt_through_the_weights_that_take_them():
    x = jnp.array([0.9, 1.2, -2.0, 0.0])
    slope = jax.grad(lambda values: jnp.sum(jnp.square(x - Codebook(values).project(x))))(jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(slope, [-2 * (0.9 - 1) - 2 * (1.2 - 1), -2 * (-2 + 1)], rtol=1e-5)


def test_a_codebook_is_stored_as_codes_and_its_list():
    found = Codebook([1.0, 2.0, 3.0, 4.0, 5.0]).footprint(jnp.ones((3, 5)))
    assert (found.values, found.value_bits, found.side_bits) == (15, 3, 5 * 32)


def test_the_error_of_an_affine_grid_is_near_the_least_of_all_codes():
    """The figures that the docstring of `Affine` states. The codes of a best fit do not fall as weights rise."""
    x = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    centred = np.sort(x.astype(np.float64), axis=1)
    centred -= centred.mean(axis=1, keepdims=True)
    for bits, (share, mean, most) in {1: (1, 1.001, 1.01), 2: (1, 1.001, 1.01), 3: (0.97, 1.005, 1.29)}.items():
        codes = np.array(list(itertools.combinations_with_replacement(range(2**bits), 6)), np.float64)
        codes -= codes.mean(axis=1, keepdims=True)
        length = np.linalg.norm(codes, axis=1)
        rays = codes[length > 0] / length[length > 0, None]
        least = np.sum(centred**2, axis=1) - np.max(centred @ rays.T, axis=1) ** 2
        projected = project(Affine(float(bits), outputs(MATRIX)), x)
        error = np.sum((x - np.asarray(projected, np.float64)) ** 2, axis=1)
        ratio = (error + 1e-9) / (least + 1e-9)
        assert ratio.min() > 1 - 1e-4
        assert np.mean(ratio < 1 + 1e-4) >= share and error.sum() / least.sum() < mean and ratio.max() < most


@pytest.mark.slow
def test_an_affine_grid_follows_weights_that_are_not_symmetric():
    x = np.random.default_rng(0).uniform(2, 3, size=(4, 512)).astype(np.float32)
    affine, symmetric = (project(c, x) for c in (Affine(4.0, outputs(MATRIX)), WITH_BITS["uniform"](4.0)))
    assert energy(x - affine) < energy(x - symmetric) / 20
    np.testing.assert_allclose(energy(x - affine), x.size / 16**2 / 12, rtol=0.1)  # 16 cells of width 1/16


def test_pruned_weights_stay_zero_and_do_not_move_an_affine_grid():
    kept = np.random.default_rng(0).uniform(2, 3, size=(1, 20)).astype(np.float32)
    pruned = np.concatenate([kept, np.zeros((1, 5), np.float32)], axis=1)
    projected = project(Affine(2.0), pruned)
    np.testing.assert_array_equal(projected[0, 20:], 0)
    np.testing.assert_allclose(projected[:, :20], project(Affine(2.0), kept), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e36])
def test_an_affine_grid_scales_with_the_leaf(scale):
    found = project(Affine(3.0, outputs(MATRIX)), np.float32(scale) * WEIGHTS)
    np.testing.assert_allclose(found / np.float32(scale), project(Affine(3.0, outputs(MATRIX)), WEIGHTS), atol=1e-5)


def test_affine_weights_are_stored_as_codes_a_scale_and_an_offset_a_group():
    found = Affine(4, outputs(MATRIX)).footprint(jnp.ones((3, 5)))
    assert (found.values, found.value_bits, found.side_bits) == (15, 4, 3 * 2 * 32)


COMPLEX = Layout("ioc")  # real and imaginary parts are the two taps


def test_complex_binary_weights_are_binary_weights_whose_parts_are_taps():
    x = np.random.default_rng(0).normal(size=(200, 100, 2)).astype(np.float32)
    for view in (whole(COMPLEX), outputs(COMPLEX)):
        projected = project(Quantized(Binary(), view), x)
        np.testing.assert_array_equal(np.sign(projected), np.sign(x))  # the quadrant of each weight
        np.testing.assert_allclose(energy(x - projected) / energy(x), 1 - 2 / np.pi, atol=0.01)
    alpha = np.abs(x).sum(axis=2).mean(axis=0) / 2  # of every output, over both parts
    np.testing.assert_allclose(np.abs(projected), np.broadcast_to(alpha[None, :, None], x.shape), rtol=1e-4)


def test_complex_weights_are_pruned_with_both_parts():
    x = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    projected = project(Sparse(0.2, kernels(COMPLEX)), x)
    kept = np.abs(x[..., 0] + 1j * x[..., 1]) >= np.sort(np.hypot(x[..., 0], x[..., 1]).ravel())[-6]
    np.testing.assert_array_equal(projected, x * kept[..., None])


@pytest.mark.parametrize(
    "constraint, message",
    [
        (Affine(0.5), r"bits must lie in \[1, 16\], found 0.5"),
        (Codebook(2.0), r"values must be a list of one number or more, found shape \(\)"),
        (Codebook([1.0, float("inf")]), "values must lie in .* found inf"),
        (Quantized(AdditivePowersOfTwo(8)), r"bits must lie in \[2, 7\], found 8"),
        (Quantized(Conductances(0.0, 1.0, 4)), "low must lie in"),
        (Quantized(Conductances(1.0, 0.5, 4)), "high must lie in"),
        (Quantized(Conductances(0.1, 1.0, 1)), r"states must lie in \[2, 32768\], found 1"),
    ],
)
def test_what_cannot_be_is_an_error_that_shows_it(constraint, message):
    with pytest.raises(ValueError, match=message):
        constraint.check(jnp.ones(3))


@pytest.mark.parametrize(
    "constraint, dtype",
    [
        (Affine(3.0, outputs()), jnp.bfloat16),
        (Affine(2, whole()), jnp.float32),
        (Codebook(jnp.array([-1.0, 0.0, 0.3, 2.0])), jnp.bfloat16),
        (Quantized(AdditivePowersOfTwo(4), outputs()), jnp.float32),
        (Quantized(Conductances(0.1, 1.0, 8), outputs()), jnp.bfloat16),
        (Quantized(Uniform(2.585, zero=False), outputs()), jnp.float32),
    ],
    ids=str,
)
@pytest.mark.slow
def test_every_kind_of_levels_keeps_the_contract(constraint, dtype):
    check_constraint(constraint, jax.random.normal(jax.random.key(0), (3, 1, 3, 5)).astype(dtype))
