"""Quantized: nearest of all codes where it says so, near where it does not, and levels that are what they are said."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.constraints import (
    AdditivePowersOfTwo,
    Binary,
    Conductances,
    PowerOfTwo,
    Quantized,
    Ternary,
    Uniform,
    blocks,
    outputs,
    whole,
)
from tests.constraints.nearest import MATRIX, arrays, assert_nearest, energy, magnitudes, project

FAMILIES = {
    "uniform": Uniform,
    "uniform without zero": lambda bits: Uniform(bits, zero=False),
    "power of two": PowerOfTwo,
    "power of two without zero": lambda bits: PowerOfTwo(bits, zero=False),
    "additive powers of two": AdditivePowersOfTwo,
    "conductances": lambda bits: Conductances(0.1, 1.0, 2 ** (bits - 1)),
}
LEVELS = [family(bits) for family in FAMILIES.values() for bits in (2, 4)] + [Binary(), Ternary()]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@pytest.mark.parametrize("view", [whole(MATRIX), outputs(MATRIX), blocks(2, 2, MATRIX)], ids=str)
@pytest.mark.parametrize("levels", [Binary(), Ternary()], ids=str)
@given(x=arrays(2, 3))
def test_binary_and_ternary_projections_are_nearest_of_all_codes(levels, view, x):
    assert_nearest(Quantized(levels, view), x)
    assert Quantized(levels, view).exact(x.shape)


@families
def test_the_error_of_alternating_scales_is_near_the_least_of_all_codes(family):
    """The figures that the docstring of `Quantized` states, over 400 draws of 6 normal weights."""
    x = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    for bits, (share, mean, most) in {2: (0.995, 1.001, 1.01), 3: (0.99, 1.001, 1.01), 4: (0.97, 1.005, 1.41)}.items():
        codes = np.array(list(itertools.product(magnitudes(family(bits)), repeat=6)), np.float32)
        codes = codes[codes.any(axis=1)]
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        best = np.concatenate([codes[np.argmax(rows @ codes.T, axis=1)] for rows in np.split(np.abs(x), 8)])
        least = np.sum((np.abs(x) - best * np.sum(best * np.abs(x), axis=1, keepdims=True)) ** 2, axis=1)
        error = np.sum(
            (x - np.asarray(project(Quantized(family(float(bits)), outputs(MATRIX)), x), np.float64)) ** 2, axis=1
        )
        ratio = error / least
        assert ratio.min() > 1 - 1e-4
        assert np.mean(ratio < 1 + 1e-4) >= share and error.sum() / least.sum() < mean and ratio.max() < most


@families
def test_a_projection_is_its_own_projection_at_every_number_of_bits(family):
    x = jax.random.normal(jax.random.key(0), (20, 50))
    for bits in range(2, 8 if family is AdditivePowersOfTwo else 17):
        quantized = Quantized(family(float(bits)), outputs(MATRIX))
        once = project(quantized, x)
        np.testing.assert_allclose(project(quantized, once), once, rtol=0, atol=2e-6)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_every_level_is_its_own_nearest_and_no_other_number_is_one(levels):
    expected = np.asarray(magnitudes(levels), np.float32)
    between = np.linspace(0, 1.5 * expected.max(), 501, dtype=np.float32)
    np.testing.assert_allclose(levels.nearest(jnp.asarray(expected)), expected, rtol=2e-7)
    found = np.asarray(levels.nearest(jnp.asarray(between)))
    assert np.isclose(found[:, None], expected, rtol=2e-7, atol=0).any(axis=1).all()
    np.testing.assert_allclose(np.abs(found - between), np.abs(between[:, None] - expected).min(axis=1), atol=1e-6)


@pytest.mark.parametrize("bits", [2.0, 5.0, 8.0])
def test_powers_of_two_are_exact(bits):
    projected = project(Quantized(PowerOfTwo(bits)), jax.random.normal(jax.random.key(0), (200,)))
    mantissas = np.unique(np.abs(np.frexp(projected[projected != 0])[0]))
    assert mantissas.size == 1  # all are one scale, shifted


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_exact_zeros_stay_zero_under_all_levels(levels):
    projected = project(Quantized(levels), jnp.array([0.0, 3.0, -0.0, -2.0, 1.0]))
    assert projected[0] == projected[2] == 0
    assert projected[1] > 0 > projected[3]


@given(x=arrays(2, 4), exponent=st.sampled_from([-100, -3, 20, 100]))
def test_projection_scales_with_the_leaf(x, exponent):
    quantized = Quantized(Uniform(3), outputs(MATRIX))
    scaled = project(quantized, np.ldexp(x, exponent))
    np.testing.assert_array_equal(scaled, np.ldexp(project(quantized, x), exponent))


@pytest.mark.parametrize("levels", [Uniform(4), PowerOfTwo(4), Binary(), Ternary()], ids=str)
def test_weights_near_the_largest_float_do_not_vanish(levels):
    x = jnp.array([1.0, 0.5, -0.25, -0.75])
    large = np.asarray(project(Quantized(levels), 2e38 * x))
    np.testing.assert_allclose(large / 2e38, project(Quantized(levels), x), rtol=1e-6)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_the_derivative_of_a_projection_holds_the_levels_fixed_and_is_the_tangent(levels):
    quantized = Quantized(levels, outputs(MATRIX))
    x, v = jax.random.normal(jax.random.key(0), (2, 3, 5)).at[0, 0].set(0)
    derivatives = jax.jit(lambda x, v: (jax.jvp(quantized.project, (x,), (v,)), jax.vjp(quantized.project, x)[1](v)))
    (member, forward), (backward,) = derivatives(x, v)
    tangent = quantized.tangent(member, v)
    np.testing.assert_allclose(forward, tangent, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(backward, tangent, rtol=1e-5, atol=1e-6)  # a projection on a ray is symmetric


def test_bits_are_traced_once_and_vmapped_over():
    x, traces = jax.random.normal(jax.random.key(0), (8, 8)), []

    @jax.jit
    def quantize(bits):
        traces.append(bits)
        return Quantized(Uniform(bits)).project(x)

    loop = [quantize(bits) for bits in (2.0, 4.0, 8.0)]
    assert len(traces) == 1
    several = Quantized(Uniform(jnp.array([2.0, 4.0, 8.0])))
    together = jax.jit(jax.vmap(lambda quantized: quantized.project(x)))(several)
    np.testing.assert_allclose(together, jnp.stack(loop), atol=1e-6)
    errors = [energy(x - z) for z in loop]
    assert errors == sorted(errors, reverse=True)


def test_quantized_weights_are_stored_as_codes_and_a_scale_a_group():
    found = Quantized(Uniform(4), outputs(MATRIX)).footprint(jnp.ones((3, 5)))
    assert (found.values, found.value_bits, found.side_bits, found.bits) == (15, 4, 3 * 32, 15 * 4 + 3 * 32)


@pytest.mark.parametrize(
    "levels, message",
    [
        (Uniform(1), r"bits must lie in \[2, 16\], found 1"),
        (Uniform(0, zero=False), r"bits must lie in \[1, 16\], found 0"),
        (PowerOfTwo(17), r"bits must lie in \[2, 16\], found 17"),
        (Uniform(float("nan")), r"bits must lie in \[2, 16\], found nan"),
        (8, r"levels must be Levels, as Uniform.* found 8"),
    ],
)
def test_levels_that_cannot_be_are_an_error_that_shows_them(levels, message):
    with pytest.raises(ValueError, match=message):
        Quantized(levels).check(jnp.ones(3))
