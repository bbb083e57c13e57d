"""Sums in lanes: the same numbers, whatever the length, with little rounding and little memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.constraints._lanes import (
    beside,
    descending,
    from_lanes,
    from_runs,
    in_lanes,
    in_runs,
    long_sum,
    max_in_lanes,
    max_of_runs,
    sums_in_lanes,
    sums_of_runs,
)

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
    np.testing.assert_array_equal(from_lanes(lanes, x.shape), x)
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
    (moved,) = sums_in_lanes((lanes + beside(numbers, lanes),), x.ndim)
    np.testing.assert_array_equal(moved, x.sum(-1, keepdims=True) + numbers * (n + missing) + fill * missing)


def test_a_long_sum_is_rounded_less_than_a_plain_one_could_be():
    x = jnp.full(3_000_001, 0.1, jnp.float32)
    exact = 3_000_001 * float(np.float32(0.1))
    for total in (sums_in_lanes((in_lanes(x, 0),), 1)[0][0], sums_of_runs([in_runs(x, 0)])[0][0, 0], long_sum(x)[0]):
        assert abs(float(total) - exact) < 1e-6 * exact


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("batch", SHAPES, ids=str)
def test_runs_hold_the_last_axis_and_sum_to_its_sums(batch, n):
    x = integers(*batch, n)
    runs = in_runs(jnp.asarray(x), 0)
    np.testing.assert_array_equal(from_runs(runs, x.shape), x)
    np.testing.assert_array_equal(sums_of_runs([runs])[0][..., 0], x.sum(-1, keepdims=True))
    largest = max_of_runs(in_runs(jnp.asarray(x), -jnp.inf))
    np.testing.assert_array_equal(largest[..., 0], x.max(-1, keepdims=True))


def test_sums_of_several_terms_are_differentiated_beside_a_count():
    x = jnp.asarray(integers(3, 500))

    def energy(x):
        lanes = in_lanes(x, 0)
        squares, count = sums_in_lanes((lanes * lanes, (lanes > 0).astype(jnp.int32)), x.ndim)
        return jnp.sum(squares * count)

    count = np.sum(np.asarray(x) > 0, axis=1, keepdims=True)
    np.testing.assert_allclose(jax.grad(energy)(x), 2 * np.asarray(x) * count)


def test_numbers_come_out_in_descending_order():
    x = np.array([[0.0, 3.0, 1e-40, np.inf], [2.0, 2.0, 0.5, 1.0]], np.float32)
    np.testing.assert_array_equal(descending(jnp.asarray(x)), -np.sort(-x))
