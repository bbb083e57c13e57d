"""Rounding up and the largest term: what smooth mode promises about both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.hwmodels import Exact, Smooth

NUMBERS = st.floats(0, 1e4, width=32, allow_subnormal=False)
WIDTHS, OFFSETS, POWERS = st.floats(0.01, 10), st.floats(0.05, 0.5), st.floats(4, 256)


@given(x=NUMBERS)
def test_exact_ceil_is_the_integer_above(x):
    assert float(Exact().ceil(x)) == np.ceil(np.float32(x))


@given(x=NUMBERS, width=WIDTHS, offset=OFFSETS)
def test_smooth_ceil_is_at_most_one_below_and_never_above(x, width, offset):
    x, mode = np.float32(x), Smooth(width, offset)
    found, above = float(mode.ceil(x)), float(np.ceil(x))
    assert above - 1 - 1e-3 <= found <= above + 1e-6 * above


@given(n=st.integers(-1000, 1000), width=WIDTHS, offset=OFFSETS)
def test_smooth_ceil_leaves_integers_alone(n, width, offset):
    assert float(Smooth(width, offset).ceil(float(n))) == pytest.approx(n, abs=2e-7)  # XLA's older tangents round


@given(x=st.floats(0, 100, width=32), step=st.floats(0, 3, width=32), width=st.floats(0.02, 10), offset=OFFSETS)
def test_smooth_ceil_never_falls(x, step, width, offset):
    low, high = Smooth(width, offset).ceil(jnp.array([x, x + step], jnp.float32))
    assert low <= high + 1e-5


def test_a_large_width_makes_ceil_the_identity():
    x = jnp.linspace(0, 5, 101)
    np.testing.assert_allclose(Smooth(width=100.0).ceil(x), x, atol=1e-3)


@given(terms=st.lists(NUMBERS, min_size=1, max_size=6), power=POWERS)
def test_smooth_maximum_lies_between_the_largest_and_its_documented_multiple(terms, power):
    largest, found = max(terms), float(Smooth(power=power).maximum(*map(jnp.float32, terms)))
    assert largest * (1 - 1e-5) <= found <= largest * len(terms) ** (1 / power) * (1 + 1e-5)
    assert float(Exact().maximum(*map(jnp.float32, terms))) == np.float32(largest)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
def test_smooth_maximum_neither_vanishes_nor_overflows(scale):
    found = float(Smooth().maximum(jnp.float32(scale), jnp.float32(scale / 2), jnp.float32(0)))
    assert found == pytest.approx(scale, rel=1e-5)


def test_equal_terms_reach_the_bound():
    assert float(Smooth(power=64.0).maximum(1.0, 1.0, 1.0)) == pytest.approx(3 ** (1 / 64), rel=1e-6)


def test_zeros_have_maximum_zero_and_a_finite_slope():
    value, slope = jax.value_and_grad(lambda x: Smooth().maximum(x, 0.0 * x))(0.0)
    assert value == 0 and np.isfinite(slope)


@given(x=st.floats(0.0625, 50, width=32))
def test_slopes_of_smooth_ceil_are_differences(x):
    mode, step = Smooth(width=0.2, offset=0.5), 1e-2
    if abs(x - round(x)) < 2 * step:  # at an integer one rise meets the next
        return
    slope = jax.grad(mode.ceil)(x)
    up, down = mode.ceil(jnp.array([x + step, x - step], jnp.float32))
    assert float(slope) == pytest.approx(float(up - down) / (2 * step), rel=0.01, abs=1e-2)


def test_slopes_of_smooth_maximum_are_shares_of_the_terms():
    slopes = jax.grad(lambda terms: Smooth().maximum(*terms))(jnp.array([3.0, 3.0, 1.0]))
    np.testing.assert_allclose(slopes, [2 ** (1 / 64 - 1)] * 2 + [0], atol=1e-5)


def test_width_offset_and_power_may_be_traced_and_batched():
    @jax.jit
    @jax.vmap
    def both(mode):
        return mode.ceil(2.3), mode.maximum(1.0, 2.0)

    modes = Smooth(jnp.array([0.02, 0.3]), jnp.array([0.1, 0.4]), jnp.array([64.0, 8.0]))
    ceil, largest = both(modes)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: float(x[i]), modes)
        np.testing.assert_allclose((ceil[i], largest[i]), (one.ceil(2.3), one.maximum(1.0, 2.0)), rtol=1e-5)
