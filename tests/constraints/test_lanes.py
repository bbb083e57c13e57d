"""Sums in lanes: the same numbers, whatever the length, with little rounding and little memory."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.constraints._lanes import beside, in_lanes, max_in_lanes, sum_in_lanes, sums_in_lanes

LENGTHS = [1, 5, 32, 33, 500, 512, 513, 20_000]
SHAPES = [(), (3,), (2, 3)]


def integers(*shape):
    return np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("batch", SHAPES, ids=str)
def test_sums_and_maxima_are_those_of_the_last_axis(batch, n):
    x = integers(*batch, n)
    lanes = in_lanes(jnp.asarray(x), 0)
    total, largest = x.sum(-1, keepdims=True), x.max(-1, keepdims=True)
    np.testing.assert_array_equal(sum_in_lanes(lanes, x.ndim), total)
    np.testing.assert_array_equal(max_in_lanes(in_lanes(jnp.asarray(x), -jnp.inf), x.ndim), largest)
    both = sums_in_lanes((lanes, lanes * lanes), x.ndim)
    np.testing.assert_array_equal(both, [total, np.square(x).sum(-1, keepdims=True)])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("batch", SHAPES, ids=str)
def test_a_number_of_each_row_stands_beside_all_its_lanes(batch, n):
    x, fill = jnp.asarray(integers(*batch, n)), 7
    numbers = jnp.arange(x.size // n, dtype=jnp.float32).reshape(*batch, 1)
    lanes = in_lanes(x, fill)
    missing = lanes.size // (x.size // n) - n
    moved = sum_in_lanes(lanes + beside(numbers, lanes), x.ndim)
    np.testing.assert_array_equal(moved, x.sum(-1, keepdims=True) + numbers * (n + missing) + fill * missing)


def test_a_long_sum_is_rounded_less_than_a_plain_one_could_be():
    x = jnp.full(3_000_001, 0.1, jnp.float32)
    exact = 3_000_001 * float(np.float32(0.1))
    assert abs(float(sum_in_lanes(in_lanes(x, 0), 1)[0]) - exact) < 1e-6 * exact
